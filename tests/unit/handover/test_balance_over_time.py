"""Replicas shared between a Deployment and a pool, in a world where everything happens in any order."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenservice.api.meta import Pod
from tokenservice.handover.balance import Balance, State, balance
from tokenservice.handover.claim import Claim

from tests.unit.handover.builders import NOW, warm_pod


@dataclass(frozen=True)
class Member:
    """A pod, wherever it is."""

    name: str
    whose: str
    """pool, claim, free (settled, and not taken in yet), set (the ReplicaSet's)."""
    born: int
    started: bool = False
    ready: bool = False
    lost: bool = False
    claimed: datetime | None = None
    loaded: bool = False
    served: datetime | None = None
    costs: bool = False
    """Whether it has the deletion cost."""

    @property
    def serves(self) -> bool:
        counts = self.served is not None if self.whose == "claim" else self.whose in ("set", "free")
        return counts and self.ready and not self.lost


class World:
    """A Deployment, its ReplicaSet, a kubelet, a pool, and an operator that follows the balance.

    fresh: whether the operator's caches are up to date at every look.
    """

    def __init__(self, seed: int, replicas: int, policy: str, *, fresh: bool) -> None:
        self.random = random.Random(seed)
        self.fresh = fresh
        self.policy: Any = policy
        self.now = NOW
        self.replicas = replicas
        self.pods: dict[str, Member] = {}
        self.seen: dict[str, Member] = {}
        self.deployed = self.generation = self.observed = self.observed_seen = 0
        self.set_wants = 0
        self.size = 3
        self.number = 0
        self.floor = replicas
        """The fewest replicas asked for since all was quiet."""
        self.lowered = False
        """Whether fewer were asked for since then."""
        self.excused = False
        """Whether a pod has died since then, and what serves is not told apart from what did."""

    # -- what is counted

    def those(self, *whose: str, seen: bool = False) -> list[Member]:
        return [each for each in (self.seen if seen else self.pods).values() if each.whose in whose]

    @property
    def serving(self) -> int:
        return sum(1 for each in self.pods.values() if each.serves)

    @property
    def counted(self) -> int:
        """Those that serve, without what the ReplicaSet has beyond what it is asked for."""
        claims = sum(1 for each in self.those("claim") if each.serves)
        return claims + min(self.deployed, sum(1 for each in self.those("set", "free") if each.serves))

    @property
    def quiet(self) -> bool:
        pods = self.those("set", "free", "claim")
        settled = all(each.whose == "set" and each.serves and not each.costs for each in pods)
        return settled and len(pods) == self.set_wants == self.deployed == self.replicas

    # -- what happens

    def make(self, whose: str, **more: Any) -> None:
        self.number += 1
        name = f"{whose}-{self.number}"
        self.pods[name] = Member(name, whose, self.number, **more)

    def change(self, name: str, **fields: Any) -> None:
        self.pods[name] = replace(self.pods[name], **fields)

    def some(self, members: Iterable[Member]) -> list[Member]:
        return [each for each in members if self.random.random() < 0.5]

    def kubelet(self) -> None:
        for each in self.some(self.those("set", "pool")):
            if each.started:
                self.change(each.name, ready=not each.lost)
            else:
                self.change(each.name, started=self.random.random() < 0.5)

    def load(self) -> None:
        for each in self.those("claim"):
            if self.random.random() < 0.2:
                self.change(each.name, loaded=True)

    def refill(self) -> None:
        if len(self.those("pool")) < self.size:
            self.make("pool")

    def deployment(self) -> None:
        self.set_wants, self.observed = self.deployed, self.generation

    def replica_set(self) -> None:
        """Takes in what is free, then makes what is missing or deletes what is too much."""
        for each in self.those("free"):
            self.change(each.name, whose="set")
        pods = self.those("set")
        for _ in range(self.set_wants - len(pods)):
            self.make("set")
        ranked = sorted(pods, key=lambda each: (each.started, each.ready, each.costs, -each.born))
        for each in ranked[: max(0, len(pods) - self.set_wants)]:
            came = each.claimed is not None and each.serves
            assert not came or self.excused or self.lowered, "a settled pod is one too many"
            del self.pods[each.name]

    def look(self) -> None:
        """The operator's caches catch up."""
        self.seen, self.observed_seen = dict(self.pods), self.observed

    def tick(self) -> None:
        self.now += timedelta(seconds=self.random.choice([0.1, 1, 3]))

    def edit(self) -> None:
        before, self.replicas = self.replicas, self.random.choice([0, 2, 4, 6])
        if self.random.random() < 0.7:
            self.replicas = max(0, before + self.random.choice([-2, -1, 1, 2]))
        self.floor = min(self.floor, self.replicas)
        self.lowered = self.lowered or self.replicas < before

    def die(self) -> None:
        if self.pods:
            del self.pods[self.random.choice([*self.pods])]
            self.excused = True

    def lose(self) -> None:
        """The node of a pod does not answer any more."""
        if self.pods:
            self.change(self.random.choice([*self.pods]), lost=True, ready=False)
            self.excused = True

    # -- the operator

    def plan(self) -> Balance:
        mine = self.those("set", "free", seen=True)
        unready = [each for each in mine if not each.ready]
        waiting = [each for each in self.those("pool", seen=True) if each.ready and not each.lost]
        claims = [each for each in self.those("claim", seen=True) if not each.lost]
        state = State(
            replicas=self.replicas,
            deployed=self.deployed,
            steady=True,
            observed=self.observed_seen == self.generation,
            ready=len(mine) - len(unready),
            unready=len(unready),
            cold=sum(1 for each in unready if not each.started or each.lost),
            settling=sum(1 for each in mine if each.costs),
            claims=[self.claim(each) for each in sorted(claims, key=lambda each: (each.claimed or NOW, each.name))],
            policy=self.policy,
            barred=False,
            hurry=False,
            now=self.now,
        )
        found = balance(state, lambda count: tuple(_pod(each.name) for each in waiting[:count]))
        there = len(claims) - len(found.drop) + min(state.ready, self.deployed, self.replicas)
        assert not found.take or there + len(found.take) <= self.replicas, "a warm pod for nothing"
        return found

    def claim(self, each: Member) -> Claim:
        return Claim(_pod(each.name), "r1", each.claimed or NOW, each.served, each.ready, None, each.lost)

    def write(self, name: str, **fields: Any) -> None:
        """A write, whose answer is taken in."""
        if name in self.pods:
            self.change(name, **fields)
            self.seen[name] = self.pods[name]

    def operator(self) -> None:
        """One reconcile; it may be cut short before any write."""
        if self.fresh:
            self.look()
        found = self.plan()
        for _ in range(5):
            if not found.take:
                break
            for pod in found.take:
                name = pod.metadata.name
                if name in self.pods:
                    self.write(name, whose="claim", claimed=self.now)
                else:
                    self.seen.pop(name, None)  # a conflict
            found = self.plan()
        else:
            return
        if self.dies():
            return
        for each in self.those("claim", seen=True):
            if each.served is None and each.loaded and not each.lost:
                self.write(each.name, served=self.now)
        if self.dies():
            return
        if found.deployed != self.deployed:
            self.deployed = found.deployed
            self.generation += 1
        if self.dies():
            return
        lost = [each.name for each in self.those("claim", seen=True) if each.lost]
        for name in (*lost, *(each.pod.metadata.name for each in found.drop)):
            self.pods.pop(name, None)
            self.seen.pop(name, None)
        room = self.set_wants - sum(1 for each in self.those("set", "free", seen=True) if each.ready)
        for each in found.settle[: max(0, room)]:
            if self.dies():
                return
            self.write(each.pod.metadata.name, whose="free", costs=True)
        mine = self.those("set", "free", seen=True)
        for member in mine if len(mine) <= self.deployed else ():
            if member.costs and member.whose == "set":
                self.write(member.name, costs=False)

    def dies(self) -> bool:
        return self.random.random() < 0.05

    # -- time

    def happens(self, what: str) -> None:
        counted = self.counted
        getattr(self, what)()
        if what == "edit" or self.excused:
            counted = 0
        assert min(self.floor, self.counted) >= min(self.floor, counted), f"{what}: fewer serve"
        if self.quiet:
            self.floor, self.lowered, self.excused = self.replicas, False, False

    def rest(self) -> None:
        """Nobody edits anything any more, and nothing dies."""
        still = 0
        for _ in range(100):
            for what in ("kubelet", "load", "refill", "deployment", "replica_set", "look", "operator", "tick"):
                self.happens(what)
            still = still + 1 if self.quiet else 0
            if still == 3:
                return


@cache
def _pod(name: str) -> Pod:
    return warm_pod(name)


CONTROLLERS = ("operator", "deployment", "replica_set", "kubelet", "load", "refill", "look", "tick")


def lived(world: World, changes: tuple[str, ...]) -> World:
    for _ in range(8):
        world.happens(world.random.choice(changes))
        for _ in range(world.random.choice([5, 20])):
            world.happens(world.random.choice((*CONTROLLERS, *CONTROLLERS, *changes)))
        if world.random.random() < 0.6:
            world.rest()
    world.rest()
    for each in [*world.pods.values()]:
        if each.lost:  # Kubernetes evicts it in the end
            del world.pods[each.name]
    world.rest()
    return world


def settled(world: World) -> None:
    """What a user sees in the end."""
    assert world.serving == world.replicas
    assert world.deployed == world.set_wants == world.replicas
    assert not world.those("claim", "free"), "all are the ReplicaSet's"
    assert len(world.those("set")) == world.replicas, "and no other is left"
    assert not [each for each in world.those("set") if each.costs]
    assert len(world.those("pool")) <= world.size


SEEDS = st.integers(0, 2**32)
POLICIES = st.sampled_from(["Preferred", "Required", "Never"])


@settings(max_examples=60)
@given(SEEDS, st.integers(0, 5), POLICIES)
def test_nothing_that_serves_is_given_up(seed: int, replicas: int, policy: str) -> None:
    """Edited again and again; nothing dies."""
    settled(lived(World(seed, replicas, policy, fresh=True), ("edit",)))


@settings(max_examples=60)
@given(SEEDS, st.integers(0, 5), POLICIES)
def test_in_the_end_all_is_as_asked_for(seed: int, replicas: int, policy: str) -> None:
    """Pods die, nodes are lost, and the caches lag behind."""
    world = World(seed, replicas, policy, fresh=False)
    world.excused = True
    settled(lived(world, ("edit", "die", "lose", "look")))
