"""So many run, so many wait, the rest is refused; no place is lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_server.limiter import Limiter, QueueFullError


async def test_first_come_first_served() -> None:
    limiter = Limiter(1, 2)
    first, second, third = limiter.enter(), limiter.enter(), limiter.enter()
    assert (first.done(), second.done(), limiter.waiting) == (True, False, 2)
    with pytest.raises(QueueFullError):
        limiter.enter()
    limiter.release()
    assert (second.done(), third.done()) == (True, False)
    limiter.release()
    limiter.release()
    assert (third.done(), limiter.running, limiter.waiting) == (True, 0, 0)


async def test_who_leaves_the_line_makes_room() -> None:
    limiter = Limiter(1, 1)
    first, second = limiter.enter(), limiter.enter()
    limiter.leave(second)
    third = limiter.enter()
    limiter.leave(first)
    assert third.done()
    assert (limiter.running, limiter.waiting) == (1, 0)


async def test_a_waiter_that_is_cancelled_is_passed_over() -> None:
    limiter = Limiter(1, 3)
    limiter.enter()
    second, third = limiter.enter(), limiter.enter()
    second.cancel()
    limiter.release()
    assert third.done()
    assert not third.cancelled()
    limiter.leave(second)
    limiter.release()
    assert limiter.running == 0


@given(
    st.integers(1, 3), st.integers(0, 3), st.lists(st.tuples(st.sampled_from("erlc"), st.integers(0, 9)), max_size=40)
)
def test_places_are_neither_lost_nor_doubled(running: int, waiting: int, steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        limiter = Limiter(running, waiting)
        turns: list[asyncio.Future[None]] = []
        for step, index in steps:
            if step == "e":
                try:
                    turns.append(limiter.enter())
                except QueueFullError:
                    assert limiter.running == running
                    assert limiter.waiting == waiting
            elif turns:
                turn = turns.pop(index % len(turns))
                if step == "c":
                    turn.cancel()
                if step == "r" and turn.done():
                    limiter.release()
                else:
                    limiter.leave(turn)
            assert limiter.running == sum(turn.done() for turn in turns)
            assert limiter.running == running or limiter.waiting == 0
        for turn in turns:
            limiter.leave(turn)
        assert (limiter.running, limiter.waiting) == (0, 0)

    asyncio.run(run())
