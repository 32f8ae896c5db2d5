"""Why pods do not serve, read from their states in the words of the kubelet, the scheduler or the container.

One cause keeps one reason and one message while the kubelet goes through its states (pulling, waiting to pull again;
terminated, waiting, running again): a status that follows each of them would be written every few seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenservice.api.conditions import cut, cut_front
from tokenservice.api.meta import Condition, ContainerStateTerminated, ContainerStatus, Deployment, Pod
from tokenservice.api.v1alpha1 import Failure

MAX_FAILURES = 10

_OUT_OF_MEMORY = "OOMKilled"
_CRASH_LOOP = "CrashLoopBackOff"
_RUN_ERROR = "RunContainerError"
# How a container ended that could not even be started, by containerd and by older runtimes.
_NEVER_STARTED = frozenset({"StartError", "ContainerCannotRun"})
# While it waits, the kubelet puts this before the error of the last try.
_BACK_OFF = re.compile(r'Back-off pulling image "[^"]*": \w+: ')


def failures(pods: Iterable[Pod], deployment: Deployment | None) -> tuple[Failure, ...]:
    """At most ten failures in a stable order: of pods, by pod and container name; then of pods that ended for good;
    then of pods that could not be created.

    Pods that are Ready, or on their way out, have none. A pod that ended for good (evicted, refused by its node) is
    replaced by its ReplicaSet and stays as a record: it counts until a pod that was created later runs.
    """
    present = [pod for pod in sorted(pods, key=lambda pod: pod.metadata.name) if not pod.metadata.deletion_timestamp]
    alive = [pod for pod in present if pod.status.phase != "Failed"]
    newest = max((pod.metadata.creation_timestamp or "" for pod in alive if pod.status.phase == "Running"), default="")
    ended = [pod for pod in present if pod.status.phase == "Failed" and _ended_at(pod) >= newest]
    found = [failure for pod in (*alive, *ended) for failure in pod_failures(pod)]
    if deployment:
        found += _creation_failures(deployment.status.conditions)
    return tuple(found[:MAX_FAILURES])


def pod_failures(pod: Pod) -> list[Failure]:
    """The failures of one pod, none if it is Ready."""
    if readiness(pod):
        return []
    name = pod.metadata.name
    if pod.status.reason:  # of the whole pod: Evicted, NodeLost, OutOfcpu
        return [Failure(pod=name, reason=pod.status.reason, message=cut(pod.status.message))]
    scheduled = next((condition for condition in pod.status.conditions if condition.type == "PodScheduled"), None)
    if scheduled and scheduled.status == "False" and scheduled.reason:
        return [Failure(pod=name, reason=scheduled.reason, message=cut(scheduled.message))]
    found = [_container_failure(name, status, init=True) for status in pod.status.init_container_statuses]
    found += [_container_failure(name, status, init=False) for status in pod.status.container_statuses]
    return [failure for failure in found if failure]


def readiness(pod: Pod) -> Condition | None:
    """The condition that says that a pod is Ready; None if it is not."""
    return next((item for item in pod.status.conditions if item.type == "Ready" and item.status == "True"), None)


def where(failure: Failure) -> str:
    """The pod and the container that a failure is about, to begin a message with."""
    of = (("pod", failure.pod), ("container", failure.container))
    return "".join(f"{kind} {name}: " for kind, name in of if name)


def _ended_at(pod: Pod) -> str:
    """When the pod ended, as a timestamp that sorts: its conditions changed last then; without any it never began."""
    times = (condition.last_transition_time or "" for condition in pod.status.conditions)
    return max(times, default="") or pod.metadata.creation_timestamp or ""


def _container_failure(pod: str, status: ContainerStatus, *, init: bool) -> Failure | None:
    waiting = status.state.waiting
    last = status.state.terminated or status.last_state.terminated
    reason = waiting.reason if waiting else ""
    if last and last.reason in _NEVER_STARTED and reason in ("", _CRASH_LOOP, _RUN_ERROR):
        return Failure(pod=pod, container=status.name, reason=_RUN_ERROR, message=cut(last.message))
    if waiting and not waiting.patient and reason != _CRASH_LOOP:
        message = _BACK_OFF.sub("", waiting.message, count=1)
        return Failure(pod=pod, container=status.name, reason=waiting.cause, message=cut(message))
    if last is None and reason == _CRASH_LOOP:  # the record of the crash is gone
        return Failure(pod=pod, container=status.name, reason=reason, message=cut(waiting.message if waiting else ""))
    if status.ready or last is None:
        return None
    if init and status.state.terminated and last.exit_code == 0:
        return None  # done, as an init container should be
    reason = _OUT_OF_MEMORY if last.reason == _OUT_OF_MEMORY else _CRASH_LOOP
    return Failure(pod=pod, container=status.name, reason=reason, message=_last_words(last))


def _last_words(last: ContainerStateTerminated) -> str:
    """What ended the container: the end of its own message if it left one, and how it ended."""
    ended = f"killed by signal {last.signal}" if last.signal else f"exit code {last.exit_code}"
    if last.reason == _OUT_OF_MEMORY:
        ended = f"used more memory than its limit allows ({ended})"
    words = last.message.strip()
    return cut_front(f"{words} ({ended})") if words else ended


def _creation_failures(conditions: Iterable[Condition]) -> list[Failure]:
    """Pods that could not even be created, for example beyond a quota."""
    return [
        Failure(reason=condition.reason, message=cut(condition.message))
        for condition in conditions
        if condition.type == "ReplicaFailure" and condition.status == "True"
    ]
