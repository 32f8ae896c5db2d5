"""What the manager makes of watch events, errors and changes of children."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator
from typing import Any, cast
from unittest.mock import Mock

import msgspec
import pytest
from prometheus_client import generate_latest
from tokenservice import manager, watch
from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import Deployment, DeploymentStatus, ManagedFieldsEntry, Object, ObjectMeta, Pod
from tokenservice.api.pools import WarmPool
from tokenservice.environments.store import read as read_environment
from tokenservice.kube.client import Client
from tokenservice.kube.connection import Connection
from tokenservice.kube.errors import ApiError, Unreachable
from tokenservice.kube.events import EventRecorder
from tokenservice.kube.resources import TOKENSERVICES
from tokenservice.options import Options
from tokenservice.parts import MANY_CLAIMS, POOL_SECONDS, Parts, classify, owner_key, same
from tokenservice.runtime.metrics import MISSES, Metrics
from tokenservice.runtime.queue import KeyedQueue
from tokenservice.services.store import Key, decode, read
from tokenservice.watch import Kind, WatchEnded, note

from tests.unit.pools.builders import waiting_pod
from tests.unit.services.builders import node

KEY = ("team", "chat")


def raw(version: int = 1, **more: Any) -> dict[str, Any]:
    metadata = {"namespace": "team", "name": "chat", "uid": "u1", "generation": 1, "resourceVersion": str(version)}
    metadata["managedFields"] = [{"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}}]
    spec = {"model": {"source": "file:///m"}, "environment": {"image": {"reference": "i"}}}
    return {
        "apiVersion": "tokenservice.dev/v1alpha1",
        "kind": "TokenService",
        "metadata": metadata,
        "spec": spec,
        **more,
    }


class Told:
    """A kind, and what its owner was told."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.removed: list[Key] = []
        self.unreadable: list[tuple[Key, bool]] = []
        self.kind = Kind(TOKENSERVICES, self._take, self.removed.append, lambda *said: self.unreadable.append(said))

    def _take(self, raw: Any) -> None:
        self.taken.append(decode(raw).metadata.resource_version)


def test_what_a_watch_says_is_handed_on() -> None:
    told = Told()
    note(told.kind, None, raw(5))
    note(told.kind, "MODIFIED", raw(6))
    note(told.kind, "DELETED", raw(7))
    assert (told.taken, told.removed) == (["5", "6"], [KEY])


def test_who_cannot_be_read_is_named_until_it_can_be_read_or_is_gone() -> None:
    told = Told()
    for change, spec in (("ADDED", {"model": 3}), ("MODIFIED", raw()["spec"]), ("DELETED", {"model": 3})):
        note(told.kind, change, raw(spec=spec))
    assert told.unreadable == [(KEY, True), (KEY, False), (KEY, False)]


def parts(**options: Any) -> Parts:
    client = Client(Connection("http://127.0.0.1:1"))
    return Parts(
        Options(**options), Metrics(), client, EventRecorder(client, instance="test"), template=None, key=b"k" * 32
    )


def depths(made: Parts) -> tuple[int, int]:
    return made.controllers[0].queue.depth, made.controllers[1].queue.depth


async def test_news_of_a_service_asks_for_a_reconcile_and_an_echo_does_not() -> None:
    made = parts()
    services = made.kinds[0]
    note(services, None, raw(5))
    assert depths(made) == (1, 0)
    for old in (5, 4):
        other = parts()
        other.services.observe(read(msgspec.json.encode(raw(5))))
        note(other.kinds[0], "MODIFIED", raw(old))
        assert depths(other) == (0, 0)


async def test_a_deleted_service_is_forgotten_and_looked_at_once_more() -> None:
    made = parts()
    made.services.observe(read(msgspec.json.encode(raw())))
    note(made.kinds[0], "DELETED", raw(7))
    assert (len(made.services), depths(made)) == (0, (1, 0))


async def test_a_service_that_cannot_be_read_is_left_alone() -> None:
    made = parts()
    note(made.kinds[0], "ADDED", raw(spec={"model": 3}))
    assert (len(made.services), depths(made)) == (0, (0, 0))


