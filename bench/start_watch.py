"""What is in the namespace of the benchmark of starts, and when each pod came how far: one clock, four watches."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from tokenservice.api import names
from tokenservice.api.meta import ObjectMeta, Pod
from tokenservice.api.pools import WarmPoolStatus
from tokenservice.api.v1alpha1 import TokenServiceStatus
from tokenservice.pods.failures import readiness

from bench.environment_watch import Moments, Watching

SERVICE_NAME = "kubernetes.io/service-name"
"""On EndpointSlices: the Service that they are of."""


class Service(msgspec.Struct):
    """A TokenService."""

    metadata: ObjectMeta
    status: TokenServiceStatus = TokenServiceStatus()


class Pool(msgspec.Struct):
    """A WarmPool."""

    metadata: ObjectMeta
    status: WarmPoolStatus = WarmPoolStatus()


class _Conditions(msgspec.Struct):
    ready: bool | None = None


class _Target(msgspec.Struct):
    uid: str = ""


class _Endpoint(msgspec.Struct, rename="camel", frozen=True):
    conditions: _Conditions = msgspec.field(default_factory=_Conditions)
    target_ref: _Target | None = None


class _Slice(msgspec.Struct):
    metadata: ObjectMeta
    endpoints: list[_Endpoint] | None = None


@dataclass
class Marks:
    """When a watch first showed of a pod that it was there, had a node, ran, was Ready, was in its Service's slice.

    By the monotonic clock, in seconds.
    """

    made: float
    scheduled: float | None = None
    running: float | None = None
    ready: float | None = None
    listed: float | None = None


@dataclass
class Scene(Moments):
    """The namespace as of now. Pods by uid, the others by name."""

    pods: dict[str, Pod] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    marks: dict[str, Marks] = field(default_factory=dict)
    """By the pod's uid."""

    def take_tokenservice(self, kind: str, data: msgspec.Raw) -> None:
        self._take(self.services, kind, msgspec.json.decode(data, type=Service))

    def take_pool(self, kind: str, data: msgspec.Raw) -> None:
        self._take(self.pools, kind, msgspec.json.decode(data, type=Pool))

    def take_any_pod(self, kind: str, data: msgspec.Raw) -> None:
        pod, now = msgspec.json.decode(data, type=Pod), self.clock()
        uid = pod.metadata.uid
        if kind == "DELETED":
            self.pods.pop(uid, None)
            return
        self.pods[uid] = pod
        marks = self.marks.setdefault(uid, Marks(now))
        if pod.spec.node_name and marks.scheduled is None:
            marks.scheduled = now
        if marks.running is None and any(each.state.running for each in pod.status.container_statuses):
            marks.running = now
        if marks.ready is None and readiness(pod):
            marks.ready = now

    def take_slice(self, kind: str, data: msgspec.Raw) -> None:
        found, now = msgspec.json.decode(data, type=_Slice), self.clock()
        if kind == "DELETED" or SERVICE_NAME not in found.metadata.labels:
            return
        for endpoint in found.endpoints or ():
            marks = self.marks.get(endpoint.target_ref.uid) if endpoint.target_ref else None
            if marks and marks.listed is None and endpoint.conditions.ready:
                marks.listed = now

    @staticmethod
    def _take(known: dict[str, Any], kind: str, found: Service | Pool) -> None:
        if kind == "DELETED":
            known.pop(found.metadata.name, None)
        else:
            known[found.metadata.name] = found

    def status(self, name: str) -> TokenServiceStatus:
        """Of the TokenService of that name; empty if there is none."""
        return self.services[name].status if name in self.services else TokenServiceStatus()

    def of(self, service: str) -> list[Pod]:
        """All pods of a TokenService, those that leave included."""
        labels = (names.LABEL_SERVICE, names.LABEL_CLAIM, names.LABEL_DEPLOYMENT)
        return [pod for pod in self.pods.values() if any(pod.metadata.labels.get(label) == service for label in labels)]

    def waiting(self, pool: str) -> list[Pod]:
        """All pods that wait in a pool, those that leave included."""
        return [pod for pod in self.pods.values() if pod.metadata.labels.get(names.LABEL_POOL) == pool]

    def full(self, pool: str, count: int) -> bool:
        """Whether just so many pods wait in the pool, each Ready, and its status says so."""
        pods = self.waiting(pool)
        there = len(pods) == count and all(readiness(pod) and not pod.metadata.deletion_timestamp for pod in pods)
        return there and pool in self.pools and self.pools[pool].status.ready_replicas == count

    def said(self, service: str) -> str:
        """What a TokenService says of itself, for people."""
        conditions = self.status(service).conditions
        return "; ".join(f"{each.type}={each.status} {each.reason}: {each.message}" for each in conditions) or "nothing"


def settled(pod: Pod) -> bool:
    """Whether a pod that came from a pool is the Deployment's like any other."""
    metadata = pod.metadata
    owner = metadata.controller
    left = names.ANNOTATION_DELETION_COST in metadata.annotations or names.LABEL_CLAIM in metadata.labels
    return not left and owner is not None and owner.kind == "ReplicaSet"


class Onlooker(Watching):
    """The bare client, with watches of a namespace."""

    @contextlib.asynccontextmanager
    async def scene(self, namespace: str) -> AsyncGenerator[Scene, None]:
        """From what is there now on."""
        scene = Scene()
        ours = f"/apis/{names.API_VERSION}/namespaces/{namespace}"
        watches: tuple[tuple[str, Callable[[str, msgspec.Raw], None]], ...] = (
            (f"{ours}/tokenservices?", scene.take_tokenservice),
            (f"{ours}/warmpools?", scene.take_pool),
            (f"/api/v1/namespaces/{namespace}/pods?", scene.take_any_pod),
            (f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?", scene.take_slice),
        )
        async with self._following(watches, scene):
            yield scene
