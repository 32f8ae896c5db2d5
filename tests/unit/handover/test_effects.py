"""The writes to pods, and what is made of their answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import msgspec
import pytest
from tokenservice.api import names
from tokenservice.api.meta import Pod
from tokenservice.handover.effects import Effects
from tokenservice.kube.client import MERGE, STRATEGIC, Client, Resource
from tokenservice.kube.errors import ApiError, Unreachable

from tests.support.merge_patch import merge_patch
from tests.unit.handover.builders import NOW, TAKER, as_pod, claim, warm_raw

CONFLICT = ApiError(409, "Conflict")
GONE = ApiError(404, "NotFound")
ANOTHER = ApiError(422, "Invalid", "field is immutable", (("metadata.uid", "field is immutable"),))
WRONG = ApiError(422, "Invalid", "spec: no", (("spec.x", "no"),))


class Api:
    """The API server, and the cache of pods: one of each name, and answers that a test asks for."""

    def __init__(self, *names_: str) -> None:
        self.pods = {name: warm_raw(name) for name in names_}
        self.errors: list[Exception] = []
        self.sets: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str]] = []
        self.told: list[Pod] = []
        self.gate: asyncio.Event | None = None
        self.effects = Effects(cast("Client", self), cast("Any", self), lambda: NOW)

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], *, content_type: str = MERGE
    ) -> bytes:
        self.asked.append((name, content_type))
        if self.gate:
            await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        metadata = dict(body["metadata"])
        if content_type == STRATEGIC:
            metadata.pop("ownerReferences")
        self.pods[name] = merge_patch(self.pods[name], {"metadata": metadata})
        return msgspec.json.encode(self.pods[name])

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        raw = self.pods.pop(name)
        return msgspec.json.encode(
            {**raw, "metadata": {**raw["metadata"], "deletionTimestamp": "2026-03-01T12:00:00Z"}}
        )

    async def list(self, resource: Resource, *, namespace: str, label_selector: str) -> AsyncIterator[bytes]:
        assert (resource.plural, namespace) == ("replicasets", "team")
        assert label_selector == "tokenservice.dev/deployment=demo,tokenservice.dev/revision=r1"
        for each in self.sets:  # a page for each
            yield msgspec.json.encode({"items": [each]})

    def decode(self, data: bytes) -> Pod:
        return msgspec.json.decode(data, type=Pod)

    def observe(self, pod: Pod) -> None:
        self.told.append(pod)

    async def claim(self, *names_: str) -> int:
        return len(await self.effects.claim(TAKER, [as_pod(warm_raw(name)) for name in names_], "r1", "nlp"))


def of_set(replicas: int, number: int = 1, **labels: str) -> dict[str, Any]:
    metadata = {"name": f"demo-{number}", "labels": labels or {"pod-template-hash": f"hash-{number}"}}
    return {"metadata": metadata, "spec": {"replicas": replicas}}


async def test_claims_are_made_side_by_side() -> None:
    api = Api("a", "b")
    api.gate = asyncio.Event()
    task = asyncio.create_task(api.claim("a", "b"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(api.asked) == 2
    assert not api.effects.free(as_pod(warm_raw("a"))), "others need not try"
    api.gate.set()
    assert await task == 2
    assert [pod.metadata.labels[names.LABEL_CLAIM] for pod in api.told] == ["demo", "demo"]
    assert api.effects.free(as_pod(warm_raw("a")))


async def test_a_pod_that_has_changed_is_looked_at_again() -> None:
    api = Api("a")
    api.errors = [CONFLICT]
    assert await api.claim("a") == 0
    assert len(api.told) == 1, "as it is now"
    assert api.effects.free(as_pod(warm_raw("a")))


@pytest.mark.parametrize("errors", [[GONE], [ANOTHER], [CONFLICT, GONE], [CONFLICT, ANOTHER]])
async def test_a_pod_that_is_gone_is_not_tried_as_it_was(errors: list[Exception]) -> None:
    api = Api("a")
    api.errors = errors
    assert await api.claim("a") == 0
    assert not api.effects.free(as_pod(warm_raw("a")))
    assert api.effects.free(as_pod(warm_raw("a", resourceVersion="42"))), "it has changed since"
    api.errors = [GONE]
    await api.claim("a")
    api.effects.forget("uid of a")
    assert api.effects.free(as_pod(warm_raw("a")))


@pytest.mark.parametrize("error", [WRONG, Unreachable("no answer"), ApiError(500, "InternalError")])
async def test_what_else_goes_wrong_is_told_once_all_have_come_to_an_end(error: Exception) -> None:
    api = Api("a", "b")
    api.errors = [error]
    with pytest.raises(type(error)):
        await api.claim("a", "b")
    assert [pod.metadata.name for pod in api.told] == ["b"], "the other one is ours"
    assert api.effects.free(as_pod(warm_raw("a")))


@pytest.mark.parametrize("error", [GONE, CONFLICT, ANOTHER])
async def test_later_writes_to_a_pod_that_is_gone_are_nothing(error: ApiError) -> None:
    api = Api("a")
    for write in (
        lambda: api.effects.serve(claim("a"), {"metadata": {"labels": {}}}, {}),
        lambda: api.effects.finish(TAKER, claim("a").pod),
    ):
        api.errors = [error]
        await write()
    api.errors = [error if error is not ANOTHER else CONFLICT]
    await api.effects.drop(claim("a").pod, "why")
    assert (api.told, [*api.pods]) == ([], ["a"])


async def test_later_writes_that_fail_are_told() -> None:
    api = Api("a")
    api.errors = [WRONG, WRONG]
    with pytest.raises(ApiError):
        await api.effects.finish(TAKER, claim("a").pod)
    with pytest.raises(ApiError):
        await api.effects.drop(claim("a").pod, "why")


async def test_a_dropped_pod_is_on_its_way_out() -> None:
    api = Api("a")
    await api.effects.drop(claim("a").pod, "why")
    assert [pod.metadata.deletion_timestamp for pod in api.told] == ["2026-03-01T12:00:00Z"]


ROOM = [
    # what the ReplicaSets are asked for, Ready already -> settled of three
    ([], 0, 0),
    ([3], 0, 3),
    ([3], 1, 2),
    ([3], 3, 0),
    ([3], 4, 0),
    ([0], 0, 0),
    ([0, 2], 0, 2),
    ([2, 0], 1, 1),
]


@pytest.mark.parametrize(("sets", "ready", "expected"), ROOM)
async def test_as_many_settle_as_there_is_room_for(sets: list[int], ready: int, expected: int) -> None:
    """One that comes before its ReplicaSet is asked for it would be deleted as one too many."""
    api = Api("a", "b", "c")
    api.sets = [of_set(replicas, number) for number, replicas in enumerate(sets)]
    claims = [claim(name, at=9, served=8) for name in api.pods]
    assert await api.effects.settle(TAKER, claims, "r1", ready) == expected
    settled = [raw for raw in api.pods.values() if "pod-template-hash" in raw["metadata"]["labels"]]
    assert len(settled) == expected
    largest = max(range(len(sets)), key=sets.__getitem__, default=0)
    assert {raw["metadata"]["labels"]["pod-template-hash"] for raw in settled} <= {f"hash-{largest}"}


async def test_a_replica_set_without_a_hash_takes_nothing_in() -> None:
    api = Api("a")
    api.sets = [of_set(3, **{"team.example/own": "yes"})]
    assert await api.effects.settle(TAKER, [claim("a", served=8)], "r1", 0) == 0


async def test_one_that_may_not_settle_keeps_no_other_from_it() -> None:
    api = Api("a", "b")
    api.sets = [of_set(2)]
    api.errors = [WRONG]
    with pytest.raises(ApiError, match="spec: no"):
        await api.effects.settle(TAKER, [claim("a", served=8), claim("b", served=8)], "r1", 0)
    assert [pod.metadata.name for pod in api.told] == ["b"]


async def test_one_that_is_gone_does_not_settle() -> None:
    api = Api("a", "b")
    api.sets = [of_set(2)]
    api.errors = [GONE]
    assert await api.effects.settle(TAKER, [claim("a", served=8), claim("b", served=8)], "r1", 0) == 1
