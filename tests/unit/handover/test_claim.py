"""What of a pod tells that it was taken, and which pods can be."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tokenservice.api import names
from tokenservice.handover import patches
from tokenservice.handover.claim import Claim, claims, is_member, served_at, stamp_exactly, takeable

from tests.support.merge_patch import merge_patch
from tests.unit.handover.builders import NOW, TAKER, ago, as_pod, claimed_raw, owner, warm_pod, warm_raw

SICK = {"name": "server", "ready": False, "state": {"terminated": {"exitCode": 1, "message": "no such model"}}}


def read(*raws: dict[str, Any], lost: Callable[[str], bool] = lambda _: False) -> tuple[Claim, ...]:
    return claims(map(as_pod, raws), TAKER.uid, lost, NOW)


def test_a_pod_that_is_being_given_its_model() -> None:
    (found,) = read(claimed_raw(at=0.25))
    assert (found.revision, found.at, found.served) == ("r1", NOW - timedelta(seconds=0.25), None)
    assert (found.ready, found.failing, found.lost, found.ended, found.serves) == (True, None, False, False, False)


def test_a_pod_that_serves() -> None:
    (found,) = read(claimed_raw(at=7, served=6.5))
    assert found.served == NOW - timedelta(seconds=6.5)
    assert found.serves


@pytest.mark.parametrize("how", ["not ready", "lost", "ended"])
def test_a_pod_that_served(how: str) -> None:
    raw = claimed_raw(at=7, served=6.5, ready=how != "not ready")
    if how == "ended":
        raw["status"]["phase"] = "Failed"
    (found,) = read(raw, lost=lambda node: node == "node-1" and how == "lost")
    assert (found.lost, found.ended, found.serves) == (how == "lost", how == "ended", False)


def test_a_pod_on_no_node_is_on_no_lost_one() -> None:
    raw = claimed_raw()
    raw["spec"] = {}
    assert not read(raw, lost=lambda _: True)[0].lost


def test_a_pod_whose_container_does_not_come_up() -> None:
    raw = claimed_raw(ready=False)
    raw["status"]["containerStatuses"] = [SICK]
    assert read(raw)[0].failing == "no such model (exit code 1)"
    raw["status"]["containerStatuses"] = [{"name": "server", "state": {"waiting": {"reason": "ContainerCreating"}}}]
    assert read(raw)[0].failing is None


@pytest.mark.parametrize(("finished", "failing"), [(60, False), (None, True), (1, True)])
def test_how_its_container_ended_before_it_was_taken_says_nothing(finished: float | None, failing: bool) -> None:
    """One that has run since, and whose probe fails once while a model loads."""
    raw = claimed_raw(at=3, ready=False)
    end = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": ago(finished) if finished else None}
    state = {"state": {"running": {}}, "lastState": {"terminated": end}}
    raw["status"]["containerStatuses"] = [{"name": "server", "ready": False, "restartCount": 1, **state}]
    assert (read(raw)[0].failing is not None) is failing


def test_the_oldest_come_first_and_the_same_order_always() -> None:
    raws = [claimed_raw("c", at=1), claimed_raw("b", at=2), claimed_raw("a", at=1)]
    for order in (raws, raws[::-1]):
        assert [each.pod.metadata.name for each in read(*order)] == ["b", "a", "c"]


OTHERS: dict[str, dict[str, Any]] = {
    "on its way out": {"deletionTimestamp": "2026-03-01T12:00:00Z"},
    "of an earlier TokenService of that name": {"ownerReferences": [owner("TokenService", "demo", "other")]},
    "of nobody, and not out of a pool": {"ownerReferences": [], "annotations": {}},
    "not controlled": {"ownerReferences": [owner("TokenService", "demo", TAKER.uid, controller=False)]},
}


@pytest.mark.parametrize("meta", OTHERS.values(), ids=OTHERS)
def test_what_is_no_claim(meta: dict[str, Any]) -> None:
    raw = claimed_raw()
    raw["metadata"] |= meta
    assert read(raw) == ()


def test_what_an_earlier_tokenservice_of_that_name_has_left_behind() -> None:
    raw = claimed_raw()
    assert not read(raw)[0].orphan
    raw["metadata"]["ownerReferences"] = []
    (found,) = read(raw)
    assert found.orphan
    adopted = merge_patch(raw, patches.adopt(as_pod(raw), TAKER))
    assert adopted["metadata"]["ownerReferences"] == [owner("TokenService", "demo", TAKER.uid)]
    assert not read(adopted)[0].orphan


BAD = ["", "yesterday", "2026-03-01T11:59:50", "1772366390", "9999-99-99T00:00:00Z"]


@pytest.mark.parametrize("text", BAD)
def test_annotations_that_somebody_has_written(text: str) -> None:
    raw = claimed_raw(at=3, served=2)
    raw["metadata"]["annotations"][names.ANNOTATION_SERVED_AT] = text
    (found,) = read(raw)
    assert found.served == found.at == NOW - timedelta(seconds=3)
    raw["metadata"]["annotations"][names.ANNOTATION_CLAIMED_AT] = text
    (found,) = read(raw)
    assert found.served == found.at == NOW - timedelta(seconds=660), "since it was made"


def test_annotations_that_somebody_has_taken_away() -> None:
    """It is to settle nevertheless, and to hold up no other revision for ever."""
    raw = claimed_raw(at=3, served=2)
    raw["metadata"]["annotations"] = {}
    assert read(raw)[0].served == NOW - timedelta(seconds=660)
    del raw["metadata"]["creationTimestamp"]
    assert read(raw)[0].served == NOW


def test_nothing_has_happened_after_now() -> None:
    """Another clock, or somebody's annotation: it is to settle in this century."""
    (found,) = read(claimed_raw(at=-1e9, served=-1e9))
    assert (found.at, found.served) == (NOW, NOW)


