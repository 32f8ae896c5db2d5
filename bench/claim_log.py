"""What became of a namespace's warm pods, and of the edits that asked for them: read out of the API server's audit log.

It needs the log of a cluster made with --audit-bodies. Pure functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from tokenservice.api import names

from bench.audit import Write

SCHEDULER = "system:kube-scheduler"


@dataclass
class WarmPod:
    """One pod that was made for a pool; a later pod of the same name is another one.

    Attributes:
        name: of the pod.
        warm: when it could first be claimed. KWOK's first status of a pod has it Running and Ready.
        left: when it could not be claimed any more, since it was claimed or deleted.
        deleted: whether it was deleted.
        claims: TokenServices that have claimed it, and when they were first answered.
        served: TokenServices whose Service has selected it, and when that was first answered.

    """

    name: str
    warm: datetime | None = None
    left: datetime | None = None
    deleted: bool = False
    claims: dict[str, datetime] = field(default_factory=dict)
    served: dict[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True)
class Story:
    """Of one namespace, by TokenService.

    Attributes:
        edits: when the API server received each request for one replica more, in order.
        finished: when the claims were finished, in order: the pod's second patch was answered.
        stuck: pods that were claimed and have not got the second patch, in words.
        pods: all that were made for pools.

    """

    edits: dict[str, list[datetime]]
    finished: dict[str, list[datetime]]
    stuck: dict[str, list[str]]
    pods: tuple[WarmPod, ...]

    @property
    def services(self) -> list[str]:
        """Those that have asked for a pod, or have claimed one."""
        return sorted({*self.edits, *self.finished, *self.stuck})


class _Metadata(msgspec.Struct):
    name: str = ""
    labels: dict[str, str | None] | None = None


class _Spec(msgspec.Struct):
    replicas: int | None = None


class _Body(msgspec.Struct):
    metadata: _Metadata | None = None
    spec: _Spec | None = None

    @property
    def labels(self) -> dict[str, str | None]:
        return (self.metadata.labels if self.metadata else None) or {}


_decoder = msgspec.json.Decoder(_Body)
_NOTHING = _Body()


def story(writes: Iterable[Write], namespace: str) -> Story:
    """The story of a namespace, from the writes of everybody in the order of the log."""
    edits: dict[str, list[datetime]] = defaultdict(list)
    replicas: dict[str, int] = {}
    pods: list[WarmPod] = []
    now: dict[str, WarmPod] = {}
    """Those that are there, by name."""
    for write in writes:
        if write.namespace != namespace or write.code >= 300:
            continue
        if write.what == "tokenservices":
            _edit(write, replicas, edits)
        elif write.what == "pods" and write.verb == "create":
            made = _body(write)
            if names.LABEL_POOL in made.labels:
                name = write.name or (made.metadata or _Metadata()).name
                now[name] = WarmPod(name)
                pods.append(now[name])
        elif write.what == "pods" and write.verb == "delete":
            gone = now.pop(write.name, None)
            if gone:
                gone.deleted = True
                gone.left = gone.left or write.answered
        elif write.what == "pods" and write.verb == "patch":
            _patch(write, now, pods)
        elif write.what == "pods/status" and write.user != SCHEDULER:
            pod = now.get(write.name)
            if pod and pod.warm is None:
                pod.warm = write.answered
    finished: dict[str, list[datetime]] = defaultdict(list)
    stuck: dict[str, list[str]] = defaultdict(list)
    for pod in pods:
        for service in pod.claims:
            if service in pod.served:
                finished[service].append(pod.served[service])
            else:
                stuck[service].append(f"{pod.name}, deleted since" if pod.deleted else pod.name)
    return Story(
        edits={service: sorted(times) for service, times in edits.items()},
        finished={service: sorted(times) for service, times in finished.items()},
        stuck=dict(stuck),
        pods=tuple(pods),
    )


def _edit(write: Write, replicas: dict[str, int], edits: dict[str, list[datetime]]) -> None:
    body = _body(write)
    asked = body.spec.replicas if body.spec else None
    if write.verb == "create":
        name = write.name or (body.metadata or _Metadata()).name
        replicas[name] = 1 if asked is None else asked
    elif write.verb in ("patch", "update") and asked is not None:
        more = asked - replicas.get(write.name, 0)
        edits[write.name] += [write.received] * more
        replicas[write.name] = asked


def _patch(write: Write, now: dict[str, WarmPod], pods: list[WarmPod]) -> None:
    labels = _body(write).labels
    claimed, serves = labels.get(names.LABEL_CLAIM), labels.get(names.LABEL_SERVICE)
    pod = now.get(write.name)
    if pod is None and claimed:  # made before the log began
        pod = now[write.name] = WarmPod(write.name, warm=write.received)
        pods.append(pod)
    if pod is None:
        return
    if claimed:
        pod.claims.setdefault(claimed, write.answered)
    if serves:
        pod.served.setdefault(serves, write.answered)
    if pod.left is None and (claimed or labels.get(names.LABEL_POOL, "") is None):
        pod.left = write.answered


def _body(write: Write) -> _Body:
    """What was sent; nothing where that is no object, as in a JSON patch."""
    try:
        return _decoder.decode(write.body) if write.body else _NOTHING
    except msgspec.ValidationError:
        return _NOTHING
