"""The order of things around a plan: what the answers to our own writes may bring."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, cast

import msgspec
import pytest
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import ControllerRevision, Deployment, Object, Pod
from tokenservice.api.v1alpha1 import LastStart
from tokenservice.handover.assigner import Outcome
from tokenservice.handover.assignment import Document
from tokenservice.handover.tally import Tally
from tokenservice.kube.client import Client, Resource
from tokenservice.kube.events import EventRecorder
from tokenservice.pods.source import SchemaSource
from tokenservice.services.caches import Caches
from tokenservice.services.controller import Reconciler
from tokenservice.services.store import Store
from tokenservice.services.taking import Around, WarmPods
from tokenservice.services.verify import Answer

from tests.unit.pods.builders import Schemas
from tests.unit.services.builders import service

KEY = ("team", "demo")


class Api:
    """Stands in for the API server: takes every write; the status's answer is `service` as somebody left it."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.answer = answer

    async def apply(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], **_: Any) -> bytes:
        metadata = {**body["metadata"], "resourceVersion": "5", "uid": resource.plural}
        return msgspec.json.encode({**body, "metadata": metadata})

    async def patch_status(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> bytes:
        return msgspec.json.encode({**self.answer, "status": body["status"]})


class Cache:
    """A cache of nothing but what was written."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        self._held: Any = None

    def get(self, namespace: str, name: str) -> Any:
        return self._held

    def by_index(self, key: str) -> tuple[Any, ...]:
        return (self._held,) if self._held else ()

    def decode(self, data: bytes) -> Any:
        return msgspec.json.decode(data, type=self._kind)

    def observe(self, obj: Any) -> None:
        self._held = obj


class Asker:
    answers: Mapping[str, Answer] = {}
    asking: Mapping[str, datetime] = {}

    def ask(self, pod: Pod) -> None: ...


class Metrics:
    def rollout_stage(self, stage: str, seconds: float) -> None: ...

    def rolled_back(self) -> None: ...

    def pool_hit(self, age: float) -> None: ...

    def pool_misses(self, reason: str, pods: int) -> None: ...

    def started(self, start: LastStart) -> None: ...


class Timer:
    timed: ClassVar[Mapping[str, LastStart | None]] = {}

    def time(self, pod: Pod) -> None: ...


class Assigner:
    """No pods of pools are there to be given anything."""

    key_id = "key"
    outcomes: ClassVar[Mapping[str, Outcome]] = {}

    def assign(self, pod: Pod, nonce: str, document: Document, seconds: float) -> None: ...


class Recorder:
    def event(self, *_: Any, **__: Any) -> None: ...


@pytest.mark.parametrize(
    ("meanwhile", "again"),
    [
        ({}, False),
        ({"generation": 2}, True),
        ({"uid": "another"}, True),
        ({"annotations": {"tokenservice.dev/retry": "1"}}, True),
        ({"deletionTimestamp": "2026-03-01T12:00:00Z"}, True),
        ({"labels": {"team": "a"}}, False),
    ],
)
async def test_a_spec_that_arrives_with_the_answer_to_the_status_is_carried_out(
    meanwhile: dict[str, Any], again: bool
) -> None:
    """Between reading and writing somebody changes the spec: the watch then brings nothing that is newer."""
    known = service()
    answer = cast("dict[str, Any]", msgspec.to_builtins(known))
    answer["metadata"] = {**answer["metadata"], "resourceVersion": "100", **meanwhile}
    store = Store()
    store.observe(known)
    reconciler = Reconciler(
        cast("Client", Api(answer)),
        store,
        Caches(
            *(Cache(Deployment), Cache(Object), Cache(Object), Cache(Pod), Cache(CondaEnvironment)),
            Cache(ControllerRevision),
        ),
        cast("SchemaSource", Schemas()),
        cast("EventRecorder", Recorder()),
        asker=Asker(),
        warm_pods=WarmPods(
            cast("Client", Api(answer)),
            Around(Cache(Pod)),
            assigner=Assigner(),
            timer=Timer(),
            tally=Tally(lambda _: None),
            metrics=Metrics(),
            now=lambda: datetime(2026, 3, 1, 12, tzinfo=UTC),
        ),
        metrics=Metrics(),
        cluster_domain="cluster.local",
        now=lambda: datetime(2026, 3, 1, 12, tzinfo=UTC),
        hurry=lambda: False,
    )
    result = await reconciler.reconcile(KEY)
    assert (result.requeue_after == 0.0) is again
