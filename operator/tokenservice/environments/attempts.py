"""What became of a Job, read from it and from its pods: pure functions.

What counts as success is the result that a pod left, not its exit status. Reasons of what is wrong are the Job's own
(api/jobs.py) or Kubernetes' words.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tokenservice.api.conditions import cut, cut_front
from tokenservice.api.jobs import TERMINAL, JobResult, Problem, decode_result
from tokenservice.api.meta import Condition, ContainerStateTerminated, ObjectMeta, Pod, Struct, time_of

POD_SECONDS = 10.0
"""How long a pod may take to show up here: after its Job was made, and in the end after the Job is known to have ended,
since Jobs and pods are watched apart."""


class JobStatus(Struct, frozen=True, kw_only=True):
    active: int = 0
    conditions: tuple[Condition, ...] = ()


class Job(Struct, frozen=True, kw_only=True):
    metadata: ObjectMeta
    status: JobStatus = JobStatus()

    @property
    def ended(self) -> Condition | None:
        """The condition that says how it ended, None while it goes on."""
        return next((item for item in self.status.conditions if item.type in _ENDS and item.status == "True"), None)


_ENDS = frozenset({"Complete", "Failed"})


@dataclass(frozen=True)
class Attempt:
    """A Job as it is.

    Attributes:
        job: the Job.
        pods: its pods.
        explanation: the problem in full, where the pod's own status has it cut.
        refused: why Kubernetes makes no pod for it.

    """

    job: Job
    pods: tuple[Pod, ...] = ()
    explanation: str | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Going:
    """Not at its end; `reason` and `message`: what is wrong at present, if anything is."""

    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Done:
    result: JobResult


@dataclass(frozen=True)
class Failed:
    """At its end without what was asked for. terminal: another try cannot help before something changes."""

    reason: str
    message: str
    terminal: bool
    at: datetime


@dataclass(frozen=True)
class Lost:
    """At its end, and the pod with the result is gone."""


Outcome = Going | Done | Failed | Lost


def outcome(attempt: Attempt, now: datetime) -> Outcome:
    """What became of it up to `now`."""
    results = [result for _, result in _results(attempt)]
    done = next((result for result in results if result.lock or result.build or result.collect), None)
    if done is not None:
        return Done(done)
    newest = _newest(attempt.pods)
    problem = _problem(newest, attempt.explanation) if newest else None
    ended = attempt.job.ended
    if ended is None:
        return _going(attempt, newest, problem)
    at = time_of(ended.last_transition_time) or now
    if problem is None and results:  # the newest pod said nothing, an earlier one did
        problem = results[-1].problem
    if problem is not None:
        return Failed(problem.reason, problem.message, problem.reason in TERMINAL, at)
    if newest is not None and (wrong := trouble(newest)):
        return Failed(*wrong, terminal=False, at=at)
    if ended.type == "Failed":
        # Its pods are deleted at the deadline, and the Job's own words are all there is.
        waits = not attempt.pods and ended.reason != "DeadlineExceeded" and not _over(attempt, now)
        return Going() if waits else Failed(ended.reason or "Failed", cut(ended.message), terminal=False, at=at)
    if newest is not None:
        return Failed("Failed", "the Job ended and its pod left no result", terminal=False, at=at)
    return Lost() if _over(attempt, now) else Going()


def succeeded(pods: tuple[Pod, ...]) -> bool:
    """Whether one of a Job's pods has left what was asked for."""
    return any(result.problem is None for _, result in _results(Attempt(_NO_JOB, pods)))


def unexplained(attempt: Attempt) -> Pod | None:
    """The pod whose log has the problem in full, if its status has it cut."""
    newest = _newest(attempt.pods)
    if newest is None or attempt.explanation is not None:
        return None
    problem = _problem(newest, None)
    return newest if problem is not None and problem.truncated else None


def lacks_pods(attempt: Attempt, now: datetime) -> bool:
    """Whether it should have a pod by now and has none."""
    created = time_of(attempt.job.metadata.creation_timestamp)
    old = created is not None and (now - created).total_seconds() >= POD_SECONDS
    return old and attempt.job.ended is None and not attempt.pods


def trouble(pod: Pod) -> tuple[str, str] | None:
    """Reason and message of what ails a pod, in the words of the kubelet or the scheduler."""
    status = pod.status
    if status.reason:  # of the whole pod: Evicted, NodeLost, OutOfcpu
        return status.reason, cut(status.message)
    scheduled = next((item for item in status.conditions if item.type == "PodScheduled"), None)
    if scheduled and scheduled.status == "False" and scheduled.reason:
        return scheduled.reason, cut(scheduled.message)
    for container in (*status.init_container_statuses, *status.container_statuses):
        waiting, ended = container.state.waiting, container.state.terminated
        if waiting and not waiting.patient:
            return waiting.cause, cut(waiting.message)
        if ended and (ended.exit_code or ended.signal):
            return _end(ended)
    return None


def _going(attempt: Attempt, newest: Pod | None, problem: Problem | None) -> Going:
    if newest is None:
        return Going("FailedCreate", cut(attempt.refused)) if attempt.refused else Going()
    if problem is not None:
        return Going(problem.reason, problem.message)
    return Going(*(trouble(newest) or ("", "")))


def _end(ended: ContainerStateTerminated) -> tuple[str, str]:
    how = f"killed by signal {ended.signal}" if ended.signal else f"exit code {ended.exit_code}"
    if ended.reason == "OOMKilled":
        return "OOMKilled", f"the Job used more memory than its limit allows ({how}); raise builder.resources"
    words = ended.message.strip()
    return "Failed", cut_front(f"{words} ({how})") if words else f"the Job ended without a result ({how})"


def _results(attempt: Attempt) -> list[tuple[Pod, JobResult]]:
    """Of the pods in the order in which they were made."""
    found = []
    for pod in sorted(attempt.pods, key=_made):
        for container in pod.status.container_statuses:
            ended = container.state.terminated
            result = decode_result(ended.message) if ended else None
            if result is not None:
                found.append((pod, result))
    return found


def _problem(pod: Pod, explanation: str | None) -> Problem | None:
    found = next((result.problem for _, result in _results(Attempt(_NO_JOB, (pod,)))), None)
    if found is None or explanation is None:
        return found
    return Problem(reason=found.reason, message=explanation)


def _newest(pods: tuple[Pod, ...]) -> Pod | None:
    return max(pods, key=_made, default=None)


def _made(pod: Pod) -> tuple[str, str]:
    return pod.metadata.creation_timestamp or "", pod.metadata.name


def _over(attempt: Attempt, now: datetime) -> bool:
    """Whether its pods had the time to show up."""
    ended = attempt.job.ended
    at = time_of(ended.last_transition_time) if ended else None
    return at is None or (now - at).total_seconds() >= POD_SECONDS


_NO_JOB = Job(metadata=ObjectMeta())
