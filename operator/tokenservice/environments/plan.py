"""The next step for one CondaEnvironment, derived from what is: a pure function from snapshot to plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, get_args

import msgspec

from tokenservice.api import conditions as names
from tokenservice.api.environments import CondaEnvironmentStatus, EnvironmentBytes, HistoryEntry
from tokenservice.api.events import Event
from tokenservice.api.jobs import MESSAGE_BYTES, TERMINAL, BuildAnswer, JobResult, Reason
from tokenservice.api.meta import Condition, time_of
from tokenservice.environments.attempts import (
    POD_SECONDS,
    Attempt,
    Done,
    Failed,
    Job,
    Lost,
    lacks_pods,
    outcome,
)
from tokenservice.environments.needs import Lock, Need, Stage, build_hash, build_need, identity, known_lock, lock_need
from tokenservice.environments.problems import InvalidEnvironment
from tokenservice.environments.snapshot import Snapshot
from tokenservice.environments.spec import HASH_VERSION, Canonical

RETRY_TERMINAL_SECONDS = 3600.0
RETRY_PASSING_SECONDS = 60.0
"""After the end of a Job that failed, or after the API server refused one."""

RENEWAL_SECONDS = 3600.0
"""At most until a schedule is looked at again: the clock may be set meanwhile."""

DISABLED = "nothing locks and builds environments in this cluster: set registry.url in the chart's values"

Verdict = tuple[Literal["True", "False", "Unknown"], str, str]
"""Status, reason and message of a condition."""

_DOING: dict[Stage, str] = {"lock": names.LOCKING, "build": names.BUILDING}
_CONDITIONS: dict[Stage, str] = {"lock": names.LOCKED, "build": names.BUILT}
# While what failed for these reasons is tried again the condition stands, or it would change every minute.
_STEADY = (frozenset(get_args(Reason)) - TERMINAL) | {"OOMKilled", "DeadlineExceeded", "BackoffLimitExceeded"}
_LIMITS = dict.fromkeys(_CONDITIONS.values(), MESSAGE_BYTES)


@dataclass(frozen=True)
class Create:
    """Make a Job for this need."""

    need: Need


@dataclass(frozen=True)
class Delete:
    """Delete this Job; `why` is for the log."""

    job: Job
    why: str


@dataclass(frozen=True)
class Finished:
    """A stage that came to its end with this plan; began: when its Job was made."""

    stage: Stage
    began: str | None


@dataclass(frozen=True)
class Plan:
    actions: tuple[Create | Delete, ...] = ()
    wants: frozenset[str] = frozenset()
    """Hashes of the needs whose Jobs work for this environment: they are not to be swept away."""
    status: CondaEnvironmentStatus | None = None
    """The status to write; None if the one that stands there is right."""
    events: tuple[Event, ...] = ()
    finished: tuple[Finished, ...] = ()
    trimmed: bool = False
    """Whether an image or a lock leaves the status, and may be collected."""
    requeue_after: float | None = None
    """Seconds after which to look again without a change; None for never."""


@dataclass(frozen=True)
class _Step:
    """How far one stage is; `result` if it is done."""

    verdict: Verdict
    need: Need | None = None
    action: Create | Delete | None = None
    result: JobResult | None = None
    began: str | None = None
    requeue_after: float | None = None


def needed(snapshot: Snapshot) -> tuple[Need, ...]:
    """What is to be done as far as `snapshot` knows: its attempts must be there before it is planned for.

    The build is known only once the lock is; asked again with that attempt in the snapshot, it comes too.
    """
    canonical = snapshot.canonical
    if isinstance(canonical, InvalidEnvironment) or snapshot.environment.metadata.deletion_timestamp:
        return ()
    environment = snapshot.environment
    lock = known_lock(environment, canonical)
    found: tuple[Need, ...] = ()
    if lock is None:
        need = lock_need(environment, canonical)
        found = (need,)
        lock = _answered(snapshot, need)
    if lock is not None and not _stands(snapshot, canonical, lock):
        found = (*found, build_need(environment, canonical, lock, snapshot.began))
    return found


def plan(snapshot: Snapshot) -> Plan:
    """What to do about `snapshot`."""
    environment = snapshot.environment
    if environment.metadata.deletion_timestamp:
        return Plan()
    lock, locking = _lock(snapshot)
    image, building = _build(snapshot, lock)
    steps = (locking, building)
    status = _status(snapshot, lock, image, {names.LOCKED: locking.verdict, names.BUILT: building.verdict})
    waits = [step.requeue_after for step in steps if step.requeue_after is not None]
    if snapshot.period:
        waits.append(min(RENEWAL_SECONDS, (snapshot.period[1] - snapshot.now).total_seconds()))
    return Plan(
        actions=tuple(step.action for step in steps if step.action),
        wants=frozenset(step.need.hash for step in steps if step.need),
        status=None if status == environment.status else status,
        events=transitions(environment.status, status),
        finished=tuple(Finished(step.need.stage, step.began) for step in steps if step.need and step.result),
        trimmed=bool(_references(environment.status) - _references(status)),
        requeue_after=min(waits, default=None),
    )


def transitions(before: CondaEnvironmentStatus, after: CondaEnvironmentStatus) -> tuple[Event, ...]:
    """An event for each step that came to its end or failed. What merely takes its time is no event."""
    events: list[Event] = []
    for kind in _CONDITIONS.values():
        old, new = before.condition(kind), after.condition(kind)
        if new is None or new.status == "Unknown":
            continue
        if old is None or (old.status, old.reason) != (new.status, new.reason):
            normal = new.status == "True"
            events.append(Event("Normal" if normal else "Warning", new.reason, names.first_line(new.message)))
    return tuple(events)


def _lock(snapshot: Snapshot) -> tuple[Lock | None, _Step]:
    canonical = snapshot.canonical
    if isinstance(canonical, InvalidEnvironment):
        return None, _Step(("False", names.INVALID_ENVIRONMENT, str(canonical)))
    known = known_lock(snapshot.environment, canonical)
    if known is not None:
        return known, _Step(_locked(known))
    need = lock_need(snapshot.environment, canonical)
    step, lock = _step(snapshot, need), _answered(snapshot, need)
    return (lock, replace(step, verdict=_locked(lock))) if lock else (None, step)


def _build(snapshot: Snapshot, lock: Lock | None) -> tuple[BuildAnswer | None, _Step]:
    environment, canonical = snapshot.environment, snapshot.canonical
    if lock is None or isinstance(canonical, InvalidEnvironment):
        return None, _Step(("Unknown", names.WAITING_FOR_LOCK, "the environment is built once it is locked"))
    if _stands(snapshot, canonical, lock):
        return None, _Step(_built(environment.status.image or ""))
    step = _step(snapshot, build_need(environment, canonical, lock, snapshot.began))
    answer = step.result.build if step.result else None
    return answer, replace(step, verdict=_built(answer.image)) if answer else step


def _step(snapshot: Snapshot, need: Need) -> _Step:
    """What to do about `need`, and how far it is."""
    attempt, now = snapshot.attempts.get(need.hash), snapshot.now
    if not snapshot.enabled:
        return _Step(("False", names.BUILDER_DISABLED, DISABLED))
    if attempt is None:
        return _missing(snapshot, need)
    job = attempt.job.metadata
    doing = _doing(snapshot, need, f"Job {job.name} in namespace {job.namespace}")
    if job.deletion_timestamp:
        return _Step(doing, need)
    found = outcome(attempt, now)
    if isinstance(found, Done) and _answers(need, found.result):
        return _Step(doing, need, result=found.result, began=job.creation_timestamp)
    if isinstance(found, Failed):
        return _failed(need, attempt, found, now)
    if isinstance(found, Done | Lost):
        return _Step(doing, need, Delete(attempt.job, "its result is gone"))
    if found.reason:
        watched = lacks_pods(attempt, now)  # nothing tells when a quota has room again
        return _Step(("False", found.reason, found.message), need, requeue_after=POD_SECONDS if watched else None)
    return _Step(doing, need, requeue_after=None if attempt.pods and not attempt.job.ended else POD_SECONDS)


def _missing(snapshot: Snapshot, need: Need) -> _Step:
    refusal = snapshot.refusals.get(need.hash)
    if refusal is not None:
        left = RETRY_PASSING_SECONDS - (snapshot.now - refusal.at).total_seconds()
        if left > 0:
            words = f"the API server takes no Job: {refusal.message}"
            return _Step(("False", names.REJECTED, words), need, requeue_after=left)
    if snapshot.collecting:
        return _Step(_doing(snapshot, need, "waits until old images are deleted"), need, requeue_after=POD_SECONDS)
    return _Step(_doing(snapshot, need, "a Job is about to be made"), need, Create(need))


def _failed(need: Need, attempt: Attempt, found: Failed, now: datetime) -> _Step:
    wait = RETRY_TERMINAL_SECONDS if found.terminal else RETRY_PASSING_SECONDS
    left = wait - (now - found.at).total_seconds()
    verdict: Verdict = ("False", found.reason, found.message)
    if left > 0:
        return _Step(verdict, need, requeue_after=left)
    return _Step(verdict, need, Delete(attempt.job, "another try"))


def _doing(snapshot: Snapshot, need: Need, message: str) -> Verdict:
    """Under way; after a failure that may pass, that failure, until there is something new to say."""
    before = snapshot.environment.status.condition(_CONDITIONS[need.stage])
    generation = snapshot.environment.metadata.generation
    if before and before.status == "False" and before.reason in _STEADY and before.observed_generation == generation:
        return "False", before.reason, before.message
    return "Unknown", _DOING[need.stage], message


def _status(
    snapshot: Snapshot, lock: Lock | None, image: BuildAnswer | None, verdicts: dict[str, Verdict]
) -> CondaEnvironmentStatus:
    environment, canonical = snapshot.environment, snapshot.canonical
    before, generation = environment.status, environment.metadata.generation
    verdicts = {**verdicts, names.READY: _ready(verdicts)}
    conditions = [
        Condition(type=kind, status=status, reason=reason, message=message, observed_generation=generation)
        for kind, (status, reason, message) in verdicts.items()
    ]
    status = msgspec.structs.replace(
        before,
        observed_generation=generation,
        conditions=names.merge(before.conditions, conditions, snapshot.now, limits=_LIMITS),
    )
    if lock is None or isinstance(canonical, InvalidEnvironment):
        return status
    status = msgspec.structs.replace(
        status,
        hash=identity(environment, canonical),
        hash_version=HASH_VERSION,
        lock_digest=lock.digest,
        lock=lock.reference,
        packages=lock.packages,
    )
    if image is None:
        return status
    entry = HistoryEntry(lock_digest=lock.digest, lock=lock.reference, image=image.image)
    past = [item for item in before.history if item.image != image.image]
    return msgspec.structs.replace(
        status,
        image=image.image,
        build_hash=build_hash(environment, canonical, lock, snapshot.began),
        base=image.base,
        bytes=EnvironmentBytes(total=image.bytes_total, pushed=image.bytes_pushed, shared=image.bytes_shared),
        history=(entry, *past[: snapshot.keep_images]),
    )


def _ready(verdicts: dict[str, Verdict]) -> Verdict:
    """True if all is done; else the first step that is not, in its words."""
    for status, reason, message in verdicts.values():
        if status != "True":
            return "False", reason, names.first_line(message)
    return verdicts[names.BUILT]


def _answered(snapshot: Snapshot, need: Need) -> Lock | None:
    """The lock that a Job has made for `need`."""
    attempt = snapshot.attempts.get(need.hash)
    found = outcome(attempt, snapshot.now) if attempt and not attempt.job.metadata.deletion_timestamp else None
    answer = found.result.lock if isinstance(found, Done) else None
    return Lock(answer.lock_digest, answer.reference, answer.packages) if answer and snapshot.enabled else None


def _answers(need: Need, result: JobResult) -> bool:
    return (result.lock if need.stage == "lock" else result.build) is not None


def _stands(snapshot: Snapshot, canonical: Canonical, lock: Lock) -> bool:
    """Whether the status has the image of this lock, made as the newest spec says."""
    environment, began = snapshot.environment, snapshot.began
    status = environment.status
    if status.image is None:
        return False
    if status.build_hash == build_hash(environment, canonical, lock, began):
        return True
    # Built before there was a schedule, but since it would have fired: to ask for one is no reason to build.
    return (
        began is not None
        and status.build_hash == build_hash(environment, canonical, lock, None)
        and _built_since(status, began)
    )


def _built_since(status: CondaEnvironmentStatus, moment: datetime) -> bool:
    built = status.condition(names.BUILT)
    at = time_of(built.last_transition_time) if built and built.status == "True" else None
    return at is not None and at >= moment


def _locked(lock: Lock) -> Verdict:
    packages = "" if lock.packages is None else f", {lock.packages} packages"
    return "True", names.LOCKED, f"{lock.digest}{packages}"


def _built(image: str) -> Verdict:
    return "True", names.BUILT, image


def _references(status: CondaEnvironmentStatus) -> set[str | None]:
    kept = {
        status.lock,
        status.image,
        *(item.lock for item in status.history),
        *(item.image for item in status.history),
    }
    return kept - {None}
