"""A queue of keys, after client-go's workqueue: deduplicating, serial per key, with delays and backoff.

A key that is added while it waits is handed out once; one that is added while it is being worked on is handed out again
afterwards, never to two workers at a time. No addition is lost. Urgent keys come first, and still the others get on.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)

URGENT_IN_A_ROW = 8
"""Urgent keys that may come one after the other while others wait."""


class QueueMetrics(Protocol):
    """What a queue reports; times are seconds."""

    def depth(self, value: int) -> None: ...
    def added(self) -> None: ...
    def waited(self, seconds: float) -> None: ...
    def worked(self, seconds: float) -> None: ...
    def retried(self) -> None: ...


class KeyedQueue(Generic[K]):
    """Keys waiting for a worker.

    backoff: first and longest delay of `add_rate_limited`, in seconds; it doubles with every call until `forget`, and
    the delay itself is drawn evenly from (0, that], so that failures that began together do not come back together.
    clock: seconds, monotonic. rand: evenly from [0, 1).
    """

    def __init__(
        self,
        name: str = "",
        *,
        backoff: tuple[float, float] = (0.5, 300.0),
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
        metrics: QueueMetrics | None = None,
    ) -> None:
        self.name = name
        self._backoff = backoff
        self._clock = clock
        self._rand = rand
        self._metrics = metrics
        self._urgent: deque[K] = deque()
        self._ready: deque[K] = deque()  # may hold outdated entries, of keys that became urgent: _queued decides
        self._row = 0  # urgent keys since the last one that was not
        self._queued: dict[K, bool] = {}  # waiting for a worker; whether it is urgent
        self._waiting: dict[K, float] = {}  # in _queued, or dirty while being worked on; since when
        self._hurried: set[K] = set()  # dirty while being worked on, and urgent
        self._working: dict[K, float] = {}
        self._handed: set[K] = set()  # in _working, and urgent when they were handed out
        self._failures: dict[K, int] = {}
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []  # may hold outdated entries: _due decides
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._getters: deque[asyncio.Future[None]] = deque()

    @property
    def depth(self) -> int:
        """How many keys wait for a worker."""
        return len(self._queued)

    @property
    def urgent(self) -> int:
        """How many urgent keys wait for a worker or are being worked on."""
        return len(self._urgent) + len(self._handed | self._hurried)

    @property
    def delayed(self) -> int:
        """How many keys wait for their time."""
        return len(self._due)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is worked on; delayed keys may remain."""
        return not self._waiting and not self._working

    def add(self, key: K, *, urgent: bool = False) -> None:
        """Hands the key to a worker as soon as one is free; an urgent one before those that are not."""
        new = key not in self._waiting
        if new:
            self._waiting[key] = self._clock()
            if self._metrics is not None:
                self._metrics.added()
        if key in self._working:
            if urgent:
                self._hurried.add(key)
        elif new or (urgent and not self._queued[key]):
            self._enqueue(key, urgent=urgent)

    def add_after(self, key: K, seconds: float) -> None:
        """Adds the key in so many seconds; of several times for one key the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        when = self._clock() + seconds
        if when >= self._due.get(key, float("inf")):
            return
        self._due[key] = when
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, key))
        self._arm()

    def add_rate_limited(self, key: K, at_least: float = 0.0) -> float:
        """Adds the key after its backoff, and not before `at_least` seconds. Answers the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        first, longest = self._backoff
        ceiling = min(longest, first * 2.0 ** min(failures, 64))
        delay = max(at_least, ceiling * (1.0 - self._rand()))
        if self._metrics is not None:
            self._metrics.retried()
        self.add_after(key, delay)
        return delay

    def failures(self, key: K) -> int:
        """How often the key has been added with a backoff since it was forgotten."""
        return self._failures.get(key, 0)

    def forget(self, key: K) -> None:
        """The key's next backoff is the first again."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Waits for a key; the caller must call `done` with it."""
        while not self._queued:
            getter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                getter.cancel()
                if getter in self._getters:
                    self._getters.remove(getter)
                if self._queued:  # woken and cancelled at once: the key goes to another
                    self._wake()
                raise
        key = self._pop()
        now = self._clock()
        waited = now - self._waiting.pop(key)
        self._working[key] = now
        if self._metrics is not None:
            self._metrics.waited(waited)
            self._metrics.depth(self.depth)
        return key

    def _pop(self) -> K:
        """The next key; there is one."""
        others = len(self._queued) > len(self._urgent)
        if self._urgent and not (others and self._row >= URGENT_IN_A_ROW):
            key = self._urgent.popleft()
            self._handed.add(key)
            self._row = self._row + 1 if others else 0
        else:
            while self._queued.get(key := self._ready.popleft()) is not False:
                pass
            self._row = 0
        if not others:
            self._ready.clear()
        del self._queued[key]
        return key

    def done(self, key: K) -> None:
        """The work on the key is over; if it was added meanwhile, it waits again."""
        started = self._working.pop(key)
        self._handed.discard(key)
        if self._metrics is not None:
            self._metrics.worked(self._clock() - started)
        if key in self._waiting:
            self._enqueue(key, urgent=key in self._hurried)
            self._hurried.discard(key)

    def tick(self) -> None:
        """Adds the delayed keys whose time has come. The queue's own timer calls it."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            when, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == when:
                del self._due[key]
                self.add(key)
        self._arm()

    def _enqueue(self, key: K, *, urgent: bool) -> None:
        (self._urgent if urgent else self._ready).append(key)
        promoted = key in self._queued
        self._queued[key] = urgent
        if promoted:
            return
        if self._metrics is not None:
            self._metrics.depth(self.depth)
        self._wake()

    def _wake(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    def _arm(self) -> None:
        when = self._heap[0][0] if self._heap else float("inf")
        if self._timer is not None and self._timer_at <= when and not self._timer.cancelled() and when != float("inf"):
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = when
        if self._heap:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, when - self._clock()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.tick()
