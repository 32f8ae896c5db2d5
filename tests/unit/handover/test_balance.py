"""How replicas are shared between a Deployment and pods of a pool: tables of single steps."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenservice.api.meta import Pod
from tokenservice.handover.balance import HOLD_SECONDS, SETTLE_SECONDS, Balance, State, balance, held_for
from tokenservice.handover.claim import Claim

from tests.unit.handover.builders import NOW, claim, due, loads, serves, warm_pod


def state(replicas: int, deployed: int, *claims: Claim, **more: Any) -> State:
    """All of the Deployment's pods are Ready, unless `more` says otherwise."""
    known: dict[str, Any] = {
        **{"steady": True, "observed": True, "ready": deployed, "unready": 0, "cold": 0, "settling": 0},
        **{"policy": "Preferred", "barred": False, "hurry": False, "now": NOW},
    }
    return State(replicas=replicas, deployed=deployed, claims=claims, **{**known, **more})


def step(found: State, warm: int = 100) -> Balance:
    """warm: pods that wait in the pool."""
    return balance(found, lambda count: tuple(warm_pod(f"nlp-{number}") for number in range(min(count, warm))))


def of(found: tuple[Claim, ...] | tuple[Pod, ...]) -> list[str]:
    return [(each.pod if isinstance(each, Claim) else each).metadata.name for each in found]


# -- scaled up

SCALED_UP = [
    # policy, waiting in the pool -> taken, asked of the Deployment, missed, short
    ("Preferred", 5, (2, 1, 0, 0)),
    ("Preferred", 1, (1, 2, 1, 0)),
    ("Preferred", 0, (0, 3, 2, 0)),
    ("Required", 5, (2, 1, 0, 0)),
    ("Required", 1, (1, 1, 1, 1)),
    ("Required", 0, (0, 1, 2, 2)),
    ("Never", 5, (0, 3, 0, 0)),
]


@pytest.mark.parametrize(("policy", "warm", "expected"), SCALED_UP)
def test_scaled_up(policy: str, warm: int, expected: tuple[int, int, int, int]) -> None:
    found = step(state(3, 1, policy=policy), warm)
    assert (len(found.take), found.deployed, found.missed, found.short) == expected
    assert (found.drop, found.settle, found.wait) == ((), (), None)


@pytest.mark.parametrize(("policy", "deployed", "short"), [("Preferred", 3, 0), ("Required", 1, 2), ("Never", 3, 0)])
def test_a_revision_that_warm_pods_cannot_be_given(policy: str, deployed: int, short: int) -> None:
    found = step(state(3, 1, policy=policy, barred=True))
    assert (found.take, found.deployed, found.short) == ((), deployed, short)
    assert found.missed == (0 if policy == "Never" else 2)


def test_the_first_replicas_of_all() -> None:
    found = step(state(2, 0, observed=False))
    assert (len(found.take), found.deployed) == (2, 0)


def test_what_was_taken_is_waited_for() -> None:
    found = step(state(3, 1, loads("a"), serves("b")))
    assert found == Balance(1, wait=SETTLE_SECONDS - 1)


def test_nothing_to_do() -> None:
    assert step(state(3, 3)) == Balance(3)


def test_one_that_serves_for_long_enough_has_the_deployment_scaled() -> None:
    found = step(state(3, 1, loads("a"), due("b")))
    assert (found.deployed, found.settle, found.drop) == (2, (), ()), "first its place, then the pod"
    found = step(state(3, 2, loads("a"), due("b"), ready=1, observed=False))
    assert (found.deployed, found.settle, found.drop) == (2, (), ()), "the controller has not seen it"
    found = step(state(3, 2, loads("a"), due("b"), ready=1, unready=1, cold=1))
    assert (found.deployed, of(found.settle), found.drop, found.take) == (2, ["b"], (), ())


def test_it_settles_although_its_place_stays_empty() -> None:
    """A quota is used up, by the claimed pod itself: its ReplicaSet can begin nothing."""
    assert of(step(state(1, 1, due("a"), ready=0)).settle) == ["a"]


def test_one_that_is_not_ready_or_on_a_lost_node_settles_nowhere() -> None:
    for bad in (claim("a", at=30, served=20, ready=False), claim("a", at=30, served=20, lost=True)):
        assert step(state(1, 0, bad)).deployed == 0
        assert step(state(1, 1, bad, ready=0, unready=1)).settle == ()


