"""The next step for one WarmPool, derived from what is: a pure function from snapshot to plan.

Ready means that every pod asked for is warm and of the newest environment; Progressing that the pool is being filled or
rolled. Where that does not go on it is False, with the reason of the first pod that does not come up. A pool that gives
way to a pod of a TokenService is not Ready, and progresses: it is filled again once that pod has a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tokenservice.api import conditions as names
from tokenservice.api.conditions import Verdict
from tokenservice.api.events import Event
from tokenservice.api.jobs import MESSAGE_BYTES
from tokenservice.api.meta import Condition, Pod
from tokenservice.api.names import ANNOTATION_KEY, LABEL_POOL, LABEL_REVISION
from tokenservice.api.pools import WarmPoolStatus
from tokenservice.api.v1alpha1 import Failure
from tokenservice.handover.claim import is_member
from tokenservice.pods.failures import MAX_FAILURES, pod_failures, readiness, where
from tokenservice.pools import giving
from tokenservice.pools.giving import Given, Giver
from tokenservice.pools.sizing import Gives, Member, Size, size
from tokenservice.pools.snapshot import Snapshot
from tokenservice.pools.waiting import words

_QUIET = frozenset({names.FILLING, names.ROLLING, names.ENVIRONMENT_NOT_READY, names.SCALED_TO_ZERO})
"""Reasons of Ready that are no news: of an environment that is not ready, the event of EnvironmentReady tells."""
_SOON = 1.0
"""Seconds after which a pool looks again whether another one has given way to a pod, or it is its own turn."""
_CALM_LOOKS = 0.25
"""Seconds between looks of a pool for those that were taken: in a burst many are."""
_LIMITS = {names.ENVIRONMENT_READY: MESSAGE_BYTES}


@dataclass(frozen=True)
class Plan:
    size: Size
    given: Mapping[str, Given]
    """What there is to remember, by the uid of the pod that something was given to."""
    status: WarmPoolStatus | None
    """The status to write; None if the one that stands there is right."""
    events: tuple[Event, ...]
    requeue_after: float | None
    """Seconds after which to look again without a change; None for never."""


def plan(snapshot: Snapshot) -> Plan:
    """What to do about `snapshot`."""
    pool = snapshot.pool
    found = members(snapshot)
    makes = snapshot.rendered is not None and snapshot.refusal is None
    given, others = _given(snapshot, found)
    gives = giving.given_up(pool.metadata.name, given, snapshot.now)
    sizes = size(
        pool.metadata.name,
        pool.spec.replicas if makes else min(pool.spec.replicas, len(found)),
        found,
        taken=snapshot.taken,
        may_create=snapshot.may_create if makes else 0,
        rolls=makes,
        now=snapshot.now,
        gives=gives,
        later=len(snapshot.calm),
    )
    status = _status(snapshot, found, _way(snapshot, given, gives))
    waits = [wait.total_seconds() for wait in giving.waits(pool.metadata.name, snapshot.around, given, snapshot.now)]
    if others:
        waits.append(_SOON)
    if snapshot.calm:
        waits.append(max(_CALM_LOOKS, (snapshot.calm[0] - snapshot.now).total_seconds()))
    if sizes.wait:
        waits.append(sizes.wait.total_seconds())
    if snapshot.refusal:
        waits.append(snapshot.refusal.wait)
    return Plan(
        size=sizes,
        given=given,
        status=None if status == pool.status else status,
        events=_events(pool.status, status),
        requeue_after=min(waits, default=None),
    )


def _given(snapshot: Snapshot, found: Sequence[Member]) -> tuple[dict[str, Given], bool]:
    """What the pools have given to pods that wait, and this one gives now; and whether another one is about to."""
    given = giving.remembered(snapshot.around, snapshot.pods, snapshot.now)
    givers = tuple(member for member in found if giving.can_give(member, snapshot.unfit))
    mine = Giver(snapshot.pool.metadata.name, snapshot.holds, givers)
    more, others = giving.gives(mine, replace(snapshot.around, given=given), snapshot.now)
    return {**given, **more}, others


def _way(snapshot: Snapshot, given: Mapping[str, Given], gives: Gives) -> str:
    """To whom the pool gives way and for what, in words; "" if it does not."""
    name = snapshot.pool.metadata.name
    mine = [pod for pod in snapshot.around.waiting if (each := given.get(pod.metadata.uid)) and each.pool == name]
    if not mine:
        return ""
    first, said = min((pod.metadata.name, words(pod) or "") for pod in mine)
    lacks = ", ".join(f"Insufficient {each}" for each in giving.insufficient(said))
    more = f" (and to {len(mine) - 1} more)" if len(mine) > 1 else ""
    verb = "gives way" if gives.places == 1 else "give way"
    return f"{gives.places} {verb} to pod {first}{more}, which is {names.UNSCHEDULABLE}: {lacks or said}"


def members(snapshot: Snapshot) -> tuple[Member, ...]:
    """The pool's pods that are there to stay. Nothing is outdated where nobody knows what is newer."""
    pool = snapshot.pool.metadata
    return tuple(_member(snapshot, pod) for pod in snapshot.pods if is_member(pod, pool.name, pool.uid))


