"""A TokenService and its warm pool: which pods it takes, gives their model and hands to its Deployment. Pure functions.

The numbers are decided in `tokenservice.handover.balance`; here they come from a snapshot, and what is wrong with a
claim is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from tokenservice.api import conditions as reasons
from tokenservice.api import names
from tokenservice.api.conditions import Verdict
from tokenservice.api.meta import ControllerRevision, Pod, stamp, time_of
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import TokenService, TokenServiceStatus
from tokenservice.handover import patches
from tokenservice.handover.assigner import Outcome
from tokenservice.handover.balance import SETTLE_SECONDS, Balance, State, balance
from tokenservice.handover.claim import Claim, claimed_at
from tokenservice.handover.shape import PodSpec, difference
from tokenservice.pods.failures import readiness
from tokenservice.pods.manifests import Manifest
from tokenservice.pods.refusal import RETRY_PASSING_SECONDS
from tokenservice.services import revisions
from tokenservice.services.revisions import Wanted
from tokenservice.services.rollout import Step, staying
from tokenservice.services.snapshot import Snapshot

EMPTY = "Empty"
"""Why there is no warm pod: none waits."""
COLD_SECONDS = 600.0
"""For so long no warm pod is given a revision that one could not be given: what ails it may pass, such as a hub."""

_COLD_BYTES = 512

PASSING_SECONDS = 1.0
"""For so long a service that was Ready is not said to start, while a claimed pod gets its model."""


@dataclass(frozen=True)
class Pooled:
    """The pool that a spec names.

    Attributes:
        name: of the WarmPool.
        pool: the WarmPool; None if there is none.
        spec: of its pods, as they are made now; None as long as that is not known.

    """

    name: str
    pool: WarmPool | None = None
    spec: PodSpec | None = None

    def same(self, other: Pooled) -> bool:
        """Whether both say the same about what fits: a pool has one spec until another one takes its place."""
        return (self.name, self.pool is None) == (other.name, other.pool is None) and self.spec is other.spec


class Cold(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a revision goes without warm pods: what its annotation says.

    Attributes:
        reason: of a condition.
        message: in words.
        at: when that was found, as a timestamp of Kubernetes.
        asked: what was asked for then (`revisions.asked`): asked for anything else, it is tried again.

    """

    reason: str
    message: str
    at: str
    asked: str = ""


@dataclass(frozen=True)
class Hand:
    """What is to be done about pods of a pool.

    Attributes:
        deployed: how many pods the Deployment is to be asked for.
        claims: what is claimed, of whatever revision; without what is dropped.
        revision: the value of the label of pods that are taken now.
        balance: what is to be taken and settled.
        assign: claims to give their model.
        serve: claims that have their model, to be put into the Service, each with what the server told of its start.
        drop: pods to delete, each with the reason.
        cold: why the revision goes without warm pods from now on.
        finish: pods that have settled.
        adopt: claimed pods that nobody owns.
        ready: the Deployment's pods that are Ready, of whatever revision.
        settling: of those, the ones that were handed over just now: the Deployment may not count them yet.
        verdict: WarmPoolReady; None without a pool.
        requeue_after: seconds after which to look again without a change.

    """

    deployed: int
    claims: tuple[Claim, ...] = ()
    revision: str = ""
    balance: Balance = field(default_factory=lambda: Balance(0))
    assign: tuple[Claim, ...] = ()
    serve: tuple[tuple[Claim, Mapping[str, float]], ...] = ()
    drop: tuple[tuple[Pod, str], ...] = ()
    cold: Cold | None = None
    finish: tuple[Pod, ...] = ()
    adopt: tuple[Pod, ...] = ()
    ready: int = 0
    settling: int = 0
    verdict: Verdict | None = None
    requeue_after: float | None = None

    @property
    def serving(self) -> int:
        """How many replicas serve that are not the Deployment's."""
        return sum(1 for claim in self.claims if claim.serves)

    def counted(self, known: int) -> int:
        """The Deployment's replicas, of which it says itself that there are so many: those just handed over, too."""
        return max(known, self.ready) if self.settling else known

    @property
    def waits(self) -> bool:
        """Whether another warm pod would be taken as soon as there is one."""
        return self.balance.missed > 0

    @property
    def miss(self) -> str:
        """Why there is no warm pod, in a word."""
        return self.verdict[1] if self.verdict and self.verdict[0] != "True" else EMPTY

    @property
    def acts(self) -> bool:
        """Whether there is something to do that needs nothing else first."""
        return bool(self.serve or self.drop or self.cold or self.finish or self.adopt or self.balance.take)


