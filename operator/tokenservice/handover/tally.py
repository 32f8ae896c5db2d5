"""How often pods were taken from a WarmPool, and how often none was there, until that stands in its status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Key = tuple[str, str]
"""Namespace and name of a WarmPool."""


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

    def of(self, pool: Key) -> Count:
        """What is not in the pool's status yet."""
        return self._counts.get(pool, Count())

    def add(self, pool: Key, *, hits: int = 0, misses: int = 0) -> None:
        """So many pods were taken, or were not there."""
        before = self.of(pool)
        self._counts[pool] = Count(before.hits + hits, before.misses + misses)
        self._on_change(pool)

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

    def changed(self, pool: Key) -> None:
        """It was applied, or how many of its pods are claimed has changed."""
        self._on_change(pool)
