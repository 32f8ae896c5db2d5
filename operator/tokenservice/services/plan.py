"""The next step for one TokenService, derived from what is: a pure function from snapshot to plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tokenservice.api import conditions as names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.events import Event
from tokenservice.api.jobs import MESSAGE_BYTES
from tokenservice.api.meta import Condition, Deployment, Object, Pod
from tokenservice.api.names import LABEL_SERVICE
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import TokenServiceStatus
from tokenservice.handover.starts import newest
from tokenservice.pods.environment import verdict
from tokenservice.pods.manifests import Manifest
from tokenservice.pods.refusal import Refusal
from tokenservice.services import environment, render, revisions
from tokenservice.services.failures import failures
from tokenservice.services.policies import Facts, conditions
from tokenservice.services.rollout import Step
from tokenservice.services.snapshot import Snapshot
from tokenservice.services.warm import Hand

Child = Literal["environment", "revision", "deployment", "service", "budget", "pool"]
CHILDREN: tuple[Child, ...] = ("environment", "revision", "deployment", "service", "budget", "pool")
"""In the order in which they are applied: what takes longest first, then what may be refused; a Deployment has its
template from a revision, which must be there before."""
KINDS: dict[Child, str] = {
    "environment": "CondaEnvironment",
    "revision": "ControllerRevision",
    "deployment": "Deployment",
    "service": "Service",
    "budget": "PodDisruptionBudget",
    "pool": "WarmPool",
}

RETRY_SHARED_SECONDS = 60.0
"""How often to see whether other TokenServices still run in a CondaEnvironment that is no longer needed here."""

# Of an environment that is not ready, the event of EnvironmentReady tells.
_QUIET = frozenset({names.STARTING, names.SCALED_TO_ZERO, names.ENVIRONMENT_NOT_READY})
_STAGES = frozenset(
    {
        *(names.LOCKING, names.BUILDING, names.PRE_PULLING, names.ROLLING_OUT, names.VERIFYING),
        *(names.ROLLING_BACK, names.COMPLETE),
    }
)
"""Reasons of Progressing that are told as they come, once there is something that a change could break."""

_LIMITS = {names.ENVIRONMENT_READY: MESSAGE_BYTES}


@dataclass(frozen=True)
class Apply:
    """Apply this child; `why` is for the log. `force`: take back fields that another manager took from us.

    A child that does not exist as far as we know is applied without force, so that an object of somebody else's with
    the same name is left alone.
    """

    child: Child
    manifest: Manifest
    why: str
    force: bool


@dataclass(frozen=True)
class Plan:
    applies: tuple[Apply, ...]
    leftover: CondaEnvironment | None
    """To delete: made for an earlier spec, and nothing runs from it any more."""
    unwanted: WarmPool | None
    """To delete: made for an earlier spec."""
    status: TokenServiceStatus | None
    """The status to write; None if the one that stands there is right."""
    events: tuple[Event, ...]
    requeue_after: float | None
    """Seconds after which to look again without a change; None for never."""


def plan(snapshot: Snapshot, changes: Mapping[Child, str], step: Step, hand: Hand) -> Plan:
    """What to do about `snapshot`, apart from what its rollout's `step` and its warm pool's `hand` say themselves.

    Args:
        snapshot: what is.
        changes: the children that differ from what they should be, each with the reason in words.
        step: how far the rollout is; `snapshot` has the Deployment that it asks for among the children.
        hand: what is taken from a warm pool.

    """
    service = snapshot.service
    if service.metadata.deletion_timestamp:
        return Plan((), None, None, None, (), None)  # the garbage collector takes the children
    refusal = snapshot.children if isinstance(snapshot.children, Refusal) else foreign(snapshot)
    taken = snapshot.surroundings.refusal or foreign_environment(snapshot)
    blocked: dict[Child, object] = {"environment": taken, "pool": refusal or pool_refusal(snapshot)}
    live = {
        **_live(snapshot),
        "environment": snapshot.surroundings.own,
        "revision": None,
        "pool": snapshot.own_pool,
    }
    applies = tuple(
        Apply(child, manifest, changes[child], force=live[child] is not None)
        for child in CHILDREN
        if child in changes
        and blocked.get(child, refusal) is None
        and (manifest := wanted(snapshot, child, step)) is not None
    )
    facts = _facts(snapshot, (refusal, taken), changes, step, hand)
    status = _status(snapshot, facts)
    leftover = _leftover(snapshot)
    shared = leftover is not None and snapshot.surroundings.shared
    waits = (
        *(each.wait for each in (refusal, taken, pool_refusal(snapshot)) if each),
        RETRY_SHARED_SECONDS if shared else None,
        step.requeue_after,
        hand.requeue_after,
    )
    return Plan(
        applies=applies,
        leftover=leftover if facts.complete and refusal is None and not shared else None,
        unwanted=_unwanted(snapshot),
        status=None if status == service.status else status,
        events=(
            *environment_transitions(service.status.condition(names.ENVIRONMENT_READY), status.conditions),
            *rollout_events(service.status, status, step),
            *transitions(service.status.condition(names.READY), status.conditions),
        ),
        requeue_after=min((wait for wait in waits if wait is not None), default=None),
    )


def wanted(snapshot: Snapshot, child: Child, step: Step) -> Manifest | None:
    """The child as it should be; None if there should be none, or a refusal stands in its place."""
    if child == "environment":
        return snapshot.surroundings.wanted
    if child == "revision":
        return step.create
    if isinstance(snapshot.children, Refusal):
        return None
    manifest: Manifest | None = getattr(snapshot.children, child)
    return manifest


def foreign(snapshot: Snapshot) -> Refusal | None:
    """Refuses to touch a child that another object controls, for example of a TokenService deleted just before."""
    found = (_foreign(snapshot, child, live) for child, live in _live(snapshot).items())
    return next((refusal for refusal in found if refusal), None)


def foreign_environment(snapshot: Snapshot) -> Refusal | None:
    """The same for the CondaEnvironment that the spec has inline."""
    if snapshot.surroundings.wanted is None:
        return None
    return _foreign(snapshot, "environment", snapshot.surroundings.own)


def pool_refusal(snapshot: Snapshot) -> Refusal | None:
    """Why the WarmPool of the service's own is left alone; None without one."""
    made = snapshot.children
    if isinstance(made, Refusal) or made.pool is None:
        return None
    return snapshot.pool_refusal or _foreign(snapshot, "pool", snapshot.own_pool)


