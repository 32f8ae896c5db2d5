"""When a pool gives way, which of its pods go, and that what it gives arrives."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenservice.api.meta import Node, Pod, PodStatus, stamp
from tokenservice.pools.giving import (
    AGAIN_SECONDS,
    PATIENCE_SECONDS,
    SETTLE_SECONDS,
    Around,
    Given,
    Giver,
    can_give,
    given_up,
    gives,
    insufficient,
    remembered,
    requested,
    waits,
)
from tokenservice.pools.sizing import Gives, Member, Size, size

from tests.unit.pools.builders import GPU, NO_GPU, NOW, waiting_pod
from tests.unit.services.builders import node

ONE_GPU = {GPU: Decimal(1)}


def member(
    number: int, on: str = "", *, pool: str = "nlp", warm: bool = True, current: bool = True, age: float = 100.0
) -> Member:
    created = stamp(NOW - timedelta(seconds=age))
    metadata = {
        "name": f"{pool}-{number}",
        "namespace": "team",
        "uid": f"{pool}-{number}",
        "creationTimestamp": created,
    }
    phase = "Running" if on else "Pending"
    raw = {"metadata": metadata, "spec": {"nodeName": on}, "status": {"phase": phase}}
    return Member(msgspec.convert(raw, Pod), warm=warm and bool(on), current=current)


def giver(*members: Member, name: str = "nlp", holds: dict[str, Decimal] | None = None) -> Giver:
    return Giver(name, ONE_GPU if holds is None else holds, tuple(each for each in members if each.pod.spec.node_name))


def gpu_node(name: str = "node-1", count: int = 8, **fields: Any) -> Node:
    return node(name, allocatable={GPU: str(count), "memory": "64Gi", "cpu": "32"}, **fields)


def given_by(mine: Giver, *pods: Pod, nodes: Sequence[Node] = (), siblings: tuple[Giver, ...] = (), **more: Any) -> Any:
    around = Around(waiting=pods, siblings=siblings, nodes={each.metadata.name: each for each in nodes}, **more)
    found, _ = gives(mine, around, NOW)
    return {uid.removeprefix("uid of "): sorted(each.members) for uid, each in found.items()}


MESSAGES: dict[str, tuple[str, ...]] = {
    NO_GPU: (GPU,),
    "0/1 nodes are available: 1 Insufficient cpu.": ("cpu",),
    "0/2 nodes are available: 1 Insufficient cpu, 2 Insufficient memory, 1 node(s) were unschedulable.": (
        "cpu",
        "memory",
    ),
    "0/1 nodes are available: 1 Insufficient ephemeral-storage": ("ephemeral-storage",),
    "0/2 nodes are available: 1 Insufficient example.com/a.b-c_d, 1 Insufficient hugepages-2Mi.": (
        "example.com/a.b-c_d",
        "hugepages-2Mi",
    ),
    "0/1 nodes are available: 1 node(s) had untolerated taint {a: b}. preemption: 1 Insufficient cpu.": (),
    "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.": (),
    "0/1 nodes are available: 1 Too many pods.": (),
    'persistentvolumeclaim "Insufficient" not found': (),
    "": (),
}


@pytest.mark.parametrize(("message", "expected"), MESSAGES.items())
def test_what_the_scheduler_finds_insufficient(message: str, expected: tuple[str, ...]) -> None:
    assert insufficient(message) == expected


def test_what_a_pod_requests() -> None:
    containers: list[dict[str, Any]] = [
        {"resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "2", GPU: 1}}},
        {"resources": {"requests": None, "limits": {"cpu": 0.25}}},
        {"name": "bare"},
        {"resources": None},
    ]
    assert requested(containers) == {"cpu": Decimal("0.75"), "memory": Decimal(1024**3), GPU: 1}


def limits(**of: str) -> dict[str, Any]:
    return {"containers": [{"resources": {"limits": {GPU if key == "gpu" else key: each for key, each in of.items()}}}]}


ONE = [member(1, "node-1")]
THREE = [member(number, "node-1", age=number) for number in (1, 2, 3)]
CASES: dict[str, tuple[Any, list[Pod], list[Node], dict[str, list[str]]]] = {
    "nothing waits": (giver(*ONE), [], [gpu_node()], {}),
    "one waits": (giver(*ONE), [waiting_pod()], [gpu_node()], {"chat-1": ["nlp-1"]}),
    "nodes cannot be seen": (giver(*ONE), [waiting_pod()], [], {"chat-1": ["nlp-1"]}),
    "it waits for something else": (
        giver(*ONE),
        [waiting_pod(says="0/1 nodes are available: 1 node(s) had untolerated taint {a: b}.")],
        [],
        {},
    ),
    "the pool holds none of it": (giver(*ONE, holds={"cpu": Decimal(1)}), [waiting_pod()], [], {}),
    "the pool asks for nothing": (giver(*ONE, holds={GPU: Decimal(0)}), [waiting_pod()], [], {}),
    "members have no nodes themselves": (giver(member(1)), [waiting_pod()], [gpu_node()], {}),
    "the youngest goes": (giver(*THREE), [waiting_pod()], [gpu_node()], {"chat-1": ["nlp-1"]}),
    "what is not warm goes first": (
        giver(*THREE, member(4, "node-1", warm=False)),
        [waiting_pod()],
        [gpu_node()],
        {"chat-1": ["nlp-4"]},
    ),
    "two wait": (
        giver(*THREE),
        [waiting_pod("chat-2"), waiting_pod("chat-1")],
        [gpu_node()],
        {"chat-1": ["nlp-1"], "chat-2": ["nlp-2"]},
    ),
    "more wait than there are members": (
        giver(*ONE),
        [waiting_pod("chat-2"), waiting_pod("chat-1")],
        [gpu_node()],
        {"chat-1": ["nlp-1"]},
    ),
    "it asks for two": (
        giver(*THREE),
        [waiting_pod(**limits(gpu="2"))],
        [gpu_node()],
        {"chat-1": ["nlp-1", "nlp-2"]},
    ),
    "it asks for more than all have": (
        giver(*ONE),
        [waiting_pod(**limits(gpu="2"))],
        [gpu_node()],
        {"chat-1": ["nlp-1"]},
    ),
    "what is insufficient counts, each for itself": (
        giver(*THREE, holds={GPU: Decimal(1), "memory": Decimal(4 * 1024**3)}),
        [waiting_pod(says="0/1: 1 Insufficient memory.", **limits(gpu="3", memory="5Gi"))],
        [gpu_node()],
        {"chat-1": ["nlp-1", "nlp-2"]},
    ),
    "it asks for less than one has": (
        giver(*ONE, holds={"cpu": Decimal(8)}),
        [waiting_pod(says="0/1: 1 Insufficient cpu.", **limits(cpu="100m"))],
        [gpu_node()],
        {"chat-1": ["nlp-1"]},
    ),
    "what it asks for stands on one node": (
        giver(member(1, "node-1", age=1), member(2, "node-2", age=2), member(3, "node-2", age=3)),
        [waiting_pod(**limits(gpu="2"))],
        [gpu_node("node-1"), gpu_node("node-2")],
        {"chat-1": ["nlp-2", "nlp-3"]},
    ),
    "a node that is too small": (giver(*ONE), [waiting_pod(**limits(gpu="9"))], [gpu_node()], {}),
    "too little memory on it": (
        giver(*ONE, holds={"memory": Decimal(1)}),
        [waiting_pod(says="0/1: 1 Insufficient memory.", **limits(memory="65Gi"))],
        [gpu_node()],
        {},
    ),
    "the selector is for another node": (
        giver(member(1, "node-1", age=1), member(2, "node-2", age=2)),
        [waiting_pod(nodeSelector={"kind": "big"})],
        [gpu_node("node-1"), gpu_node("node-2", labels={"kind": "big"})],
        {"chat-1": ["nlp-2"]},
    ),
    "a taint": (
        giver(*ONE),
        [waiting_pod()],
        [gpu_node(taints=[{"key": "a", "effect": "NoSchedule"}])],
        {},
    ),
    "a taint that it tolerates": (
        giver(*ONE),
        [waiting_pod(tolerations=[{"key": "a", "operator": "Exists"}])],
        [gpu_node(taints=[{"key": "a", "effect": "NoSchedule"}])],
        {"chat-1": ["nlp-1"]},
    ),
}


@pytest.mark.parametrize(("mine", "pods", "nodes", "expected"), CASES.values(), ids=CASES)
def test_what_is_given(mine: Giver, pods: list[Pod], nodes: list[Node], expected: dict[str, list[str]]) -> None:
    assert given_by(mine, *pods, nodes=nodes) == expected


def test_room_on_a_node_that_takes_no_part_is_none() -> None:
    assert can_give(member(1, "node-1"), lambda _: False)
    assert not can_give(member(1, "node-1"), lambda _: True)
    assert not can_give(member(1), lambda _: False)
    failed = msgspec.structs.replace(member(1, "node-1").pod, status=PodStatus(phase="Failed"))
    assert not can_give(Member(failed, warm=False, current=True), lambda _: False)


def test_one_pool_of_several_gives() -> None:
    a, b, c = (giver(member(1, "node-1", pool=name), name=name) for name in ("a", "b", "c"))
    other = giver(member(1, "node-1", pool="0"), name="0", holds={"cpu": Decimal(1)})
    empty = giver(member(1, pool="00"), name="00")
    pools = [other, empty, a, b, c]
    for pods in ([waiting_pod()], [waiting_pod(), waiting_pod("chat-2")]):
        found = {}
        for mine in pools:
            siblings = tuple(each for each in pools if each is not mine)
            found[mine.name] = given_by(mine, *pods, siblings=siblings)
        assert found["a"] == {"chat-1": ["a-1"]}
        assert found["b"] == ({"chat-2": ["b-1"]} if len(pods) == 2 else {})
        assert not found["c"] | found["0"] | found["00"]


def test_the_pool_that_has_enough_comes_before_the_first() -> None:
    a = giver(member(1, "node-1", pool="a"), name="a")
    b = giver(member(1, "node-1", pool="b"), member(2, "node-1", pool="b"), name="b")
    pod = waiting_pod(**limits(gpu="2"))
    assert given_by(b, pod, siblings=(a,)) == {"chat-1": ["b-1", "b-2"]}
    found, others = gives(a, Around(waiting=(pod,), siblings=(b,)), NOW)
    assert (found, others) == ({}, True), "and the first one looks again"


def test_what_was_given_is_given_once_until_it_has_been_of_no_use() -> None:
    pod, mine = waiting_pod(), giver(*THREE)
    known = {"uid of chat-1": Given("nlp", frozenset({"nlp-1"}), NOW)}
    assert given_by(mine, pod, given=known) == {}
    assert given_by(mine, pod, waiting_pod("chat-2"), given=known) == {"chat-2": ["nlp-2"]}, "and to nobody else"
    tries = 1
    for _ in range(8):
        around = Around(waiting=(pod,), given=known)
        at = timedelta(seconds=min(3600, AGAIN_SECONDS * 2 ** (tries - 1)))
        assert gives(mine, around, NOW + at - timedelta(seconds=1))[0] == {}
        known, _ = gives(mine, around, NOW + at)
        (more,) = known.values()
        tries += 1
        assert (more.tries, more.since) == (tries, NOW + at)
        known = {"uid of chat-1": Given(more.pool, more.members, NOW, more.tries)}


def test_a_pod_in_whose_place_a_claimed_one_is_about_to_come_is_given_nothing() -> None:
    one, two, mine = waiting_pod(), waiting_pod("chat-2"), giver(*THREE)
    around = Around(waiting=(one, two), covered=frozenset({one.metadata.uid}))
    assert list(gives(mine, around, NOW)[0]) == [two.metadata.uid]
    assert list(waits("nlp", around, {}, NOW)) == [timedelta(seconds=PATIENCE_SECONDS)], "it may be covered no more"
    known = {one.metadata.uid: Given("nlp", frozenset({"nlp-1"}), NOW)}
    covered = Around(waiting=(one,), covered=frozenset({one.metadata.uid}), given=known)
    assert remembered(covered, [], NOW) == known


def test_a_pod_that_has_just_been_begun_is_given_nothing() -> None:
    """A warm one may be about to be claimed in its place."""
    pod, mine = waiting_pod(), giver(*THREE)
    condition = msgspec.structs.replace(pod.status.conditions[0], last_transition_time=stamp(NOW))
    young = msgspec.structs.replace(pod, status=msgspec.structs.replace(pod.status, conditions=(condition,)))
    patience = timedelta(seconds=PATIENCE_SECONDS)
    around = Around(waiting=(young,))
    assert gives(mine, around, NOW + patience / 2) == ({}, False)
    assert list(waits("nlp", around, {}, NOW + patience / 2)) == [patience / 2]
    assert list(gives(mine, around, NOW + patience)[0]) == [young.metadata.uid]
    assert list(waits("nlp", around, {}, NOW + patience)) == []


def test_what_is_remembered() -> None:
    later = NOW + timedelta(seconds=5)
    known = {"uid of chat-1": Given("nlp", frozenset({"nlp-1"}), NOW)}
    around = Around(waiting=(waiting_pod(),), given=known)
    assert remembered(around, [], later) == known
    assert remembered(Around(given=known), [], later) == {}, "the pod has a node, or is gone"
    assert remembered(Around(waiting=(waiting_pod(uid="another"),), given=known), [], later) == {}
    (moved,) = remembered(around, [member(1, "node-1").pod], later).values()
    assert moved.since == later, "it is not gone yet"
    lost = msgspec.convert({"metadata": {"uid": "nlp-1", "deletionTimestamp": stamp(NOW)}}, Pod)
    assert remembered(around, [lost], later) == known, "it should be"


def test_what_a_pool_gives_up() -> None:
    known = {
        "a": Given("nlp", frozenset({"nlp-1", "nlp-2"}), NOW),
        "b": Given("nlp", frozenset({"nlp-3"}), NOW - timedelta(seconds=60)),
        "c": Given("other", frozenset({"other-1"}), NOW),
    }
    found = given_up("nlp", known, NOW)
    assert found == Gives(frozenset({"nlp-1", "nlp-2", "nlp-3"}), places=3, settling=True)
    assert not given_up("nlp", known, NOW + timedelta(seconds=SETTLE_SECONDS)).settling
    assert given_up("third", known, NOW) == Gives()
    assert min(waits("nlp", Around(), known, NOW)).total_seconds() == SETTLE_SECONDS
    assert min(waits("other", Around(), {"a": known["a"]}, NOW)).total_seconds() == AGAIN_SECONDS


def sized(replicas: int, *members: Member, up: Gives, rolls: bool = True) -> Size:
    taken = {each.pod.metadata.name for each in members}.__contains__
    return size("nlp", replicas, members, taken=taken, may_create=100, rolls=rolls, now=NOW, gives=up)


def names(found: Size) -> list[tuple[str, str]]:
    return [(each.metadata.name, why) for each, why in found.delete]


SETTLING = Gives(frozenset({"nlp-1"}), places=1, settling=True)
SETTLED = Gives(frozenset({"nlp-1"}), places=1)


def test_the_place_stays_empty() -> None:
    found = sized(3, *THREE, up=SETTLING)
    assert (names(found), found.create, found.missing) == ([("nlp-1", "gives way")], (), 0)
    assert sized(3, *THREE[1:], up=SETTLING) == Size()
    assert sized(3, *THREE[1:], up=SETTLED) == Size()
    assert sized(3, *THREE[1:], up=Gives()).create == ("nlp-1",)


def test_others_are_replaced_once_the_scheduler_has_had_its_say() -> None:
    assert sized(3, THREE[1], up=SETTLING) == Size()
    assert sized(3, THREE[1], up=SETTLED).create == ("nlp-1",)


def test_who_holds_nothing_does_not_take_what_is_given() -> None:
    """A pool of three where there are two GPUs."""
    pending = member(3)
    found = sized(3, *THREE[:2], pending, up=SETTLING)
    assert (names(found), found.create) == ([("nlp-1", "gives way"), ("nlp-3", "gives way")], ())
    assert sized(3, THREE[1], pending, up=SETTLED) == Size()


def test_a_pool_that_is_scaled_down_meanwhile_gives_no_more() -> None:
    assert names(sized(2, *THREE, up=SETTLING)) == [("nlp-1", "gives way")]
    assert names(sized(1, *THREE, up=SETTLING)) == [("nlp-1", "gives way"), ("nlp-2", "surplus")]


def test_it_rolls_on_only_when_new_pods_can_be_made() -> None:
    old = [member(number, "node-1", current=False) for number in range(1, 10)]
    assert names(sized(9, *old, up=SETTLING)) == [("nlp-1", "gives way")]
    assert [why for _, why in names(sized(9, *old[1:], up=SETTLED))] == ["outdated"] * 2


class World:
    """Nodes with GPUs, a scheduler, a TokenService whose pods come and go, pools that fill and give way, and others."""

    def __init__(self, seed: int, pools: int) -> None:
        self.dice = random.Random(seed)
        self.now = NOW
        self.room = {f"node-{number}": self.dice.randint(0, 3) for number in range(self.dice.randint(1, 3))}
        self.replicas = {f"pool-{number}": self.dice.randint(0, 4) for number in range(pools)}
        self.members: dict[str, dict[str, Member]] = {name: {} for name in self.replicas}
        self.serving: dict[str, str] = {}
        """Pods of the TokenService, with their nodes; "" for one that waits."""
        self.given: dict[str, Given] = {}
        self.count = 0

    def schedule(self) -> None:
        """In any order: nobody is more important than another."""
        pending: list[tuple[str, str]] = [("", name) for name, on in self.serving.items() if not on]
        for pool, members in self.members.items():
            pending += [(pool, name) for name, each in members.items() if not each.pod.spec.node_name]
        self.dice.shuffle(pending)
        for pool, name in pending:
            free = [on for on, left in self.room.items() if left > 0]
            if not free:
                return
            on = self.dice.choice(free)
            self.room[on] -= 1
            if pool:
                self.members[pool][name] = self._member(pool, name, on)
            else:
                self.serving[name] = on

    def _member(self, pool: str, name: str, on: str) -> Member:
        self.count += 1
        made = member(self.count, on, pool=pool)
        metadata = msgspec.structs.replace(made.pod.metadata, name=name, uid=f"{pool}-{name}-{self.count}")
        return Member(msgspec.structs.replace(made.pod, metadata=metadata), warm=made.warm, current=True)

    @property
    def waiting(self) -> tuple[Pod, ...]:
        return tuple(waiting_pod(name) for name, on in self.serving.items() if not on)

    def reconcile(self, pool: str) -> Size:
        members = self.members[pool]
        of = {name: giver(*found.values(), name=name) for name, found in self.members.items()}
        around = Around(
            waiting=self.waiting,
            given=self.given,
            siblings=tuple(each for name, each in of.items() if name != pool),
        )
        kept = remembered(around, [each.pod for each in members.values()], self.now)
        more, _ = gives(of[pool], Around(around.waiting, kept, around.siblings), self.now)
        self.given = {**kept, **more}
        up = given_up(pool, self.given, self.now)
        found = size(
            pool,
            self.replicas[pool],
            tuple(members.values()),
            taken=members.__contains__,
            may_create=self.dice.randint(0, 3),
            rolls=True,
            now=self.now,
            gives=up,
        )
        holders = sum(1 for each, why in found.delete if each.spec.node_name and why == "gives way")
        assert holders <= len(self.waiting), "no more than are asked for"
        if not self.waiting:
            assert "gives way" not in [why for _, why in found.delete]
        left = len(members) - len(found.delete)
        assert not found.create or left + len(found.create) <= self.replicas[pool] - up.places, "the place stays empty"
        for each, _ in found.delete:
            gone = members.pop(each.metadata.name)
            if gone.pod.spec.node_name:
                self.room[gone.pod.spec.node_name] += 1
        for name in found.create:
            members[name] = self._member(pool, name, "")
        return found

    def change(self) -> None:
        dice = self.dice.random()
        if dice < 0.3:
            self.count += 1
            self.serving[f"chat-{self.count}"] = ""
        elif dice < 0.45 and self.serving:
            self._free(self.serving.pop(self.dice.choice([*self.serving])))
        elif dice < 0.55:  # claimed
            pool = self.dice.choice([*self.members])
            warm = [name for name, each in self.members[pool].items() if each.pod.spec.node_name]
            if warm:
                name = self.dice.choice(warm)
                self.serving[f"claimed-{name}-{self.count}"] = self.members[pool].pop(name).pod.spec.node_name
        elif dice < 0.6:
            self.given = {}  # the operator starts again
        elif dice < 0.65:
            self.replicas[self.dice.choice([*self.replicas])] = self.dice.randint(0, 4)

    def _free(self, on: str) -> None:
        if on:
            self.room[on] += 1

    def step(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        for pool in self.dice.sample([*self.members], len(self.members)):
            self.reconcile(pool)
            if self.dice.random() < 0.5:
                self.schedule()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_nobody_waits_for_what_a_pool_holds(seed: int, pools: int) -> None:
    world = World(seed, pools)
    for _ in range(60):
        world.change()
        world.step(world.dice.choice([0.1, 1, 20, 200]))
    for _ in range(400):  # almost seven hours: in the end a pod is given something once an hour
        world.schedule()
        world.step(60)
    world.schedule()
    holding = sum(1 for found in world.members.values() for each in found.values() if each.pod.spec.node_name)
    if world.waiting:
        assert holding == 0, "while a pod waits, no pool holds what it waits for"
        assert not any(world.room.values())
    else:
        total = sum(len(found) for found in world.members.values())
        assert total == sum(world.replicas.values()), "and else all of them are filled"