def environment(version: int, name: str = "nlp", **status: Any) -> dict[str, Any]:
    metadata = {"namespace": "team", "name": name, "uid": "e1", "generation": 1, "resourceVersion": str(version)}
    metadata["managedFields"] = [
        {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}},
        {"manager": "tokenservice-operator", "operation": "Apply", "fieldsV1": {"f:metadata": {}}},
    ]
    return {"metadata": metadata, "spec": {"dependencies": ["python"]}, "status": status}


def known(environment: dict[str, Any]) -> CondaEnvironment:
    return read_environment(msgspec.json.encode(environment))


async def test_news_of_an_environment_asks_for_it_and_for_the_services_that_run_in_it() -> None:
    made = parts()
    made.services.observe(read(msgspec.json.encode(raw(spec=in_environment("nlp")))))
    made.environment_told(None, known(environment(3, image="one")))
    assert depths(made) == (1, 1)
    for version, image, asked in ((4, "one", 0), (5, "two", 1), (3, "two", 0)):
        other = parts()
        other.services.observe(read(msgspec.json.encode(raw(spec=in_environment("nlp")))))
        before = known(environment(3, image="one"))
        other.environments.observe(before)
        await drain(other)
        other.environment_told(before, known(environment(version, image=image)))
        assert depths(other)[0] == asked, (version, image)


async def test_an_environment_that_was_made_for_a_service_asks_for_that_one() -> None:
    made = parts()
    labelled = environment(3, "other")
    labelled["metadata"]["labels"] = {"tokenservice.dev/service": "chat"}
    made.environment_told(None, known(labelled))
    made.environment_told(known(labelled), None)
    assert await made.controllers[0].queue.get() == KEY
    assert len(made.environments) == 0


def warm_pod(version: int, **labels: str) -> Pod:
    metadata = {"namespace": "team", "name": "nlp-1", "resourceVersion": str(version), "labels": labels}
    return msgspec.convert({"metadata": metadata}, Pod)


async def asked(made: Parts) -> list[tuple[str, Key]]:
    """Which controllers are to look at what, also a little later."""
    await asyncio.sleep(2 * POOL_SECONDS)
    found = []
    for controller in made.controllers:
        while controller.queue.depth:
            key = await controller.queue.get()
            controller.queue.done(key)
            found.append((controller.name, key))
    return found


async def test_a_pod_of_a_pool_asks_its_pool_and_once_claimed_the_service_too() -> None:
    made = parts()
    waiting = warm_pod(1, **{"tokenservice.dev/pool": "nlp"})
    made._pod_changed(None, waiting)
    assert await asked(made) == [("warmpool", ("team", "nlp"))]
    made._pod_changed(waiting, warm_pod(2, **{"tokenservice.dev/pool": "nlp"}))
    assert await asked(made) == [], "nothing of it matters"
    claimed = warm_pod(3, **{"tokenservice.dev/service": "chat"})
    made._pod_changed(waiting, claimed)
    assert await asked(made) == [("tokenservice", KEY), ("warmpool", ("team", "nlp"))]
    made._pod_changed(waiting, None)
    assert await asked(made) == [("warmpool", ("team", "nlp"))]


async def test_pools_are_looked_at_less_often_while_many_claims_are_under_way() -> None:
    made = parts()
    queue = cast(KeyedQueue[Key], made.controllers[0].queue)
    for number in range(MANY_CLAIMS + 1):
        queue.add(("team", str(number)), urgent=True)
        await queue.get()
    told = None, warm_pod(1, **{"tokenservice.dev/pool": "nlp"})
    made._pod_changed(*told)
    assert await asked(made) == []
    queue.done(("team", "0"))
    made._pod_changed(*told)
    assert await asked(made) == [("warmpool", ("team", "nlp"))]


async def test_news_of_a_pool_and_of_its_environment_ask_for_it() -> None:
    made = parts()
    metadata = {"namespace": "team", "name": "warm", "uid": "p1", "generation": 1, "resourceVersion": "5"}
    spec = {"environment": {"ref": {"name": "nlp"}}}
    pool = msgspec.convert({"metadata": metadata, "spec": spec}, WarmPool)
    made._pools.observe(pool)
    made._pool_changed(None, pool)
    made._pool_changed(pool, pool)
    assert await asked(made) == [("warmpool", ("team", "warm"))]
    made.environment_told(None, known(environment(3, image="one")))
    assert ("warmpool", ("team", "warm")) in await asked(made)