def _unwanted(snapshot: Snapshot) -> WarmPool | None:
    """The WarmPool of the service's own that an earlier spec asked for."""
    own, service = snapshot.own_pool, snapshot.service
    asked = service.spec.warm_pool is not None and service.spec.warm_pool.replicas is not None
    if own is None or asked or own.metadata.deletion_timestamp:
        return None
    owner = own.metadata.controller
    return own if owner and owner.uid == service.metadata.uid else None


def _foreign(
    snapshot: Snapshot, child: Child, live: Deployment | Object | CondaEnvironment | WarmPool | None
) -> Refusal | None:
    """Why a child is left alone, None if it is ours, or missing."""
    if live is None:
        return None
    if environment.ours(snapshot.service, live.metadata):
        return None
    owner = live.metadata.controller
    whose = f"{owner.kind} {owner.name} (uid {owner.uid})" if owner else "nobody"
    return Refusal(
        "NameConflict",
        f"{KINDS[child]} {live.metadata.name} exists and is controlled by {whose}; "
        "it is left alone: delete it, or give this TokenService another name",
        passing=True,
    )


def _leftover(snapshot: Snapshot) -> CondaEnvironment | None:
    """The CondaEnvironment made for an inline spec that is gone, once the pods have something else to run in."""
    service, own = snapshot.service, snapshot.surroundings.own
    if own is None or own.metadata.deletion_timestamp or service.environment_name == own.metadata.name:
        return None
    owner = own.metadata.controller
    if owner is None or owner.uid != service.metadata.uid:  # what nobody controls is not taken to be deleted
        return None
    return own if environment.from_newest(service, snapshot.surroundings.used) else None


def environment_transitions(before: Condition | None, after: tuple[Condition, ...]) -> tuple[Event, ...]:
    """The event for a change of EnvironmentReady's status or reason. What merely takes its time is no event."""
    found = next((condition for condition in after if condition.type == names.ENVIRONMENT_READY), None)
    if found is None or (before and (before.status, before.reason) == (found.status, found.reason)):
        return ()
    if found.status == "True":
        return (Event("Normal", found.reason, found.message),)
    return () if found.reason in names.UNDER_WAY else (Event("Warning", found.reason, names.first_line(found.message)),)


def pull_events(step: Step) -> tuple[Event, ...]:
    """What to tell once the Deployment has the revision asked for: the nodes that go without its images."""
    if not step.begins or step.pulls is None or not step.pulls.failed:
        return ()
    note = f"Without the new images, which pods there will wait for: {step.pulls.failures}"
    return (Event("Warning", names.PRE_PULL_FAILED, names.cut(note)),)


