"""What claims need to be there: a namespace with a WarmPool, its pods, and TokenServices of no replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tokenservice.api import names
from tokenservice.api.meta import Pod
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import EnvironmentStatus
from tokenservice.pods.schema import PodSchema
from tokenservice.pools import render

from bench.audit import AuditLog
from bench.claim_bare import Task
from bench.claim_log import Story, story
from bench.client import GROUP, MANAGER, MERGE, NAME, SPEC, Api, each, until
from bench.cluster import BenchError, Cluster, Identity

POOL = "pool"
MODEL = SPEC["model"]["source"]
FILLING_PER_S = 200
"""`refill.maxPerSecond` until the pool is full."""
SETTLE_SECONDS = 600.0
FILL_SECONDS = 300.0
CONNECTIONS = 100
"""That edits are sent on. Opened beforehand: a burst is to be one of edits, not of TLS handshakes."""
IN_FLIGHT = 16
COLD_START = {"pod-ready.stage.kwok.x-k8s.io/delay": "300s"}
"""Of pods that are not from the pool. KWOK's would be Ready at once, and whoever settles would rightly keep those and
delete the claimed ones; real ones pull an image and import torch.
"""
_encode = msgspec.json.encode


@dataclass(frozen=True)
class Setting:
    """Where everything happens. api: of the client; logs: a folder."""

    cluster: Cluster
    client: Identity
    operator: Identity
    api: Api
    logs: Path

    def audit(self, namespace: str) -> AuditLog:
        """What everybody writes in the namespace from now on."""
        return AuditLog(self.cluster.audit_log, namespaces=[namespace])

    def bare(self, namespace: str, pool: WarmPool, **options: Any) -> Task:
        """What a bare client is to be told."""
        return Task(
            server=self.cluster.server,
            ca=self.cluster.ca,
            token=self.client.token,
            namespace=namespace,
            pool=pool.metadata.name,
            model=MODEL,
            **options,
        )


class _Pods(msgspec.Struct):
    items: tuple[Pod, ...]


def pool_manifest(namespace: str, replicas: int, refill_per_s: int) -> dict[str, Any]:
    """The namespace's WarmPool, of the shape that the TokenServices have."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "WarmPool",
        "metadata": {"name": POOL, "namespace": namespace},
        "spec": {
            "environment": SPEC["environment"],
            "template": SPEC["template"],
            "replicas": replicas,
            "refill": {"maxPerSecond": refill_per_s},
        },
    }


def service_manifest(namespace: str, name: str) -> dict[str, Any]:
    """A TokenService without a replica, whose replicas are to come from the pool."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "TokenService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            **SPEC,
            "replicas": 0,
            "warmPool": {"name": POOL},
            "template": {**SPEC["template"], "metadata": {"annotations": COLD_START}},
        },
    }


async def make_pool(api: Api, namespace: str, replicas: int, refill_per_s: int) -> WarmPool:
    """Makes the namespace's WarmPool."""
    body = _encode(pool_manifest(namespace, replicas, refill_per_s))
    made = await api.send("POST", f"{GROUP}/namespaces/{namespace}/warmpools{MANAGER}", body)
    return msgspec.json.decode(made, type=WarmPool)


async def set_refill(api: Api, namespace: str, per_s: int) -> None:
    """Sets how fast the pool is filled from now on."""
    path = f"{GROUP}/namespaces/{namespace}/warmpools/{POOL}{MANAGER}"
    await api.send("PATCH", path, _encode({"spec": {"refill": {"maxPerSecond": per_s}}}), MERGE)


async def make_services(api: Api, namespace: str, called: Iterable[str]) -> None:
    """Makes TokenServices, none with a replica yet."""

    async def one(name: str) -> None:
        body = _encode(service_manifest(namespace, name))
        await api.send("POST", f"{GROUP}/namespaces/{namespace}/tokenservices{MANAGER}", body)

    await each(one, called, IN_FLIGHT)


