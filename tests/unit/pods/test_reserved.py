"""What a partial template must not touch, and in which words it is refused."""

from __future__ import annotations

import re
from itertools import cycle
from typing import Any

import pytest
from tokenservice.pods.reserved import RESERVED_LABELS
from tokenservice.pods.schema import InvalidTemplateError

from tests.unit.pods.builders import rendered


def in_server(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "server", **fields}]}}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"metadata": {"name": "x"}}, "metadata.name: only labels and annotations"),
    "namespace": ({"metadata": {"namespace": "x"}}, "metadata.namespace: only labels"),
    "finalizers": ({"metadata": {"finalizers": ["a/b"]}}, "metadata.finalizers: only labels"),
    **{
        label: ({"metadata": {"labels": {label: value}}}, rf"metadata.labels[{label}]: belongs to the operator")
        for label, value in zip(sorted(RESERVED_LABELS), cycle(["x", None]), strict=False)
    },
    "no labels": ({"metadata": {"labels": None}}, "metadata.labels: is empty"),
    "labels replaced": ({"metadata": {"labels": {"$patch": "replace"}}}, "metadata.labels.$patch"),
    "metadata replaced": ({"metadata": {"$patch": "replace"}}, "metadata.$patch"),
    "spec replaced": ({"spec": {"$patch": "replace"}}, "spec.$patch"),
    "all replaced": ({"$patch": "delete"}, "$patch: works on parts"),
    "no spec": ({"spec": None}, "spec: is empty"),
    "no metadata": ({"metadata": None}, "metadata: is empty"),
    "no containers": ({"spec": {"containers": None}}, "spec.containers: is empty"),
    "containers replaced": (
        {"spec": {"containers": [{"$patch": "replace"}, {"name": "x"}]}},
        "spec.containers[0].$patch: replacing the list",
    ),
    "server removed": (in_server(**{"$patch": "delete"}), "containers[0].$patch: the container that serves"),
    "image": (in_server(image="x"), "containers[0].image: set spec.environment.image.reference"),
    "no image": (in_server(image=None), "containers[0].image: set spec.environment.image.reference"),
    "args": (in_server(args=["x"]), "containers[0].args: set spec.engine.args of the TokenService"),
    "no env": (in_server(env=None), "containers[0].env: is empty"),
    "env replaced": (in_server(env=[{"$patch": "replace"}]), "containers[0].env: has entries of the operator"),
    "mounts replaced": (in_server(volumeMounts=[{"$patch": "replace"}]), "volumeMounts: has entries of the operator"),
    "no ports": (in_server(ports=None), "containers[0].ports: is empty"),
    "variable": (in_server(env=[{"name": "A"}, {"name": "TOKEN_SERVER_PORT", "value": "1"}]), "env[1].name: TOKEN_SER"),
    "variable removed": (in_server(env=[{"name": "TOKEN_SERVER_PORT", "$patch": "delete"}]), "env[0].name: TOKEN_SER"),
    "port": (in_server(ports=[{"containerPort": 8000}]), "ports[0]: port 8000 (http) is the server's"),
    "port's name": (in_server(ports=[{"containerPort": 9, "name": "http"}]), "ports[0]: port 8000 (http)"),
    "unknown field": (in_server(resource={}), "containers[0].resource: unknown field; did you mean resources?"),
}


@pytest.mark.parametrize(("template", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(template: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTemplateError, match=rf"^spec\.template\.(.*\.)?{re.escape(message)}"):
        rendered(template)


@pytest.mark.parametrize("name", ["proxy", "sidecar"])
def test_other_containers_are_the_users(name: str) -> None:
    other = {"name": name, "image": "x", "args": ["y"], "ports": [{"containerPort": 9, "name": "http"}]}
    made = rendered({"spec": {"containers": [other]}})
    assert [item["name"] for item in made["spec"]["containers"]] == ["server", name]