def test_in_a_hurry_it_settles_at_once() -> None:
    assert step(state(1, 0, serves("a", 0.1), hurry=True)).deployed == 1
    found = step(state(1, 1, serves("a", 0.1), ready=0, unready=1, cold=1, hurry=True))
    assert of(found.settle) == ["a"]
    assert step(state(1, 1, loads("a"), ready=0, unready=1, cold=1, hurry=True)).settle == ()


# -- pods that were lost, and cold ones that a warm one is ahead of

LOST = [
    # ready, unready, of those cold, claims -> taken
    (2, 1, 1, 0, 1),
    (2, 1, 0, 0, 0),
    (2, 1, 1, 1, 0),
    (1, 2, 2, 1, 1),
    (1, 2, 1, 0, 1),
    (1, 2, 1, 1, 0),
    (0, 3, 3, 0, 3),
    (2, 0, 0, 0, 0),
]


@pytest.mark.parametrize(("ready", "unready", "cold", "claims", "taken"), LOST)
@pytest.mark.parametrize("steady", [True, False])
def test_lost_pods(ready: int, unready: int, cold: int, claims: int, taken: int, steady: bool) -> None:
    claimed = tuple(loads(f"c{number}") for number in range(claims))
    found = step(state(3, 3, *claimed, ready=ready, unready=unready, cold=cold, steady=steady))
    assert (len(found.take), found.deployed, found.drop) == (taken, 3, ())


def test_nobody_misses_a_warm_pod_that_is_not_asked_for() -> None:
    assert step(state(3, 3, ready=2, unready=1, cold=1, policy="Never")).missed == 0
    found = step(state(3, 3, ready=2, unready=1, cold=1, policy="Required"), warm=0)
    assert (found.missed, found.short) == (1, 0), "Kubernetes has begun one already"


def test_a_cold_pod_that_is_about_to_go_is_not_replaced() -> None:
    found = step(state(2, 3, ready=2, unready=1, cold=1))
    assert (found.take, found.deployed) == ((), 2), "scaled down by the one that has not started"
    found = step(state(1, 1, ready=1, unready=1, cold=1))
    assert found.take == (), "a claimed pod has just taken its place"
    found = step(state(2, 2, ready=0, unready=3, cold=1))
    assert found.take == (), "two have started"
    found = step(state(3, 3, loads("a"), ready=1, unready=3, cold=3))
    assert len(found.take) == 1


def test_a_cold_pod_that_a_settled_one_has_the_place_of_is_not_replaced() -> None:
    """In a rollout, nobody knows how many pods the new ReplicaSet is asked for."""
    found = step(state(3, 3, ready=1, unready=1, cold=1, settling=1, steady=False))
    assert found.take == ()


# -- claims too many


def test_scaled_down_in_the_middle_of_settling() -> None:
    """Of four replicas two are claims, and one of those is about to settle."""
    found = step(state(3, 3, serves("a"), due("b"), ready=2, unready=1, cold=1))
    assert (found.deployed, of(found.drop), of(found.settle), found.take) == (3, ["a"], ["b"], ())
    found = step(state(2, 3, serves("a"), due("b"), ready=2, unready=1, cold=1))
    assert (found.deployed, of(found.drop), found.settle, found.take) == (2, ["b", "a"], (), ())
    found = step(state(0, 3, serves("a"), due("b"), ready=2, unready=1, cold=1))
    assert (found.deployed, of(found.drop), found.settle, found.take) == (0, ["b", "a"], (), ())


def test_of_those_that_are_too_many_the_ones_that_serve_stay() -> None:
    slow = loads("slow", at=30)
    young = serves("young", 1)
    found = step(state(3, 2, slow, young))
    assert (of(found.drop), found.take) == (["slow"], ())
    broken = claim("broken", at=60, served=50, ready=False)
    found = step(state(4, 2, broken, slow, young))
    assert of(found.drop) == ["slow"], "its model is there, and may come back"
    found = step(state(3, 3, slow, young, ready=2, unready=1))
    assert of(found.drop) == ["slow"]


def test_while_the_deployment_has_not_been_seen_nothing_is_given_up() -> None:
    found = step(state(2, 2, serves("a"), serves("b"), observed=False))
    assert (found.drop, found.settle, found.take) == ((), (), ())


def test_a_cold_pod_that_was_faster() -> None:
    found = step(state(1, 1, serves("a"), ready=1))
    assert of(found.drop) == ["a"]


