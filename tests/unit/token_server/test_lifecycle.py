"""loading -> serving -> draining."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_server.lifecycle import RESERVE_SECONDS, DrainPlan, Lifecycle, Phase, drain_plan

SECONDS = st.floats(0, 10_000)


@pytest.mark.parametrize(
    ("phase", "grace", "delay", "plan"),
    [
        (Phase.SERVING, 90, 5, DrainPlan(5, 88)),
        (Phase.SERVING, 30, 0, DrainPlan(0, 28)),
        (Phase.SERVING, 4, 5, DrainPlan(2, 2)),
        (Phase.SERVING, 1, 5, DrainPlan(0, 0)),
        (Phase.LOADING, 90, 5, DrainPlan(0, 88)),
        (Phase.WARM, 90, 5, DrainPlan(0, 88)),
        (Phase.ASSIGNED, 90, 5, DrainPlan(0, 88)),
    ],
)
def test_how_long_a_drain_takes(phase: Phase, grace: float, delay: float, plan: DrainPlan) -> None:
    assert drain_plan(phase, grace, delay) == plan


@given(st.sampled_from([Phase.SERVING, Phase.LOADING]), SECONDS, SECONDS)
def test_a_drain_ends_before_the_kill(phase: Phase, grace: float, delay: float) -> None:
    plan = drain_plan(phase, grace, delay)
    assert 0 <= plan.accept_s <= plan.finish_s
    assert plan.finish_s == 0 or plan.finish_s <= grace - RESERVE_SECONDS
    assert plan.accept_s <= delay


def test_readiness_follows_the_phase() -> None:
    lifecycle = Lifecycle()
    assert lifecycle.readiness() == (503, {"reason": "loading"})
    assert lifecycle.serve()
    assert lifecycle.readiness() == (200, {"status": "ready"})
    assert lifecycle.drain() is Phase.SERVING
    assert lifecycle.readiness() == (503, {"reason": "draining"})


def test_a_warm_server_is_ready_all_along() -> None:
    lifecycle = Lifecycle()
    assert not lifecycle.assign(), "not warm yet"
    assert lifecycle.warm()
    assert lifecycle.readiness() == (200, {"status": "warm"})
    assert not lifecycle.serve(), "there is no model"
    assert lifecycle.assign()
    assert lifecycle.readiness() == (200, {"status": "assigned"})
    assert not lifecycle.assign()
    assert not lifecycle.warm()
    assert lifecycle.serve()
    assert lifecycle.readiness() == (200, {"status": "ready"})
    assert not lifecycle.assign()


@pytest.mark.parametrize("steps", [[], ["warm"], ["warm", "assign"], ["serve"]])
def test_nothing_comes_after_draining(steps: list[str]) -> None:
    lifecycle = Lifecycle()
    assert all(getattr(lifecycle, step)() for step in steps)
    lifecycle.drain()
    assert not any(getattr(lifecycle, step)() for step in ("warm", "assign", "serve"))
    assert lifecycle.readiness() == (503, {"reason": "draining"})


def test_a_load_that_ends_while_draining_does_not_make_it_ready() -> None:
    lifecycle = Lifecycle()
    assert lifecycle.drain() is Phase.LOADING
    assert not lifecycle.serve()
    assert lifecycle.readiness() == (503, {"reason": "draining"})


async def test_who_waits_for_a_load_does_not_wait_for_ever() -> None:
    lifecycle = Lifecycle()
    await lifecycle.loaded(0.001)
    assert lifecycle.phase is Phase.LOADING


def test_a_loop_that_has_ended_waits_for_nothing() -> None:
    lifecycle = Lifecycle()

    async def asked() -> asyncio.Task[None]:
        waiting = asyncio.create_task(lifecycle.loaded(3600.0))
        await asyncio.sleep(0)
        return waiting

    loop = asyncio.new_event_loop()
    waiting = loop.run_until_complete(asked())
    loop.close()
    assert lifecycle.serve()
    assert not waiting.done()
    waiting.get_coro().close()


def test_the_second_signal_is_told_apart() -> None:
    lifecycle = Lifecycle()
    lifecycle.serve()
    assert lifecycle.drain() is not None
    assert lifecycle.drain() is None
