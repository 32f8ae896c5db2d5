"""What users see of a TokenService: status, events, columns, scaling, and that the examples work."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
import yaml

from tests.apiserver.conftest import ROOT, Plane, Space
from tests.support.cluster import condition
from tests.support.wait import eventually, holds

pytestmark = pytest.mark.usefixtures("operator")

SCHEDULED = {"type": "PodScheduled", "status": "True"}
IN_STATUS_SECONDS = 5.0


def pod_of(space: Space, service: str) -> str:
    """The name of the first pod that exists for the service."""

    def look() -> str | None:
        pods = space.api.list("Pod", space.name, labelSelector=f"tokenservice.dev/service={service}")
        return min((pod["metadata"]["name"] for pod in pods), default=None)

    return eventually(look, f"a pod of {service}")


def fake_kubelet(space: Space, pod: str, **status: Any) -> None:
    """Stands in for a kubelet, of which there is none here: writes the status of a pod."""
    space.patch("Pod", pod, {"status": {"conditions": [SCHEDULED], **status}}, sub="status")


def container(state: dict[str, Any], last: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "name": "server",
        "image": "registry.invalid/serving:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
        "lastState": last or {},
        **more,
    }


def ended(reason: str, code: int, message: str) -> dict[str, Any]:
    at = "2026-01-01T00:00:00Z"
    terminated = {"exitCode": code, "reason": reason, "message": message, "startedAt": at, "finishedAt": at}
    return {"terminated": terminated}


FAILURES: list[tuple[str, dict[str, Any], str]] = [
    # reason, the container's status as a kubelet writes it, words that must reach the user
    (
        "ImagePullBackOff",
        container({"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x": not found'}}),
        "not found",
    ),
    (
        "CrashLoopBackOff",
        container(
            {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            ended("Error", 1, "model hf://a/b: no such repository"),
            restartCount=3,
        ),
        "model hf://a/b: no such repository (exit code 1)",
    ),
    (
        "OOMKilled",
        container(
            {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
            ended("OOMKilled", 137, ""),
            restartCount=1,
        ),
        "memory",
    ),
    (
        "CreateContainerConfigError",
        container({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}}),
        'secret "hub" not found',
    ),
]


@pytest.mark.parametrize(("reason", "status", "words"), FAILURES, ids=[case[0] for case in FAILURES])
def test_why_a_pod_fails_is_in_the_status_within_five_seconds(
    space: Space, reason: str, status: dict[str, Any], words: str
) -> None:
    space.apply("llm")
    pod = pod_of(space, "llm")
    space.ready("llm", "Unschedulable")
    fake_kubelet(space, pod, phase="Pending", containerStatuses=[status])
    at = time.monotonic()
    found = space.ready("llm", reason)
    assert time.monotonic() - at < IN_STATUS_SECONDS
    assert words in found["message"]
    assert found["message"].startswith(f"pod {pod}: container server: ")
    [failure] = space.there("TokenService", "llm")["status"]["failures"]
    assert (failure["pod"], failure["container"], failure["reason"]) == (pod, "server", reason)
    assert words in failure["message"]

    def told() -> bool:
        return any(event["reason"] == reason and words in event["note"] for event in space.events("llm"))

    eventually(told, "an event says it too")
    # The cause goes, and so does the complaint.
    serve(space, "llm")
    space.ready("llm", "Serving")
    assert not space.there("TokenService", "llm")["status"].get("failures")


def serve(space: Space, service: str) -> None:
    """All pods of the service run and are ready, says the stand-in for a kubelet."""
    running = container({"running": {"startedAt": "2026-01-01T00:00:00Z"}}, ready=True, started=True)
    ready = [
        SCHEDULED,
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        {"type": "ContainersReady", "status": "True"},
    ]
    pod_of(space, service)
    for pod in space.api.list("Pod", space.name, labelSelector=f"tokenservice.dev/service={service}"):
        fake_kubelet(space, pod["metadata"]["name"], phase="Running", containerStatuses=[running], conditions=ready)


def test_events_are_posted_on_transitions_only(plane: Plane, space: Space) -> None:
    space.apply("llm")
    space.ready("llm", "Unschedulable")
    serve(space, "llm")
    serving = space.ready("llm", "Serving")
    assert serving["message"] == "1 of 1 replicas serve"
    status = space.there("TokenService", "llm")["status"]
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (1, 1, 1)

    def reasons() -> list[str]:
        return [event["reason"] for event in space.events("llm")]

    eventually(lambda: reasons()[-1:] == ["Serving"], "an event")
    assert reasons() == ["Unschedulable", "Serving"]
    assert [event["type"] for event in space.events("llm")] == ["Warning", "Normal"]
    # Noise changes nothing: labels, restarts of the rollout that end in the same state, drift that is undone.
    space.patch("TokenService", "llm", {"metadata": {"labels": {"team": "a"}}})
    space.patch("Service", "llm", {"spec": {"selector": {"tokenservice.dev/service": "x"}}})
    mended = {"tokenservice.dev/service": "llm"}
    eventually(lambda: space.there("Service", "llm")["spec"]["selector"] == mended, "drift is undone")
    holds(lambda: reasons() == ["Unschedulable", "Serving"], "no more events", seconds=1)


def test_the_columns_of_kubectl_get(plane: Plane, space: Space) -> None:
    space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero")
    get = ("get", "tsvc", "-n", space.name)
    header, line = plane.cluster.kubectl(*get).stdout.splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "DESIRED", "SERVING", "MODEL", "AGE"]
    assert line.split()[:6] == ["llm", "True", "ScaledToZero", "0", "0", "file:///models/tiny"]
    header, line = plane.cluster.kubectl(*get, "-o", "wide").stdout.splitlines()
    assert header.split()[-4:] == ["URL", "IMAGE", "CURRENT", "UPDATE"]
    told = line.split()[-4:]
    assert told[:2] == [f"http://llm.{space.name}.svc.cluster.local/v1", "registry.invalid/serving:1"]
    assert told[2] == told[3] == space.there("TokenService", "llm")["status"]["updateRevision"]
    assert (
        "tokenservice.tokenservice.dev/llm"
        in plane.cluster.kubectl("get", "serving", "-n", space.name, "-o", "name").stdout
    )


def test_kubectl_wait_and_explain(plane: Plane, space: Space) -> None:
    space.apply("llm", replicas=0)
    plane.cluster.kubectl("wait", "-n", space.name, "--for=condition=Ready", "tsvc/llm", "--timeout=30s")
    told = plane.cluster.kubectl("explain", "tsvc.spec.model.source").stdout
    assert "pvc://claim/path" in told


def test_kubectl_scale(plane: Plane, space: Space) -> None:
    space.apply("llm", replicas=1)
    space.settled("llm")
    plane.cluster.kubectl("scale", "-n", space.name, "tsvc/llm", "--replicas=3")
    eventually(lambda: space.there("Deployment", "llm")["spec"]["replicas"] == 3, "the Deployment follows")
    path = f"/apis/tokenservice.dev/v1alpha1/namespaces/{space.name}/tokenservices/llm/scale"
    eventually(lambda: space.api.request("GET", path)["status"]["replicas"] == 3, "/scale counts the pods")
    assert space.api.request("GET", path)["status"]["selector"] == "tokenservice.dev/service=llm"


def hpa_condition(space: Space, kind: str) -> dict[str, Any]:
    conditions = space.there("HorizontalPodAutoscaler", "tiny").get("status", {}).get("conditions", ())
    return next((item for item in conditions if item["type"] == kind), {})


def test_the_autoscaling_example(plane: Plane, space: Space) -> None:
    """The real HPA controller reads /scale and writes it. Of metrics there are none: what it does without is tested."""
    space.apply("tiny")
    space.settled("tiny")
    example = yaml.safe_load((ROOT / "examples" / "autoscaling.yaml").read_text())
    plane.cluster.kubectl("apply", "-n", space.name, "-f", "examples/autoscaling.yaml")
    eventually(lambda: hpa_condition(space, "AbleToScale").get("status") == "True", "it can scale", seconds=60)
    # That it got as far as asking for the metric says that target, selector and pods are found.
    eventually(
        lambda: hpa_condition(space, "ScalingActive").get("reason") == "FailedGetResourceMetric",
        "it lacks nothing but the metric",
        seconds=60,
    )
    example["spec"]["minReplicas"] = 2
    space.api.apply(space.name, example)
    eventually(lambda: space.there("TokenService", "tiny")["spec"]["replicas"] == 2, "it scales up", seconds=60)
    eventually(lambda: space.there("Deployment", "tiny")["spec"]["replicas"] == 2, "and the Deployment follows")


EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_can_be_applied(plane: Plane, space: Space, example: str) -> None:
    arguments = ("apply", "-n", space.name, "--server-side", "-f", f"examples/{example}")
    plane.cluster.kubectl(*arguments, "--dry-run=server", "--validate=strict")
    plane.cluster.kubectl(*arguments)
    for item in yaml.safe_load_all((ROOT / "examples" / example).read_text()):
        if item["kind"] != "TokenService":
            continue
        name = item["metadata"]["name"]
        if "image" in item["spec"]["environment"]:
            assert condition(space.settled(name))["reason"] not in {"InvalidTemplate", "Rejected", "NameConflict"}
        else:  # which nobody builds here
            space.ready(name, "EnvironmentNotReady")
            ready = condition(space.there("TokenService", name), "EnvironmentReady")
            assert ready["reason"] not in {"InvalidEnvironment", "Rejected", "NameConflict"}


def test_the_readme_s_tokenservice_can_be_applied(plane: Plane, space: Space) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    bodies = [body for block in blocks for body in yaml.safe_load_all(block)]
    services = [body for body in bodies if isinstance(body, dict) and body.get("kind") == "TokenService"]
    assert services
    for body in services:
        plane.cluster.kubectl("create", "-n", space.name, "--validate=strict", "-f", "-", input=json.dumps(body))
        name = body["metadata"]["name"]
        found = eventually(lambda name=name: condition(space.there("TokenService", name)), f"{name} has a status")
        # No registry is there to push environments to: that is all there is to say against it.
        assert found["reason"] == "EnvironmentNotReady", found
        assert condition(space.there("TokenService", name), "EnvironmentReady")["reason"] == "BuilderDisabled"
