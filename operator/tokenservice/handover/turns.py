"""When whose turn it is: what many want to do at once, and nobody waits for, is done one after the other."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import datetime, timedelta
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Turns(Generic[K]):
    """At most `per_second` turns in a second; the first ones at once. Kept in memory: without it all are early.

    calm: seconds after `disturbed` in which nothing begins. patience: seconds after which it does all the same.
    """

    def __init__(self, per_second: float, *, calm: float = 0.0, patience: float = 0.0) -> None:
        self._pause = timedelta(seconds=1.0 / per_second)
        self._calm = timedelta(seconds=calm)
        self._patience = timedelta(seconds=patience)
        self._next: datetime | None = None
        self._quiet: datetime | None = None
        self._turns: dict[K, datetime] = {}

    def wait(self, key: K, now: datetime) -> float:
        """Seconds until it is the turn of `key`, which gets one if it has none; 0 if it is."""
        if key not in self._turns:
            self._turns[key] = at = max(now, self._next or now)
            self._next = at + self._pause
        turn = self._turns[key]
        if self._quiet:
            turn = max(turn, min(self._quiet, turn + self._patience))
        return max(0.0, (turn - now).total_seconds())

    def disturbed(self, now: datetime) -> None:
        """Something is done for which somebody waits."""
        self._quiet = now + self._calm

    def done(self, key: K) -> None:
        """It has had its turn, or wants none any more."""
        self._turns.pop(key, None)
