"""The pods of a pool, beside those of the TokenServices that they are for."""

from __future__ import annotations

from typing import Any

import pytest
from tokenservice.api.v1alpha1 import EnvironmentStatus
from tokenservice.handover.shape import difference
from tokenservice.pods.schema import InvalidTemplateError
from tokenservice.pools.render import Rendered, pod, rendered
from tokenservice.services import render

from tests.unit.pods.builders import pod_schema
from tests.unit.pools.builders import IMAGE, warm_pool
from tests.unit.services.builders import service

TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"team": "nlp"}, "annotations": {"example.com/scrape": "true"}},
    "spec": {
        "terminationGracePeriodSeconds": 30,
        "priorityClassName": "high",
        "containers": [
            {
                "name": "server",
                "env": [{"name": "MODE", "value": "fast"}],
                "resources": {"limits": {"nvidia.com/gpu": 1}},
                "volumeMounts": [{"name": "weights", "mountPath": "/models"}],
            }
        ],
        "volumes": [{"name": "weights", "persistentVolumeClaim": {"claimName": "weights"}}],
    },
}
API = {"keySecretRef": {"name": "keys"}}
RUNS_IN = EnvironmentStatus(image=IMAGE)


def made(runs_in: EnvironmentStatus = RUNS_IN, **spec: Any) -> Rendered:
    return rendered(warm_pool(**spec), pod_schema(), runs_in)


def served(runs_in: EnvironmentStatus = RUNS_IN, **spec: Any) -> dict[str, Any]:
    """The PodSpec of a TokenService."""
    deployment = render.children(service(**spec), pod_schema(), runs_in).deployment
    assert deployment
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return found


SAME: list[dict[str, Any]] = [{}, {"template": TEMPLATE}, {"api": API}, {"template": TEMPLATE, "api": API}]


@pytest.mark.parametrize("spec", SAME)
@pytest.mark.parametrize("conda_env", [None, "nlp", "/opt/conda"])
def test_the_same_spec_makes_the_same_shape(spec: dict[str, Any], conda_env: str | None) -> None:
    runs_in = EnvironmentStatus(image=IMAGE, conda_env=conda_env)
    engine = {"engine": {"args": ["--max-queue", "3"]}, "model": {"source": "hf://org/tiny", "revision": "v1"}}
    found = made(runs_in, preload=["LlamaForCausalLM"], **spec)
    assert difference(found.template["spec"], served(runs_in, **engine, **spec)) is None


@pytest.mark.parametrize(
    ("pool", "tokenservice", "field"),
    [
        ({}, {"template": TEMPLATE}, "spec.containers[server].env[MODE]"),
        ({"api": API}, {}, "spec.containers[server].env[TOKEN_SERVER_API_KEYS_DIR]"),
        ({}, {"model": {"source": "pvc://weights/tiny"}}, "spec.containers[server].volumeMounts[model]"),
        (
            {},
            {"model": {"source": "hf://org/x", "authSecretRef": {"name": "hub"}}},
            "spec.containers[server].env[HF_TOKEN]",
        ),
        ({}, {"template": {"spec": {"runtimeClassName": "nvidia"}}}, "spec.runtimeClassName"),
    ],
)
def test_what_differs_is_named(pool: dict[str, Any], tokenservice: dict[str, Any], field: str) -> None:
    said = difference(made(**pool).template["spec"], served(**tokenservice))
    assert said
    assert said.startswith(f"{field}: only the ")


def test_a_model_on_a_claim_fits_with_its_volume_in_the_pools_template() -> None:
    mount = {"name": "model", "mountPath": "/var/run/tokenservice/model", "readOnly": True}
    volume = {"name": "model", "persistentVolumeClaim": {"claimName": "weights", "readOnly": True}}
    template = {"spec": {"containers": [{"name": "server", "volumeMounts": [mount]}], "volumes": [volume]}}
    tokenservice = served(model={"source": "pvc://weights/tiny"})
    assert difference(made(template=template).template["spec"], tokenservice) is None


def test_the_revision_follows_from_what_is_asked_for() -> None:
    first = made(template=TEMPLATE, preload=["A", "B"])
    assert (
        made(template=TEMPLATE, preload=["B", "A"], replicas=7, refill={"maxPerSecond": 1}).revision == first.revision
    )
    others = [
        made(preload=["A", "B"]),
        made(template=TEMPLATE, preload=["A"]),
        made(template=TEMPLATE, preload=["A", "B"], api=API),
        made(EnvironmentStatus(image="other"), template=TEMPLATE, preload=["A", "B"]),
    ]
    assert len({first.revision, *(other.revision for other in others)}) == 5
    assert others[1].shape == first.shape, "what is imported ahead is no part of the shape"


def test_a_pod() -> None:
    found = made(template=TEMPLATE)
    manifest = pod(warm_pool(), found, "nlp-1", digest="d" * 64, annotations={"a/b": "c"})
    assert manifest["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "tokenservice-operator",
        "app.kubernetes.io/name": "token-server",
        "team": "nlp",
        "tokenservice.dev/pool": "nlp",
        "tokenservice.dev/revision": found.revision,
        "tokenservice.dev/shape": found.shape,
    }
    noted = {"tokenservice.dev/pool-labels": "team"}
    assert manifest["metadata"]["annotations"] == {"example.com/scrape": "true", "a/b": "c", **noted}
    plain = pod(warm_pool(), made(), "nlp-1", digest="d" * 64, annotations={})
    assert plain["metadata"]["annotations"] == {"tokenservice.dev/pool-labels": ""}
    (owner,) = manifest["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("WarmPool", "nlp", True)
    (container,) = manifest["spec"]["containers"]
    assert container["env"][-1] == {"name": "TOKEN_SERVER_ASSIGN_TOKEN_SHA256", "value": "d" * 64}
    assert {each["containerPort"] for each in container["ports"]} == {8000, 8001}
    assert found.template["spec"]["containers"][0]["env"][-1]["name"] != "TOKEN_SERVER_ASSIGN_TOKEN_SHA256"


def in_server(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "server", **fields}]}}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            {"metadata": {"labels": {"tokenservice.dev/pool": "x"}}},
            r"metadata\.labels\[tokenservice\.dev/pool\]: belongs to the operator",
        ),
        (
            {"spec": {"volumes": [{"name": "assignment", "emptyDir": {}}]}},
            r"spec\.volumes\[0\]\.name: assignment is the operator's",
        ),
        (in_server(ports=[{"containerPort": 8001}]), r"ports\[0\]: port 8001 \(assign\)"),
        (in_server(ports=[{"containerPort": 9, "name": "assign"}]), r"ports\[0\]: port 8001 \(assign\)"),
        (
            in_server(volumeMounts=[{"name": "x", "mountPath": "/var/run/tokenservice/assignment/"}]),
            r"volumeMounts\[0\]\.mountPath: is where the assignment is kept",
        ),
        ({"spec": {"volumes": {}}}, r"spec\.volumes"),
        ({"spec": {"volumes": ["x"]}}, r"spec\.volumes"),
    ],
)
def test_a_template_that_cannot_be_used(template: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidTemplateError, match=rf"^spec\.template\.(spec\.containers\[0\]\.)?{said}"):
        made(template=template)
