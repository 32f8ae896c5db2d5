"""Why pods of a TokenService do not serve, and which of them count."""

from __future__ import annotations

from collections.abc import Iterable

from tokenservice.api.conditions import cut
from tokenservice.api.meta import Condition, Deployment, Pod
from tokenservice.api.v1alpha1 import Failure
from tokenservice.pods.failures import MAX_FAILURES, pod_failures


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


def _ended_at(pod: Pod) -> str:
    """When the pod ended, as a timestamp that sorts: its conditions changed last then; without any it never began."""
    times = (condition.last_transition_time or "" for condition in pod.status.conditions)
    return max(times, default="") or pod.metadata.creation_timestamp or ""


def _creation_failures(conditions: Iterable[Condition]) -> list[Failure]:
    """Pods that could not even be created, for example beyond a quota."""
    return [
        Failure(reason=condition.reason, message=cut(condition.message))
        for condition in conditions
        if condition.type == "ReplicaFailure" and condition.status == "True"
    ]
