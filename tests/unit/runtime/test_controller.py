"""The reconcile loop: when a key comes again, what is logged, what is counted."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from tokenservice.runtime import logs
from tokenservice.runtime.controller import Controller, Outcome, Result, Retry, Terminal, Verdict, retry_of
from tokenservice.runtime.queue import KeyedQueue


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Series:
    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.failures: list[bool] = []
        self.most = 0
        self.now = 0

    def reconciled(self, outcome: Outcome, seconds: float) -> None:
        self.outcomes.append(outcome)

    def failed(self, *, terminal: bool) -> None:
        self.failures.append(terminal)

    def active(self, workers: int) -> None:
        self.now = workers
        self.most = max(self.most, workers)


class ConflictError(Exception):
    pass


class RefusedError(Exception):
    retry_after = 42.0


class LeavingError(Exception):
    pass


VERDICTS: dict[type[Exception], Verdict] = {
    ConflictError: "conflict",
    RefusedError: "transient",
    LeavingError: "leaving",
}


def classify(error: Exception) -> Verdict | None:
    return VERDICTS.get(type(error))


class World:
    def __init__(self, reconcile: Callable[[str], Awaitable[Result]], **options: Any) -> None:
        self.clock = Clock()
        self.queue: KeyedQueue[str] = KeyedQueue(clock=self.clock, rand=lambda: 0.0)
        self.series = Series()
        self.controller = Controller(
            "things", self.queue, reconcile, classify=classify, metrics=self.series, rand=lambda: 0.5, **options
        )

    async def process(self, key: str = "ns/a") -> None:
        self.queue.add(key)
        await self.controller.process(await self.queue.get())
        self.queue.done(key)

    def due_in(self) -> float | None:
        """Seconds until the next delayed key."""
        before = self.clock.now
        try:
            for tenths in range(50_000):
                self.clock.now = before + tenths / 10
                self.queue.tick()
                if self.queue.depth:
                    return tenths / 10
            return None
        finally:
            self.clock.now = before


@pytest.fixture
def lines() -> Any:
    stream = io.StringIO()
    root, ours = logging.getLogger(), logging.getLogger("tokenservice")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    logs.setup("DEBUG", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    logging.captureWarnings(capture=False)


def raising(error: Exception) -> Callable[[str], Awaitable[Result]]:
    async def reconcile(key: str) -> Result:
        raise error

    return reconcile


async def returning(key: str) -> Result:
    return Result()


@pytest.mark.parametrize(
    ("error", "verdict", "retry"),
    [
        (Terminal("x"), "terminal", Retry(after=3600.0, forget=True)),
        (ConflictError(), "conflict", Retry(after=0.3)),
        (RefusedError(), "transient", Retry(at_least=42.0)),
        (LeavingError(), "leaving", Retry()),
        (ValueError(), None, Retry()),
    ],
)
def test_retry_of(error: Exception, verdict: Verdict | None, retry: Retry) -> None:
    found = retry_of(error, verdict, 0.5)
    assert replace(found, after=None) == replace(retry, after=None)
    assert found.after == pytest.approx(retry.after)


async def test_success_is_over() -> None:
    world = World(returning)
    await world.process()
    assert world.due_in() is None
    assert world.series.outcomes == ["success"]


async def test_requeue_after() -> None:
    async def reconcile(key: str) -> Result:
        return Result(requeue_after=12.0)

    world = World(reconcile)
    await world.process()
    assert world.due_in() == 12.0
    assert world.series.outcomes == ["requeue_after"]


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(Terminal("hopeless"), 3600), (ConflictError("moved"), 0.3), (RefusedError("busy"), 42), (ValueError("bug"), 0.5)],
)
async def test_when_a_failed_key_comes_again(error: Exception, seconds: float) -> None:
    world = World(raising(error))
    await world.process()
    assert world.due_in() == pytest.approx(seconds, abs=0.11)
    assert world.series.outcomes == ["error"]
    assert world.series.failures == [isinstance(error, Terminal)]


async def test_a_terminal_key_is_worked_on_at_once_when_something_changes() -> None:
    world = World(raising(Terminal("hopeless")))
    await world.process()
    world.queue.add("ns/a")
    assert world.queue.depth == 1


async def test_success_resets_the_backoff() -> None:
    fail = True

    async def reconcile(key: str) -> Result:
        if fail:
            raise ValueError
        return Result()

    world = World(reconcile)
    for _ in range(4):
        await world.process()
    assert world.queue.failures("ns/a") == 4
    fail = False
    await world.process()
    assert world.queue.failures("ns/a") == 0


async def test_a_reconcile_that_hangs_is_ended() -> None:
    async def reconcile(key: str) -> Result:
        await asyncio.Event().wait()
        return Result()

    world = World(reconcile, timeout=0.02)
    await world.process()
    assert world.series.outcomes == ["error"]
    assert world.queue.failures("ns/a") == 1


async def test_the_traceback_is_logged_once(lines: Callable[[], list[dict[str, Any]]]) -> None:
    world = World(
        raising(ValueError("a bug")), describe=lambda key: dict(zip(("namespace", "name"), key.split("/"), strict=True))
    )
    for _ in range(3):
        await world.process()
    first, *others = lines()
    assert first["msg"] == "Reconcile failed"
    assert first["level"] == "error"
    assert first["error"] == "a bug"
    assert "ValueError: a bug" in first["traceback"]
    assert {first[key] for key in ("controller", "namespace", "name")} == {"things", "ns", "a"}
    assert all("traceback" not in line and line["level"] == "warning" for line in others)
    assert len({line["reconcile_id"] for line in lines()}) == 3


async def test_foreseen_errors_have_no_traceback(lines: Callable[[], list[dict[str, Any]]]) -> None:
    for error in (
        Terminal("hopeless"),
        RefusedError("busy"),
        ConflictError("moved"),
        LeavingError("its namespace goes"),
    ):
        await World(raising(error)).process()
    assert [(line["error"], line["level"]) for line in lines()] == [
        ("hopeless", "warning"),
        ("busy", "warning"),
        ("moved", "debug"),
        ("its namespace goes", "debug"),
    ]
    assert all("traceback" not in line for line in lines())


async def test_workers_work_side_by_side_and_end_when_cancelled() -> None:
    gate = asyncio.Event()

    async def reconcile(key: str) -> Result:
        await gate.wait()
        return Result()

    world = World(reconcile, workers=4)
    task = asyncio.create_task(world.controller.run())
    for number in range(10):
        world.queue.add(f"k{number}")
    async with asyncio.timeout(5):
        while world.series.now < 4:  # noqa: ASYNC110
            await asyncio.sleep(0)
        gate.set()
        while not world.queue.idle:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert world.series.most == 4
    assert world.series.now == 0
    assert world.series.outcomes == ["success"] * 10
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
