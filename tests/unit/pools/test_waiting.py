"""Which pods a pool gives way to, as the watch tells of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tokenservice.api.meta import Pod
from tokenservice.pools.waiting import Waiting, covered, words

from tests.unit.pools.builders import NO_GPU, waiting_pod


def changed(**fields: Any) -> Pod:
    """A waiting pod with other `labels`, `phase`, `nodeName`, `deletionTimestamp` or `reason` of its condition."""
    raw = msgspec.to_builtins(waiting_pod())
    raw["metadata"]["labels"] |= fields.pop("labels", {})
    if "service" in fields:
        del raw["metadata"]["labels"]["tokenservice.dev/service"]
    if "deletionTimestamp" in fields:
        raw["metadata"]["deletionTimestamp"] = fields["deletionTimestamp"]
    raw["spec"] |= {key: value for key, value in fields.items() if key == "nodeName"}
    raw["status"] |= {key: value for key, value in fields.items() if key in ("phase", "conditions")}
    if "reason" in fields:
        raw["status"]["conditions"][0]["reason"] = fields["reason"]
    return msgspec.convert(raw, Pod)


OTHERS: dict[str, Pod] = {
    "of a pool": changed(labels={"tokenservice.dev/pool": "nlp"}),
    "that brings an image": changed(labels={"tokenservice.dev/pre-pull": "chat"}),
    "of nobody": changed(service=None),
    "on its way out": changed(deletionTimestamp="2026-03-01T12:00:00Z"),
    "with a node": changed(nodeName="node-1"),
    "that has ended": changed(phase="Failed"),
    "held back by a gate": changed(reason="SchedulingGated"),
    "not looked at yet": changed(conditions=[]),
}


@pytest.mark.parametrize("pod", OTHERS.values(), ids=OTHERS)
def test_who_does_not_wait(pod: Pod) -> None:
    waiting = Waiting()
    assert words(pod) is None
    assert not waiting.told(None, pod)
    assert waiting.told(pod, waiting_pod())
    assert waiting.told(waiting_pod(), pod), "it waits no more"
    assert waiting.in_namespace("team") == ()


def test_they_are_kept_by_namespace() -> None:
    waiting = Waiting()
    one, two = waiting_pod("chat-1"), waiting_pod("chat-2")
    assert words(one) == NO_GPU
    assert waiting.told(None, one)
    assert waiting.told(None, two)
    assert {pod.metadata.name for pod in waiting.in_namespace("team")} == {"chat-1", "chat-2"}
    assert waiting.in_namespace("other") == ()
    assert waiting.told(one, None)
    assert waiting.in_namespace("team") == (two,)


def test_the_same_words_are_no_news_and_others_are() -> None:
    waiting = Waiting()
    waiting.told(None, waiting_pod())
    newer = waiting_pod(uid="newer")
    assert not waiting.told(waiting_pod(), newer)
    assert waiting.in_namespace("team") == (newer,)
    assert waiting.told(newer, waiting_pod(says="0/3 nodes are available: 3 Insufficient cpu."))


def test_claimed_pods_take_the_places_of_as_many() -> None:
    def pod(service: str, number: int) -> Pod:
        name = f"{service}-{number}"
        raw = msgspec.to_builtins(waiting_pod(name))
        raw["metadata"]["labels"]["tokenservice.dev/service"] = service
        raw["metadata"] |= {"creationTimestamp": f"2026-03-01T12:00:0{number}Z", "uid": name}
        return msgspec.convert(raw, Pod)

    pods = [*(pod("chat", number) for number in range(3)), pod("other", 0)]

    def found(**taken: int) -> set[str]:
        return {*covered(pods, lambda service: taken.get(service, 0))}

    assert found() == found(chat=-1) == set()
    assert found(chat=1) == {"chat-2"}, "those that have waited longest need room"
    assert found(chat=2, other=1) == {"chat-1", "chat-2", "other-0"}
    assert found(chat=7) == {"chat-0", "chat-1", "chat-2"}
