"""A bare client that claims warm pods: the least that whoever claims has to do, as the yardstick for the operator.

It watches the TokenServices of a namespace and the pods of a pool. For each edit that asks for one replica more it
takes the pod that has been warm longest, and makes the operator's two patches, worked out by the operator's own code,
with the assignment between them: no plan, no status, no settling. Where it is told to, it makes a new pod for each that
was claimed.

With `locked: false` it is the broken claim that the checker must find: without resourceVersion, and without uid, two
clients take the same pod. A process of its own, run by bench/child.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime

import aiohttp
import msgspec
from tokenservice.api import names
from tokenservice.api.meta import ObjectMeta, Pod
from tokenservice.handover import assigner, patches
from tokenservice.handover.claim import Taker

from bench.child import serve
from bench.client import GROUP, MANAGER, MERGE, NAME, Api, RefusedError
from bench.cluster import BenchError

REVISION = "0123456789"
"""Stands for a revision of the TokenService."""
MAKING = 16
"""Pods that are made at the same time, as the operator does."""
CONNECTIONS = 64
"""As many as the operator has requests in flight at most."""
_encode = msgspec.json.encode


class Task(msgspec.Struct):
    """What it is told.

    Attributes:
        pod: the text of a pod of the pool, with `NAME` in place of its name; empty for no refill.
        refill_per_s: pods that are made in a second at most.
        locked: whether a claim is bound to the version of the pod that was seen.
        pause_s: between the choice of a pod and its claim, for clients that are to meet.
        part, parts: of several clients, which one: each has its own TokenServices, and all have the pool in common.

    """

    server: str
    ca: str
    token: str
    namespace: str
    pool: str
    model: str
    pod: str = ""
    refill_per_s: int = 0
    locked: bool = True
    pause_s: float = 0.0
    part: int = 0
    parts: int = 1


class _Spec(msgspec.Struct):
    replicas: int = 1


class _Service(msgspec.Struct):
    metadata: ObjectMeta
    spec: _Spec


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _List(msgspec.Struct):
    metadata: ObjectMeta
    items: tuple[msgspec.Raw, ...]


class Claimer:
    """One client."""

    def __init__(self, task: Task, api: Api, pods: aiohttp.ClientSession) -> None:
        self._task = task
        self._api = api
        self._servers = pods
        self._path = f"/api/v1/namespaces/{task.namespace}/pods"
        self._free: dict[str, Pod] = {}
        """Warm ones, the one that has been so longest first."""
        self._left: set[str] = set()
        """uids of those that this client has tried to take: the watch may tell of them again."""
        self._asked: dict[str, int] = {}
        """Replicas of each TokenService for which a claim was begun."""
        self._news = asyncio.Event()
        self._missing = 0
        self._making = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Claims until it is cancelled."""
        synced = [asyncio.Event(), asyncio.Event()]
        async with asyncio.TaskGroup() as group:
            self._group = group
            selector = f"{names.LABEL_POOL}={self._task.pool}"
            group.create_task(self._pods(f"{self._path}?labelSelector={selector}", synced[0]))
            services = f"{GROUP}/namespaces/{self._task.namespace}/tokenservices?"
            group.create_task(self._services(services, synced[1]))
            if self._task.pod:
                group.create_task(self._refill())
            for each in synced:
                await each.wait()
            ready()

    async def _pods(self, path: str, synced: asyncio.Event) -> None:
        async for kind, raw in _followed(self._api, path, synced):
            pod = msgspec.json.decode(raw, type=Pod)
            if kind == "DELETED" or pod.metadata.deletion_timestamp or not _warm(pod):
                self._free.pop(pod.metadata.name, None)
            elif pod.metadata.uid not in self._left:
                self._free[pod.metadata.name] = pod
                self._news.set()

    async def _services(self, path: str, synced: asyncio.Event) -> None:
        async for kind, raw in _followed(self._api, path, synced):
            service = msgspec.json.decode(raw, type=_Service)
            name = service.metadata.name
            if kind == "DELETED" or sum(name.encode()) % self._task.parts != self._task.part:
                continue
            known = self._asked.setdefault(name, service.spec.replicas)
            self._asked[name] = service.spec.replicas
            for _ in range(service.spec.replicas - known):
                self._group.create_task(self._claim(service))

    async def _claim(self, service: _Service) -> None:
        name = service.metadata.name
        taker = Taker(self._task.namespace, name, service.metadata.uid)
        while True:
            pod = await self._take()
            claim = patches.claim(pod, taker, REVISION, self._task.pool, datetime.now(UTC))
            if not self._task.locked:
                del claim["metadata"]["resourceVersion"], claim["metadata"]["uid"]
            await asyncio.sleep(self._task.pause_s)
            try:
                await self._patch(pod, claim)
            except RefusedError as error:
                if error.status not in (404, 409):
                    raise
                self._left.discard(pod.metadata.uid)  # if it is still in the pool, the watch tells of it once more
            else:
                break
        self._missing += 1
        self._making.set()
        stages = await self._assign(pod, name)
        labels = {**names.child_labels(name), names.LABEL_REVISION: REVISION}
        await self._patch(pod, patches.serve(pod, {"metadata": {"labels": labels}}, stages, datetime.now(UTC)))

    async def _take(self) -> Pod:
        while not self._free:
            self._news.clear()
            await self._news.wait()
        name = next(iter(self._free))
        pod = self._free.pop(name)
        self._left.add(pod.metadata.uid)
        return pod

    async def _patch(self, pod: Pod, patch: patches.Patch) -> None:
        await self._api.send("PATCH", f"{self._path}/{pod.metadata.name}{MANAGER}", _encode(patch), MERGE)

    async def _assign(self, pod: Pod, service: str) -> dict[str, float]:
        body = {"service": f"{self._task.namespace}/{service}", "model": {"source": self._task.model}}
        url = assigner.url(pod)
        headers = {"Authorization": f"Bearer {pod.metadata.uid}"}
        async with self._servers.put(url, json=body, headers=headers) as answer:
            if answer.status != 200:
                raise BenchError(f"PUT {url}: {answer.status} {(await answer.text())[:200]}")
            stages: dict[str, float] = (await answer.json())["stages"]
            return stages

    async def _refill(self) -> None:
        """A token bucket, as the operator's: a second's worth at once, then one by one."""
        rate, number = self._task.refill_per_s, 0
        level, at = float(rate), time.monotonic()
        places = asyncio.Semaphore(MAKING)

        async def make(name: str) -> None:
            async with places:
                await self._api.send("POST", self._path + MANAGER, self._task.pod.replace(NAME, name).encode())

        while True:
            if not self._missing:
                self._making.clear()
                await self._making.wait()
            now = time.monotonic()
            level, at = min(float(rate), level + (now - at) * rate), now
            for _ in range(min(self._missing, int(level))):
                number, level, self._missing = number + 1, level - 1, self._missing - 1
                self._group.create_task(make(f"{self._task.pool}-r{self._task.part}-{number}"))
            if self._missing:
                await asyncio.sleep(max(0.01, (1.0 - level) / rate))