def rollout_events(before: TokenServiceStatus, after: TokenServiceStatus, step: Step) -> tuple[Event, ...]:
    """The stages of a rollout as they are reached, and what went wrong; nothing of a service that never was good."""
    if not before.last_good_revision:
        return ()
    events: list[Event] = []
    back = after.condition(names.ROLLED_BACK)
    was_back = before.condition(names.ROLLED_BACK)
    if back and (was_back is None or was_back.message.partition(";")[0] != back.message.partition(";")[0]):
        events.append(Event("Warning", names.ROLLED_BACK, back.message))
    was, now = before.condition(names.PROGRESSING), after.condition(names.PROGRESSING)
    # Scaled, for instance: what it has was good before.
    same = step.verified and before.last_good_revision == after.last_good_revision
    nothing = same and now is not None and now.reason in (names.ROLLING_OUT, names.COMPLETE)
    if was and now and now.reason in _STAGES and was.reason != now.reason and not nothing:
        said = "has proven good" if now.reason == names.COMPLETE else now.message
        note = f"{step.update.name}: {said}" if step.update else said
        events.append(Event("Normal", now.reason, names.cut(note)))
    return tuple(events)


def transitions(before: Condition | None, after: tuple[Condition, ...]) -> tuple[Event, ...]:
    """The event for a change of Ready's status or reason. What merely takes its time is no event."""
    ready = next(condition for condition in after if condition.type == names.READY)
    if before and (before.status, before.reason) == (ready.status, ready.reason):
        return ()
    if ready.reason in _STAGES or ready.reason == names.ROLLED_BACK:
        return ()
    if ready.reason in _QUIET and not (before and before.status == "True"):
        return ()
    calm = ready.status == "True" or ready.reason in _QUIET or ready.reason == names.PAUSED
    return (Event("Normal" if calm else "Warning", ready.reason, ready.message),)


def _live(snapshot: Snapshot) -> dict[Child, Deployment | Object | None]:
    """The children that stop each other: the CondaEnvironment is none of them."""
    return {"deployment": snapshot.deployment, "service": snapshot.service_object, "budget": snapshot.budget}


def _facts(
    snapshot: Snapshot,
    refusals: tuple[Refusal | None, Refusal | None],
    changes: Mapping[Child, str],
    step: Step,
    hand: Hand,
) -> Facts:
    """refusals: of the children, and of the CondaEnvironment that the spec has inline."""
    refusal, taken = refusals
    service, around = snapshot.service, snapshot.surroundings
    # With a name that is taken, neither Deployment nor pods need be ours.
    conflict = refusal is not None and refusal.reason == "NameConflict"
    mine = None if conflict else snapshot.deployment
    return Facts(
        service=service,
        refusal=refusal,
        deployment=mine,
        failures=() if conflict else failures(_pods(snapshot), mine),
        outdated="deployment" in changes,
        environment=verdict(service, around.used, taken, outdated="environment" in changes),
        unbuilt=around.runs_in is None,
        step=step,
        hand=hand,
    )


def _pods(snapshot: Snapshot) -> tuple[Pod, ...]:
    """All pods of the service, with those that have no model yet."""
    return (*snapshot.pods, *(claim.pod for claim in snapshot.claims if claim.served is None))


def _current(before: str | None, facts: Facts) -> str | None:
    """The revision that pods are replaced from: as in StatefulSets, the one that all pods had last."""
    running = facts.step.running
    return running if facts.settled or before is None else before


def _status(snapshot: Snapshot, facts: Facts) -> TokenServiceStatus:
    service, mine, step = snapshot.service, facts.deployment, facts.step
    counts = mine.status if mine else None
    before = service.status
    claims = facts.hand.claims
    label = revisions.label(step.update.name) if step.update else ""
    updated = sum(1 for claim in claims if claim.serves and claim.revision == label)
    runs_in = snapshot.surroundings.runs_in
    if step.target and step.update and step.target.name != step.update.name:
        runs_in = step.target.environment
    if facts.refusal:
        # A refused spec changes nothing that runs: its image stays the one reported.
        runs_in = service.status.environment if mine else None
    return TokenServiceStatus(
        observed_generation=service.metadata.generation,
        url=render.url(service, snapshot.cluster_domain),
        selector=f"{LABEL_SERVICE}={service.metadata.name}",
        replicas=(counts.replicas if counts else 0) + len(claims),
        ready_replicas=facts.hand.counted(counts.ready_replicas if counts else 0) + facts.hand.serving,
        updated_replicas=(counts.updated_replicas if counts and step.updated else 0) + updated,
        warm_replicas=len(claims),
        current_revision=_current(before.current_revision, facts),
        update_revision=step.update.name if step.update else before.update_revision,
        last_good_revision=step.good,
        environment=runs_in,
        last_start=newest((before.last_start, *snapshot.starts)),
        failures=() if facts.complete else facts.failures,
        conditions=names.merge(service.status.conditions, conditions(facts), snapshot.now, limits=_LIMITS),
    )
