"""Types and reasons of the conditions of our resources, and how a condition changes over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from tokenservice.api.meta import Condition, stamp

READY = "Ready"
AVAILABLE = "Available"
PROGRESSING = "Progressing"
ENVIRONMENT_READY = "EnvironmentReady"
WARM_POOL_READY = "WarmPoolReady"
ROLLED_BACK = "RolledBack"
"""Also a reason, of Ready and Progressing."""

# Reasons of ours. Others are the kubelet's and the scheduler's own words, such as ImagePullBackOff or Unschedulable.
SERVING = "Serving"
SCALED_TO_ZERO = "ScaledToZero"
STARTING = "Starting"
ROLLING_OUT = "RollingOut"
PRE_PULLING = "PrePulling"
VERIFYING = "Verifying"
ROLLING_BACK = "RollingBack"
COMPLETE = "Complete"
PAUSED = "Paused"
INVALID_TEMPLATE = "InvalidTemplate"
REJECTED = "Rejected"
NAME_CONFLICT = "NameConflict"
VERIFICATION_FAILED = "VerificationFailed"
PRE_PULL_FAILED = "PrePullFailed"
"""Of an event alone: it holds nothing up."""
PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
MINIMUM_REPLICAS_AVAILABLE = "MinimumReplicasAvailable"
MINIMUM_REPLICAS_UNAVAILABLE = "MinimumReplicasUnavailable"

# Of a TokenService that takes pods from a WarmPool.
FITS = "Fits"
SHAPE_MISMATCH = "ShapeMismatch"
WAITING_FOR_WARM_POD = "WaitingForWarmPod"
LOAD_FAILED = "LoadFailed"
ASSIGNMENT_REFUSED = "AssignmentRefused"
UNREACHABLE = "Unreachable"

UNSCHEDULABLE = "Unschedulable"
"""The scheduler's own word."""

# Of a WarmPool.
WARM = "Warm"
FILLING = "Filling"
ROLLING = "Rolling"
GIVING_WAY = "GivingWay"

# Of a CondaEnvironment, and of a TokenService that runs in one. What ails that itself is a Reason of api/jobs.py.
ENVIRONMENT_NOT_READY = "EnvironmentNotReady"
NOT_FOUND = "NotFound"
LOCKING = "Locking"
BUILDING = "Building"
LOCKED = "Locked"
BUILT = "Built"
WAITING_FOR_LOCK = "WaitingForLock"
BUILDER_DISABLED = "BuilderDisabled"
INVALID_ENVIRONMENT = "InvalidEnvironment"
UNDER_WAY = frozenset({LOCKING, BUILDING})
"""Reasons of an environment that is not ready, of which nothing but time is asked."""

Verdict = tuple[str, str, str]
"""Status, reason, message of a condition."""

MAX_MESSAGE_BYTES = 1024
"""Messages longer than this are cut; the API server takes 32,768 characters, people read fewer."""


def cut(text: str, limit: int = MAX_MESSAGE_BYTES) -> str:
    """`text` within `limit` bytes of UTF-8, cut between characters, with an ellipsis where something is missing."""
    data = _bytes(text)
    if len(data) <= limit:
        return data.decode()
    return data[: limit - 3].decode(errors="ignore") + "…"


def first_line(text: str) -> str:
    """The first line that says something, cut as `cut` does; "" of an empty text."""
    return cut(text.strip().partition("\n")[0])


def cut_front(text: str, limit: int = MAX_MESSAGE_BYTES) -> str:
    """The end of `text` within `limit` bytes of UTF-8, after an ellipsis where something is missing.

    For what a program wrote: the cause stands last.
    """
    data = _bytes(text)
    if len(data) <= limit:
        return data.decode()
    return "…" + data[-(limit - 3) :].decode(errors="ignore")


def _bytes(text: str) -> bytes:
    return text.strip().encode(errors="replace")  # halves of surrogate pairs have no UTF-8


def merge(
    previous: Iterable[Condition],
    current: Iterable[Condition],
    now: datetime,
    *,
    limits: Mapping[str, int] | None = None,
) -> tuple[Condition, ...]:
    """`current`, with the transition times of `previous` kept wherever the status did not change.

    Kubernetes' convention: lastTransitionTime moves only when `status` does. Order follows `current`; types that it
    lacks are dropped. limits: type -> bytes that its message may have, MAX_MESSAGE_BYTES for others.
    """
    limits = limits or {}
    before = {condition.type: condition for condition in previous}
    merged = []
    for condition in current:
        old = before.get(condition.type)
        kept = old.last_transition_time if old and old.status == condition.status else None
        merged.append(
            Condition(
                type=condition.type,
                status=condition.status,
                reason=condition.reason,
                message=cut(condition.message, limits.get(condition.type, MAX_MESSAGE_BYTES)),
                observed_generation=condition.observed_generation,
                last_transition_time=kept or stamp(now),
            )
        )
    return tuple(merged)
