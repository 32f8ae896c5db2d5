"""The pool gives way: which of its pods go so that a pod of a TokenService finds room. Pure functions.

One pool gives way to a waiting pod: of those of its namespace that have enough of what the scheduler finds insufficient
on nodes that would do, the first by name; if none has enough, the first that has some. What else is on the nodes is not
asked: that is the scheduler's to know.

What was given cannot be seen in what is left: a pool that lacks a pod may as well not have been able to make it. So it
is remembered (`Given`), until the pod that waited has a node or is gone; and to a pod that still waits after all that
time another member gives way, since somebody else was faster, or the room was of no use to it. Whoever loses the memory
gives a member more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from tokenservice.api.meta import Node, Pod, time_of
from tokenservice.api.quantity import amount
from tokenservice.nodes.fit import takes
from tokenservice.pools.sizing import Gives, Member, worth
from tokenservice.pools.waiting import words

PATIENCE_SECONDS = 3.0
"""For so long a pod must have waited for a node: in the place of one that a ReplicaSet has just begun a warm pod may be
about to be claimed."""
SETTLE_SECONDS = 30.0
"""After what was given is free, the scheduler tries the waiting pod within 10 s. Until it has had its say, a new pod of
the pool could take the room, and none is made."""
AGAIN_SECONDS = 120.0
"""After which a pod that still waits is given another member; twice as long each time."""
MOST_SECONDS = 3600.0
"""But not longer."""

Amounts = Mapping[str, Decimal]
"""By resource."""

_INSUFFICIENT = re.compile(r"\bInsufficient ((?:[a-z0-9.-]+/)?[A-Za-z0-9](?:[-\w.]*[A-Za-z0-9])?)")
_PREEMPTION = " preemption: "
"""What follows is about pods of lower priority."""


@dataclass(frozen=True)
class Giver:
    """A pool as those of its namespace see it.

    Attributes:
        name: its name.
        holds: what each of its pods requests.
        members: its pods on nodes that take part.

    """

    name: str
    holds: Amounts
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Given:
    """What was given to one waiting pod.

    Attributes:
        pool: whose members they were.
        members: their uids.
        since: when they were given, or seen to be there for the last time.
        tries: how often it was given something.

    """

    pool: str
    members: frozenset[str]
    since: datetime
    tries: int = 1

    @property
    def settled(self) -> datetime:
        """When the scheduler has had its say."""
        return self.since + timedelta(seconds=SETTLE_SECONDS)

    @property
    def again(self) -> datetime:
        """When the pod, if it waits still, is given another."""
        return self.since + timedelta(seconds=min(MOST_SECONDS, AGAIN_SECONDS * 2 ** (self.tries - 1)))


@dataclass(frozen=True)
class Around:
    """What of its namespace a pool has to know to give way.

    Attributes:
        waiting: pods of TokenServices that are Unschedulable.
        given: what its pools have given to those, by uid.
        siblings: its other pools.
        nodes: by name; empty if they cannot be seen: every member's node would do then.
        covered: of those that wait, by uid, the ones in whose places claimed pods are about to come: they need no room.

    """

    waiting: tuple[Pod, ...] = ()
    given: Mapping[str, Given] = field(default_factory=dict)
    siblings: tuple[Giver, ...] = ()
    nodes: Mapping[str, Node] = field(default_factory=dict)
    covered: frozenset[str] = frozenset()


@dataclass
class _Room:
    """What the pools of a namespace have left to give, and on which nodes."""

    givers: Sequence[Giver]
    nodes: Mapping[str, Node]
    gone: set[str] = field(default_factory=set)

    def left(self, giver: Giver) -> list[Member]:
        return [member for member in giver.members if member.pod.metadata.uid not in self.gone]

    def take(self, members: Iterable[Member]) -> frozenset[str]:
        uids = frozenset(member.pod.metadata.uid for member in members)
        self.gone |= uids
        return uids

    @property
    def empty(self) -> bool:
        return not any(self.left(giver) for giver in self.givers)


def can_give(member: Member, unfit: Callable[[str], bool]) -> bool:
    """Whether room is free once the member is gone: it runs on a node where the scheduler would put others."""
    node = member.pod.spec.node_name
    return bool(node) and not member.ended and not unfit(node)


def gives(mine: Giver, around: Around, now: datetime) -> tuple[dict[str, Given], bool]:
    """What a pool gives now, by the uid of the pod that it gives way to; and whether other pools are to give, too."""
    found: dict[str, Given] = {}
    room, others = _Room((mine, *around.siblings), around.nodes), False
    for each in around.given.values():
        room.gone |= each.members
    for pod in sorted(around.waiting, key=_order):
        known = around.given.get(pod.metadata.uid)
        if pod.metadata.uid in around.covered or now < (known.again if known else patient_until(pod)):
            continue
        if room.empty:
            break
        chosen = _chosen(pod, room)
        if chosen is None:
            continue
        giver, members = chosen
        uids = room.take(members)
        if giver == mine.name:
            found[pod.metadata.uid] = Given(giver, uids, now, known.tries + 1 if known else 1)
        else:
            others = True
    return found, others


def remembered(around: Around, pods: Iterable[Pod], now: datetime) -> dict[str, Given]:
    """What of `around.given` is still to be remembered: what was given to pods that wait.

    Where members are still among `pods`, a pool's, its time begins anew. Only until they should have gone: those on a
    lost node never do.
    """
    there = {pod.metadata.uid for pod in pods if (time_of(pod.metadata.deletion_timestamp) or now) >= now}
    found = ((pod.metadata.uid, around.given.get(pod.metadata.uid)) for pod in around.waiting)
    return {
        uid: Given(each.pool, each.members, now, each.tries) if each.members & there else each
        for uid, each in found
        if each
    }


def given_up(pool: str, given: Mapping[str, Given], now: datetime) -> Gives:
    """What a pool gives up for the pods that wait now."""
    mine = [each for each in given.values() if each.pool == pool]
    return Gives(
        uids=frozenset(uid for each in mine for uid in each.members),
        places=sum(len(each.members) for each in mine),
        settling=any(now < each.settled for each in mine),
    )


def patient_until(pod: Pod) -> datetime:
    """From when on a pod that waits for a node is given way to."""
    since = (each for each in pod.status.conditions if each.type == "PodScheduled")
    begun = next((time_of(each.last_transition_time) for each in since), None)
    return (begun or datetime.min.replace(tzinfo=UTC)) + timedelta(seconds=PATIENCE_SECONDS)


def waits(pool: str, around: Around, given: Mapping[str, Given], now: datetime) -> Iterator[timedelta]:
    """How long until something is to be looked at again, by any pool of the namespace."""
    new = (patient_until(pod) for pod in around.waiting if pod.metadata.uid not in given)
    yield from (when - now for when in new if when > now)
    if around.covered:  # whether they still are, nothing tells
        yield timedelta(seconds=PATIENCE_SECONDS)
    for each in given.values():
        at = [each.again, each.settled] if each.pool == pool else [each.again]
        yield from (when - now for when in at if when > now)


def requested(containers: Iterable[Mapping[str, Any]]) -> Amounts:
    """What a pod with these containers requests, by resource; a limit counts where there is no request."""
    found: dict[str, Decimal] = {}
    for container in containers:
        resources = container.get("resources") or {}
        asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        for name, quantity in asked.items():
            found[name] = found.get(name, Decimal(0)) + (amount(str(quantity)) or 0)
    return found


def insufficient(message: str) -> tuple[str, ...]:
    """The resources of which the scheduler found too little on some node, each once.

    >>> insufficient("0/2 nodes are available: 1 Insufficient cpu, 1 Insufficient nvidia.com/gpu. preemption: ...")
    ('cpu', 'nvidia.com/gpu')
    """
    return tuple(dict.fromkeys(_INSUFFICIENT.findall(message.partition(_PREEMPTION)[0])))


def _order(pod: Pod) -> tuple[str, str]:
    """Those first that have waited longest."""
    return pod.metadata.creation_timestamp or "", pod.metadata.name


def _chosen(pod: Pod, room: _Room) -> tuple[str, Sequence[Member]] | None:
    """The pool that gives way to a pod, and what it gives; None if there is none."""
    lacks = insufficient(words(pod) or "")
    if not lacks:
        return None
    spec = msgspec.to_builtins(pod.spec)
    asks = requested(spec.get("containers", ()))
    do: dict[str, bool] = {}

    def would_do(name: str) -> bool:
        if name not in do:
            node = room.nodes.get(name)
            do[name] = not room.nodes or (node is not None and takes(node, spec) and _holds(node, lacks, asks))
        return do[name]

    best: tuple[bool, str, Sequence[Member]] | None = None
    for giver in room.givers:
        held = [name for name in lacks if giver.holds.get(name, 0) > 0]
        members = [member for member in room.left(giver) if would_do(member.pod.spec.node_name)] if held else []
        if members:
            need = max(1, *(math.ceil(asks.get(name, Decimal(0)) / giver.holds[name]) for name in held))
            given = _least_missed(members, need)
            rank = len(given) < need, giver.name
            if best is None or rank < best[:2]:
                best = *rank, given
    return best[1:] if best else None


def _holds(node: Node, lacks: Iterable[str], asks: Amounts) -> bool:
    """Whether a node, were nothing else on it, has what a pod asks for of these resources."""
    return all((amount(node.status.allocatable.get(name, "0")) or 0) >= asks.get(name, 0) for name in lacks)


def _least_missed(members: Sequence[Member], need: int) -> Sequence[Member]:
    """So many members, if there are so many: of one node if one has enough, since the pod needs its room there."""
    by_node: dict[str, list[Member]] = {}
    for member in sorted(members, key=worth):
        by_node.setdefault(member.pod.spec.node_name, []).append(member)
    enough = [found[:need] for found in by_node.values() if len(found) >= need]
    if enough:
        return min(enough, key=lambda found: worth(found[-1]))
    return sorted(members, key=worth)[:need]
