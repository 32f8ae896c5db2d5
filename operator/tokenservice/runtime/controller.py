"""The reconcile loop: takes keys from the queue, calls the reconciler, and decides when each key comes again."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from tokenservice.runtime import logs
from tokenservice.runtime.queue import KeyedQueue

K = TypeVar("K", bound=Hashable)
Verdict = Literal["conflict", "transient", "terminal", "leaving"]
"""leaving: what failed is about to be gone, and is no news."""
Outcome = Literal["success", "requeue_after", "error"]

log = logs.get_logger(__name__)

TERMINAL_SECONDS = 3600.0
CONFLICT_SECONDS = (0.1, 0.5)


@dataclass(frozen=True)
class Result:
    """A reconcile that went well; requeue_after: seconds after which the key wants to be looked at again."""

    requeue_after: float | None = None


class Terminal(Exception):  # noqa: N818 - says how to go on, not what went wrong
    """Trying again cannot help before something changes; it is tried again in an hour, in case nobody sees the
    change.
    """


@dataclass(frozen=True)
class Retry:
    """What follows from a failed reconcile. after: seconds, None for the key's backoff. at_least: floor of the
    backoff.
    """

    after: float | None = None
    at_least: float = 0.0
    forget: bool = False


class ControllerMetrics(Protocol):
    """What a controller reports; times are seconds."""

    def reconciled(self, outcome: Outcome, seconds: float) -> None: ...
    def failed(self, *, terminal: bool) -> None: ...
    def active(self, workers: int) -> None: ...


def retry_of(error: Exception, verdict: Verdict | None, rand: float) -> Retry:
    """When to try again after `error`. rand: evenly from [0, 1)."""
    if verdict == "terminal":
        return Retry(after=TERMINAL_SECONDS, forget=True)
    if verdict == "conflict":
        low, high = CONFLICT_SECONDS
        return Retry(after=low + (high - low) * rand)
    return Retry(at_least=getattr(error, "retry_after", None) or 0.0)


class Controller(Generic[K]):
    """Runs `reconcile` for every key of the queue, `workers` at a time, each key by one worker only.

    classify: what an exception means, None for one that was not foreseen (a bug: retried with backoff, its traceback
    logged once). describe: keys for the log lines of a key, for example namespace and name. timeout: seconds for one
    reconcile.
    """

    def __init__(
        self,
        name: str,
        queue: KeyedQueue[K],
        reconcile: Callable[[K], Awaitable[Result]],
        *,
        classify: Callable[[Exception], Verdict | None] = lambda _: None,
        describe: Callable[[K], Mapping[str, Any]] = lambda key: {"key": str(key)},
        workers: int = 16,
        timeout: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
        metrics: ControllerMetrics | None = None,
    ) -> None:
        self.name = name
        self.queue = queue
        self._reconcile = reconcile
        self._classify = classify
        self._describe = describe
        self._workers = workers
        self._timeout = timeout
        self._clock = clock
        self._rand = rand
        self._metrics = metrics
        self._active = 0
        self._last_error: dict[K, str] = {}

    async def run(self) -> None:
        """Works until it is cancelled; reconciles under way are cancelled with it, which any of them must bear."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(), name=f"{self.name}-{number}")

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                await self.process(key)
            finally:
                self.queue.done(key)

    async def process(self, key: K) -> None:
        """One reconcile of a key that was taken from the queue, and what follows from it."""
        started = self._clock()
        self._count(+1)
        outcome: Outcome = "error"
        try:
            with logs.context(controller=self.name, **self._describe(key), reconcile_id=os.urandom(4).hex()):
                try:
                    async with asyncio.timeout(self._timeout):
                        result = await self._reconcile(key)
                except Exception as error:  # noqa: BLE001 - whatever it is, the key must come again
                    self._failed(key, error, self._clock() - started)
                    return
            self.queue.forget(key)
            self._last_error.pop(key, None)
            outcome = "success"
            if result.requeue_after is not None:
                outcome = "requeue_after"
                self.queue.add_after(key, result.requeue_after)
        finally:
            self._count(-1)
            if self._metrics is not None:
                self._metrics.reconciled(outcome, self._clock() - started)

    def _failed(self, key: K, error: Exception, seconds: float) -> None:
        verdict: Verdict | None = "terminal" if isinstance(error, Terminal) else self._classify(error)
        retry = retry_of(error, verdict, self._rand())
        if retry.forget:
            self.queue.forget(key)
        if retry.after is None:
            delay = self.queue.add_rate_limited(key, retry.at_least)
        else:
            delay = retry.after
            self.queue.add_after(key, delay)
        if self._metrics is not None:
            self._metrics.failed(terminal=verdict == "terminal")
        data: dict[str, Any] = {
            "error": _words(error),
            "verdict": verdict or "unexpected",
            "retry_s": round(delay, 3),
            "duration_s": round(seconds, 4),
        }
        if verdict in ("conflict", "leaving"):
            log.debug("Reconcile conflicted" if verdict == "conflict" else "Reconcile failed", **data)
            return
        repeated = self._last_error.get(key) == data["error"]
        self._last_error[key] = data["error"]
        if verdict is None and not repeated:
            log.exception("Reconcile failed", **data)
        else:
            log.warning("Reconcile failed", **data)

    def _count(self, step: int) -> None:
        self._active += step
        if self._metrics is not None:
            self._metrics.active(self._active)


def _words(error: Exception) -> str:
    text = str(error)
    if isinstance(error, TimeoutError) and not text:
        return "timed out"
    return text or type(error).__name__
