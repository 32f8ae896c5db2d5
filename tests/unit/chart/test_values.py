"""The chart's values: every one documented, typed, and refused with its name when it is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tools import chart_values

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "tokenservice-operator"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


def nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def declared(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths that the schema names, as deep as values.yaml documents them."""
    for key, child in schema.get("properties", {}).items():
        inner = (*path, key)
        if "properties" in child and ".".join(inner) not in {item.path for item in documented()}:
            yield from declared(child, inner)
        else:
            yield ".".join(inner)


def documented() -> tuple[chart_values.Value, ...]:
    return chart_values.values((CHART / "values.yaml").read_text())


def test_the_schema_is_one_and_the_defaults_meet_it() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    VALIDATOR.validate(VALUES)


def test_every_value_says_what_it_does() -> None:
    assert [item.path for item in documented() if not re.search(r"\w.*\.$", item.text)] == []


def test_values_and_schema_name_the_same() -> None:
    # Helm hands `global` to every chart, whether it uses it or not.
    assert sorted(item.path for item in documented()) == sorted(set(declared(SCHEMA)) - {"global"})


def test_no_object_of_ours_takes_names_it_does_not_know() -> None:
    def objects(schema: dict[str, Any], path: str) -> Iterator[str]:
        if "properties" in schema and schema.get("additionalProperties") is not False:
            yield path
        for key, child in schema.get("properties", {}).items():
            yield from objects(child, f"{path}.{key}")

    assert list(objects(SCHEMA, "")) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("replcas", 2),
        ("image.repo", "x"),
        ("image.repository", "HTTP://registry/x"),
        ("image.tag", "a/b"),
        ("image.digest", "sha256:abc"),
        ("image.pullPolicy", "Sometimes"),
        ("imagePullSecrets", [{"name": ""}]),
        ("imagePullSecrets", ["secret"]),
        ("replicas", "2"),
        ("replicas", -1),
        ("watchNamespaces", "team-a"),
        ("watchNamespaces", ["Team"]),
        ("watchNamespaces", ["a", "a"]),
        ("logLevel", "trace"),
        ("workers", 0),
        ("lease.durationSeconds", 2),
        ("clusterDomain", "cluster.local."),
        ("resources.limits", {"memory": "1 GB"}),
        ("resources.limit", {"memory": "1Gi"}),
        ("nodeSelector", {"a": True}),
        ("tolerations", [{"effect": "Never"}]),
        ("affinity.podAffinty", {}),
        ("topologySpreadConstraints", [{"topologyKey": "zone"}]),
        ("runAsUser", 0),
        ("podLabels", {"a": "not a label"}),
        ("podAnnotations", {"a": 1}),
        ("serviceAccount.create", "yes"),
        ("crds.keep", "false"),
        ("metrics.service.port", 70000),
        ("metrics.serviceMonitor.interval", "soon"),
        ("networkPolicy.apiServer.cidrs", ["10.0.0.1"]),
        ("networkPolicy.apiServer.ports", []),
        ("networkPolicy.metricsFrom", [{}]),
        ("networkPolicy.jobs.ports", [0]),
        ("networkPolicy.registry.cidrs", ["10.0.0.1"]),
        ("registry.url", "https://registry.example.com/team"),
        ("registry.url", "registry.example.com/team/"),
        ("registry.plainHttp", True),
        ("registry.nodePort", "30500"),
        ("registry.storage.size", "50 GB"),
        ("builder.baseImage", ""),
        ("builder.scratchSize", "much"),
        ("builder.env", {"A-B": "1"}),
        ("builder.env", {"A": 1}),
        ("builder.cache.accessMode", "ReadOnlyMany"),
        ("builder.channels.alias", "conda.anaconda.org"),
        ("builder.channels.allow", "conda-forge"),
        ("builder.channels.mirrors", {"https://conda.anaconda.org/a": "https://mirror"}),
        ("builder.channels.mirrors", {"conda-forge": ["https://mirror"]}),
        ("builder.channels.mirrors", {"https://conda.anaconda.org/a": []}),
        ("builder.channels.mirrors", {"https://conda.anaconda.org/a": ["https://user:password@mirror"]}),
        ("builder.pip.indexUrl", "https://user:password@index.example.com/simple"),
        ("builder.pip.extraIndexUrls", ["/simple"]),
        ("builder.credentials", {"https://host": "secret"}),
        ("builder.credentials", {"host/path": "secret"}),
        ("builder.credentials", {"host": {"username": "u", "password": "p"}}),
        ("builder.caBundle.key", "../ca"),
        ("builder.timeoutSeconds", 0),
        ("builder.retries", -1),
        ("builder.keepImages", 10),
        ("builder.postLinkScripts", "nccl"),
        ("builder.baseImages", [1]),
        ("builder.collectImages", "true"),
    ],
)
def test_a_bad_value_is_refused(path: str, value: Any) -> None:
    assert not VALIDATOR.is_valid(nested(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("image.repository", "10.0.0.1:5000/tokenservice/operator"),
        ("image.repository", "operator"),
        ("image.repository", "localhost:5000/a__b/c-d.e"),
        ("image.digest", "sha256:" + "0" * 64),
        ("resources.limits", {"memory": "1.5Gi", "cpu": 2, "example.com/x": "1"}),
        ("runAsUser", None),
        ("networkPolicy.apiServer.cidrs", ["10.0.0.0/8", "fd00::/64", "::1/128"]),
        ("networkPolicy.metricsFrom", [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]),
        ("metrics.serviceMonitor.interval", "1m30s"),
        ("tolerations", [{"operator": "Exists"}]),
        ("global", {"anything": 1}),
        ("registry.url", "registry.example.com:5000/team/a"),
        ("registry.url", "localhost:5000"),
        ("builder.channels.mirrors", {"https://conda.anaconda.org/a": ["http://10.0.0.1:8000/a", "https://b"]}),
        ("builder.pip.indexUrl", "https://index.example.com/simple"),
        ("builder.credentials", {"registry.example.com:5000": "registry-login", "localhost": "x"}),
        ("builder.postLinkScripts", ["nccl"]),
        ("builder.baseImages", ["registry.example.com/bases/*"]),
        ("builder.resources", {"requests": {"ephemeral-storage": "20Gi"}}),
    ],
)
def test_a_good_value_is_taken(path: str, value: Any) -> None:
    VALIDATOR.validate(nested(path, value))


def test_the_table_in_the_docs_is_up_to_date() -> None:
    current = chart_values.DOCUMENT.read_text()
    assert chart_values.document(current, documented()) == current, "run: make crds"


def test_the_table_escapes_what_markdown_would_take() -> None:
    items = chart_values.values("# One |\n# or two.\na: 1\nb:\n  # A list.\n  c: [1]\n# A whole.\nd: {e: 1}\n")
    assert [(item.path, item.default, item.text) for item in items] == [
        ("a", "1", "One | or two."),
        ("b.c", "[1]", "A list."),
        ("d", '{"e": 1}', "A whole."),
    ]
    assert r"One \| or two." in chart_values.table(items)


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="values: begin"):
        chart_values.document("no markers", ())
