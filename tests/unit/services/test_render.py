"""The children of a TokenService: golden files, refusals, and what holds whatever the template says.

TOKENSERVICE_UPDATE_GOLDEN=1 writes the golden files anew; read their diff.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenservice import protocol
from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.v1alpha1 import Model, TokenService
from tokenservice.environments.spec import canonical
from tokenservice.pods.reserved import RESERVED_LABELS
from tokenservice.pods.schema import InvalidTemplateError
from tokenservice.services import render

from tests.unit.services.builders import BUILT, CONDA, IMAGE, UID, children, environment, service

GOLDEN = Path(__file__).with_name("golden")
DIGEST = "sha256:" + "0123456789abcdef" * 4

FULL: dict[str, Any] = {
    "model": {
        "source": "hf://org/large",
        "revision": "v1.0",
        "name": "large",
        "authSecretRef": {"name": "hub", "key": "hf-token"},
        "trustRemoteCode": True,
    },
    "engine": {"args": ["--dtype=bfloat16", "--max-context", "8192"]},
    "environment": {"image": {"reference": f"registry.example.com/team/serving@{DIGEST}"}},
    "replicas": 3,
    "rollout": {"maxSurge": "50%", "maxUnavailable": 1, "progressDeadlineSeconds": 1200},
    "api": {"keySecretRef": {"name": "keys"}},
    "paused": True,
    "template": {
        "metadata": {"labels": {"team": "search"}, "annotations": {"example.com/cost-centre": "42"}},
        "spec": {
            "runtimeClassName": "nvidia",
            "priorityClassName": "serving",
            "terminationGracePeriodSeconds": 300,
            "nodeSelector": {"nvidia.com/gpu.product": "H100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "imagePullSecrets": [{"name": "registry"}],
            "securityContext": {"fsGroup": None, "supplementalGroups": [1000]},
            "containers": [
                {
                    "name": "server",
                    "resources": {"limits": {"nvidia.com/gpu": 2, "memory": "64Gi"}, "requests": {"cpu": "8"}},
                    "env": [{"name": "CUDA_VISIBLE_DEVICES", "value": "0,1"}],
                    "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
                    "startupProbe": {"failureThreshold": 600},
                },
                {"name": "proxy", "image": "registry.example.com/proxy:1", "ports": [{"containerPort": 9000}]},
            ],
            "volumes": [
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
                {"name": "cache", "persistentVolumeClaim": {"claimName": "hub-cache"}},
            ],
        },
    },
}
GOLDENS: dict[str, dict[str, Any]] = {
    "minimal": {},
    "full": FULL,
    "pvc": {"model": {"source": "pvc://models/llm/tiny"}, "replicas": 0},
    "conda-env": {"environment": {"image": {"reference": "registry.example.com/nlp:1", "condaEnv": "token_nlp"}}},
    "inline": {"environment": {"conda": CONDA}},
}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str) -> None:
    tokenservice = service(**GOLDENS[name])
    made = children(tokenservice, environment("demo", uid=UID))
    objects = [render.environment(tokenservice), made.deployment, made.service, made.budget]
    text = yaml.safe_dump_all([item for item in objects if item], sort_keys=False, width=120)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("TOKENSERVICE_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(GOLDENS)


def pod_template(tokenservice: TokenService, *around: CondaEnvironment) -> dict[str, Any]:
    deployment = children(tokenservice, *around).deployment
    assert deployment
    found: dict[str, Any] = deployment["spec"]["template"]
    return found


def server(tokenservice: TokenService, *around: CondaEnvironment) -> dict[str, Any]:
    found: dict[str, Any] = pod_template(tokenservice, *around)["spec"]["containers"][0]
    return found


def env(tokenservice: TokenService) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in server(tokenservice)["env"]}


def test_each_child_selects_by_its_own_label() -> None:
    made = children(service())
    assert made.deployment
    assert made.service["spec"]["selector"] == {"tokenservice.dev/service": "demo"}
    by_deployment = {"matchLabels": {"tokenservice.dev/deployment": "demo"}}
    assert made.deployment["spec"]["selector"] == made.budget["spec"]["selector"] == by_deployment


@pytest.mark.parametrize(
    ("source", "told", "name"),
    [
        ("hf://org/tiny", "hf://org/tiny", "org/tiny"),
        ("file:///models/tiny", "file:///models/tiny", "tiny"),
        ("file:///models/tiny/", "file:///models/tiny/", "tiny"),
        ("pvc://claim", "file:///var/run/tokenservice/model", "claim"),
        ("pvc://claim/", "file:///var/run/tokenservice/model", "claim"),
        ("pvc://claim/a/b", "file:///var/run/tokenservice/model/a/b", "b"),
        ("pvc://claim/a/b/", "file:///var/run/tokenservice/model/a/b", "b"),
        ("pvc://claim/a?b#c;d", "file:///var/run/tokenservice/model/a?b#c;d", "a?b#c;d"),
        ("pvc://my.claim/a", "file:///var/run/tokenservice/model/a", "a"),
    ],
)
def test_where_the_model_is(source: str, told: str, name: str) -> None:
    tokenservice = service(model={"source": source})
    assert env(tokenservice)["TOKEN_SERVER_MODEL_SOURCE"] == told
    assert env(tokenservice)["TOKEN_SERVER_MODEL_NAME"] == name == render.served_name(Model(source=source))
    volumes = pod_template(tokenservice)["spec"]["volumes"]
    claims = [item["persistentVolumeClaim"] for item in volumes if "persistentVolumeClaim" in item]
    wanted = source.removeprefix("pvc://").split("/")[0]
    assert claims == ([{"claimName": wanted, "readOnly": True}] if source.startswith("pvc://") else [])


def test_a_token_is_a_reference_and_never_a_value() -> None:
    [token] = [item for item in server(service(**FULL))["env"] if item["name"] == "HF_TOKEN"]
    assert token == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "hf-token"}}}


def test_a_variable_of_the_templates_replaces_what_was_there() -> None:
    other = {"name": "HF_TOKEN", "value": "from-a-mirror"}
    template = {"spec": {"containers": [{"name": "server", "env": [other]}]}}
    made = server(service(**{**FULL, "template": template}))
    assert [item for item in made["env"] if item["name"] == "HF_TOKEN"] == [other]


def test_every_variable_is_one_of_the_protocol() -> None:
    warm = {protocol.VAR_WARM, protocol.VAR_PRELOAD, protocol.VAR_ASSIGN_TOKEN_SHA256}
    known = {value for name, value in vars(protocol).items() if name.startswith("VAR_")} - warm
    given = set(env(service(**{**FULL, "template": None})))
    assert given == known | {"HOME"}


def test_without_an_image_there_is_no_deployment_and_the_template_is_checked_all_the_same() -> None:
    asks: dict[str, Any] = {"environment": {"ref": {"name": "nlp"}}}
    made = children(service(**asks))
    assert made.deployment is None
    assert made.service["kind"] == "Service"
    with pytest.raises(InvalidTemplateError):
        children(service(**asks, template={"spec": {"container": []}}))


def test_an_image_of_the_operators_differs_from_a_prebuilt_one_in_its_reference_alone() -> None:
    built = server(service(environment={"ref": {"name": "nlp"}}), environment("nlp"))
    assert built == {**server(service()), "image": BUILT}


@given(
    conda=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
            lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_an_inline_environment_is_passed_on_as_it_stands(conda: dict[str, Any]) -> None:
    made = render.environment(service(environment={"conda": conda}))
    assert made
    assert made["spec"] == conda
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == ("demo", "team")
    assert made["metadata"]["labels"]["tokenservice.dev/service"] == "demo"
    [owner] = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("TokenService", UID, True)


def test_the_examples_environment_is_one() -> None:
    example = yaml.safe_load((Path(__file__).parents[3] / "examples" / "conda.yaml").read_text())
    made = render.environment(service(**example["spec"]))
    assert made
    assert canonical(made["spec"]).document["channels"] == ["conda-forge"]


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    args=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=2000), max_size=3),
)
def test_every_text_reaches_the_pod_as_it_stands(text: str, args: list[str]) -> None:
    tokenservice = service(model={"source": "hf://org/tiny", "name": text}, engine={"args": args})
    assert env(tokenservice)["TOKEN_SERVER_MODEL_NAME"] == text
    assert server(tokenservice).get("args", []) == args


labels = st.dictionaries(st.sampled_from(["team", "a/b", *RESERVED_LABELS]), st.none() | st.just("x"), max_size=3)
templates = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.fixed_dictionaries({}, optional={"labels": labels, "annotations": labels}),
        "spec": st.fixed_dictionaries(
            {},
            optional={
                "containers": st.lists(
                    st.fixed_dictionaries(
                        {"name": st.sampled_from(["server", "other"])},
                        optional={
                            "image": st.just("x"),
                            "ports": st.just([{"containerPort": 9000}]),
                            "$patch": st.sampled_from(["delete", "merge", "replace"]),
                            "volumeMounts": st.just([{"name": "a", "mountPath": "/tmp"}]),
                        },
                    ),
                    max_size=3,
                ),
                "terminationGracePeriodSeconds": st.none() | st.integers(0, 500),
            },
        ),
    },
)


@given(template=templates)
def test_whatever_the_template_the_service_reaches_its_pods(template: dict[str, Any]) -> None:
    tokenservice = service(template=template)
    try:
        made = children(tokenservice)
    except InvalidTemplateError as error:
        assert str(error).startswith("spec.template.")  # noqa: PT017 - most templates are fine, any may be refused
        return
    assert msgspec.json.encode(children(tokenservice)) == msgspec.json.encode(made)
    assert made.deployment
    pod = made.deployment["spec"]["template"]
    for selector in (
        made.deployment["spec"]["selector"]["matchLabels"],
        made.budget["spec"]["selector"]["matchLabels"],
        made.service["spec"]["selector"],
        dict([names.MANAGED_SELECTOR.split("=")]),
    ):
        assert selector.items() <= pod["metadata"]["labels"].items()
    first = pod["spec"]["containers"][0]
    assert (first["name"], first["image"]) == ("server", IMAGE)
    assert {"name": "http", "containerPort": 8000, "protocol": "TCP"} in first["ports"]
