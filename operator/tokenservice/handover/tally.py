"""How often pods were taken from a WarmPool, and how often none was there, until that stands in its status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

Key = tuple[str, str]
"""Namespace and name of a WarmPool."""

CALM_SECONDS = 2.0
"""For so long no other pod is made for one that was taken: on one node its start, which takes many seconds, would make
the taken one wait, which loads its model in a part of one."""


@dataclass(frozen=True)
class Count:
    hits: int = 0
    misses: int = 0


class Tally:
    """Kept in memory: what is not written yet when the process ends is lost.

    on_change: is told of a pool that is to be looked at: somebody took pods from it, or would have, or applied it.
    """

    def __init__(self, on_change: Callable[[Key], None]) -> None:
        self._on_change = on_change
        self._counts: dict[Key, Count] = {}
        self._taken: dict[Key, list[datetime]] = {}
        """When the newest pods were taken, the oldest first."""

    def of(self, pool: Key) -> Count:
        """What is not in the pool's status yet."""
        return self._counts.get(pool, Count())

    def taken(self, pool: Key, at: datetime) -> None:
        """A pod was taken."""
        self._taken.setdefault(pool, []).append(at)
        self._add(pool, hits=1)

    def missed(self, pool: Key, pods: int) -> None:
        """So many pods would have been taken, and were not there."""
        self._add(pool, misses=pods)

    def _add(self, pool: Key, *, hits: int = 0, misses: int = 0) -> None:
        before = self.of(pool)
        self._counts[pool] = Count(before.hits + hits, before.misses + misses)
        self._on_change(pool)

    def just_taken(self, pool: Key, now: datetime) -> tuple[datetime, ...]:
        """Until when pods that were taken are not made anew, the soonest first."""
        calm = timedelta(seconds=CALM_SECONDS)
        found = tuple(at + calm for at in self._taken.get(pool, ()) if at + calm > now)
        if found:
            self._taken[pool] = [until - calm for until in found]
        else:
            self._taken.pop(pool, None)
        return found

    def written(self, pool: Key, count: Count) -> None:
        """So much of it stands in the status now."""
        before = self.of(pool)
        left = Count(before.hits - count.hits, before.misses - count.misses)
        self._counts[pool] = left
        if left == Count():
            del self._counts[pool]

    def forget(self, pool: Key) -> None:
        """The pool is gone."""
        self._counts.pop(pool, None)
        self._taken.pop(pool, None)

    def changed(self, pool: Key) -> None:
        """It was applied, or how many of its pods are claimed has changed."""
        self._on_change(pool)
