"""A pod that was taken from a pool: what of it is known, and which pods of a pool can be taken. Pure functions.

    waits in the pool -> claimed -> given its model -> serves -> settled: a pod of the Deployment

How far it is stands on the pod. Claimed: it has the label of who took it and belongs to that TokenService, not to its
WarmPool any more. Serves: it has the label that the Service selects. Settled: it has the Deployment's labels, and the
claim's no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from tokenservice.api import names
from tokenservice.api.meta import Pod, time_of
from tokenservice.pods.failures import pod_failures, readiness

POOL = "/pool"
"""Behind "namespace/WarmPool name": in an index of pods, the key of those that wait in the pool."""
CLAIMS = "/claim"
"""Behind "namespace/TokenService name": the key of those that it took from a pool and that are not settled."""


@dataclass(frozen=True)
class Taker:
    """The TokenService that pods are taken for."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class Claim:
    """A claimed pod that is neither settled nor on its way out; it may have ended.

    Attributes:
        pod: the pod.
        revision: of the TokenService, for which it was taken; the value of the label.
        at: when it was taken.
        served: when it was put into the Service; None if that is yet to come.
        ready: whether the pod is Ready, which a server without a model is, too.
        failing: why its container does not come up; None if it may.
        lost: whether its node does not answer.
        ended: whether it has ended for good, such as one that was evicted.

    """

    pod: Pod
    revision: str
    at: datetime
    served: datetime | None
    ready: bool
    failing: str | None
    lost: bool
    ended: bool = False

    @property
    def serves(self) -> bool:
        """Whether it counts as a replica that takes requests."""
        return self.served is not None and self.ready and not (self.lost or self.ended)

    @property
    def orphan(self) -> bool:
        """Whether an earlier TokenService of that name has left it behind (`kubectl delete --cascade=orphan`)."""
        return self.pod.metadata.controller is None


def claims(pods: Iterable[Pod], owner_uid: str, lost: Callable[[str], bool], now: datetime) -> tuple[Claim, ...]:
    """The claims among the pods that carry a TokenService's label of claims, the oldest first.

    Args:
        pods: those that carry the label.
        owner_uid: of the TokenService; what an earlier one of its name took is garbage collected, or nobody's now.
        lost: whether a node does not answer.
        now: the time; nothing has happened after it.

    """
    found = (_claim(pod, lost, now) for pod in pods if _ours(pod, owner_uid))
    return tuple(sorted(found, key=lambda claim: (claim.at, claim.pod.metadata.name)))


def _ours(pod: Pod, owner_uid: str) -> bool:
    owner = pod.metadata.controller
    mine = owner is not None and owner.uid == owner_uid
    left = not pod.metadata.owner_references and names.ANNOTATION_CLAIMED_FROM in pod.metadata.annotations
    return (mine or left) and not pod.metadata.deletion_timestamp


def _claim(pod: Pod, lost: Callable[[str], bool], now: datetime) -> Claim:
    labels = pod.metadata.labels
    # Somebody may have taken the annotation away, or written what they liked.
    at = min(claimed_at(pod) or time_of(pod.metadata.creation_timestamp) or now, now)
    failures = pod_failures(pod)
    return Claim(
        pod=pod,
        revision=labels.get(names.LABEL_REVISION, ""),
        at=at,
        served=min(served_at(pod) or at, now) if names.LABEL_SERVICE in labels else None,
        ready=readiness(pod) is not None,
        failing=failures[0].message if failures and not _ran_since(pod, at) else None,
        lost=bool(pod.spec.node_name) and lost(pod.spec.node_name),
        ended=pod.ended,
    )


def _ran_since(pod: Pod, at: datetime) -> bool:
    """Whether the container that serves runs, and has not ended since then: how it ended before says nothing."""
    if pod.server is None or pod.server.state.running is None:
        return False
    ended = ended_at(pod)
    return ended is not None and ended <= at


def ended_at(pod: Pod) -> datetime | None:
    """When the container that serves has ended last, before it was started again; None if it has not."""
    last = pod.server.last_state.terminated if pod.server else None
    return _time(last.finished_at) if last else None


def served_at(pod: Pod) -> datetime | None:
    """When a pod that came from a pool was put into its Service; None for others."""
    return _time(pod.metadata.annotations.get(names.ANNOTATION_SERVED_AT))


def claimed_at(pod: Pod) -> datetime | None:
    """When a pod was taken from its pool; None for one that was not, or has settled since."""
    return _time(pod.metadata.annotations.get(names.ANNOTATION_CLAIMED_AT))


def stamp_exactly(when: datetime) -> str:
    """A time to the millisecond: a claim takes less than the second of Kubernetes' timestamps."""
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(text: str | None) -> datetime | None:
    try:
        found = time_of(text)
    except ValueError:  # somebody else wrote it
        return None
    return found if found and found.tzinfo else None


def on_its_way(pod: Pod) -> bool:
    """Whether a pod was taken from a pool, is there to stay, and no ReplicaSet has taken it in yet."""
    if pod.metadata.deletion_timestamp or pod.ended or names.ANNOTATION_CLAIMED_FROM not in pod.metadata.annotations:
        return False
    return names.LABEL_CLAIM in pod.metadata.labels or pod.metadata.controller is None


def is_member(pod: Pod, pool: str, uid: str) -> bool:
    """Whether a pod belongs to the WarmPool of that name and uid, and waits in it."""
    owner = pod.metadata.controller
    mine = owner is not None and owner.uid == uid
    return mine and pod.metadata.labels.get(names.LABEL_POOL) == pool and not pod.metadata.deletion_timestamp


def takeable(
    pods: Iterable[Pod], pool: str, uid: str, *, shape: str, key_id: str, unfit: Callable[[str], bool]
) -> Iterator[Pod]:
    """The pods of a pool that can be taken now.

    Args:
        pods: those that carry the pool's label.
        pool: the WarmPool's name.
        uid: its uid.
        shape: that of the pods that are asked for.
        key_id: of the key with which their tokens must have been made.
        unfit: whether a node takes no part: it is cordoned, does not answer, or its disk is full.

    """
    for pod in pods:
        metadata = pod.metadata
        alike = metadata.labels.get(names.LABEL_SHAPE) == shape
        known = metadata.annotations.get(names.ANNOTATION_KEY) == key_id
        if not (alike and known and is_member(pod, pool, uid)):
            continue
        if readiness(pod) is not None and pod.status.pod_ip and not unfit(pod.spec.node_name):
            yield pod
