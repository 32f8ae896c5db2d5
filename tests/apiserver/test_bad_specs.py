"""Specs that cannot be carried out: refused at once if possible, else explained in the status and not retried."""

from __future__ import annotations

from typing import Any

import pytest

from tests.apiserver.admission import policy
from tests.apiserver.conftest import Plane, Space
from tests.support.api import RefusedError
from tests.support.cluster import condition, token_service
from tests.support.wait import eventually, holds

pytestmark = pytest.mark.usefixtures("operator")

LONG = "a" * 64

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # name, what replaces parts of a good spec, what the message must name
    ("source", {"model": {"source": "s3://bucket/model"}}, "spec.model.source"),
    ("source empty", {"model": {"source": ""}}, "spec.model.source"),
    ("source climbs", {"model": {"source": "pvc://claim/../etc"}}, "spec.model.source"),
    ("no source", {"model": {}}, "spec.model.source"),
    ("no model", {"model": None}, "spec.model"),
    ("revision of a file", {"model": {"source": "file:///m", "revision": "v1"}}, "spec.model.revision"),
    (
        "token for a file",
        {"model": {"source": "file:///m", "authSecretRef": {"name": "s"}}},
        "spec.model.authSecretRef",
    ),
    ("trust as text", {"model": {"source": "hf://a/b", "trustRemoteCode": "yes"}}, "spec.model.trustRemoteCode"),
    ("engine", {"engine": {"name": "magic"}}, "spec.engine.name"),
    ("args as text", {"engine": {"name": "transformers", "args": "--x"}}, "spec.engine.args"),
    ("no environment", {"environment": None}, "spec.environment"),
    ("image", {"environment": {"image": {"reference": "UPPER CASE"}}}, "spec.environment.image.reference"),
    ("negative replicas", {"replicas": -1}, "spec.replicas"),
    ("replicas as text", {"replicas": "two"}, "spec.replicas"),
    ("too many replicas", {"replicas": 10_001}, "spec.replicas"),
    ("surge", {"rollout": {"maxSurge": "lots"}}, "spec.rollout.maxSurge"),
    ("no way to roll", {"rollout": {"maxSurge": 0, "maxUnavailable": "0%"}}, "spec.rollout.maxSurge"),
    ("deadline", {"rollout": {"progressDeadlineSeconds": 0}}, "spec.rollout.progressDeadlineSeconds"),
    ("api without keys", {"api": {}}, "spec.api.keySecretRef"),
    ("paused as text", {"paused": "no"}, "spec.paused"),
    ("template as text", {"template": "nodeSelector"}, "spec.template"),
]


@pytest.mark.parametrize(("change", "field"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_the_api_server_refuses_it_and_names_the_field(space: Space, change: dict[str, Any], field: str) -> None:
    body = token_service("llm", **change)
    body["spec"] = {key: value for key, value in body["spec"].items() if value is not None}
    with pytest.raises(RefusedError, match=field.replace(".", r"\.")):
        space.api.create("TokenService", space.name, body, dryRun="All")


@pytest.mark.parametrize("name", ["1st", "with.dot", LONG])
def test_names_that_no_service_may_have_are_refused(space: Space, name: str) -> None:
    with pytest.raises(RefusedError, match=r"metadata\.name: must be a DNS label"):
        space.api.create("TokenService", space.name, token_service(name), dryRun="All")


def test_misspelled_fields_are_refused_by_kubectl(plane: Plane, space: Space) -> None:
    with pytest.raises(RefusedError, match=r'unknown field "spec\.replica"'):
        space.api.create("TokenService", space.name, token_service("llm", replica=2), fieldValidation="Strict")


def server(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "server", **fields}]}}


