"""What one start took, and what many did: pure functions of what the client, the watches and the operator say."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import msgspec
from tokenservice.api.v1alpha1 import LastStart

from bench.rollout_requests import percentile
from bench.start_client import Answer
from bench.start_watch import Marks

StartPath = Literal["Cold", "Prepulled", "Warm"]
"""As in `status.lastStart.path`: onto a node without the image, onto one with it, and from the pool."""
PATHS: tuple[StartPath, ...] = ("Cold", "Prepulled", "Warm")
STAGES = (
    "claim",
    "scheduling",
    "pull",
    "container",
    "imports",
    "prepare",
    "weights",
    "warmup",
    "endpoint",
    "rest",
)
"""Of `status.lastStart.stages`, in the order in which they happen. `rest` is what the client waited beyond them."""
COLD_STEPS = ("made", "scheduled", "running", "ready", "endpoint", "connected", "token")
WARM_STEPS = ("claimed", "loaded", "endpoint", "connected", "token")
STEPS = ("claimed", "loaded", *COLD_STEPS)
"""Of both, in order."""


@dataclass(frozen=True)
class Edit:
    """The PATCH of `spec.replicas`: just before it was sent, by the monotonic clock and by the wall's, in seconds."""

    at: float
    wall: float

    def after(self, when: datetime) -> float:
        """Seconds from the edit to a time that somebody on this machine wrote down."""
        return when.timestamp() - self.wall


@dataclass(frozen=True)
class Run:
    """A start that went well. Seconds.

    Attributes:
        path: how the pod came.
        model: the TokenService's name.
        seconds: from the edit to the first token.
        stages: as the operator tells them, and the rest.
        steps: seconds from the step before to each one; the first one from the edit.
        tries: connections that were refused.

    """

    path: StartPath
    model: str
    seconds: float
    stages: Mapping[str, float]
    steps: Mapping[str, float] = field(default_factory=dict)
    tries: int = 0


@dataclass(frozen=True)
class Failure:
    """A start that did not go as it should have. It is told, and counts for no figure."""

    path: StartPath
    model: str
    number: int
    problem: str


def stages(told: LastStart, seconds: float) -> dict[str, float]:
    """What the status tells of a start, in order, and the rest of the time that the client waited.

    Of a cold pod the status counts from its making to its readiness, in whole seconds, so a single rest is right to a
    second only; of a warm one from its claim to its label.
    """
    found = {name: value for name, value in msgspec.to_builtins(told.stages).items() if value is not None}
    ordered = {name: float(found[name]) for name in STAGES if name in found}
    return {**ordered, "rest": seconds - sum(ordered.values())}


def cold_steps(edit: Edit, marks: Marks, answer: Answer) -> dict[str, float]:
    """By watches: made, has a node, runs, is Ready, is in the Service's slice; then by the client."""
    seen = (marks.made, marks.scheduled, marks.running, marks.ready, marks.listed, answer.connected, answer.token)
    return _steps(edit.at, dict(zip(COLD_STEPS, seen, strict=True)))


def warm_steps(edit: Edit, claimed: datetime, served: datetime, marks: Marks, answer: Answer) -> dict[str, float]:
    """By the operator's own notes on the pod: the claim's patch, and the label's, which are about to be sent then; by a
    watch the Service's slice; then by the client.
    """
    noted = (edit.at + edit.after(claimed), edit.at + edit.after(served))
    return _steps(edit.at, dict(zip(WARM_STEPS, (*noted, marks.listed, answer.connected, answer.token), strict=True)))


def _steps(since: float, when: Mapping[str, float | None]) -> dict[str, float]:
    """Seconds between each and the one before. What was not seen is left out, and goes into the one after."""
    found = {}
    for name, at in when.items():
        if at is not None:
            found[name] = at - since
            since = at
    return found


def of(runs: Sequence[Run], path: StartPath, model: str) -> list[Run]:
    return [run for run in runs if (run.path, run.model) == (path, model)]


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def p99(runs: Sequence[Run]) -> float | None:
    """By nearest rank: of less than a hundred, the slowest."""
    return percentile([run.seconds for run in runs], 99)


def medians(parts: Sequence[Mapping[str, float]], order: Sequence[str]) -> dict[str, float]:
    """Of each part, over those that have it; parts that none has are left out."""
    found = {}
    for name in order:
        values = [each[name] for each in parts if name in each]
        if values:
            found[name] = statistics.median(values)
    return found