async def test_a_cordoned_node_asks_the_pools() -> None:
    made = parts()
    metadata = {"namespace": "team", "name": "warm", "uid": "p1", "generation": 1, "resourceVersion": "5"}
    spec = {"environment": {"image": {"reference": "i"}}}
    made._pools.observe(msgspec.convert({"metadata": metadata, "spec": spec}, WarmPool))
    ready, cordoned = node("n"), node("n", unschedulable=True)
    for old, new, asks in ((ready, ready, 0), (ready, cordoned, 1), (cordoned, ready, 1), (ready, None, 1)):
        made._node_changed(old, new)
        assert len(await asked(made)) == asks


def user(name: str, **spec: Any) -> dict[str, Any]:
    made = raw(5, spec={**raw()["spec"], **spec})
    return {**made, "metadata": {**made["metadata"], "name": name, "uid": name}}


async def test_edits_of_those_that_take_warm_pods_come_first() -> None:
    made = parts()
    for name in ("cold", "warm"):
        spec = {"warmPool": {"name": "nlp"}} if name == "warm" else {}
        first = user(name, **spec)
        status, edit = copy.deepcopy(first), copy.deepcopy(first)
        status["metadata"].update(resourceVersion="6")
        edit["metadata"].update(resourceVersion="7", generation=first["metadata"]["generation"] + 1)
        for told in (first, status):
            made._take_service(told)
            assert made.controllers[0].queue.urgent == 0
        made._take_service(edit)
        assert made.controllers[0].queue.urgent == (name == "warm")


async def test_a_node_that_is_lost_or_back_asks_those_that_take_warm_pods() -> None:
    """The news of the pods there may have come before, when the node was still thought to be well."""
    made = parts()
    for found in (user("cold"), user("warm", warmPool={"name": "nlp"})):
        made.services.observe(read(msgspec.json.encode(found)))
    ready, lost_one, cordoned = node("n"), node("n", ready=False), node("n", unschedulable=True)
    changes = ((None, ready, 0), (ready, lost_one, 1), (lost_one, ready, 1), (ready, cordoned, 0), (ready, None, 1))
    for old, new, asks in changes:
        made._node_changed(old, new)
        assert await asked(made) == [("tokenservice", ("team", "warm"))] * asks


async def test_a_node_that_takes_part_again_asks_those_that_wait_for_its_pods() -> None:
    made = parts()
    metadata = {"namespace": "team", "name": "nlp", "uid": "p1", "generation": 1, "resourceVersion": "5"}
    spec = {"environment": {"image": {"reference": "i"}}}
    made._pools.observe(msgspec.convert({"metadata": metadata, "spec": spec}, WarmPool))
    made._warm_pods._waiting[("team", "nlp")] = {KEY}
    made._node_changed(node("n", unschedulable=True), node("n"))
    assert ("tokenservice", KEY) in await asked(made)


async def test_a_pod_that_is_ready_asks_those_that_wait_for_it() -> None:
    made = parts()
    made._warm_pods._waiting[("team", "nlp")] = {KEY}
    before = warm_pod(1, **{"tokenservice.dev/pool": "nlp"})
    status = {"conditions": [{"type": "Ready", "status": "True"}]}
    after = msgspec.structs.replace(before, status=msgspec.convert(status, type(before.status)))
    made._pod_changed(None, before)
    assert ("tokenservice", KEY) not in await asked(made)
    made._pod_changed(before, after)
    assert ("tokenservice", KEY) in await asked(made)