async def pod_schema(api: Api) -> PodSchema:
    """The cluster's own schema of a pod template."""
    return PodSchema.from_openapi(msgspec.json.decode(await api.send("GET", "/openapi/v3/apis/apps/v1")))


def pod_text(schema: PodSchema, pool: WarmPool) -> str:
    """A pod of the pool as the operator would make it, with `NAME` in place of its name. Nobody checks its token."""
    image = pool.spec.environment.image
    if image is None:
        raise BenchError("the benchmark's pool has a prebuilt image")
    made = render.rendered(pool, schema, EnvironmentStatus(image=image.reference))
    annotations = {names.ANNOTATION_NONCE: "0" * 16, names.ANNOTATION_KEY: "0" * 8}
    return _encode(render.pod(pool, made, NAME, digest="0" * 64, annotations=annotations)).decode()


async def fill(api: Api, namespace: str, text: str, count: int) -> None:
    """Fills a pool without an operator, and waits until all its pods are warm."""

    async def one(name: str) -> None:
        await api.send("POST", f"/api/v1/namespaces/{namespace}/pods{MANAGER}", text.replace(NAME, name).encode())

    await each(one, [f"{POOL}-{number}" for number in range(1, count + 1)], IN_FLIGHT)

    async def warm() -> int:
        body = await api.send("GET", f"/api/v1/namespaces/{namespace}/pods")
        pods = msgspec.json.decode(body, type=_Pods).items
        return sum(
            any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions) for pod in pods
        )

    await _until(warm, count)


async def filled(api: Api, namespace: str, count: int) -> None:
    """Waits until the operator says that so many pods of the pool are warm."""

    async def warm() -> int:
        body = await api.send("GET", f"{GROUP}/namespaces/{namespace}/warmpools/{POOL}")
        return msgspec.json.decode(body, type=WarmPool).status.ready_replicas

    await _until(warm, count)


async def offer(api: Api, namespace: str, called: Sequence[str], per_s: float | None) -> float:
    """Asks each TokenService for its first replica: `per_s` a second at even distances, or all at once, whatever
    becomes of the earlier ones. Returns by how many seconds the latest edit was sent late.
    """
    late = 0.0
    body = _encode({"spec": {"replicas": 1}})

    async def edit(name: str) -> None:
        await api.send("PATCH", f"{GROUP}/namespaces/{namespace}/tokenservices/{name}{MANAGER}", body, MERGE)

    await asyncio.gather(*(api.send("GET", "/version") for _ in range(min(CONNECTIONS, len(called)))))
    async with asyncio.TaskGroup() as group:
        began = time.monotonic()
        for number, name in enumerate(called):
            if per_s:
                due = began + number / per_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                late = max(late, time.monotonic() - due)
            group.create_task(edit(name))
    return late


async def finished(audit: AuditLog, namespace: str, count: int, seconds: float) -> Story:
    """Waits until so many claims are finished, or none more in `seconds`; returns what has become of everything."""
    seen, since = 0, time.monotonic()
    while True:
        told = story(audit.read(), namespace)
        now = sum(map(len, told.finished.values()))
        if now > seen:
            seen, since = now, time.monotonic()
        if now >= count or time.monotonic() - since > seconds:
            return told
        await asyncio.sleep(1.0)


async def settled(api: Api, namespace: str) -> None:
    """Waits until no claimed pod is left: each is a Deployment's. The pool may be filled still, a pod a second."""
    path = f"/api/v1/namespaces/{namespace}/pods?labelSelector={names.LABEL_CLAIM}&limit=1"

    async def none() -> bool:
        return not msgspec.json.decode(await api.send("GET", path), type=_Pods).items

    await until(none, f"claimed pods of {namespace} have not settled", SETTLE_SECONDS, every=2.0)


async def _until(warm: Callable[[], Awaitable[int]], count: int) -> None:
    deadline = time.monotonic() + FILL_SECONDS
    while (found := await warm()) < count:
        if time.monotonic() > deadline:
            raise BenchError(f"{found} of {count} pods of the pool are warm after {FILL_SECONDS:g} s")
        await asyncio.sleep(1.0)
