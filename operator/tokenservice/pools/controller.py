"""Reconciles WarmPools: observes, asks the plan, carries it out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import Node, ObjectMeta, Pod, Struct
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import EnvironmentStatus
from tokenservice.handover import effects, tokens
from tokenservice.handover.claim import POOL, is_member
from tokenservice.handover.shape import PodSpec
from tokenservice.handover.tally import Count, Tally
from tokenservice.kube.cache import Cache
from tokenservice.kube.client import Client, decode
from tokenservice.kube.errors import ApiError, Unreachable
from tokenservice.kube.events import EventRecorder, ObjectRef
from tokenservice.kube.resources import PODS, WARMPOOLS
from tokenservice.kube.status import numbers_wait, status_patch
from tokenservice.nodes.fit import unfit
from tokenservice.pods import environment
from tokenservice.pods.failures import readiness
from tokenservice.pods.refusal import RETRY_REFUSED_SECONDS, Refusal
from tokenservice.pods.schema import InvalidTemplateError
from tokenservice.pods.source import SchemaSource
from tokenservice.pools import giving, render
from tokenservice.pools.bucket import Bucket
from tokenservice.pools.giving import Amounts, Around, Given, Giver
from tokenservice.pools.plan import Plan, plan
from tokenservice.pools.sizing import GIVES_WAY, Member
from tokenservice.pools.snapshot import Snapshot
from tokenservice.pools.waiting import covered
from tokenservice.runtime.controller import Result
from tokenservice.runtime.logs import get_logger

AT_ONCE = 16
"""Pods of one pool that are made or deleted at the same time: others want the API server, too."""
HURRIED_PER_SECOND, HURRIED_SECONDS = 10, 0.5
"""While many take pods of pools, a pool makes so many in a second at most, and is looked at no sooner than after so
long: nobody waits for what it makes as yet."""
PASSING_SECONDS = 1.0
"""After which anything that happens makes a pool try again what the API server refused."""
NUMBERS = ("replicas", "ready_replicas", "updated_replicas", "claimed", "hits", "misses")
"""Fields of a status that need not be written at once."""

_NO_IMAGE = EnvironmentStatus(image="")

Key = tuple[str, str]
Asks = tuple[str, int, str, tuple[str, str | None] | None]
"""uid, generation, retry annotation, image and the environment in it."""
_log = get_logger("tokenservice.pools")


class _Page(Struct, frozen=True, kw_only=True):
    items: tuple[Pod, ...] = ()


class Environments(Protocol):
    """The CondaEnvironments known to the operator."""

    def get(self, namespace: str, name: str, /) -> CondaEnvironment | None: ...


@dataclass(frozen=True)
class Caches:
    """What is known of the cluster.

    Attributes:
        pools: all WarmPools.
        pods: of everybody, those of pools indexed by "namespace/WarmPool name" and `POOL`.
        environments: all CondaEnvironments.
        nodes: all nodes, none where they cannot be seen.
        waiting: pods of TokenServices of a namespace that are Unschedulable.
        pools_in: the WarmPools of a namespace.
        claimed: how many pods of the WarmPool of that namespace and name were taken and have not settled.
        taken: how many places of its Deployment the TokenService of that namespace and name is about to fill with pods
            from pools.

    """

    pools: Cache[WarmPool]
    pods: Cache[Pod]
    environments: Environments
    nodes: Callable[[], Iterable[Node]] = tuple
    waiting: Callable[[str], tuple[Pod, ...]] = lambda _: ()
    pools_in: Callable[[str], Iterable[WarmPool]] = lambda _: ()
    claimed: Callable[[str, str], int] = lambda _namespace, _name: 0
    taken: Callable[[str, str], int] = lambda _namespace, _name: 0


@dataclass
class _Memo:
    """What is remembered of a WarmPool; losing it costs time only."""

    asks: Asks
    made: render.Rendered | Refusal | None
    since: datetime
    bucket: Bucket
    refusal: Refusal | None = None
    """The API server's answer to a pod, at `refused`."""
    refused: datetime | None = None
    """When; once it may have passed, one pod is tried first. None after one was made."""
    foreign: set[str] = field(default_factory=set)
    """Names of pods of the namespace that are not ours, and of which the watch does not tell."""
    gone: bool = False
    """Whether the API server says that there is no such WarmPool; the watch is about to."""
    written: datetime | None = None
    """When a status was written last."""
    holds: Amounts = field(default_factory=dict)
    """What each of its pods requests, as last rendered."""


