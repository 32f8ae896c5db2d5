"""The keyed queue: nothing is lost, nothing is worked on twice at a time, delays and backoff are as told."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenservice.runtime.queue import KeyedQueue


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ready(queue: KeyedQueue[str]) -> str | None:
    """The next key, if there is one just now."""
    if not queue.depth:
        return None
    getting = queue.get()
    try:
        getting.send(None)
    except StopIteration as stop:
        key: str = stop.value
        return key
    raise AssertionError("a queue with keys made a worker wait")


def drain(queue: KeyedQueue[str]) -> list[str]:
    keys = []
    while (key := ready(queue)) is not None:
        keys.append(key)
        queue.done(key)
    return keys


async def test_a_key_waits_once() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    for key in "abaab":
        queue.add(key)
    assert queue.depth == 2
    assert drain(queue) == ["a", "b"]


async def test_a_key_added_while_worked_on_comes_again_afterwards() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    queue.add("a")
    assert ready(queue) == "a"
    queue.add("a")
    queue.add("a")
    assert ready(queue) is None
    queue.done("a")
    assert drain(queue) == ["a"]
    assert queue.idle


async def test_urgent_keys_come_first_and_once() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    for key in "abcd":
        queue.add(key)
    assert not queue.urgent
    for key in "cex":
        queue.add(key, urgent=True)
    queue.add("c")
    assert queue.urgent
    assert queue.depth == 6
    assert drain(queue) == ["c", "e", "x", "a", "b", "d"]
    assert not queue.urgent
    assert queue.idle


async def test_a_key_is_urgent_once() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    queue.add("a", urgent=True)
    assert ready(queue) == "a"
    queue.add("a")
    queue.add("b", urgent=True)
    queue.done("a")
    assert ready(queue) == "b"
    assert ready(queue) == "a"
    queue.add("b", urgent=True)
    queue.add("c")
    queue.done("b")
    assert drain(queue) == ["b", "c"], "urgent although it was being worked on"


async def test_urgent_keys_count_until_they_are_done() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    queue.add("a")
    queue.add("b", urgent=True)
    queue.add("c", urgent=True)
    assert queue.urgent == 2
    assert [await queue.get() for _ in "bca"] == ["b", "c", "a"]
    assert queue.urgent == 2, "they are being worked on"
    queue.add("b")
    queue.done("b")
    queue.done("a")
    assert queue.urgent == 1, "it comes again, but nobody waits for it"
    queue.add("c", urgent=True)
    assert queue.urgent == 1, "once, although it comes again"
    queue.done("c")
    assert queue.urgent == 1
    assert [await queue.get() for _ in "cb"] == ["c", "b"]
    queue.add("b", urgent=True)
    assert queue.urgent == 2, "urgent although it was not when it was handed out"
    queue.done("c")
    queue.done("b")
    assert drain(queue) == ["b"]
    assert queue.urgent == 0


async def test_urgent_keys_do_not_hold_up_the_others_for_ever() -> None:
    queue: KeyedQueue[int] = KeyedQueue()
    for key in range(1000, 1010):
        queue.add(key)
    seen: list[int] = []
    for key in range(90):
        queue.add(key, urgent=True)
        got = await queue.get()
        queue.done(got)
        seen.append(got)
    assert [key for key in seen if key >= 1000] == list(range(1000, 1010))
    assert [key for key in seen if key < 1000] == list(range(80))


async def test_of_several_times_the_earliest_counts() -> None:
    clock = Clock()
    queue: KeyedQueue[str] = KeyedQueue(clock=clock)
    queue.add_after("a", 10)
    queue.add_after("a", 5)
    queue.add_after("a", 20)
    queue.add_after("b", 6)
    for advance, expected in ((4.9, []), (0.2, ["a"]), (1, ["b"]), (30, [])):
        clock.now += advance
        queue.tick()
        assert drain(queue) == expected
    assert queue.delayed == 0
    queue.add_after("c", 0)
    queue.add_after("d", -1)
    assert drain(queue) == ["c", "d"]


async def test_the_timer_works_by_itself() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    queue.add_after("late", 0.03)
    queue.add_after("early", 0.01)
    async with asyncio.timeout(5):
        assert [await queue.get(), await queue.get()] == ["early", "late"]


async def test_backoff_doubles_to_its_limit_and_forgets() -> None:
    queue: KeyedQueue[str] = KeyedQueue(backoff=(0.5, 300), clock=Clock(), rand=lambda: 0.0)
    assert [queue.add_rate_limited("a") for _ in range(12)] == [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert queue.add_rate_limited("b") == 0.5
    assert queue.failures("a") == 12
    queue.forget("a")
    assert queue.add_rate_limited("a") == 0.5
    assert queue.add_rate_limited("a", at_least=7.0) == 7.0


async def test_backoff_is_spread_evenly() -> None:
    queue: KeyedQueue[int] = KeyedQueue(backoff=(1.0, 300), clock=Clock(), rand=random.Random(1).random)
    delays = [queue.add_rate_limited(number) for number in range(2000)]
    assert min(delays) > 0
    assert max(delays) <= 1.0
    assert sum(delay < 0.25 for delay in delays) == pytest.approx(500, abs=80)


async def test_a_cancelled_worker_takes_no_key_with_it() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    one, two = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")  # wakes the first,
    one.cancel()  # which ends before it runs
    async with asyncio.timeout(5):
        assert await two == "a"
    assert one.cancelled()


class Series:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def depth(self, value: int) -> None:
        self.seen.append(("depth", value))

    def added(self) -> None:
        self.seen.append(("added", 1))

    def waited(self, seconds: float) -> None:
        self.seen.append(("waited", seconds))

    def worked(self, seconds: float) -> None:
        self.seen.append(("worked", seconds))

    def retried(self) -> None:
        self.seen.append(("retried", 1))


async def test_metrics() -> None:
    clock, series = Clock(), Series()
    queue: KeyedQueue[str] = KeyedQueue(clock=clock, metrics=series)
    queue.add("a")
    queue.add("a")
    clock.now += 2
    ready(queue)
    clock.now += 3
    queue.done("a")
    queue.add_rate_limited("a")
    assert series.seen == [("added", 1), ("depth", 1), ("waited", 2), ("depth", 0), ("worked", 3), ("retried", 1)]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "urgent", "after", "limited", "get", "done", "pass", "forget"]),
        st.sampled_from("abc"),
        st.floats(0, 3),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_no_key_is_lost_and_none_is_worked_on_twice_at_a_time(operations: list[tuple[str, str, float]]) -> None:
    async def run() -> None:
        clock = Clock()
        queue: KeyedQueue[str] = KeyedQueue(backoff=(0.5, 4), clock=clock, rand=lambda: 0.5)
        working: list[str] = []
        owed: set[str] = set()  # a reconcile of these must begin after now
        due: dict[str, float] = {}  # and of these from that time on: the earliest that was asked for

        def take() -> None:
            key = ready(queue)
            if key is None:
                return
            assert key not in working
            working.append(key)
            assert key in owed, "handed out without being asked for"
            owed.remove(key)

        def later(key: str, delay: float) -> None:
            if delay <= 0:
                owed.add(key)
            else:
                due[key] = min(due.get(key, float("inf")), clock.now + delay)

        def wait(seconds: float) -> None:
            clock.now += seconds
            queue.tick()
            for key in [key for key, when in due.items() if when <= clock.now]:
                del due[key]
                owed.add(key)

        for operation, key, seconds in operations:
            if operation in ("add", "urgent"):
                queue.add(key, urgent=operation == "urgent")
                owed.add(key)
            elif operation == "after":
                queue.add_after(key, seconds)
                later(key, seconds)
            elif operation == "limited":
                later(key, queue.add_rate_limited(key))
            elif operation == "get":
                take()
            elif operation == "done" and working:
                queue.done(working.pop(0))
            elif operation == "pass":
                wait(seconds)
            else:
                queue.forget(key)
            assert queue.depth <= 3
        # Whatever is owed is handed out once its time has come and workers are free.
        wait(100)
        while working:
            queue.done(working.pop())
        handed = Counter(drain(queue))
        assert set(handed) == owed
        assert all(count == 1 for count in handed.values())
        assert queue.idle
        assert queue.delayed == 0

    asyncio.run(run())


async def test_many_workers_on_few_keys() -> None:
    dice = random.Random(3)
    queue: KeyedQueue[int] = KeyedQueue()
    version: Counter[int] = Counter()
    seen: Counter[int] = Counter()
    working: set[int] = set()

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in working
            working.add(key)
            seen[key] = version[key]  # level-triggered: reads what is there when it begins
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
            working.remove(key)
            queue.done(key)

    tasks: list[Awaitable[None]] = [asyncio.create_task(work()) for _ in range(8)]
    for _ in range(5000):
        key = dice.randrange(10)
        version[key] += 1
        queue.add(key)
        if dice.random() < 0.3:
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while not queue.idle:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert seen == version
    for task in tasks:
        task.cancel()  # type: ignore[attr-defined]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
