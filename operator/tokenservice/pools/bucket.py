"""A token bucket: how many pods may be made now, so that a pool fills at a bounded rate. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True)
class Bucket:
    """`level` tokens at `at`. One that is new is full: it holds what comes in a second."""

    level: float
    at: datetime

    @classmethod
    def full(cls, rate: int, now: datetime) -> Bucket:
        return cls(float(rate), now)

    def filled(self, rate: int, now: datetime) -> Bucket:
        """The bucket at `now`; rate: tokens a second. A clock that goes back adds nothing."""
        seconds = max(0.0, (now - self.at).total_seconds())
        return Bucket(min(float(rate), self.level + seconds * rate), now)

    def taken(self, count: int) -> Bucket:
        """With `count` tokens less; never more than there are."""
        return Bucket(self.level - count, self.at)

    @property
    def whole(self) -> int:
        """How many can be taken."""
        return int(self.level)

    def wait(self, rate: int) -> timedelta:
        """How long until there is one."""
        return timedelta(seconds=max(0.0, 1.0 - self.level) / rate)
