"""How long the stages of rollouts last."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from tokenservice.api import conditions
from tokenservice.api.meta import Condition
from tokenservice.services.rollout import Step
from tokenservice.services.store import Key

STAGES = {
    conditions.PRE_PULLING: "pre-pull",
    conditions.ROLLING_OUT: "update",
    conditions.VERIFYING: "verify",
    conditions.ROLLING_BACK: "roll-back",
}
"""Reasons of Progressing whose time is measured."""


class RolloutMetrics(Protocol):
    """What the reconciler reports; times are seconds."""

    def rollout_stage(self, stage: str, seconds: float, /) -> None: ...

    def rolled_back(self) -> None: ...


class Stages:
    """Measures them; of one that began before this process did, nobody knows how long it lasts. Of a revision that is
    good already, scaling aside, there are none.
    """

    def __init__(self, metrics: RolloutMetrics, now: Callable[[], datetime]) -> None:
        self._metrics = metrics
        self._now = now
        self._stages: dict[Key, tuple[str, datetime | None]] = {}
        """The newest reason of Progressing, and since when; None where that was not seen."""

    def forget(self, key: Key) -> None:
        """A TokenService is gone."""
        self._stages.pop(key, None)

    def told(self, key: Key, progressing: Condition | None, found: Step) -> None:
        """What Progressing says now, and what the rollout came to."""
        reason = progressing.reason if progressing else ""
        before, since = self._stages.get(key, (reason, None))
        if reason == before:
            self._stages[key] = (before, since)
            return
        now = self._now()
        if since is not None and before in STAGES:
            self._metrics.rollout_stage(STAGES[before], (now - since).total_seconds())
        self._stages[key] = (reason, None if found.verified else now)
