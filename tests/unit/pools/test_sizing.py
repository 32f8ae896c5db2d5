"""How a pool comes to its size, and that it never makes too many."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenservice.api.meta import Pod, stamp
from tokenservice.pools.sizing import ENDED_SECONDS, Member, Size, size

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def pod(name: str, *, age: float = 100.0, phase: str = "Running", **meta: Any) -> Pod:
    metadata = {"name": name, "namespace": "team", "creationTimestamp": stamp(NOW - timedelta(seconds=age)), **meta}
    return msgspec.convert({"metadata": metadata, "status": {"phase": phase}}, Pod)


def member(number: int, *, warm: bool = True, current: bool = True, **more: Any) -> Member:
    waits = more.pop("waits", False)
    return Member(pod(f"pool-{number}", **more), warm, current, waits)


def sized(
    replicas: int, *members: Member, may_create: int = 100, known: tuple[str, ...] = (), rolls: bool = True
) -> Size:
    names = {each.pod.metadata.name for each in members} | set(known)
    return size("pool", replicas, members, taken=names.__contains__, may_create=may_create, rolls=rolls, now=NOW)


def deleted(found: Size) -> list[tuple[str, str]]:
    return [(each.metadata.name, why) for each, why in found.delete]


def test_an_empty_pool_is_filled() -> None:
    assert sized(3).create == ("pool-1", "pool-2", "pool-3")


def test_the_lowest_free_names_are_taken() -> None:
    found = sized(4, member(2), known=("pool-1", "pool-4"))
    assert found.create == ("pool-3", "pool-5", "pool-6")


def test_no_faster_than_may_be() -> None:
    found = sized(5, member(1), may_create=1)
    assert (found.create, found.missing) == (("pool-2",), 3)
    assert sized(5, member(1), may_create=0) == Size(missing=4)


def test_nothing_to_do() -> None:
    assert sized(2, member(1), member(2, warm=False)) == Size(), "one that waits for a node is waited for"


def test_surplus_goes_by_worth() -> None:
    members = (
        member(1, age=300),
        member(2, age=10),
        member(3, warm=False, age=500),
        member(4, warm=False, current=False),
        member(5, current=False),
        member(6, warm=False, phase="Failed", age=5),
    )
    expected = ["pool-6", "pool-4", "pool-3", "pool-5", "pool-2", "pool-1"]
    for left in range(6, -1, -1):
        gone = [name for name, why in deleted(sized(left, *members, rolls=False))]
        assert gone == expected[: 6 - left]


def test_it_rolls_a_quarter_at_a_time() -> None:
    old = [member(number, current=False) for number in range(1, 9)]
    found = sized(8, *old)
    assert [why for _, why in deleted(found)] == ["outdated"] * 2
    assert found.create == ("pool-9", "pool-10"), "the names of those that go are still taken"


def test_it_waits_for_the_new_ones() -> None:
    old = [member(number, current=False) for number in range(1, 7)]
    new = [member(number, warm=False) for number in (7, 8)]
    assert sized(8, *old, *new) == Size(), "pods of the new environment that do not come up leave the old ones"
    assert len(sized(8, *old, new[0], member(8)).delete) == 1


def test_old_ones_that_are_not_warm_go_at_once() -> None:
    found = sized(4, *(member(number, warm=False, current=False) for number in range(1, 5)))
    assert len(found.delete) == 4


def test_a_new_pod_that_finds_no_room_gets_some() -> None:
    """A pool of ten, where there are five GPUs: old pods hold them all."""
    old = [member(number, current=False) for number in range(1, 6)]
    new = [member(number, warm=False, waits=True) for number in range(6, 11)]
    assert [why for _, why in deleted(sized(10, *old, *new))] == ["outdated"] * 2
    assert sized(10, *old, *(member(number, warm=False) for number in range(6, 11))) == Size()


def test_nothing_rolls_that_cannot_be_made() -> None:
    assert sized(2, member(1, current=False), member(2, warm=False, current=False), rolls=False) == Size()


def test_a_pool_of_one_rolls() -> None:
    found = sized(1, member(1, current=False))
    assert (deleted(found), found.create) == ([("pool-1", "outdated")], ("pool-2",))


def test_a_pod_that_ended_is_replaced_but_not_at_once() -> None:
    young, old = member(1, warm=False, phase="Failed", age=10), member(2, warm=False, phase="Failed", age=31)
    found = sized(2, young, old)
    assert (deleted(found), found.create) == ([("pool-2", "ended")], ("pool-3",))
    assert found.wait == timedelta(seconds=ENDED_SECONDS - 10)


class World:
    """What happens to a pool: pods come up, fail, are claimed; answers get lost, and the cache lags behind."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = NOW
        self.pods: dict[str, Member] = {}
        self.seen: dict[str, Member] = {}
        self.others: set[str] = set()
        """Names of pods that were claimed."""
        self.foreign: set[str] = set()

    def look(self) -> None:
        """The cache catches up."""
        self.seen = dict(self.pods)

    def create(self, name: str) -> None:
        if name in self.pods or name in self.others:
            self.look()  # 409: a list tells whose it is
            if name in self.others:
                self.foreign.add(name)
            return
        created = pod(name, age=(NOW - self.now).total_seconds())
        self.pods[name] = Member(created, warm=False, current=True)
        if self.random.random() < 0.2:
            return  # the answer is lost, and nothing is remembered
        self.seen[name] = self.pods[name]

    def change(self) -> None:
        for name, each in [*self.pods.items()]:
            dice = self.random.random()
            if dice < 0.3 and each.current:
                self.pods[name] = Member(each.pod, warm=True, current=True)
            elif dice < 0.35:
                del self.pods[name]
            elif dice < 0.45 and each.warm:  # claimed
                self.others.add(name)
                del self.pods[name]

    def step(self, replicas: int) -> Size:
        found = size(
            "pool",
            replicas,
            tuple(self.seen.values()),
            taken={*self.seen, *self.foreign}.__contains__,
            may_create=self.random.randint(0, 5),
            rolls=True,
            now=self.now,
        )
        for each, _ in found.delete:
            self.pods.pop(each.metadata.name, None)
            self.seen.pop(each.metadata.name, None)
        for name in found.create:
            self.create(name)
        return found


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 12))
def test_never_too_many_and_in_the_end_enough(seed: int, replicas: int, later: int) -> None:
    world = World(seed)
    for wanted in (replicas, later):
        most = max(wanted, len(world.pods))
        for _ in range(30):
            if world.random.random() < 0.5:
                world.look()
            world.change()
            world.step(wanted)
            assert len(world.pods) <= most, "too many"
            most = max(wanted, len(world.pods))
    for _ in range(200):
        world.look()
        world.step(later)
    assert len(world.pods) == later