def _warm(pod: Pod) -> bool:
    ready = any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions)
    return ready and bool(pod.status.pod_ip)


async def _followed(api: Api, path: str, synced: asyncio.Event) -> AsyncGenerator[tuple[str, msgspec.Raw], None]:
    """Everything there is, then every change, for ever. path: of a collection, with its query begun."""
    found = msgspec.json.decode(await api.send("GET", path), type=_List)
    for item in found.items:
        yield "ADDED", item
    version = found.metadata.resource_version
    synced.set()
    while True:
        # The server may end a watch at any time; a run is too short for what it goes on from to be forgotten.
        with contextlib.suppress(aiohttp.ClientError):
            async for line in api.lines(f"{path}&watch=true&resourceVersion={version}"):
                event = msgspec.json.decode(line, type=_Event)
                if event.type == "ERROR":
                    raise BenchError(f"watch {path}: {bytes(event.object).decode()[:200]}")
                version = msgspec.json.decode(event.object, type=_Named).metadata.resource_version
                yield event.type, event.object


class _Named(msgspec.Struct):
    metadata: ObjectMeta


async def run(task: bytes, ready: Callable[[], None]) -> None:
    """Does the task until it is cancelled."""
    told = msgspec.json.decode(task, type=Task)
    # A connection for each pod: none is used twice.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with (
        Api(told.server, told.ca, told.token, CONNECTIONS) as api,
        aiohttp.ClientSession(connector=connector) as pods,
    ):
        await Claimer(told, api, pods).run(ready)


if __name__ == "__main__":
    asyncio.run(serve(run))