def test_scaled_up_while_one_settles() -> None:
    found = step(state(4, 2, due("a"), ready=1, unready=1, cold=1))
    assert (len(found.take), found.deployed) == (2, 3), "that one is the place of the first"


# -- two revisions


def test_in_a_rollout_the_deployment_has_all_the_places() -> None:
    found = step(state(3, 1, steady=False, ready=0, unready=1, cold=1))
    assert (found.deployed, len(found.take), found.settle) == (3, 1, ())
    found = step(state(3, 3, due("a"), steady=False, ready=0, unready=1, cold=1))
    assert (of(found.settle), found.take) == (["a"], ())
    found = step(state(3, 3, due("a"), steady=False, observed=False, ready=0, unready=1, cold=1))
    assert found.settle == ()
    found = step(state(3, 3, due("a"), serves("b"), steady=False, ready=3))
    assert (found.drop, found.wait) == ((), SETTLE_SECONDS - 1), "which of them stay shows at the end"


@pytest.mark.parametrize(("policy", "missed"), [("Preferred", 1), ("Required", 1), ("Never", 0)])
def test_in_a_rollout_without_a_warm_pod(policy: str, missed: int) -> None:
    found = step(state(3, 3, steady=False, ready=2, unready=1, cold=1, policy=policy), warm=0)
    assert (found.deployed, found.missed, found.short) == (3, missed, 0)


# -- another revision waits


def test_another_revision_waits_for_those_that_serve() -> None:
    long_ago = NOW - timedelta(days=1)
    assert held_for((), None, NOW) is None
    assert held_for([loads("a")], None, NOW) is None, "nobody misses it"
    assert held_for([claim("a", at=9, served=9, ready=False)], None, NOW) is None
    assert held_for([serves("a", 10), serves("b", 20), loads("c")], long_ago, NOW) == HOLD_SECONDS - 10
    assert held_for([serves("a", 10)], long_ago, NOW + timedelta(seconds=HOLD_SECONDS)) is None, "no longer"
    assert held_for([serves("a", 1000)], NOW, NOW) == HOLD_SECONDS, "also for one that had no turn yet"
    assert held_for([serves("a", 1000)], None, NOW) == HOLD_SECONDS, "the other revision is yet to be made"


def test_claims_wait_for_their_turn_unless_another_revision_waits_for_them() -> None:
    ready = state(2, 1, due("a"))
    assert balance(ready, lambda _: (), lambda: 0.4) == Balance(1, wait=0.4)
    begun = balance(ready, lambda _: (), lambda: 0.0)
    assert (begun.deployed, begun.begins) == (2, 1)
    hurried = balance(state(2, 1, due("a"), hurry=True), lambda _: (), lambda: 0.4)
    assert (hurried.deployed, hurried.begins) == (2, 1)


# -- whatever is


@st.composite
def states(draw: st.DrawFn) -> State:
    count = st.integers(0, 5)
    ready, unready = draw(count), draw(count)
    made = [draw(st.sampled_from([loads, serves, due]))(f"c{number}") for number in range(draw(count))]
    return state(
        draw(count),
        draw(count),
        *sorted(made, key=lambda each: each.at),
        ready=ready,
        unready=unready,
        cold=draw(st.integers(0, unready)),
        steady=draw(st.booleans()),
        observed=draw(st.booleans()),
        policy=draw(st.sampled_from(["Preferred", "Required", "Never"])),
        barred=draw(st.booleans()),
        hurry=draw(st.booleans()),
    )


@settings(max_examples=500)
@given(states(), st.integers(0, 6))
def test_what_holds_for_every_step(found: State, warm: int) -> None:
    made = step(found, warm)
    assert made.deployed <= found.replicas
    assert len(made.take) <= warm
    assert not {*of(made.drop)} & {*of(made.settle)}
    if made.take:
        assert not found.barred
        assert found.policy != "Never"
    if not found.steady:
        return
    kept = len(found.claims) - len(made.drop)
    settled = min(found.ready, found.deployed, found.replicas)
    if made.take:
        assert kept + len(made.take) + settled <= found.replicas, "a warm pod for nothing"
    if made.drop:
        assert kept + settled >= found.replicas, "there was a place for it"
        gone = {*of(made.drop)}
        least = [each.serves for each in found.claims if each.pod.metadata.name not in gone]
        assert all(least) or not any(each.serves for each in made.drop), "one that serves goes before one that loads"
    # What is there, on its way or given up for good makes up for all that is asked for.
    assert made.deployed + kept + len(made.take) + made.short >= found.replicas
