"""WarmPools, and a stand-in for API server and caches that keeps what is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import Node, Pod, stamp
from tokenservice.api.pools import WarmPool, WarmPoolStatus
from tokenservice.handover.tally import Tally
from tokenservice.kube.client import Client, Resource
from tokenservice.kube.errors import ApiError
from tokenservice.kube.events import EventRecorder
from tokenservice.pods.source import SchemaSource
from tokenservice.pools.controller import Caches, Reconciler

from tests.support.merge_patch import merge_patch
from tests.unit.pods.builders import Schemas

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
IMAGE = "registry.example.com/serving:1"
KEY = ("team", "nlp")
POOL_UID = "pool-uid"
GPU = "nvidia.com/gpu"
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: no victims."


def warm_pool(
    *, status: WarmPoolStatus | None = None, generation: int = 1, uid: str = POOL_UID, name: str = "nlp", **spec: Any
) -> WarmPool:
    """The WarmPool `nlp`, or of another name, in `team`; `spec`: fields over those of a minimal one."""
    metadata = {"name": name, "namespace": "team", "uid": uid, "generation": generation}
    full = {"environment": {"image": {"reference": IMAGE}}, **spec}
    made = msgspec.convert({"metadata": metadata, "spec": full}, WarmPool)
    return made if status is None else msgspec.structs.replace(made, status=status)


def template(**limits: str) -> dict[str, Any]:
    """One whose container has these limits; `gpu` is nvidia.com/gpu."""
    resources = {"limits": {GPU if name == "gpu" else name: quantity for name, quantity in limits.items()}}
    return {"spec": {"containers": [{"name": "server", "resources": resources}]}}


def waiting_pod(name: str = "chat-1", says: str | None = NO_GPU, *, uid: str = "", **spec: Any) -> Pod:
    """A pod of the TokenService `chat`, of which the scheduler says this; it asks for one GPU."""
    labels = {names.LABEL_SERVICE: "chat"}
    lacking = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": says}
    raw = {
        "metadata": {"name": name, "namespace": "team", "uid": uid or f"uid of {name}", "labels": labels},
        "spec": {**template(gpu="1")["spec"], **spec},
        "status": {"phase": "Pending", "conditions": [] if says is None else [lacking]},
    }
    return msgspec.convert(raw, Pod)


class CrashError(Exception):
    """The end of the operator's process."""


