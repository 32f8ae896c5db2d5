"""What makes the shape of a pod, and what is said where two differ."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.handover.shape import difference, normal, shape

SERVED: dict[str, Any] = {
    "terminationGracePeriodSeconds": 90,
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "containers": [
        {
            "name": "server",
            "image": "registry/env@sha256:1",
            "args": ["--max-queue", "3"],
            "env": [
                {"name": "TOKEN_SERVER_PORT", "value": "8000"},
                {"name": "TOKEN_SERVER_MODEL_SOURCE", "value": "hf://org/tiny"},
                {"name": "TOKEN_SERVER_MODEL_NAME", "value": "tiny"},
                {"name": "TOKEN_SERVER_TRUST_REMOTE_CODE", "value": "false"},
                {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
                {"name": "MODE", "value": "fast"},
            ],
            "ports": [{"name": "http", "containerPort": 8000}],
            "resources": {"limits": {"memory": "4Gi", "nvidia.com/gpu": 1}},
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        },
        {"name": "logs", "image": "registry/logs:1", "args": ["--all"]},
    ],
    "volumes": [{"name": "tmp", "emptyDir": {}}],
}


def warm() -> dict[str, Any]:
    """The pod of a pool that fits."""
    made = copy.deepcopy(SERVED)
    server = made["containers"][0]
    del server["args"]
    server["env"] = [each for each in server["env"] if "MODEL" not in each["name"] and "TRUST" not in each["name"]]
    server["env"] += [
        {"name": "TOKEN_SERVER_WARM", "value": "true"},
        {"name": "TOKEN_SERVER_PRELOAD", "value": "LlamaForCausalLM"},
        {"name": "TOKEN_SERVER_ASSIGN_TOKEN_SHA256", "value": "0" * 64},
    ]
    server["ports"].append({"name": "assign", "containerPort": 8001})
    server["volumeMounts"].append({"name": "assignment", "mountPath": "/var/run/tokenservice/assignment"})
    made["volumes"].append({"name": "assignment", "emptyDir": {}})
    return made


def test_a_pod_of_the_pool_fits() -> None:
    assert difference(warm(), SERVED) is None
    assert shape(warm()) == shape(SERVED)
    assert len(shape(SERVED)) == 16


@given(st.randoms(use_true_random=False))
def test_the_order_of_keyed_lists_says_nothing(random: Any) -> None:
    mixed = warm()
    for items in (
        mixed["containers"],
        mixed["volumes"],
        *(c.get(k, []) for c in mixed["containers"] for k in ("env", "ports", "volumeMounts")),
    ):
        random.shuffle(items)
    assert shape(mixed) == shape(SERVED)


CHANGES: list[tuple[str, Any, str]] = [
    ("image", "registry/env@sha256:2", "spec.containers[server].image: the pool has registry/env@sha256:2, the Tok"),
    (
        "resources",
        {"limits": {"memory": "2Gi", "nvidia.com/gpu": 1}},
        "spec.containers[server].resources.limits.memory: the pool has 2Gi, the TokenService 4Gi",
    ),
    ("resources", {}, "spec.containers[server].resources: only the TokenService has it"),
    ("command", ["sh"], "spec.containers[server].command: only the pool has it"),
]


@pytest.mark.parametrize(("field", "value", "said"), CHANGES)
def test_a_difference_is_named(field: str, value: Any, said: str) -> None:
    pool = warm()
    pool["containers"][0][field] = value
    assert (difference(pool, SERVED) or "").startswith(said)
    assert shape(pool) != shape(SERVED)


def test_values_of_variables_are_not_told() -> None:
    pool = warm()
    pool["containers"][0]["env"][2]["value"] = "hunter2"
    said = difference(pool, SERVED)
    assert said == "spec.containers[server].env[MODE].value: the pool has another value than the TokenService"
    for change in (
        {"env": [*warm()["containers"][0]["env"], {"name": "PASSWORD", "value": "hunter2"}]},
        {"name": "other", "env": [{"name": "PASSWORD", "value": "hunter2"}]},
    ):
        pool = warm()
        pool["containers"].append(pool["containers"][0] | change)
        if "name" not in change:
            del pool["containers"][0]
        said = difference(pool, SERVED)
        assert said
        assert said.endswith("only the pool has it")
        assert "hunter2" not in said


def test_a_secret_counts() -> None:
    pool = warm()
    del pool["containers"][0]["env"][1]
    assert (difference(pool, SERVED) or "").startswith(
        "spec.containers[server].env[HF_TOKEN]: only the TokenService has it"
    )


def test_arguments_of_another_container_count() -> None:
    pool = warm()
    pool["containers"][1]["args"] = []
    assert (difference(pool, SERVED) or "").startswith("spec.containers[logs].args")


def test_a_model_that_needs_a_volume() -> None:
    served = copy.deepcopy(SERVED)
    served["volumes"].append({"name": "model", "persistentVolumeClaim": {"claimName": "weights"}})
    said = difference(warm(), served)
    assert said
    assert said.startswith("spec.volumes[model]: only the TokenService has it")


def test_a_volume_of_the_same_name_elsewhere_counts() -> None:
    served = copy.deepcopy(SERVED)
    served["volumes"].append({"name": "assignment", "persistentVolumeClaim": {"claimName": "data"}})
    assert (difference(warm(), served) or "").startswith("spec.volumes[assignment]: only the TokenService")
    served["volumes"][-1] = {"name": "assignment", "emptyDir": {}}
    served["containers"][0]["volumeMounts"].append({"name": "assignment", "mountPath": "/data"})
    assert (difference(warm(), served) or "").startswith("spec.containers[server].volumeMounts[assignment]")


def test_the_order_of_init_containers_counts() -> None:
    first, second = ({"name": name, "image": "i"} for name in ("a", "b"))
    assert shape({**SERVED, "initContainers": [first, second]}) != shape({**SERVED, "initContainers": [second, first]})


def test_what_is_empty_is_as_if_left_out() -> None:
    assert normal({**SERVED, "nodeSelector": {}, "initContainers": [], "hostNetwork": None}) == normal(SERVED)