class Reconciler:
    """Reconciles one WarmPool at a time; the runtime's controller calls it, serially for each key.

    Args:
        client: to the API server.
        caches: what is known of the cluster.
        schemas: the cluster's own schema of a pod template.
        recorder: posts events.
        key: with which tokens are made, the same in every replica of the operator.
        now: the time.
        tally: of what is taken from pools.
        on_made: is told of a pool whose pods are made from something else now.
        nonce: something that was never there before.
        hurry: whether more is taken from pools than the cluster takes lightly, and nobody waits for a pod of this one.

    """

    def __init__(
        self,
        client: Client,
        caches: Caches,
        schemas: SchemaSource,
        recorder: EventRecorder,
        *,
        key: bytes,
        now: Callable[[], datetime],
        on_made: Callable[[Key], None],
        tally: Tally,
        nonce: Callable[[], str],
        hurry: Callable[[Key], bool],
    ) -> None:
        self._client = client
        self._caches = caches
        self._schemas = schemas
        self._recorder = recorder
        self._key = key
        self._key_id = tokens.key_id(key)
        self._now = now
        self._on_made = on_made
        self._tally = tally
        self._nonce = nonce
        self._hurry = hurry
        self._memos: dict[Key, _Memo] = {}
        self._given: dict[str, Mapping[str, Given]] = {}
        """By namespace and the uid of a pod that waits: what its pools have given up for it."""

    def spec(self, namespace: str, name: str) -> PodSpec | None:
        """That of a pool's pods, as they are made now; None as long as there is none."""
        memo = self._memos.get((namespace, name))
        return memo.made.template["spec"] if memo and isinstance(memo.made, render.Rendered) else None

    async def reconcile(self, key: Key) -> Result:
        """One step towards what the WarmPool asks for.

        Raises:
            ApiError, Unreachable: the step was cut short; the caller tries again.

        """
        pool = self._caches.pools.get(*key)
        if pool is None or pool.metadata.deletion_timestamp:
            self._memos.pop(key, None)
            self._tally.forget(key)
            return Result()
        memo = await self._memo(key, pool)
        if memo.gone:
            return Result()
        step, failed = self._plan(pool, memo), None
        if any(why == GIVES_WAY for _, why in step.size.delete):
            # Told first: as soon as there is room, nobody waits for it any more.
            await self._write_status(key, pool, memo, step)
            pool = self._caches.pools.get(*key) or pool
        if step.size.create or step.size.delete:
            try:
                await self._delete(step)
                await self._create(key, pool, memo, step)
            except (ApiError, Unreachable) as error:
                failed = error  # what there is is told all the same
            step = self._plan(pool, memo)
        if memo.asks != self._asks(pool):
            return Result(requeue_after=0.0)  # another image has come meanwhile: the status is not to speak of it yet
        wait = await self._write_status(key, pool, memo, step)
        if failed:
            raise failed
        waits = [step.requeue_after, wait]
        if (step.size.create or step.size.missing) and not memo.refusal:
            waits.append(max(0.01, memo.bucket.wait(self._rate(key, pool)).total_seconds()))
        soonest = min((each for each in waits if each is not None), default=None)
        if soonest is not None and self._hurry(key):
            soonest = max(soonest, HURRIED_SECONDS)
        return Result(requeue_after=soonest)

    def _rate(self, key: Key, pool: WarmPool) -> int:
        """How many pods may be made in a second."""
        most = pool.spec.refill.max_per_second
        return min(most, HURRIED_PER_SECOND) if self._hurry(key) else most

    def _plan(self, pool: WarmPool, memo: _Memo) -> Plan:
        namespace, name = pool.metadata.namespace, pool.metadata.name
        now = self._now()
        memo.bucket = memo.bucket.filled(self._rate((namespace, name), pool), now)
        used = self._environment(pool)
        nodes = {node.metadata.name: node for node in self._caches.nodes()}
        unfit_nodes = {node for node, each in nodes.items() if unfit(each)}
        made = memo.made
        step = plan(
            Snapshot(
                pool=pool,
                rendered=made if isinstance(made, render.Rendered) else None,
                refusal=made if isinstance(made, Refusal) else memo.refusal,
                environment=environment.verdict(pool, used),
                runs_in=environment.runs_in(pool, used),
                pods=self._pods(pool),
                taken=lambda each: each in memo.foreign or self._caches.pods.get(namespace, each) is not None,
                may_create=min(1, memo.bucket.whole) if memo.refused else memo.bucket.whole,
                key_id=self._key_id,
                unfit=unfit_nodes.__contains__,
                now=now,
                holds=memo.holds,
                around=self._around(namespace, name, nodes, unfit_nodes),
                count=self._tally.of((namespace, name)),
                claimed=self._caches.claimed(namespace, name),
                calm=self._tally.just_taken((namespace, name), now),
            )
        )
        # Before anything is written: the other pools of the namespace are reconciled at the same time.
        if step.given:
            self._given[namespace] = step.given
        else:
            self._given.pop(namespace, None)
        return step

    def _around(self, namespace: str, name: str, nodes: Mapping[str, Node], unfit_nodes: Container[str]) -> Around:
        """Nothing unless something waits, which is seldom."""
        waiting = self._caches.waiting(namespace)
        if not waiting:
            return Around()
        siblings = (pool for pool in self._caches.pools_in(namespace) if pool.metadata.name != name)
        return Around(
            waiting=waiting,
            covered=covered(waiting, lambda service: self._caches.taken(namespace, service)),
            given=self._given.get(namespace, {}),
            siblings=tuple(self._giver(pool, unfit_nodes) for pool in siblings),
            nodes=nodes,
        )

    def _giver(self, pool: WarmPool, unfit_nodes: Container[str]) -> Giver:
        """What another pool could give. One that was not looked at yet since the start could give nothing."""
        namespace, name = pool.metadata.namespace, pool.metadata.name
        memo = self._memos.get((namespace, name))
        found = (
            Member(pod, warm=readiness(pod) is not None, current=True)
            for pod in self._pods(pool)
            if is_member(pod, name, pool.metadata.uid)
        )
        can = tuple(member for member in found if giving.can_give(member, unfit_nodes.__contains__))
        return Giver(name, memo.holds if memo else {}, can)

    def _pods(self, pool: WarmPool) -> tuple[Pod, ...]:
        return self._caches.pods.by_index(f"{pool.metadata.namespace}/{pool.metadata.name}{POOL}")

    def _environment(self, pool: WarmPool) -> CondaEnvironment | None:
        name = pool.environment_name
        return self._caches.environments.get(pool.metadata.namespace, name) if name else None

    def _asks(self, pool: WarmPool) -> Asks:
        """What of a WarmPool, and of its environment, leads to other pods."""
        metadata = pool.metadata
        runs_in = environment.runs_in(pool, self._environment(pool))
        image = (runs_in.image, runs_in.conda_env) if runs_in else None
        return metadata.uid, metadata.generation, metadata.annotations.get(names.ANNOTATION_RETRY, ""), image

    async def _memo(self, key: Key, pool: WarmPool) -> _Memo:
        asks = self._asks(pool)
        memo, now = self._memos.get(key), self._now()
        if memo is None or memo.asks[0] != asks[0]:
            bucket = Bucket.full(pool.spec.refill.max_per_second, now)
            memo = self._memos[key] = _Memo(asks, await self._render(pool), now, bucket)
            self._on_made(key)
        elif memo.asks != asks or (isinstance(memo.made, Refusal) and _past(memo.since, RETRY_REFUSED_SECONDS, now)):
            memo.asks, memo.made, memo.since, memo.refusal = asks, await self._render(pool), now, None
            self._on_made(key)
        elif memo.refusal and memo.refused and _past(memo.refused, PASSING_SECONDS, now):
            memo.refusal = None
        if isinstance(memo.made, render.Rendered):  # else its pods are those of an earlier template
            memo.holds = giving.requested(memo.made.template["spec"]["containers"])
        return memo

    async def _render(self, pool: WarmPool) -> render.Rendered | Refusal | None:
        runs_in = environment.runs_in(pool, self._environment(pool))
        image = runs_in or _NO_IMAGE  # a mistake in the template is told before there is one
        try:
            made = await self._schemas.checked(lambda schema: render.rendered(pool, schema, image))
        except InvalidTemplateError as error:
            return Refusal("InvalidTemplate", str(error))
        return made if runs_in else None

    async def _delete(self, step: Plan) -> None:
        async def one(pod: Pod, why: str) -> None:
            # One that has just been claimed is another version, and is not to be deleted: a conflict, which is raised,
            # since it may still have to go, as what it is by now.
            version = pod.metadata.resource_version
            if await effects.delete(self._client, self._caches.pods, pod, resource_version=version):
                _log.info("deleted", action="Pod", pod=pod.metadata.name, reason=why)

        await _all(one(pod, why) for pod, why in step.size.delete)

    async def _create(self, key: Key, pool: WarmPool, memo: _Memo, step: Plan) -> None:
        rendered = memo.made
        if not step.size.create or not isinstance(rendered, render.Rendered):
            return
        memo.bucket = memo.bucket.taken(len(step.size.create))
        made: list[str] = []
        taken: list[str] = []

        async def one(name: str) -> None:
            manifest = self._manifest(pool, rendered, name)
            try:
                body = await self._client.create(PODS, key[0], manifest)
            except ApiError as error:
                if error.is_already_exists:
                    taken.append(name)
                elif error.is_refused:
                    memo.refusal, memo.refused = _refusal(error), self._now()
                else:
                    if error.is_leaving:
                        memo.refused = self._now()
                    raise
            else:
                made.append(name)
                self._caches.pods.observe(self._caches.pods.decode(body))

        try:
            await _all(one(name) for name in step.size.create)
        finally:
            if made:
                memo.refused = memo.refused if memo.refusal else None
                _log.info("created", action="Pod", count=len(made), first=made[0])
            if taken:
                await self._learn(key, memo, taken)

    async def _learn(self, key: Key, memo: _Memo, taken: Iterable[str]) -> None:
        """Whose the pods are whose names are taken: made by requests whose answers were lost, or somebody else's."""
        selector = f"{names.MANAGED_SELECTOR},{names.LABEL_POOL}={key[1]}"
        ours = set()
        async for page in self._client.list(PODS, namespace=key[0], label_selector=selector):
            for pod in decode(page, _Page).items:
                ours.add(pod.metadata.name)
                self._caches.pods.observe(pod)
        memo.foreign.update(name for name in taken if name not in ours)

    def _manifest(self, pool: WarmPool, rendered: render.Rendered, name: str) -> Mapping[str, Any]:
        nonce = self._nonce()
        token = tokens.token(self._key, pool.metadata.namespace, name, nonce)
        annotations = {names.ANNOTATION_NONCE: nonce, names.ANNOTATION_KEY: self._key_id}
        return render.pod(pool, rendered, name, digest=tokens.digest(token), annotations=annotations)

    async def _write_status(self, key: Key, pool: WarmPool, memo: _Memo, step: Plan) -> float | None:
        """Returns seconds after which to look again, if the status is to be written later."""
        now = self._now()
        if step.status is not None:
            if left := numbers_wait(pool.status, step.status, NUMBERS, memo.written, now):
                return left
            hits, misses = step.status.hits - pool.status.hits, step.status.misses - pool.status.misses
            patch = status_patch(pool.status, step.status)
            try:
                body = await self._client.patch_status(WARMPOOLS, *key, patch)
            except ApiError as error:
                if not error.is_not_found:
                    raise
                memo.gone = True
                return None
            self._caches.pools.observe(self._caches.pools.decode(body))
            self._tally.written(key, Count(hits, misses))
            memo.written = now
        about = ObjectRef(names.API_VERSION, WARMPOOLS.kind, *key, uid=pool.metadata.uid)
        for event in step.events:
            _log.info("transition", reason=event.reason, note=event.note)
            self._recorder.event(about, event.reason, event.note, action="Reconcile", type=event.type)
        newest = self._caches.pools.get(*key)
        if newest is not None and _changed(newest.metadata) != _changed(pool.metadata):
            return 0.0  # the answer to our own write brought a newer spec, which the watch then takes for known
        return None


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """Runs them side by side, `AT_ONCE` at a time, all of them to their ends. Raises the first of what they raise."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(work: Awaitable[None]) -> None:
        async with places:
            await work

    ends = await asyncio.gather(*map(one, works), return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end


def _refusal(error: ApiError) -> Refusal:
    does = "forbids" if error.is_forbidden else "refuses"
    return Refusal("Rejected", f"The API server {does} the pods: {error.message}", passing=True)


def _changed(metadata: ObjectMeta) -> tuple[object, ...]:
    """What of a WarmPool's metadata leads to another plan."""
    retry = metadata.annotations.get(names.ANNOTATION_RETRY, "")
    return metadata.uid, metadata.generation, retry, metadata.deletion_timestamp


def _past(since: datetime, seconds: float, now: datetime) -> bool:
    return (now - since).total_seconds() >= seconds