def hand(
    snapshot: Snapshot,
    found: Step,
    *,
    outcomes: Mapping[str, Outcome],
    key_id: str,
    lost: Callable[[str], bool],
    warm: Callable[[int], tuple[Pod, ...]],
    fits: Verdict | None,
    turn: Callable[[], float] = lambda: 0.0,
    refused: Cold | None = None,
) -> Hand:
    """The next step.

    Args:
        snapshot: what is.
        found: how far the rollout is.
        outcomes: what came of giving pods their models, by uid.
        key_id: of the key that tokens are made with.
        lost: whether a node does not answer.
        warm: at most so many pods of the pool that can be taken now.
        fits: whether pods of the pool are of the right shape; None without a pool.
        turn: seconds until claims may settle.
        refused: why warm pods cannot be taken for this revision, which was just found out.

    """
    service, target = snapshot.service, found.target
    deployed = _asked(snapshot)
    if target is None:  # nothing is known to be right, so nothing is taken and nothing given up
        return Hand(deployed, snapshot.claims, verdict=fits)
    label = revisions.label(target.name)
    failed = _failed(snapshot.claims, outcomes)
    going = {**failed, **_unusable(snapshot.claims, label, key_id)}
    claims = tuple(claim for claim in snapshot.claims if claim.pod.metadata.uid not in going)
    before = _said(snapshot, target)
    until = cold_until(before)
    cold = _cold(snapshot, failed, outcomes, label) or (refused if before is None else None)
    policy = service.spec.warm_pool.policy if service.spec.warm_pool else "Never"
    pods = _of(snapshot, label)
    unready = [pod for pod in pods if readiness(pod) is None]
    cold_pods = [pod for pod in unready if not _begun(pod) or lost(pod.spec.node_name)]
    state = State(
        replicas=service.spec.replicas,
        deployed=deployed,
        steady=_steady(snapshot, found),
        observed=_observed(snapshot),
        ready=len(pods) - len(unready),
        unready=len(unready),
        cold=len(cold_pods),
        settling=replaced(cold_pods, [pod for pod in pods if _costs(pod) and readiness(pod)], claims, snapshot.now),
        claims=claims,
        policy=policy,
        barred=cold is not None or before is not None or not (fits and fits[0] == "True"),
        hurry=found.hurry,
        now=snapshot.now,
    )
    done = balance(state, warm, turn)
    waits = [done.wait]
    if until and done.missed:
        waits.append((until - snapshot.now).total_seconds())
    dropped = {claim.pod.metadata.uid for claim in done.drop}
    kept = tuple(claim for claim in claims if claim.pod.metadata.uid not in dropped)
    loading = tuple(claim for claim in kept if claim.served is None)
    there = {claim.pod.metadata.uid: outcomes.get(claim.pod.metadata.uid) for claim in loading}
    return Hand(
        deployed=done.deployed,
        claims=kept,
        revision=label,
        balance=done,
        assign=tuple(claim for claim in loading if there[claim.pod.metadata.uid] is None),
        serve=tuple((claim, came.stages) for claim in loading if (came := there[claim.pod.metadata.uid])),
        drop=(
            *((claim.pod, going[claim.pod.metadata.uid]) for claim in snapshot.claims if claim not in claims),
            *((claim.pod, "one too many") for claim in done.drop),
        ),
        cold=cold,
        finish=_finished(snapshot, state),
        adopt=tuple(claim.pod for claim in kept if claim.orphan),
        ready=sum(1 for pod in _deployed(snapshot.pods) if readiness(pod)),
        settling=sum(1 for pod in _deployed(snapshot.pods) if _costs(pod) and readiness(pod)),
        verdict=_verdict(fits, cold or before),
        requeue_after=min((wait for wait in waits if wait is not None), default=None),
    )


def passing(before: TokenServiceStatus, after: TokenServiceStatus, claims: Sequence[Claim], now: datetime) -> float:
    """Seconds for which a status need not be written that says of a service that it starts, where it was Ready.

    A claimed pod has its model in less time than it takes to read that, as a rule.
    """
    loading = [claim.at for claim in claims if claim.served is None]
    was, found = before.condition(reasons.READY), after.condition(reasons.READY)
    if not (loading and was and found and was.status == "True" and found.reason == reasons.STARTING):
        return 0.0
    return max(0.0, PASSING_SECONDS - (now - min(loading)).total_seconds())