@pytest.mark.parametrize(("deployed", "expected"), [(None, 0), (1, 0), (2, 1), (3, 2), (4, 2)])
async def test_the_places_that_pods_of_pools_are_about_to_take(deployed: int | None, expected: int) -> None:
    """Of a TokenService with three replicas: one pod is claimed, one was handed over, others are nobody's concern."""
    made = parts()
    made.services.observe(read(msgspec.json.encode(user("chat", replicas=3))))
    taken = {"annotations": {names.ANNOTATION_CLAIMED_FROM: "nlp"}}
    owner = {"ownerReferences": [names.owner("ReplicaSet", "chat-1", "r1")]}
    claim, serves = {names.LABEL_CLAIM: "chat"}, {names.LABEL_SERVICE: "chat"}
    pods: list[dict[str, Any]] = [
        {"labels": claim, **taken, "ownerReferences": [names.owner("TokenService", "chat", "chat")]},
        {"labels": serves, **taken},
        {"labels": serves, **taken, **owner},
        {"labels": serves, **owner},
        {"labels": claim, **taken, "deletionTimestamp": "2026-03-01T12:00:00Z"},
    ]
    known: dict[str, list[Pod]] = {"team/chat": [], "team/chat/claim": []}
    for number, metadata in enumerate(pods):
        pod = msgspec.convert({"metadata": {"namespace": "team", "name": f"{number}", **metadata}}, Pod)
        known["team/chat/claim" if names.LABEL_CLAIM in pod.metadata.labels else "team/chat"].append(pod)
    deployment = msgspec.convert({"metadata": {"name": "chat"}, "spec": {"replicas": deployed or 0}}, Deployment)
    deployments = Mock(get=lambda *_: None if deployed is None else deployment)
    caches = {"pods": Mock(by_index=known.__getitem__), "deployments": deployments}
    assert max(0, made._taken(cast(Any, caches), "team", "chat")) == expected
    assert made._taken(cast(Any, caches), "team", "other") == 0


async def test_a_pod_that_is_gone_is_forgotten() -> None:
    made = parts()
    effects = made._warm_pods._effects
    effects._stale["uid"] = "1"
    metadata = {"namespace": "team", "name": "nlp-1", "uid": "uid", "resourceVersion": "1"}
    made._pod_changed(msgspec.convert({"metadata": metadata}, Pod), None)
    assert effects._stale == {}


async def test_a_pod_that_finds_no_room_asks_the_pools_of_its_namespace() -> None:
    made = parts()
    spec = {"environment": {"image": {"reference": "i"}}}
    for namespace, name in (("team", "one"), ("team", "two"), ("other", "three")):
        metadata = {"namespace": namespace, "name": name, "uid": name, "generation": 1, "resourceVersion": "5"}
        made._pools.observe(msgspec.convert({"metadata": metadata, "spec": spec}, WarmPool))
    pools = [("warmpool", ("team", "one")), ("warmpool", ("team", "two"))]
    waits, placed = waiting_pod(), waiting_pod(says=None)
    for old, new in ((None, waits), (waits, placed), (placed, waits), (waits, None)):
        made._pod_changed(old, new)
        assert [each for each in await asked(made) if each[0] == "warmpool"] == pools, (old, new)
    made._pod_changed(waits, waits)
    made._pod_changed(None, placed)
    assert [each for each in await asked(made) if each[0] == "warmpool"] == []


async def test_every_series_of_the_controllers_is_there_from_the_start() -> None:
    metrics = Metrics()
    client = Client(Connection("http://127.0.0.1:1"))
    Parts(Options(), metrics, client, EventRecorder(client, instance="test"), template=None, key=b"k" * 32)
    text = generate_latest(metrics.registry).decode()
    for series in (
        'workqueue_depth{name="condaenvironment"} 0.0',
        'controller_runtime_reconcile_total{controller="condaenvironment",result="success"} 0.0',
        'workqueue_depth{name="warmpool"} 0.0',
        'controller_runtime_reconcile_total{controller="warmpool",result="success"} 0.0',
        'tokenservice_environments{ready="True"} 0.0',
        "tokenservice_pool_hits_total 0.0",
        *(f'tokenservice_pool_misses_total{{reason="{reason}"}} 0.0' for reason in MISSES),
        'tokenservice_environments{ready="False"} 0.0',
        'tokenservice_environment_stage_seconds_count{stage="lock"} 0.0',
        'tokenservice_environment_stage_seconds_count{stage="build"} 0.0',
    ):
        assert series in text


def in_environment(name: str) -> dict[str, Any]:
    return {"model": {"source": "file:///m"}, "environment": {"ref": {"name": name}}}