def _member(snapshot: Snapshot, pod: Pod) -> Member:
    made = snapshot.rendered
    newest = made is None or pod.metadata.labels.get(LABEL_REVISION) == made.revision
    warm = readiness(pod) is not None and not snapshot.unfit(pod.spec.node_name)
    return Member(
        pod,
        warm=warm,
        current=newest and pod.metadata.annotations.get(ANNOTATION_KEY) == snapshot.key_id,
        waits=not warm and any(failure.reason == names.UNSCHEDULABLE for failure in pod_failures(pod)),
    )


def _status(snapshot: Snapshot, found: Sequence[Member], way: str) -> WarmPoolStatus:
    pool = snapshot.pool
    failures = _failures(found)
    verdicts = {names.READY: _ready(snapshot, found, failures, way)}
    if snapshot.environment:
        verdicts[names.ENVIRONMENT_READY] = snapshot.environment
    verdicts[names.PROGRESSING] = _progressing(snapshot, found, failures, way)
    generation = pool.metadata.generation
    current = [
        Condition(type=kind, status=status, reason=reason, message=message, observed_generation=generation)
        for kind, (status, reason, message) in verdicts.items()
    ]
    return WarmPoolStatus(
        observed_generation=generation,
        selector=f"{LABEL_POOL}={pool.metadata.name}",
        replicas=len(found),
        ready_replicas=sum(1 for member in found if member.warm),
        updated_replicas=sum(1 for member in found if member.current),
        claimed=snapshot.claimed,
        hits=pool.status.hits + snapshot.count.hits,
        misses=pool.status.misses + snapshot.count.misses,
        environment=snapshot.runs_in,
        failures=failures,
        conditions=names.merge(pool.status.conditions, current, snapshot.now, limits=_LIMITS),
    )


def _failures(found: Sequence[Member]) -> tuple[Failure, ...]:
    pods = sorted((member.pod for member in found if not member.warm), key=lambda pod: pod.metadata.name)
    return tuple(failure for pod in pods for failure in pod_failures(pod))[:MAX_FAILURES]


def _ready(snapshot: Snapshot, found: Sequence[Member], failures: Sequence[Failure], way: str) -> Verdict:
    stopped = _stopped(snapshot)
    if stopped:
        return stopped
    wanted = snapshot.pool.spec.replicas
    if wanted == 0:
        return "True", names.SCALED_TO_ZERO, "no pods are asked for"
    fit = sum(1 for member in found if member.warm and member.current)
    if fit >= wanted:
        return "True", names.WARM, f"{wanted} of {wanted} pods are warm"
    return _lacking(found, fit, wanted, failures, way)


def _progressing(snapshot: Snapshot, found: Sequence[Member], failures: Sequence[Failure], way: str) -> Verdict:
    stopped = _stopped(snapshot)
    if stopped:
        environment = snapshot.environment
        if snapshot.refusal is None and environment and environment[1] in names.UNDER_WAY:
            return "True", environment[1], environment[2]
        return stopped
    wanted = snapshot.pool.spec.replicas
    fit = sum(1 for member in found if member.warm and member.current)
    if fit >= wanted and all(member.current for member in found):
        return "False", names.COMPLETE, "every pod is of the newest environment and template"
    _, reason, message = _lacking(found, fit, wanted, failures, way)
    return str(not failures), reason, message


def _stopped(snapshot: Snapshot) -> Verdict | None:
    """Why no pods can be made at all."""
    if snapshot.refusal:
        return "False", snapshot.refusal.reason, snapshot.refusal.message
    if snapshot.rendered is None:
        said = f": {snapshot.environment[2]}" if snapshot.environment else ""
        return "False", names.ENVIRONMENT_NOT_READY, f"there is no image to run yet{said}"
    return None


def _lacking(found: Sequence[Member], fit: int, wanted: int, failures: Sequence[Failure], way: str) -> Verdict:
    """What keeps the pool from being Ready, as Ready says it."""
    outdated = sum(1 for member in found if not member.current)
    said = f"{fit} of {wanted} pods are warm"
    if outdated:
        said = f"{fit} of {wanted} pods are warm and of the newest environment, {outdated} of an earlier one"
    if failures:
        first = failures[0]
        room = names.MAX_MESSAGE_BYTES - len(f"{said}; {where(first)}".encode())
        return "False", first.reason, f"{said}; {where(first)}{names.cut_front(first.message, room)}"
    if way:
        return "False", names.GIVING_WAY, f"{said}; {way}"
    return "False", names.ROLLING if outdated else names.FILLING, said


def _events(before: WarmPoolStatus, after: WarmPoolStatus) -> tuple[Event, ...]:
    """Changes of Ready and EnvironmentReady that are news, and the end of a roll."""
    events = []
    for kind in (names.ENVIRONMENT_READY, names.READY):
        was, now = before.condition(kind), after.condition(kind)
        if now is None or (was and (was.status, was.reason) == (now.status, now.reason)):
            continue
        if now.reason in names.UNDER_WAY or (kind == names.READY and now.reason in _QUIET):
            continue
        note = now.message if kind == names.READY else names.first_line(now.message)
        normal = now.status == "True" or now.reason == names.GIVING_WAY
        events.append(Event("Normal" if normal else "Warning", now.reason, note))
    return tuple(events)