INVALID: list[tuple[str, dict[str, Any], str]] = [
    # name, template, what the condition says after "spec.template."
    ("unknown field", {"spec": {"nodeSelectors": {}}}, "spec.nodeSelectors: unknown field; did you mean nodeSelector?"),
    (
        "quantity",
        server(resources={"limits": {"memory": "12Gib"}}),
        "spec.containers[0].resources.limits[memory]: '12Gib' is not a quantity",
    ),
    ("type", {"spec": {"nodeSelector": {"gpu": True}}}, "spec.nodeSelector[gpu]: must be a string"),
    (
        "reserved label",
        {"metadata": {"labels": {"tokenservice.dev/service": "x"}}},
        "metadata.labels[tokenservice.dev/service]: belongs to the operator",
    ),
    ("reserved image", server(image="other"), "spec.containers[0].image: set spec.environment.image.reference instead"),
    (
        "reserved variable",
        server(env=[{"name": "TOKEN_SERVER_PORT", "value": "1"}]),
        "spec.containers[0].env[0].name: TOKEN_SERVER_PORT is the operator's",
    ),
    (
        "reserved port",
        server(ports=[{"containerPort": 8000}]),
        "spec.containers[0].ports[0]: port 8000 (http) is the server's",
    ),
    # These pass the operator's check; the API server's own validation refuses the Deployment with 422.
    (
        "no such volume",
        server(volumeMounts=[{"name": "absent", "mountPath": "/x"}]),
        "spec.containers[0].volumeMounts[2].name: Not found",
    ),
    (
        "more asked than allowed",
        server(resources={"limits": {"cpu": 1}, "requests": {"cpu": 2}}),
        "spec.containers[0].resources.requests: Invalid value",
    ),
    ("bad name", {"spec": {"containers": [{"name": "Side_Car", "image": "x"}]}}, "spec.containers[1].name: Invalid"),
]


def test_an_invalid_template_is_explained_and_not_tried_again(plane: Plane, space: Space) -> None:
    """All cases side by side, so that one look at the audit log shows that none of them is written again and again."""
    for number, (_, template, _) in enumerate(INVALID):
        space.apply(f"llm-{number}", template=template)
    for number, (name, _, says) in enumerate(INVALID):
        found = space.ready(f"llm-{number}", "InvalidTemplate")
        assert f"spec.template.{says}" in found["message"], (name, found["message"])
        assert found["status"] == "False"
        eventually(
            lambda number=number: [event["reason"] for event in space.events(f"llm-{number}")] == ["InvalidTemplate"],
            "one event",
        )
        assert space.events(f"llm-{number}")[0]["type"] == "Warning"
    mark = plane.audit.position()
    holds(lambda: not [w for w in plane.writes(mark) if w.namespace == space.name], "nothing is written", seconds=3)
    for number in range(len(INVALID)):
        assert space.get("Deployment", f"llm-{number}") is None


@pytest.mark.parametrize(
    "template",
    [{"spec": {"nodeSelectors": {}}}, server(volumeMounts=[{"name": "absent", "mountPath": "/x"}])],
    ids=["refused by the operator", "refused by the API server"],
)
def test_what_runs_goes_on_and_a_good_spec_heals(space: Space, template: dict[str, Any]) -> None:
    space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero")
    before = space.there("Deployment", "llm")
    space.apply("llm", replicas=0, image="registry.invalid/serving:2", template=template)
    found = space.ready("llm", "InvalidTemplate")
    assert found["message"].endswith("the last good spec keeps running")
    status = space.there("TokenService", "llm")["status"]
    assert status["environment"]["image"] == "registry.invalid/serving:1"
    assert space.there("Deployment", "llm")["spec"] == before["spec"]
    space.apply("llm", replicas=0, image="registry.invalid/serving:2")
    space.ready("llm", "ScaledToZero")
    after = space.there("Deployment", "llm")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert after == "registry.invalid/serving:2"


