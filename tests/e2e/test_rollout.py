"""Pods come and go, and no request is lost: changes of the spec, deleted pods, evictions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.client import Client
from tests.support.api import Api, Object, RefusedError, path_of
from tests.support.space import Space, container
from tests.support.wait import eventually
from tests.support.watch import Timeline

DRAIN_DELAY_SECONDS = 5.0


def serving(*arguments: str) -> dict[str, Any]:
    return {"model": {"source": "file:///opt/standin"}, "engine": {"args": ["--token-interval", "0.03", *arguments]}}


def evict(api: Api, pod: Object) -> None:
    """What `kubectl drain` asks for, a pod at a time. Raises RefusedError where a PodDisruptionBudget forbids it."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    api.request("POST", path_of("Pod", namespace, name, "eviction"), body)


def ended(timeline: Timeline, name: str, *, seconds: float = 30.0) -> tuple[float, int]:
    """When the pod's container was seen to have ended, and its exit code."""

    def over(pod: Object) -> bool:
        return pod["metadata"]["name"] == name and "terminated" in container(pod).get("state", {})

    when, pod = timeline.first(over, f"{name} ended", seconds=seconds)
    return when, int(container(pod)["state"]["terminated"]["exitCode"])


def test_no_request_is_lost_while_the_spec_changes(space: Space, client: Client, standin_image: str) -> None:
    space.apply("steady", standin_image, replicas=2, **serving("--version-text", "old"))
    url = client.reach(space.ready("steady"))
    before = space.uids("steady")
    with client.asking_steadily(url, "standin") as report:
        space.patch("steady", **serving("--version-text", "new"))
        space.ready("steady")
        assert not before & space.uids("steady")
        eventually(lambda: not leaving(space), "the old pods are gone", seconds=60)
    assert not report.failures, "\n".join(report.failures)
    assert set(report.versions) == {"old", "new"}, "the client asked before and after"
    assert all(count > 10 for count in report.answers.values()), report


def leaving(space: Space) -> list[Object]:
    return [pod for pod in space.api.list("Pod", space.name) if "deletionTimestamp" in pod["metadata"]]


def test_a_change_that_does_not_come_up_leaves_what_serves(space: Space, client: Client, standin_image: str) -> None:
    space.apply("careful", standin_image, replicas=2, **serving("--version-text", "old"))
    url = client.reach(space.ready("careful"))
    before = space.uids("careful")
    with client.asking_steadily(url, "standin") as report:
        space.patch("careful", **serving("--fail-after", "0", "--fail-message", "the new one is broken"))
        service = space.says("careful", "CrashLoopBackOff")
        available = next(each for each in service["status"]["conditions"] if each["type"] == "Available")
        assert available["status"] == "True"
        assert before < space.uids("careful")
    assert not report.failures, "\n".join(report.failures)
    assert set(report.versions) == {"old"}
    space.patch("careful", **serving("--version-text", "old"))
    space.ready("careful")
    assert space.uids("careful") == before


def test_a_deleted_pod_finishes_its_streams(space: Space, api: Api, client: Client, standin_image: str) -> None:
    space.apply("drained", standin_image, **serving())
    space.ready("drained")
    pods = Timeline(api, "Pod", space.name)
    pod = space.pod("drained")
    name, address = pod["metadata"]["name"], pod["status"]["podIP"]
    pods.first(lambda seen: seen["metadata"]["name"] == name, "the pod is watched")
    ask = {"model": "standin", "prompt": "Once", "max_tokens": 240, "stream": True}  # 7.2 s
    with client.stream(f"http://{address}:8000/v1/completions", ask) as stream:
        api.delete("Pod", space.name, name)
        leaves, _ = pods.first(
            lambda seen: seen["metadata"]["name"] == name and "deletionTimestamp" in seen["metadata"], "the pod leaves"
        )
        eventually(lambda: client.ask(f"http://{address}:8000/readyz").status == 503, "it is not ready any more")
        assert client.ask(f"http://{address}:8000/v1/models").status == 200, "it goes on accepting while endpoints lag"
        answer = stream.answer()
    assert answer.status == 200
    assert answer.text.count("data: ") == 242
    assert answer.text.endswith("data: [DONE]\n\n")
    when, code = ended(pods, name)
    assert code == 0
    assert when - leaves >= DRAIN_DELAY_SECONDS - 0.5
    assert space.ready("drained")


def test_a_drain_takes_one_pod_at_a_time(space: Space, api: Api, standin_image: str) -> None:
    space.apply("pair", standin_image, replicas=2, **serving())
    space.ready("pair")
    first, second = space.pods("pair")

    def allowed() -> bool:
        return bool(space.there("PodDisruptionBudget", "pair")["status"]["disruptionsAllowed"] == 1)

    eventually(allowed, "the budget allows one")
    evict(api, first)
    with pytest.raises(RefusedError, match="disruption budget") as refused:
        evict(api, second)
    assert refused.value.code == 429

    def evicted() -> bool:
        evict(api, second)
        return True

    eventually(evicted, "the next may go once another serves in the first one's place", seconds=60)
    space.ready("pair")
    assert not space.uids("pair") & {first["metadata"]["uid"], second["metadata"]["uid"]}


def test_a_drain_does_not_wait_for_what_serves_nobody(space: Space, api: Api, standin_image: str) -> None:
    space.apply("stuck", standin_image, replicas=2, **serving("--never-ready"))

    def running() -> bool:
        pods = space.pods("stuck")
        return len(pods) == 2 and all(pod["status"]["phase"] == "Running" for pod in pods)

    eventually(running, "both run")
    for pod in space.pods("stuck"):
        evict(api, pod)
