"""How a TokenService's replicas are shared between its Deployment and pods that were taken from a pool. Pure.

Replicas are the Deployment's pods and the claimed ones. A claim stands for one of two things, which follows from the
numbers alone:

- in place of a replica that the Deployment is not asked for: it was scaled up, and a warm pod is there sooner;
- in place of a pod that the Deployment is about to have and has not: one that was lost, or one of a new revision.

To settle is to go from the first to the second: the Deployment is scaled, and begins a pod that the claimed one then
takes the place of. So at every moment the next step follows from what is, and nothing need be remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tokenservice.api.meta import Pod
from tokenservice.handover.claim import Claim

Policy = Literal["Preferred", "Required", "Never"]

SETTLE_SECONDS = 5.0
"""For so long a claimed pod must have served before it settles: what a new pod must show, too, before an old one goes;
and in a burst, claims go first."""
HOLD_SECONDS = 60.0
"""For so long another revision waits for claims to settle, which takes one or two seconds where Kubernetes works."""


@dataclass(frozen=True)
class State:
    """What is.

    Attributes:
        replicas: how many are asked for.
        deployed: how many the Deployment is asked for; 0 without one.
        steady: whether one revision alone is there: the Deployment's, or none yet.
        observed: whether the Deployment's controller has seen its newest spec.
        ready: the Deployment's pods of that revision that are Ready.
        unready: those that are not.
        cold: of those, the ones that a warm pod is ahead of: their container has not started, or their node is lost.
        settling: of the cold ones, those in whose places claimed pods were handed over just now: they are about to go.
        claims: of that revision, on nodes that answer.
        policy: what to do without a warm pod.
        barred: whether warm pods cannot be given this revision.
        hurry: whether another revision waits for the claims to settle.
        now: the time.

    """

    replicas: int
    deployed: int
    steady: bool
    observed: bool
    ready: int
    unready: int
    cold: int
    settling: int
    claims: Sequence[Claim]
    policy: Policy
    barred: bool
    hurry: bool
    now: datetime


@dataclass(frozen=True)
class Balance:
    """What to do.

    Attributes:
        deployed: how many the Deployment is to be asked for.
        take: warm pods to claim.
        drop: claimed pods that are too many.
        settle: claimed pods that can become the Deployment's now, as far as its ReplicaSet has room.
        missed: pods that were to be warm, and for which none waits.
        short: of those, the ones that are not there at all, since nothing but a warm pod will do.
        begins: claims that begin to settle with this step.
        wait: seconds until a claim can settle; None if none is waiting for time.

    """

    deployed: int
    take: tuple[Pod, ...] = ()
    drop: tuple[Claim, ...] = ()
    settle: tuple[Claim, ...] = ()
    missed: int = 0
    short: int = 0
    begins: int = 0
    wait: float | None = None


def balance(state: State, warm: Callable[[int], tuple[Pod, ...]], turn: Callable[[], float] = lambda: 0.0) -> Balance:
    """The next step.

    Args:
        state: what is.
        warm: at most so many pods that can be taken now; asked only where some are needed.
        turn: seconds until claims may settle, of which many would at once; asked only where some would.

    """
    if not state.steady:
        return _amid(state, warm)
    deployed = min(state.deployed, state.replicas)
    gap = state.replicas - deployed
    # Nobody knows how many of the Deployment's pods go while it is scaled down; what is Ready and asked for stays.
    holes = max(0, deployed - state.ready)
    ranked = _ranked(state.claims)
    places = gap + holes if state.observed else len(ranked)
    here, drop = ranked[:places], ranked[places:]
    missing = max(0, gap - len(here))
    # The best are in place of pods that the Deployment is about to have: they are the next to settle.
    first = max(0, len(here) - gap)
    kept, stand_in = here[:first], here[first:]
    # Of those that are not Ready more may be there than are asked for: the ones that have not started go first.
    cold = min(state.cold, max(0, holes - (state.unready - state.cold)))
    wanted = missing + max(0, cold - len(kept))
    take = _taken(state, warm, wanted)
    short = max(0, missing - len(take))
    due = [claim for claim in stand_in if claim.serves and _due_at(state, claim) <= state.now]
    later = turn() if due and not state.hurry else 0.0
    if later:
        due = []
    begun = 0 if state.policy == "Required" else short
    after = deployed + begun + len(due)
    still = after == state.deployed and state.observed
    return Balance(
        deployed=after,
        take=take,
        drop=drop,
        settle=_settling(state, kept) if still else (),
        missed=wanted - len(take) if state.policy != "Never" else 0,
        short=short - begun,
        begins=len(due),
        wait=min((each for each in (_wait(state, (*stand_in, *kept)), later or None) if each), default=None),
    )


def _amid(state: State, warm: Callable[[int], tuple[Pod, ...]]) -> Balance:
    """Pods of two revisions are there: the Deployment is asked for all, and warm pods come in place of its new ones."""
    wanted = max(0, state.cold - len(state.claims) - state.settling)
    take = _taken(state, warm, wanted)
    return Balance(
        deployed=state.replicas,
        take=take,
        settle=_settling(state, state.claims) if state.observed and state.deployed == state.replicas else (),
        missed=wanted - len(take) if state.policy != "Never" else 0,
        wait=_wait(state, state.claims),
    )


def _taken(state: State, warm: Callable[[int], tuple[Pod, ...]], wanted: int) -> tuple[Pod, ...]:
    if wanted <= 0 or state.barred or state.policy == "Never":
        return ()
    return warm(wanted)


def _ranked(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The ones that serve come first, then the ones that did, then the older ones: the last are missed least."""
    return tuple(sorted(claims, key=lambda claim: (not claim.serves, claim.served is None, claim.at)))


def _settling(state: State, kept: Sequence[Claim]) -> tuple[Claim, ...]:
    """Those that can take the places that the Deployment has for them.

    Whether it has begun a pod there says nothing: it cannot where a quota is used up, by the claimed pod most of all.
    """
    return tuple(claim for claim in kept if claim.serves and _due_at(state, claim) <= state.now)


def _due_at(state: State, claim: Claim) -> datetime:
    """When a claim that serves can settle."""
    served = claim.served or state.now
    return served if state.hurry else served + timedelta(seconds=SETTLE_SECONDS)


def _wait(state: State, claims: Sequence[Claim]) -> float | None:
    moments = (_due_at(state, claim) for claim in claims if claim.served)
    left = [(moment - state.now).total_seconds() for moment in moments if moment > state.now]
    return min(left, default=None)


def held_for(claims: Sequence[Claim], asked: datetime | None, now: datetime) -> float | None:
    """For how many seconds more another revision is to wait until claims of the one that runs have settled.

    None if it need not. Only those that serve are waited for: the others are dropped, and nobody misses them.
    asked: when the other revision was asked for; None for just now.
    """
    served = [claim.served for claim in claims if claim.serves and claim.served]
    left = HOLD_SECONDS - (now - max(*served, asked or now)).total_seconds() if served else 0.0
    return left if left > 0 else None
