"""A bare client of the API server: what the operator's writes are compared with, and what puts load on it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec
from tokenservice.api.meta import Condition, ObjectMeta
from tokenservice.api.v1alpha1 import TokenService
from tokenservice.kube.apply import with_hash
from tokenservice.kube.status import status_patch
from tokenservice.pods.schema import PodSchema
from tokenservice.services import environment, render, revisions, rollout
from tokenservice.services.plan import CHILDREN, plan
from tokenservice.services.snapshot import Snapshot
from tokenservice.services.warm import Hand

from bench.cluster import BenchError

GROUP = "/apis/tokenservice.dev/v1alpha1"
APPLY, MERGE, JSON = "application/apply-patch+yaml", "application/merge-patch+json", "application/json"
MANAGER = "?fieldManager=bench-client"
# Values that the prepared texts hold until the real ones are known; as long as those.
NAME, UID = "name-0000", "00000000-0000-0000-0000-000000000000"
TOLERATIONS = [{"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}]
SPEC: dict[str, Any] = {
    "model": {"source": "file:///models/tiny"},
    "environment": {"image": {"reference": "registry.example.com/team/serving:1.0"}},
    "template": {"spec": {"tolerations": TOLERATIONS}},
}

_encode = msgspec.json.encode


class _Created(msgspec.Struct):
    metadata: ObjectMeta


class _Status(msgspec.Struct, rename="camel"):
    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()


class Seen(msgspec.Struct):
    """Of a TokenService what tells whether it is Ready."""

    metadata: ObjectMeta
    status: _Status = msgspec.field(default_factory=_Status)

    @property
    def ready(self) -> bool:
        status = self.status
        return status.observed_generation == self.metadata.generation and any(
            condition.type == "Ready" and condition.status == "True" for condition in status.conditions
        )


class _Event(msgspec.Struct):
    type: str
    object: Seen


class _List(msgspec.Struct):
    items: tuple[Seen, ...]


class RefusedError(BenchError):
    """The API server's answer is an error; `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """One aiohttp session, nothing more. Use it with `async with`."""

    def __init__(self, server: str, ca: str, token: str, connections: int = 0) -> None:
        """connections: at most; 0 for as many as there are requests."""
        self._server = server
        self._connections = connections
        self._tls = ssl.create_default_context(cadata=ca)
        self._headers = {"Authorization": f"Bearer {token}"}

    async def __aenter__(self) -> Api:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=self._connections)
        self._session = aiohttp.ClientSession(self._server, connector=connector, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, method: str, path: str, data: bytes | None = None, content: str = JSON) -> bytes:
        """A request's answer. Raises RefusedError for an error answer, BenchError for none."""
        headers = {"Content-Type": content} if data is not None else {}
        try:
            async with self._session.request(method, path, data=data, headers=headers) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BenchError(f"{method} {path}: {error or type(error).__name__}") from error
        if answer.status >= 300:
            words = body.decode(errors="replace")[:500]
            raise RefusedError(f"{method} {path}: {answer.status} {words}", answer.status)
        return body

    async def exists(self, path: str) -> bool:
        """Whether there is something at `path`."""
        async with self._session.get(path) as answer:
            await answer.read()
            return answer.status != 404

    async def make_namespace(self, name: str, seconds: float = 60.0) -> None:
        """Makes a namespace, and waits for the service account that pods in it run as."""
        body = _encode({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        await self.send("POST", "/api/v1/namespaces", body)
        path = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        await until(lambda: self.exists(path), "the namespace has no service account", seconds)

    async def remove_namespace(self, name: str, seconds: float = 900.0) -> None:
        """Deletes a namespace, and waits until all that was in it is gone."""
        path = f"/api/v1/namespaces/{name}"
        await self.send("DELETE", path)

        async def gone() -> bool:
            return not await self.exists(path)

        await until(gone, "the namespace is still there", seconds, every=1.0)

    async def services(self, namespace: str) -> tuple[Seen, ...]:
        """The TokenServices of the namespace."""
        body = await self.send("GET", f"{GROUP}/namespaces/{namespace}/tokenservices")
        return msgspec.json.decode(body, type=_List).items

    async def until_ready(
        self, namespace: str, count: int, progress: Callable[[int], None], seconds: float
    ) -> dict[str, datetime]:
        """Waits until so many TokenServices are Ready, by a watch; returns when each of them was seen to be.

        Raises BenchError after `seconds`.
        """
        ready: dict[str, datetime] = {}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    # The server may end a watch at any time; the next one begins with everything there is.
                    with contextlib.suppress(aiohttp.ClientError):
                        async for event in self._watch(namespace):
                            name = event.object.metadata.name
                            if not event.object.ready:
                                ready.pop(name, None)
                            else:
                                ready.setdefault(name, datetime.now(UTC))
                            if len(ready) == count:
                                return ready
                            progress(len(ready))
                    ready.clear()
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise BenchError(f"{len(ready)} of {count} TokenServices are Ready after {seconds:g} s") from None

    async def _watch(self, namespace: str) -> AsyncGenerator[_Event, None]:
        path = f"{GROUP}/namespaces/{namespace}/tokenservices?watch=true&resourceVersion=0"
        async for line in self.lines(path):
            yield msgspec.json.decode(line, type=_Event)

    async def lines(self, path: str) -> AsyncGenerator[bytes, None]:
        """The lines of an answer as they come, such as the events of a watch. Raises aiohttp.ClientError."""
        rest = b""
        async with self._session.get(path, timeout=aiohttp.ClientTimeout(total=None)) as answer:
            answer.raise_for_status()
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line


@dataclass(frozen=True)
class Texts:
    """The bodies of a service's writes, in the order in which they are made; with `NAME` and `UID` in them."""

    service: bytes
    children: tuple[tuple[str, bytes], ...]
    """Path of the collection in a namespace, body."""
    status: bytes


async def prepare(api: Api, namespace: str) -> Texts:
    """What the operator would write for one service, worked out beforehand by the operator's own code."""
    schema = PodSchema.from_openapi(msgspec.json.decode(await api.send("GET", "/openapi/v3/apis/apps/v1")))
    metadata = {"name": NAME, "namespace": namespace, "uid": UID, "generation": 1}
    service = msgspec.convert({"metadata": metadata, "spec": SPEC}, TokenService)
    around = environment.surroundings(service, None, None, get=lambda _: None, users_of=lambda _: ())
    children = render.children(service, schema, around.runs_in)
    snapshot = Snapshot(service, children, None, None, None, (), datetime.now(UTC), "cluster.local", around)
    step = rollout.step(snapshot)
    status = plan(snapshot, dict.fromkeys(CHILDREN, "missing"), step, Hand(service.spec.replicas)).status
    if status is None or children.deployment is None or step.target is None or step.create is None:
        raise BenchError("the operator's plan for a new TokenService lacks its status, its revision or its Deployment")
    deployment = revisions.deployment(children.deployment, step.target, hold=False, replicas=service.spec.replicas)
    return Texts(
        service=manifest(NAME, namespace),
        children=(
            (f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions", _encode(step.create)),
            (f"/apis/apps/v1/namespaces/{namespace}/deployments", _encode(deployment)),
            (f"/api/v1/namespaces/{namespace}/services", _encode(with_hash(children.service))),
            (f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets", _encode(with_hash(children.budget))),
        ),
        status=_encode(status_patch(service.status, status)),
    )


def manifest(name: str, namespace: str) -> bytes:
    """A TokenService as JSON; its pods run on KWOK's nodes."""
    metadata = {"name": name, "namespace": namespace}
    return _encode(
        {"apiVersion": "tokenservice.dev/v1alpha1", "kind": "TokenService", "metadata": metadata, "spec": SPEC}
    )


async def create(api: Api, namespace: str, names: Iterable[str], in_flight: int) -> None:
    """Creates TokenServices."""

    async def one(name: str) -> None:
        await api.send("POST", f"{GROUP}/namespaces/{namespace}/tokenservices{MANAGER}", manifest(name, namespace))

    await each(one, names, in_flight)


async def write_all(api: Api, texts: Texts, namespace: str, names: Iterable[str], in_flight: int) -> None:
    """Makes the writes of the operator up to a service's first status, the service's creation included."""
    collection = f"{GROUP}/namespaces/{namespace}/tokenservices"

    async def one(name: str) -> None:
        real = name.encode()
        body = await api.send("POST", collection + MANAGER, texts.service.replace(NAME.encode(), real))
        uid = msgspec.json.decode(body, type=_Created).metadata.uid.encode()
        for path, text in texts.children:
            data = text.replace(NAME.encode(), real).replace(UID.encode(), uid)
            called = msgspec.json.decode(data, type=_Created).metadata.name
            await api.send("PATCH", f"{path}/{called}{MANAGER}", data, APPLY)
        status = texts.status.replace(NAME.encode(), real)
        await api.send("PATCH", f"{collection}/{name}/status{MANAGER}", status, MERGE)

    await each(one, names, in_flight)


async def each(work: Callable[[str], Awaitable[None]], names: Iterable[str], in_flight: int) -> None:
    """Does the work for every name, so many at a time. Raises the first error."""
    todo = iter(names)

    async def worker() -> None:
        for name in todo:
            await work(name)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def until(probe: Callable[[], Awaitable[bool]], problem: str, seconds: float, every: float = 0.1) -> None:
    """Waits until the probe is true. Raises BenchError with the problem after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            while not await probe():  # noqa: ASYNC110 - what is asked is another machine
                await asyncio.sleep(every)
    except TimeoutError:
        raise BenchError(f"{problem} after {seconds:g} s") from None
