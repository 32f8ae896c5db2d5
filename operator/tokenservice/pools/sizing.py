"""Which pods a pool has to make and to delete: a pure function of those that are.

Pods have numbers in their names, and the lowest free ones are taken. So a pod whose making went unanswered is asked for
by the same name again, and neither a lost answer, nor a stale cache, nor two operators at once make one too many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count, islice

from tokenservice.api.meta import Pod, time_of

ENDED_SECONDS = 30.0
"""How old a pod that has ended must be to be replaced: whatever ends pods at once, a disk that is full for one, would
otherwise have them made and ended without a pause."""

GIVES_WAY = "gives way"
"""Why a pod goes that is idle where another one finds no room."""


@dataclass(frozen=True)
class Member:
    """A pod of the pool that is not on its way out.

    Attributes:
        pod: the pod.
        warm: whether it can take a model: Ready, on a node that takes part.
        current: whether it is of the newest revision.
        waits: whether there is no node that has room for it.

    """

    pod: Pod
    warm: bool
    current: bool
    waits: bool = False

    @property
    def ended(self) -> bool:
        return self.pod.ended


@dataclass(frozen=True)
class Gives:
    """What the pool gives up for pods of TokenServices that wait.

    Attributes:
        uids: of the members that go, or have gone.
        places: that are not filled.
        settling: whether a new member could take the room that is meant for them.

    """

    uids: frozenset[str] = frozenset()
    places: int = 0
    settling: bool = False


@dataclass(frozen=True)
class Size:
    """What to do about the number of pods."""

    create: tuple[str, ...] = ()
    """Names."""
    delete: tuple[tuple[Pod, str], ...] = ()
    """Each with the reason, for the log."""
    missing: int = 0
    """Pods that are still to be made, beyond `create`."""
    wait: timedelta | None = None
    """After which a pod that has ended is old enough."""


def size(
    name: str,
    replicas: int,
    members: Sequence[Member],
    *,
    taken: Callable[[str], bool],
    may_create: int,
    rolls: bool,
    now: datetime,
    gives: Gives = Gives(),
    later: int = 0,
) -> Size:
    """The next step to `replicas` pods of the newest revision.

    Old ones go first, since what they hold (a GPU, most of all) the new ones need, but only as long as three quarters
    of the pool are warm: where new pods do not come up, the old ones stay. A new pod for which no node has room does
    not count as one that does not come up: an old one makes room.

    Args:
        name: of the pool.
        replicas: pods that are wanted.
        members: pods that are there.
        taken: whether a pod of the namespace has that name, as far as is known.
        may_create: how many may be made now.
        rolls: whether pods of earlier revisions are replaced.
        now: the time.
        gives: what is given up. It is no surplus: it goes besides, and its place stays empty.
        later: pods that are not made yet, whatever is wanted.

    """
    ended = [member for member in members if member.ended]
    old_enough, wait = _old_enough(ended, now)
    going: dict[str, tuple[Pod, str]] = {member.pod.metadata.name: (member.pod, "ended") for member in old_enough}
    for member in _given(members, gives):
        going.setdefault(member.pod.metadata.name, (member.pod, GIVES_WAY))
    staying = [member for member in members if member.pod.metadata.name not in going]
    surplus = max(0, len(staying) - replicas)
    if surplus:
        for member in sorted(staying, key=worth)[:surplus]:
            going[member.pod.metadata.name] = (member.pod, "surplus")
        staying = [member for member in staying if member.pod.metadata.name not in going]
    wanted = 0 if gives.settling else max(0, replicas - gives.places)
    if rolls and not gives.settling:
        for member in _outdated(staying, wanted):
            going[member.pod.metadata.name] = (member.pod, "outdated")
    missing = max(0, wanted - later - (len(members) - len(going)))
    create = tuple(islice(_free(name, taken), min(missing, may_create)))
    return Size(create, tuple(going.values()), missing - len(create), wait)


def _given(members: Iterable[Member], gives: Gives) -> Iterator[Member]:
    """Those that give way. Those without a node hold nothing, but would take what the others gave."""
    for member in members:
        competes = gives.settling and not member.pod.spec.node_name and not member.ended
        if competes or member.pod.metadata.uid in gives.uids:
            yield member


def _old_enough(ended: Iterable[Member], now: datetime) -> tuple[list[Member], timedelta | None]:
    """Those that are replaced now, and how long until the next one is."""
    found, waits = [], []
    for member in ended:
        created = time_of(member.pod.metadata.creation_timestamp) or now
        left = ENDED_SECONDS - (now - created).total_seconds()
        if left <= 0:
            found.append(member)
        else:
            waits.append(timedelta(seconds=left))
    return found, min(waits, default=None)


def worth(member: Member) -> tuple[bool, bool, bool, float, str]:
    """Sorts those first that are missed least: that ended, are not warm, are outdated, are young."""
    created = time_of(member.pod.metadata.creation_timestamp)
    age = -(created.timestamp() if created else 0.0)
    return not member.ended, member.warm, member.current, age, member.pod.metadata.name


def _outdated(members: Sequence[Member], replicas: int) -> Iterator[Member]:
    """The outdated pods that can go now."""
    outdated = [member for member in members if not member.current and not member.ended]
    if not outdated:
        return
    warm = sum(1 for member in members if member.warm)
    excused = sum(1 for member in members if member.current and member.waits)
    room = max(1, math.floor(replicas / 4)) - (replicas - warm - excused)
    for member in sorted(outdated, key=worth):
        if not member.warm:
            yield member
        elif room > 0:
            room -= 1
            yield member


def _free(name: str, taken: Callable[[str], bool]) -> Iterator[str]:
    """Names for pods, the lowest numbers first."""
    return (found for number in count(1) if not taken(found := f"{name}-{number}"))