async def drain(made: Parts) -> None:
    for controller in made.controllers:
        while controller.queue.depth:
            controller.queue.done(await controller.queue.get())


def test_an_answer_is_kept_without_its_managed_fields() -> None:
    service = read(msgspec.json.encode(raw(9)))
    assert service.metadata.managed_fields == ()
    assert (service.metadata.resource_version, service.spec.model.source) == ("9", "file:///m")


def meta(version: str, **more: Any) -> ObjectMeta:
    return ObjectMeta(namespace="team", name="chat", resource_version=version, **more)


def owned(text: bytes) -> tuple[ManagedFieldsEntry, ...]:
    return (ManagedFieldsEntry(manager="tokenservice-operator", operation="Apply", fields_v1=msgspec.Raw(text)),)


@pytest.mark.parametrize(
    ("old", "new", "alike"),
    [
        (Object(metadata=meta("1")), Object(metadata=meta("2")), True),
        (Object(metadata=meta("1", labels={"a": "1"})), Object(metadata=meta("2", labels={"a": "2"})), False),
        (Object(metadata=meta("1")), Object(metadata=meta("2", deletion_timestamp="2026-01-01T00:00:00Z")), False),
        (
            Object(metadata=meta("1", managed_fields=owned(b'{"f:spec":{}}'))),
            Object(metadata=meta("2", managed_fields=owned(b"{}"))),
            False,
        ),
        (
            Object(metadata=meta("1", managed_fields=owned(b"{}"))),
            Object(metadata=meta("2", managed_fields=owned(b"{}"))),
            True,
        ),
        (
            Deployment(metadata=meta("1")),
            Deployment(metadata=meta("2"), status=DeploymentStatus(ready_replicas=1)),
            False,
        ),
        (Deployment(metadata=meta("1", generation=1)), Deployment(metadata=meta("2", generation=2)), False),
    ],
    ids=["version", "label", "deleted", "field-lost", "field-kept", "counts", "spec"],
)
def test_which_changes_of_a_child_matter(old: Object | Deployment, new: Object | Deployment, alike: bool) -> None:
    assert same(old, new) is alike


def test_the_owner_is_found_by_label_then_by_name() -> None:
    assert owner_key(meta("1")) == ("team", "chat")
    assert owner_key(meta("1", labels={"tokenservice.dev/service": "other"})) == ("team", "other")


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ApiError(409, "Conflict", "m"), "conflict"),
        (ApiError(422, "Invalid", "m"), "terminal"),
        (ApiError(403, "Forbidden", "exceeded quota"), "transient"),
        (
            ApiError(403, "Forbidden", "unable to create new content in namespace a because it is being terminated"),
            "leaving",
        ),
        (ApiError(503, "ServiceUnavailable", "m"), "transient"),
        (Unreachable("m"), "transient"),
        (TimeoutError(), "transient"),
        (RuntimeError("m"), None),
    ],
)
def test_what_an_error_means(error: Exception, verdict: str | None) -> None:
    assert classify(error) == verdict


async def infinite_watch() -> AsyncGenerator[int, None]:
    """Named as kopf's is."""
    yield 1


async def another() -> AsyncGenerator[int, None]:
    yield 1


def test_what_kopf_leaves_behind_is_not_told_as_a_fault() -> None:
    loop = Mock()
    for found, told in ((infinite_watch(), False), (another(), True), (None, True)):
        loop.reset_mock()
        context = {"message": "an error occurred", "exception": RuntimeError("m"), "asyncgen": found}
        watch._unheard(loop, context)
        assert loop.default_exception_handler.called is told


class FailsWhenCancelled(manager._Manager):
    """Its watch fails in the moment in which it is told to stop."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.times = 0
        self._leads = True

    async def _reconcile(self, client: Any) -> None:
        self.times += 1
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fail())

    async def _fail(self) -> None:
        try:
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            raise WatchEnded("at the worst moment")


async def test_told_to_stop_while_a_watch_fails_it_stops() -> None:
    made = FailsWhenCancelled()
    work = asyncio.create_task(made._lead(cast(Any, None)))
    await made.begun.wait()
    made._leads = False
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(work, 5)
    assert made.times == 1