class Cluster:
    """The API server and the caches in one. The caches show what others did, and what a request of ours did whose
    answer was lost, only after a `look`.
    """

    def __init__(self, **spec: Any) -> None:
        self.now = NOW
        self.pool: WarmPool | None = warm_pool(**spec)
        self.pods: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, dict[str, Any]] = {}
        self.environments: dict[str, CondaEnvironment] = {}
        self.nodes: tuple[Node, ...] = ()
        self.siblings: dict[str, WarmPool] = {}
        """Other WarmPools of the namespace."""
        self.waiting: tuple[Pod, ...] = ()
        """Pods of TokenServices."""
        self.writes: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.refusal: ApiError | None = None
        self.broken = False
        """Nothing can be made, since something in the way does not work."""
        self.tries = 0
        """How often a pod was to be made."""
        self.deletes = True
        self.unanswered = 0
        """Of so many creations the answer is lost from now on."""
        self.crash_at: int | None = None
        self.version = 0
        self.most = 0
        self.nonces = 0
        self.made: list[tuple[str, str]] = []
        self.tally = Tally(lambda _: None)
        self.hurry = False
        self.reconciler = self.restarted()

    def restarted(self, key: bytes = b"k" * 32) -> Reconciler:
        """The operator, which remembers nothing and has listed everything."""
        self.look()
        self.reconciler = Reconciler(
            cast("Client", self),
            Caches(
                Pools(self),
                Pods(self),
                Environments(self),
                lambda: self.nodes,
                waiting=lambda _: self.waiting,
                pools_in=self._pools_in,
            ),
            cast("SchemaSource", Schemas()),
            cast("EventRecorder", self),
            key=key,
            now=lambda: self.now,
            on_made=self.made.append,
            tally=self.tally,
            nonce=self._nonce,
            hurry=lambda _: self.hurry,
        )
        return self.reconciler

    def look(self) -> None:
        """The watch catches up."""
        self.seen = {name: dict(pod) for name, pod in self.pods.items()}

    def _pools_in(self, _namespace: str) -> Iterable[WarmPool]:
        return (*([self.pool] if self.pool else []), *self.siblings.values())

    # -- what users and others do

    def want(self, **spec: Any) -> None:
        assert self.pool
        known = self.pool
        self.pool = warm_pool(status=known.status, generation=known.metadata.generation + 1, **spec)

    def warm(self, *which: str) -> None:
        """The kubelet: these pods, or all of them, are Ready."""
        for name in which or [*self.pods]:
            self.say(name, phase="Running", conditions=[{"type": "Ready", "status": "True"}])

    def schedule(self, node: str, *which: str) -> None:
        """The scheduler puts these pods on a node, and the kubelet starts them."""
        for name in which:
            self.pods[name] = {**self.pods[name], "spec": {**self.pods[name]["spec"], "nodeName": node}}
        self.warm(*which)

    def say(self, name: str, **status: Any) -> None:
        self.pods[name] = {**self.pods[name], "status": status}
        self.look()

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @property
    def names(self) -> list[str]:
        return sorted(self.pods, key=lambda name: int(name.rsplit("-", 1)[1]))

    def says(self, kind: str = "Ready") -> tuple[str, str]:
        assert self.pool
        found = self.pool.status.condition(kind)
        assert found
        return found.status, found.reason

    async def reconcile(self, *, settle: bool = True, key: tuple[str, str] = KEY) -> list[str]:
        """Until nothing is left to do but wait. Returns what was written."""
        self.writes.clear()
        result = await self.reconciler.reconcile(key)
        for _ in range(50):
            if not settle or result.requeue_after is None or result.requeue_after > 2:
                break
            self.wait(result.requeue_after)
            result = await self.reconciler.reconcile(key)
        done = [*self.writes]
        if settle:
            self.writes.clear()
            await self.reconciler.reconcile(key)
            assert self.writes == [], "a second look writes nothing"
        return done

    # -- the client

    async def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> bytes:
        assert (resource.plural, namespace) == ("pods", "team")
        self.tries += 1
        if self.refusal:
            raise self.refusal
        name = body["metadata"]["name"]
        if self.broken:
            raise ApiError(500, "InternalError", "failed calling webhook")
        if name in self.pods:
            raise ApiError(409, "AlreadyExists")
        metadata = {**body["metadata"], "uid": f"uid of {name} {self._next()}", "creationTimestamp": stamp(self.now)}
        self.pods[name] = {**body, "metadata": metadata, "status": {"phase": "Pending"}}
        self.most = max(self.most, len(self.pods))
        self._wrote("create")
        if self.unanswered > 0:
            self.unanswered -= 1
            raise ApiError(504, "Timeout")
        return msgspec.json.encode(self.pods[name])

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str) -> bytes:
        assert resource.plural == "pods"
        if name not in self.pods:
            raise ApiError(404, "NotFound")
        if not self.deletes:
            raise ApiError(500, "InternalError", "no deletions today")
        assert self.pods[name]["metadata"]["uid"] == uid
        if resource_version not in ("", self.pods[name]["metadata"].get("resourceVersion", "")):
            raise ApiError(409, "Conflict")
        raw = self.pods.pop(name)
        raw = {**raw, "metadata": {**raw["metadata"], "deletionTimestamp": stamp(self.now)}}
        self._wrote("delete")
        return msgspec.json.encode(raw)

    async def list(self, resource: Resource, *, namespace: str, label_selector: str) -> AsyncIterator[bytes]:
        assert resource.plural == "pods"
        pool = label_selector.partition(",tokenservice.dev/pool=")[2]
        items = [raw for raw in self.pods.values() if raw["metadata"]["labels"].get(names.LABEL_POOL) == pool]
        yield msgspec.json.encode({"items": items})

    async def patch_status(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> bytes:
        assert (resource.plural, self.pool is not None) == ("warmpools", True)
        pools = Pools(self)
        raw = cast("dict[str, Any]", msgspec.to_builtins(pools.get(namespace, name)))
        made = {**raw, "status": merge_patch(raw.get("status") or {}, body["status"])}
        pools.observe(pools.decode(msgspec.json.encode(made)))
        self._wrote("status")
        return msgspec.json.encode(made)

    def event(self, _about: object, reason: str, _note: str, *, type: str, **_: Any) -> None:
        self.events.append((type, reason))

    def _wrote(self, what: str) -> None:
        self.writes.append(what)
        if self.crash_at is not None and len(self.writes) >= self.crash_at:
            raise CrashError

    def _next(self) -> int:
        self.version += 1
        return self.version

    def _nonce(self) -> str:
        self.nonces += 1
        return f"nonce-{self.nonces}"


class Pools:
    """The informer of WarmPools."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def get(self, _namespace: str, name: str) -> WarmPool | None:
        return self._cluster.siblings.get(name, self._cluster.pool)

    def by_index(self, _key: str) -> tuple[WarmPool, ...]:
        return ()

    def decode(self, data: bytes) -> WarmPool:
        return msgspec.json.decode(data, type=WarmPool)

    def observe(self, pool: WarmPool) -> None:
        if pool.metadata.name in self._cluster.siblings:
            self._cluster.siblings[pool.metadata.name] = pool
        else:
            self._cluster.pool = pool


class Pods:
    """The informer of pods, which knows what it was told."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def get(self, _namespace: str, name: str) -> Pod | None:
        raw = self._cluster.seen.get(name)
        return None if raw is None else self.decode(msgspec.json.encode(raw))

    def by_index(self, key: str) -> tuple[Pod, ...]:
        namespace, name, kind = key.split("/")
        assert (namespace, kind) == ("team", "pool")
        seen = self._cluster.seen.values()
        found = (raw for raw in seen if raw["metadata"]["labels"].get(names.LABEL_POOL) == name)
        return tuple(self.decode(msgspec.json.encode(raw)) for raw in found)

    def decode(self, data: bytes) -> Pod:
        return msgspec.json.decode(data, type=Pod)

    def observe(self, pod: Pod) -> None:
        name = pod.metadata.name
        self._cluster.seen.pop(name, None)
        if name in self._cluster.pods:
            self._cluster.seen[name] = dict(self._cluster.pods[name])


class Environments:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def get(self, _namespace: str, name: str) -> CondaEnvironment | None:
        return self._cluster.environments.get(name)
