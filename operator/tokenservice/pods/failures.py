"""Why a pod does not come up, read from its state in the words of the kubelet, the scheduler or the container.

One cause keeps one reason and one message while the kubelet goes through its states (pulling, waiting to pull again;
terminated, waiting, running again): a status that follows each of them would be written every few seconds.
"""

from __future__ import annotations

import re

from tokenservice.api.conditions import UNSCHEDULABLE, cut, cut_front
from tokenservice.api.meta import Condition, ContainerStateTerminated, ContainerStatus, Pod
from tokenservice.api.v1alpha1 import Failure

MAX_FAILURES = 10
"""That a status has."""

_OUT_OF_MEMORY = "OOMKilled"
_CRASH_LOOP = "CrashLoopBackOff"
_RUN_ERROR = "RunContainerError"
# How a container ended that could not even be started, by containerd and by older runtimes.
_NEVER_STARTED = frozenset({"StartError", "ContainerCannotRun"})
# While it waits, the kubelet puts this before the error of the last try.
_BACK_OFF = re.compile(r'Back-off pulling image "[^"]*": \w+: ')


def pod_failures(pod: Pod) -> list[Failure]:
    """The failures of one pod, none if it is Ready."""
    if readiness(pod):
        return []
    name = pod.metadata.name
    if pod.status.reason:  # of the whole pod: Evicted, NodeLost, OutOfcpu
        return [Failure(pod=name, reason=pod.status.reason, message=cut(pod.status.message))]
    lacking = _not_scheduled(pod)
    if lacking:
        return [Failure(pod=name, reason=lacking.reason, message=cut(lacking.message))]
    found = [_container_failure(name, status, init=True) for status in pod.status.init_container_statuses]
    found += [_container_failure(name, status, init=False) for status in pod.status.container_statuses]
    return [failure for failure in found if failure]


def readiness(pod: Pod) -> Condition | None:
    """The condition that says that a pod is Ready; None if it is not."""
    return next((item for item in pod.status.conditions if item.type == "Ready" and item.status == "True"), None)


def unschedulable(pod: Pod) -> str | None:
    """The scheduler's words about a pod that it has found no node for; None for every other pod."""
    if pod.spec.node_name or pod.status.phase not in ("", "Pending"):
        return None
    lacking = _not_scheduled(pod)
    return lacking.message if lacking and lacking.reason == UNSCHEDULABLE else None


def where(failure: Failure) -> str:
    """The pod and the container that a failure is about, to begin a message with."""
    of = (("pod", failure.pod), ("container", failure.container))
    return "".join(f"{kind} {name}: " for kind, name in of if name)


def _not_scheduled(pod: Pod) -> Condition | None:
    """The condition that says why a pod has no node."""
    found = next((condition for condition in pod.status.conditions if condition.type == "PodScheduled"), None)
    return found if found and found.status == "False" and found.reason else None


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