def ready(snapshot: Snapshot, label: str) -> int:
    """How many of the Deployment's pods of that revision are Ready."""
    return sum(1 for pod in _of(snapshot, label) if readiness(pod))


def fit(pooled: Pooled, template: Manifest) -> Verdict:
    """Whether pods of the pool can serve those of this template."""
    if pooled.pool is None:
        return (
            "False",
            reasons.NOT_FOUND,
            f"no WarmPool {pooled.name} in this namespace; make it, or name another one in spec.warmPool.name",
        )
    if pooled.spec is None:
        return "Unknown", reasons.FILLING, f"WarmPool {pooled.name} has no pods yet; `kubectl describe twp` says why"
    differs = difference(pooled.spec, template["spec"])
    if differs:
        said = f"pods of WarmPool {pooled.name} do not fit: {differs}; give both the same template and environment"
        return "False", reasons.SHAPE_MISMATCH, said
    return "True", reasons.FITS, f"pods of WarmPool {pooled.name} fit"


def mark(cold: Cold) -> Manifest:
    """The patch of a ControllerRevision that goes without warm pods for a while."""
    return {"metadata": {"annotations": {names.ANNOTATION_COLD: msgspec.json.encode(cold).decode()}}}


def cold_until(said: Cold | None) -> datetime | None:
    """Until when a revision goes without warm pods; None if it need not."""
    at = time_of(said.at) if said else None
    return at + timedelta(seconds=_cold_seconds(said)) if said and at else None


def lasting(said: Cold | None, service: TokenService, now: datetime) -> Cold | None:
    """Why a revision goes without warm pods still: not for long, and not once something else is asked for."""
    until = cold_until(said)
    lasts = until is not None and until > now
    return said if said and lasts and said.asked == revisions.asked(service) else None


def refused(message: str, service: TokenService, now: datetime) -> Cold:
    """Why a revision goes without warm pods of which the API server lets none be taken."""
    said = f"the API server refuses that one is taken out of its pool: {message}"
    return _cold_now(reasons.REJECTED, said, service, now)


def _cold_now(reason: str, message: str, service: TokenService, now: datetime) -> Cold:
    return Cold(reason, reasons.cut(message, _COLD_BYTES), stamp(now), asked=revisions.asked(service))


def _cold_seconds(cold: Cold) -> float:
    """What refuses a write can change at any time, unseen."""
    return RETRY_PASSING_SECONDS if cold.reason == reasons.REJECTED else COLD_SECONDS


def _said(snapshot: Snapshot, target: Wanted) -> Cold | None:
    """Why the revision goes without warm pods, as its annotation says."""
    said = _read(next((each for each in snapshot.revisions if each.metadata.name == target.name), None))
    return lasting(said, snapshot.service, snapshot.now)


def _read(revision: ControllerRevision | None) -> Cold | None:
    text = revision.metadata.annotations.get(names.ANNOTATION_COLD) if revision else None
    try:
        found = msgspec.json.decode(text, type=Cold) if text else None
        at = time_of(found.at) if found else None
    except (msgspec.MsgspecError, ValueError):  # somebody else wrote it
        return None
    return found if at and at.tzinfo else None


def _verdict(fits: Verdict | None, cold: Cold | None) -> Verdict | None:
    if fits is None or cold is None or fits[0] != "True":
        return fits
    said = f"a warm pod could not be given this revision's model: {cold.message}; annotate {names.ANNOTATION_RETRY}"
    minutes = _cold_seconds(cold) / 60
    soon = "a minute" if minutes == 1 else f"{minutes:g} minutes"
    return "False", cold.reason, f"{said} to try again at once, else that is in {soon}"


def _unusable(claims: Sequence[Claim], label: str, key_id: str) -> dict[str, str]:
    """Claims to drop, by uid, with the reason: whatever their model does."""
    found = {}
    for claim in claims:
        uid, annotations = claim.pod.metadata.uid, claim.pod.metadata.annotations
        if claim.revision != label:
            found[uid] = "of another revision"
        elif claim.ended:
            found[uid] = "it has ended"
        elif claim.lost:
            found[uid] = "its node does not answer"
        elif claim.served is None and annotations.get(names.ANNOTATION_KEY) != key_id:
            found[uid] = "its token is not known"
    return found


