"""Carries out what is decided about pods of pools, and keeps what has to be known for that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Protocol

from tokenservice.api import conditions, names
from tokenservice.api.conditions import Verdict
from tokenservice.api.meta import Node, Pod, time_of
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import LastStart, TokenService
from tokenservice.handover import claim as claims
from tokenservice.handover import starts
from tokenservice.handover.assigner import Outcome
from tokenservice.handover.assignment import Document, document
from tokenservice.handover.claim import POOL, Claim, Taker
from tokenservice.handover.effects import Effects, each_in_turn
from tokenservice.handover.shape import PodSpec, shape
from tokenservice.handover.tally import Tally
from tokenservice.handover.turns import Turns
from tokenservice.kube.cache import Cache
from tokenservice.kube.client import Client
from tokenservice.kube.errors import ApiError
from tokenservice.nodes.fit import lost, unfit
from tokenservice.services import warm
from tokenservice.services.plan import pool_refusal
from tokenservice.services.revisions import Wanted
from tokenservice.services.rollout import Step
from tokenservice.services.snapshot import Snapshot
from tokenservice.services.store import Key
from tokenservice.services.warm import Cold, Hand, Pooled

SETTLES_PER_SECOND = 5.0
"""TokenServices whose claims begin to settle in a second. It costs the cluster ten writes each, for which nobody waits;
claims, for which somebody does, go first."""
CALM_SECONDS, PATIENCE_SECONDS = 1.0, 30.0
"""After a claim, none begins to settle for so long; but none waits longer than that where claims go on and on."""
JUST_SECONDS = 600.0
"""For so long a start counts as one that has just been: before, an operator that begins knows nothing of it."""


class Assigns(Protocol):
    """Gives claimed pods their models, in the background."""

    @property
    def key_id(self) -> str: ...

    @property
    def outcomes(self) -> Mapping[str, Outcome]: ...

    def assign(self, pod: Pod, nonce: str, document: Document, seconds: float, /) -> None: ...

    def refuse(self, pod: Pod, reason: str, message: str, /) -> None: ...


class Times(Protocol):
    """Finds out where the seconds of starts went, in the background."""

    @property
    def timed(self) -> Mapping[str, LastStart | None]: ...

    def time(self, pod: Pod, /) -> None: ...


class PoolMetrics(Protocol):
    """What is reported; times are seconds."""

    def pool_hit(self, age: float, /) -> None: ...

    def pool_misses(self, reason: str, pods: int, /) -> None: ...

    def started(self, start: LastStart, /) -> None: ...


@dataclass(frozen=True)
class Around:
    """What there is in the cluster.

    Attributes:
        pods: those of pools are indexed by "namespace/WarmPool name" and `POOL`.
        pools: all WarmPools.
        spec: that of a pool's pods, by namespace and name, once it is known.
        node: one by its name; None where nodes cannot be seen.

    """

    pods: Cache[Pod]
    pools: Cache[WarmPool] | None = None
    spec: Callable[[str, str], PodSpec | None] = lambda _namespace, _name: None
    node: Callable[[str], Node | None] | None = None


@dataclass
class _Known:
    """What was worked out about one TokenService; losing it costs time only."""

    shaped: tuple[str, str] | None = None
    """The name of a revision, and the shape of its pods."""
    fits: tuple[str, Pooled, Verdict] | None = None
    """The name of a revision, a pool, and whether its pods fit."""
    refused: tuple[str, Cold] | None = None
    """The name of a revision, and why the API server lets no pod be taken for it."""
    missed: int = 0
    """Pods for which no warm one waited, as they were counted last."""


class WarmPods:
    """Pods of pools, on their way to the Deployments of TokenServices.

    Args:
        client: to the API server.
        around: what there is.
        assigner: gives pods their models.
        timer: finds out about starts.
        tally: of what is taken.
        metrics: of the same.
        now: the time.

    """

    def __init__(
        self,
        client: Client,
        around: Around,
        *,
        assigner: Assigns,
        timer: Times,
        tally: Tally,
        metrics: PoolMetrics,
        now: Callable[[], datetime],
    ) -> None:
        self._around = around
        self._assigner = assigner
        self._timer = timer
        self._tally = tally
        self._metrics = metrics
        self._now = now
        self._effects = Effects(client, around.pods, now)
        self._known: dict[Key, _Known] = {}
        self._waiting: dict[Key, set[Key]] = {}
        """WarmPool -> the TokenServices that would take another of its pods."""
        self._turns: Turns[Key] = Turns(SETTLES_PER_SECOND, calm=CALM_SECONDS, patience=PATIENCE_SECONDS)
        self._starts: dict[str, LastStart] = {}
        """Of pods that were put into a Service, by uid."""

    # -- what is decided

    def claims(self, service: TokenService, pods: Iterable[Pod]) -> tuple[Claim, ...]:
        """The claims among the pods that carry the TokenService's label of claims."""
        return claims.claims(pods, service.metadata.uid, self._lost, self._now())

    def hand(self, snapshot: Snapshot, found: Step) -> Hand:
        """What is to be done about pods of the pool."""
        service, target = snapshot.service, found.target
        key = service.metadata.namespace, service.metadata.name
        known = self._known.setdefault(key, _Known())
        pooled = self._pooled(service)
        refused = known.refused[1] if target and known.refused and known.refused[0] == target.name else None
        return warm.hand(
            snapshot,
            found,
            outcomes=self._assigner.outcomes,
            key_id=self._assigner.key_id,
            lost=self._lost,
            warm=lambda count: self._takeable(pooled, target, known, count),
            fits=_fits(snapshot, pooled, target, known) if pooled else None,
            turn=lambda: self._turns.wait(key, snapshot.now),
            refused=warm.lasting(refused, service, snapshot.now),
        )

    def _pooled(self, service: TokenService) -> Pooled | None:
        namespace, name = service.metadata.namespace, service.pool_name
        if name is None or service.spec.warm_pool is None or service.spec.warm_pool.policy == "Never":
            return None
        pool = self._around.pools.get(namespace, name) if self._around.pools else None
        return Pooled(name, pool, self._around.spec(namespace, name))

    def _takeable(self, pooled: Pooled | None, target: Wanted | None, known: _Known, count: int) -> tuple[Pod, ...]:
        """At most so many pods that can be taken now."""
        if pooled is None or pooled.pool is None or target is None:
            return ()
        if known.shaped is None or known.shaped[0] != target.name:
            known.shaped = target.name, shape(target.template["spec"])
        metadata = pooled.pool.metadata
        pods = self._around.pods.by_index(f"{metadata.namespace}/{metadata.name}{POOL}")
        found = claims.takeable(
            (pod for pod in pods if self._effects.free(pod)),
            metadata.name,
            metadata.uid,
            shape=known.shaped[1],
            key_id=self._assigner.key_id,
            unfit=self._unfit,
        )
        return tuple(islice(found, count))

    def _lost(self, name: str) -> bool:
        """Whether a node does not answer; where nodes cannot be seen, each does."""
        if self._around.node is None or not name:
            return False
        node = self._around.node(name)
        return node is None or lost(node)

    def _unfit(self, name: str) -> bool:
        """Whether no pod is to be taken from a node."""
        if self._around.node is None:
            return False
        node = self._around.node(name)
        return node is None or unfit(node) is not None

    # -- what is done

    async def claim(self, key: Key, service: TokenService, found: Step, hand: Hand) -> None:
        """Takes the pods out of the pool that are to be taken; others may be faster, or the API server refuse it."""
        pool, target = service.pool_name, found.target
        if pool is None or target is None:
            return
        taker = Taker(*key, uid=service.metadata.uid)
        self._turns.disturbed(self._now())
        try:
            taken = await self._effects.claim(taker, hand.balance.take, hand.revision, pool)
        except ApiError as error:
            if not error.is_refused:
                raise
            cold = warm.refused(error.message, service, self._now())
            self._known.setdefault(key, _Known()).refused = target.name, cold
            return
        for pod in taken:
            made = time_of(pod.metadata.creation_timestamp) or self._now()
            self._metrics.pool_hit((self._now() - made).total_seconds())
            self._tally.taken((key[0], pool), self._now())

    def assign(self, key: Key, service: TokenService, found: Step, hand: Hand) -> None:
        """Begins to give claimed pods their models."""
        if found.target is None:
            return
        seconds = float(service.spec.rollout.progress_deadline_seconds)
        for each in hand.assign:
            nonce = each.pod.metadata.annotations.get(names.ANNOTATION_NONCE, "")
            self._assigner.assign(each.pod, nonce, document("/".join(key), found.target.template), seconds)

    async def put_into_service(self, found: Step, hand: Hand) -> bool:
        """Sends requests to the pods whose model is there. Returns whether there were any."""
        if found.target is not None:
            for each, stages in hand.serve:
                try:
                    at = await self._effects.serve(each, found.target.template, stages)
                except ApiError as error:
                    if not error.is_refused:
                        raise
                    said = f"the API server refuses that it is sent requests: {error.message}"
                    self._assigner.refuse(each.pod, conditions.REJECTED, said)
                    continue
                if at is not None:
                    start = starts.warm(each.pod, stages, at)
                    self._starts[each.pod.metadata.uid] = start
                    self._metrics.started(start)
        return bool(hand.serve)

    async def hand_over(self, service: TokenService, snapshot: Snapshot, found: Step, hand: Hand) -> bool:
        """What can wait: drops claims, and makes others the Deployment's. Returns whether anything was done.

        Raises what the API server refuses once all the rest is done.
        """
        metadata = service.metadata
        if metadata.deletion_timestamp or found.target is None:
            return False
        effects, taker = self._effects, Taker(metadata.namespace, metadata.name, metadata.uid)
        # 0 where nothing was done.
        writes: list[Callable[[], Awaitable[int | None]]] = []
        writes += [partial(effects.drop, pod, why) for pod, why in hand.drop]
        writes += [partial(effects.adopt, taker, pod) for pod in hand.adopt]
        if hand.balance.settle:
            ready = warm.ready(snapshot, hand.revision)
            writes.append(partial(effects.settle, taker, hand.balance.settle, hand.revision, ready))
        writes += [partial(effects.finish, taker, pod) for pod in hand.finish]
        return any(done != 0 for done in await each_in_turn(writes))

    # -- what is kept in mind

    def note(self, key: Key, service: TokenService, hand: Hand) -> None:
        """Keeps in mind who would take another pod of which pool, and counts each pod once that no warm one was for."""
        pool = (key[0], service.pool_name) if service.pool_name else None
        self._forget_waiting(key, but=pool if hand.waits else None)
        if pool and hand.waits:
            self._waiting.setdefault(pool, set()).add(key)
        known = self._known.setdefault(key, _Known())
        more, known.missed = hand.balance.missed - known.missed, hand.balance.missed
        if pool and more > 0:
            self._metrics.pool_misses(hand.miss, more)
            self._tally.missed(pool, more)

    def began(self, key: Key, hand: Hand) -> None:
        """The Deployment is asked for as many as the hand says."""
        if hand.balance.begins:
            self._turns.done(key)

    def waiting_for(self, pool: Key) -> tuple[Key, ...]:
        """The TokenServices that would take another pod of the WarmPool."""
        return tuple(self._waiting.get(pool, ()))

    def changed(self, pool: Key) -> None:
        """A WarmPool was applied, or it has changed how many of its pods are claimed."""
        self._tally.changed(pool)

    def gone(self, key: Key) -> None:
        """A TokenService is gone."""
        self._known.pop(key, None)
        self._turns.done(key)
        self._forget_waiting(key, but=None)

    def forget(self, uid: str) -> None:
        """A pod is gone."""
        self._starts.pop(uid, None)
        self._effects.forget(uid)

    def _forget_waiting(self, key: Key, *, but: Key | None) -> None:
        for known, keys in tuple(self._waiting.items()):
            if known[0] == key[0] and known != but and key in keys:
                keys.discard(key)
                if not keys:
                    del self._waiting[known]

    # -- starts

    def starts(self, pods: Iterable[Pod]) -> tuple[LastStart, ...]:
        """What is known of the starts of these pods."""
        known = (self._timer.timed.get(pod.metadata.uid) or self._starts.get(pod.metadata.uid) for pod in pods)
        return tuple(each for each in known if each)

    def time(self, service: TokenService, pods: Iterable[Pod]) -> None:
        """Has the starts of pods timed that have just come to their ends; those that came from a pool are known."""
        before = service.status.last_start
        last = time_of(before.at) if before else None
        now = self._now()
        for pod in pods:
            at = starts.over_at(pod)
            if at is None or claims.served_at(pod) or (last and at <= last) or pod.metadata.deletion_timestamp:
                continue
            if (now - at).total_seconds() < JUST_SECONDS:
                self._timer.time(pod)


def _fits(snapshot: Snapshot, pooled: Pooled, target: Wanted | None, known: _Known) -> Verdict | None:
    """Whether pods of the pool fit; None as long as nobody knows what they are to fit."""
    if refusal := pool_refusal(snapshot):
        return "False", refusal.reason, refusal.message
    if target is None:
        return None
    if known.fits is None or known.fits[0] != target.name or not known.fits[1].same(pooled):
        known.fits = target.name, pooled, warm.fit(pooled, target.template)
    return known.fits[2]