def test_what_a_quota_forbids_is_explained_and_heals_when_there_is_room(space: Space) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/poddisruptionbudgets.policy": "0"}}}
    space.api.create("ResourceQuota", space.name, quota)
    used = {"count/poddisruptionbudgets.policy": "0"}
    eventually(lambda: space.there("ResourceQuota", "none").get("status", {}).get("used") == used, "the quota works")
    space.apply("llm", replicas=0)
    found = space.ready("llm", "Rejected")
    assert found["message"].startswith("The API server forbids the PodDisruptionBudget: ")
    assert "exceeded quota: none" in found["message"]
    eventually(lambda: [event["reason"] for event in space.events("llm")] == ["Rejected"], "an event")
    assert space.get("Service", "llm"), "what is allowed is there"
    space.delete("ResourceQuota", "none")
    # It heals by itself within a minute; the annotation spares the wait.
    space.patch("TokenService", "llm", {"metadata": {"annotations": {"tokenservice.dev/retry": "1"}}})
    space.ready("llm", "ScaledToZero")
    assert space.get("PodDisruptionBudget", "llm")


def test_the_retry_annotation_has_an_invalid_template_tried_again(plane: Plane, space: Space) -> None:
    """What made the API server refuse can lie outside of the spec: here a policy that is taken away."""
    probe = {"kind": "Deployment", "apiVersion": "apps/v1", **foreign("Deployment")}

    def refused() -> str:
        try:
            space.api.create("Deployment", space.name, probe, dryRun="All")
        except RefusedError as error:
            return error.message
        return ""

    idle = "no idle services here"
    with policy(plane, space, "deployments.apps", "object.spec.replicas > 0", idle, refused=refused):
        space.apply("llm", replicas=0)
        found = space.ready("llm", "Rejected")
        assert idle in found["message"]
        plane.silence(space.name)
    space.patch("TokenService", "llm", {"metadata": {"annotations": {"tokenservice.dev/retry": "1"}}})
    space.ready("llm", "ScaledToZero")


def foreign(kind: str) -> dict[str, Any]:
    specs: dict[str, Any] = {
        "Deployment": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "other"}},
            "template": {
                "metadata": {"labels": {"app": "other"}},
                "spec": {"containers": [{"name": "server", "image": "registry.invalid/other:1"}]},
            },
        },
        "Service": {"selector": {"app": "other"}, "ports": [{"port": 80}]},
        "PodDisruptionBudget": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "other"}}},
    }
    return {"metadata": {"name": "llm"}, "spec": specs[kind]}


@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget"])
def test_a_taken_name_is_left_alone_and_heals_when_it_is_free(plane: Plane, space: Space, kind: str) -> None:
    made = space.api.create(kind, space.name, foreign(kind))
    space.apply("llm", replicas=0)
    found = space.ready("llm", "NameConflict")
    assert f"{kind} llm exists and was not made for this TokenService; it is left alone" in found["message"]
    mine = space.there(kind, "llm")
    assert mine["spec"] == made["spec"]
    assert mine["metadata"].get("labels") == made["metadata"].get("labels")
    assert not mine["metadata"].get("ownerReferences")
    plane.silence(space.name)
    # It heals by itself within a minute; here the user does not wait so long.
    space.delete(kind, "llm")
    eventually(lambda: space.get(kind, "llm") is None, "it is gone")
    space.patch("TokenService", "llm", {"metadata": {"annotations": {"tokenservice.dev/retry": "now"}}})
    space.ready("llm", "ScaledToZero")
    assert space.there(kind, "llm")["metadata"]["ownerReferences"]


def test_a_child_of_the_namesake_before_is_not_taken(space: Space) -> None:
    """A TokenService deleted and made again at once: the children of the first are still on their way out."""
    space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero")
    old = space.there("Deployment", "llm")["metadata"]["uid"]
    space.delete("TokenService", "llm")
    new = space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero", seconds=90)

    def replaced() -> bool:
        metadata = space.there("Deployment", "llm")["metadata"]
        owners = [owner["uid"] for owner in metadata["ownerReferences"]]
        return metadata["uid"] != old and owners == [new["metadata"]["uid"]]

    eventually(replaced, "a Deployment of the new one")
    assert condition(space.there("TokenService", "llm"))["status"] == "True"