def _failed(claims: Sequence[Claim], outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """Claims that did not come to serve, by uid, with the reason."""
    found = {}
    for claim in claims:
        outcome = outcomes.get(claim.pod.metadata.uid)
        if claim.served is None and outcome and outcome.kind != "serves":
            found[claim.pod.metadata.uid] = outcome.message
        elif claim.served is None and claim.failing is not None and not (outcome and outcome.kind == "serves"):
            found[claim.pod.metadata.uid] = claim.failing or "its container ended"
    return found


def _cold(snapshot: Snapshot, failed: Mapping[str, str], outcomes: Mapping[str, Outcome], label: str) -> Cold | None:
    """What a claim of the revision has just shown: that no warm pod can be given it."""
    for claim in snapshot.claims:
        uid = claim.pod.metadata.uid
        if uid not in failed or claim.revision != label or claim.lost or claim.ended:
            continue
        outcome = outcomes.get(uid)
        if outcome and outcome.kind == "unfit":
            continue
        reason = outcome.reason if outcome else reasons.LOAD_FAILED
        return _cold_now(reason, failed[uid], snapshot.service, snapshot.now)
    return None


def _steady(snapshot: Snapshot, found: Step) -> bool:
    """Whether one revision alone is there: that of the Deployment, or none yet."""
    if snapshot.deployment is None:
        return True
    return found.target is not None and found.running == found.target.name and not found.left


def _observed(snapshot: Snapshot) -> bool:
    deployment = snapshot.deployment
    return deployment is not None and deployment.observed


def _asked(snapshot: Snapshot) -> int:
    """How many the Deployment is asked for. Of one that was deleted, and has left its pods, as many are there still."""
    if snapshot.deployment is not None:
        return snapshot.deployment.spec.replicas
    return min(snapshot.service.spec.replicas, len(_deployed(snapshot.pods)))


def _deployed(pods: Sequence[Pod]) -> tuple[Pod, ...]:
    """The Deployment's pods that are there to stay."""
    return tuple(pod for pod in staying(pods) if names.LABEL_DEPLOYMENT in pod.metadata.labels)


def _of(snapshot: Snapshot, label: str) -> list[Pod]:
    """The Deployment's pods of one revision."""
    return [pod for pod in _deployed(snapshot.pods) if pod.metadata.labels.get(names.LABEL_REVISION) == label]


def _begun(pod: Pod) -> bool:
    """Whether the container that serves has started, once at least."""
    server = pod.server
    return server is not None and bool(server.state.running or server.state.terminated or server.last_state.terminated)


def _finished(snapshot: Snapshot, state: State) -> tuple[Pod, ...]:
    """Pods that a ReplicaSet has taken in, that its Deployment counts, and whose place is not in question any more."""
    pods, deployment = _deployed(snapshot.pods), snapshot.deployment
    found = tuple(pod for pod in pods if _costs(pod) and pod.metadata.controller is not None)
    if not found or deployment is None:
        return ()
    # Nobody knows how many the new ReplicaSet of a rollout is asked for; with none that is not Ready, none is too many.
    questioned = len(pods) > state.deployed if state.steady else state.unready > 0
    ready = sum(1 for pod in pods if readiness(pod))
    counted = deployment.status.ready_replicas >= ready
    if state.steady and ready == len(pods):  # from then on the Deployment tells alone whether all is there
        counted = state.observed and deployment.status.has_all(ready)
    return found if counted and not questioned else ()


def replaced(cold: Sequence[Pod], handed: Sequence[Pod], claims: Sequence[Claim], now: datetime) -> int:
    """How many of the cold pods are about to go, since others were handed over in their places. Pure.

    They were there before those were claimed. What a rollout begins next comes after the hand-over, and may come
    before anybody has looked. In the places of others that were there, claims are on their way.

    Args:
        cold: pods of the Deployment that have not started.
        handed: those that came from a pool, and help to settle still.
        claims: those that do not belong to the Deployment yet.
        now: the time; of a pod whose times somebody has taken away.

    """
    if not handed:
        return 0
    # The API server's times are to the second and by its own clock.
    before = max(claimed_at(pod) or now for pod in handed) + timedelta(seconds=SETTLE_SECONDS / 2)
    there = sum(1 for pod in cold if (time_of(pod.metadata.creation_timestamp) or now) <= before)
    standing = sum(1 for claim in claims if claim.at <= before)
    return min(len(handed), max(0, there - standing))


def _costs(pod: Pod) -> bool:
    """Whether it came from a pool, and has the deletion cost that helps it to settle."""
    metadata = pod.metadata
    ours = names.ANNOTATION_CLAIMED_FROM in metadata.annotations and names.LABEL_CLAIM not in metadata.labels
    return ours and metadata.annotations.get(names.ANNOTATION_DELETION_COST) == patches.COST