def test_when_a_pod_was_put_into_its_service() -> None:
    assert served_at(warm_pod()) is None
    assert served_at(as_pod(claimed_raw(served=2))) == NOW - timedelta(seconds=2)


def test_times_are_to_the_millisecond() -> None:
    assert stamp_exactly(NOW + timedelta(microseconds=1500)) == "2026-03-01T12:00:00.001Z"
    assert ago(0) == "2026-03-01T12:00:00.000Z"


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({}, True),
        ({"deletionTimestamp": "2026-03-01T12:00:00Z"}, False),
        ({"labels": {"tokenservice.dev/service": "chat"}}, False),
        ({"ownerReferences": [{"kind": "WarmPool", "name": "pool", "uid": "u2", "controller": True}]}, False),
        ({"ownerReferences": [{"kind": "WarmPool", "name": "pool", "uid": "u1"}]}, False),
        ({"ownerReferences": []}, False),
    ],
)
def test_who_is_a_member(meta: dict[str, Any], expected: bool) -> None:
    mine = {
        "labels": {"tokenservice.dev/pool": "pool"},
        "ownerReferences": [{"kind": "WarmPool", "name": "pool", "uid": "u1", "controller": True}],
    }
    assert is_member(warm_pod("pool-1", **{**mine, **meta}), "pool", "u1") is expected


def can_be_taken(raw: dict[str, Any], **asked: Any) -> bool:
    wants = {"shape": "shape-1", "key_id": "key-1", "unfit": lambda _: False, **asked}
    return [*takeable([as_pod(raw)], "nlp", "pool-uid", **wants)] != []


def test_a_pod_that_can_be_taken() -> None:
    assert can_be_taken(warm_raw())
    assert not can_be_taken(warm_raw(), shape="shape-2")
    assert not can_be_taken(warm_raw(), key_id="key-2"), "its token was made with another key"
    assert not can_be_taken(warm_raw(), unfit=lambda node: node == "node-1")
    assert not can_be_taken(warm_raw(ready=False))
    assert not can_be_taken(claimed_raw()), "taken already"
    assert not can_be_taken(warm_raw(deletionTimestamp="2026-03-01T12:00:00Z"))
    assert not can_be_taken(warm_raw(annotations={}))
    without = warm_raw()
    del without["status"]["podIP"]
    assert not can_be_taken(without)
    foreign = warm_raw(ownerReferences=[owner("WarmPool", "nlp", "an earlier one")])
    assert not can_be_taken(foreign)


def test_all_that_can_be_taken_are_found() -> None:
    pods = [warm_pod("a"), as_pod(warm_raw("b", ready=False)), warm_pod("c")]
    found = takeable(pods, "nlp", "pool-uid", shape="shape-1", key_id="key-1", unfit=lambda _: False)
    assert [pod.metadata.name for pod in found] == ["a", "c"]
