"""Reconciles TokenServices: observes, asks the plan, carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Protocol

from tokenservice.api import conditions, names
from tokenservice.api.events import Event
from tokenservice.api.meta import Pod
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import TokenService
from tokenservice.handover.claim import CLAIMS
from tokenservice.kube.client import Client
from tokenservice.kube.errors import ApiError
from tokenservice.kube.events import EventRecorder, ObjectRef
from tokenservice.kube.resources import CONDAENVIRONMENTS, TOKENSERVICES, WARMPOOLS
from tokenservice.kube.status import numbers_wait, status_patch
from tokenservice.pods.manifests import Manifest
from tokenservice.pods.refusal import RETRY_PASSING_SECONDS, Refusal
from tokenservice.pods.source import SchemaSource
from tokenservice.runtime.controller import Result
from tokenservice.runtime.logs import get_logger
from tokenservice.services import environment, rollout, warm
from tokenservice.services.caches import PULLS, Caches
from tokenservice.services.effects import Effects
from tokenservice.services.memo import Memo, Memos, changes, composed, image
from tokenservice.services.plan import Apply, Plan, plan, pull_events
from tokenservice.services.rollout import Step
from tokenservice.services.snapshot import Snapshot, Surroundings
from tokenservice.services.stages import RolloutMetrics, Stages
from tokenservice.services.store import Key, Store, read
from tokenservice.services.taking import WarmPods
from tokenservice.services.verify import Answer
from tokenservice.services.warm import Hand

NUMBERS = ("replicas", "ready_replicas", "updated_replicas", "warm_replicas", "last_start")
"""Fields of a status that need not be written at once."""
LATER_SECONDS, PATIENCE_SECONDS = 2.5, 10.0
"""While many take pods of pools, what nobody waits for is put off by so much, and again, but for so long at most."""
CLAIM_TRIES = 5
"""Looks for warm pods in one step, where others take them first."""

_log = get_logger("tokenservice.services")


class Asks(Protocol):
    """Asks pods for a token, in the background."""

    @property
    def answers(self) -> Mapping[str, Answer]: ...

    @property
    def asking(self) -> Mapping[str, datetime]: ...

    def ask(self, pod: Pod, /) -> None: ...


@dataclass
class _Picture:
    """What is, and what follows from it."""

    snapshot: Snapshot
    found: Step
    hand: Hand
    memo: Memo

    @cached_property
    def plan(self) -> Plan:
        """Worked out when it is asked for: who only gives a pod its model need not know it."""
        snapshot = replace(self.snapshot, children=composed(self.memo, self.found, self.hand))
        return plan(snapshot, changes(snapshot, self.memo, self.found), self.found, self.hand)


class Reconciler:
    """Reconciles one TokenService at a time; the runtime's controller calls it, serially for each key."""

    def __init__(
        self,
        client: Client,
        store: Store,
        caches: Caches,
        schemas: SchemaSource,
        recorder: EventRecorder,
        *,
        asker: Asks,
        warm_pods: WarmPods,
        metrics: RolloutMetrics,
        cluster_domain: str,
        now: Callable[[], datetime],
        hurry: Callable[[], bool],
    ) -> None:
        """hurry: whether for many TokenServices there is something to do for which somebody waits."""
        self._client = client
        self._hurry = hurry
        self._store = store
        self._caches = caches
        self._effects = Effects(client, caches, now)
        self._memos = Memos(schemas, now)
        self._stages = Stages(metrics, now)
        self._recorder = recorder
        self._asker = asker
        self._warm = warm_pods
        self._metrics = metrics
        self._written: dict[Key, datetime] = {}
        """When a status was written last."""
        self._late: dict[Key, datetime] = {}
        """Since when what nobody waits for is put off."""
        self._cluster_domain = cluster_domain
        self._now = now

    async def reconcile(self, key: Key) -> Result:
        """One step towards what the TokenService asks for.

        Raises:
            ApiError, Unreachable: the step was cut short; the caller tries again.

        """
        service = self._store.get(key)
        if service is None:
            self._memos.forget(key)
            self._stages.forget(key)
            self._written.pop(key, None)
            self._late.pop(key, None)
            self._warm.gone(key)
            return Result()
        memo = await self._memos.of(key, service, self._surroundings(service, None, None).runs_in)
        picture, taken = await self._taken(key, service, memo)
        snapshot, found, hand = picture.snapshot, picture.found, picture.hand
        self._warm.assign(key, service, found, hand)
        wrote = await self._warm.put_into_service(found, hand)
        if (taken or wrote) and not hand.waits and (pause := self._put_off(key, service)):
            return Result(requeue_after=pause)  # the rest can wait: there is somebody whose request cannot
        step = picture.plan
        orphans = found.adopt or any(claim.orphan for claim in snapshot.claims)
        if service.status.observed_generation and (orphans or any(_lost(apply) for apply in step.applies)):
            # Children that were right are gone or different. That may be since the TokenService is being deleted,
            # unseen by the watch as yet: an orphan must not get its owner back.
            current = await self._effects.current(service)
            if current is None and self._store.get(key) is service:  # and not another one of its name by now
                self._store.remove(key)
            if current is None or current.deletion_timestamp:
                return Result()
        wrote = await self._effects.mark(key, service, found) or wrote
        if found.mark and found.back:
            self._metrics.rolled_back()
        for apply in step.applies:
            refusal = await self._effects.apply(key, apply, memo)
            if refusal and apply.child == "environment":
                memo.environment_refusal, memo.environment_since = refusal, snapshot.now
            elif refusal and apply.child == "pool":
                memo.pool_refusal, memo.pool_since = refusal, snapshot.now
            elif refusal:
                memo.children, memo.since = refusal, snapshot.now
                break
            elif apply.child == "deployment":
                self._tell(key, service, pull_events(found))
                self._warm.began(key, hand)
            elif apply.child == "pool":
                self._warm.changed(key)  # the answer is known now, and the watch has nothing to tell that is newer
        wrote = await self._effects.pull(key, found, memo) or wrote
        wrote = await self._effects.go_cold(key, found, hand) or wrote
        refused: ApiError | None = None
        try:
            wrote = await self._warm.hand_over(service, snapshot, found, hand) or wrote
        except ApiError as error:
            if not error.is_refused:
                raise
            refused, wrote = error, True  # what follows does not depend on it
            _log.warning("refused", error=error.message)
        if step.leftover:
            await self._effects.delete(CONDAENVIRONMENTS, key, step.leftover.metadata, "nothing runs from it any more")
        if step.unwanted:
            await self._effects.delete(WARMPOOLS, key, step.unwanted.metadata, "nobody asks for it any more")
        await self._effects.clear(key, found)
        if step.applies or wrote:
            # The answers may show more than the watches have told so far, and the watches will not tell it again.
            picture = self._picture(service, memo)
            snapshot, found, hand, step = picture.snapshot, picture.found, picture.hand, picture.plan
            self._warm.assign(key, service, found, hand)
        self._warm.note(key, service, hand)
        for pod in found.ask:
            self._asker.ask(pod)
        self._warm.time(service, snapshot.pods)
        if image(snapshot.surroundings.runs_in) != memo.runs_in:
            # Another image has come in the meantime, which the Deployment is to have before the status speaks of it.
            return Result(requeue_after=0.0)
        later = await self._write_status(key, service, step, hand)
        self._stages.told(key, (step.status or service.status).condition(conditions.PROGRESSING), found)
        newest = self._store.get(key)
        if newest is not None and _asks(newest) != _asks(service):
            # The answer to our own write brought a newer spec, which the watch then takes for known.
            return Result(requeue_after=0.0)
        acts = hand.acts and not refused  # what is refused stays to be done
        if step.applies or found.mark or found.again is not None or acts:
            # Seen only after the first writes, of which no watch tells anything that is new.
            return Result(requeue_after=0.0)
        waits = (step.requeue_after, later, RETRY_PASSING_SECONDS if refused else None)
        return Result(requeue_after=min((each for each in waits if each is not None), default=None))

    def _picture(self, service: TokenService, memo: Memo) -> _Picture:
        namespace, name = service.metadata.namespace, service.metadata.name
        key, now = f"{namespace}/{name}", self._now()
        claimed = self._caches.pods.by_index(f"{key}{CLAIMS}")
        snapshot = Snapshot(
            service=service,
            children=memo.children,
            deployment=self._caches.deployments.get(namespace, name),
            service_object=self._caches.services.get(namespace, name),
            budget=self._caches.budgets.get(namespace, name),
            pods=(*self._caches.pods.by_index(key), *(pod for pod in claimed if _serves(pod))),
            claims=self._warm.claims(service, claimed),
            now=now,
            cluster_domain=self._cluster_domain,
            surroundings=self._surroundings(service, memo.environment, memo.environment_refusal),
            revisions=self._caches.revisions.by_index(key),
            pull_pods=self._caches.pods.by_index(f"{key}{PULLS}"),
            nodes=tuple(self._caches.nodes()),
            answers=self._asker.answers,
            asking=self._asker.asking,
            unpullable=memo.unpullable,
            starts=self._warm.starts((*self._caches.pods.by_index(key), *claimed)),
            own_pool=self._pool(namespace, name),
            pool_refusal=memo.pool_refusal,
        )
        found = rollout.step(snapshot)
        hand = self._warm.hand(snapshot, found)
        return _Picture(snapshot, found, hand, memo)

    def _pool(self, namespace: str, name: str) -> WarmPool | None:
        return self._caches.warm_pools.get(namespace, name) if self._caches.warm_pools else None

    async def _taken(self, key: Key, service: TokenService, memo: Memo) -> tuple[_Picture, bool]:
        """The picture, once the warm pods are claimed that it asks for: nothing is to come before that. And whether
        there were any.
        """
        picture, tries = self._picture(service, memo), 0
        while picture.hand.balance.take and not service.metadata.deletion_timestamp and tries < CLAIM_TRIES:
            await self._warm.claim(key, service, picture.found, picture.hand)
            picture, tries = self._picture(service, memo), tries + 1
        return picture, tries > 0

    def _surroundings(self, service: TokenService, wanted: Manifest | None, refusal: Refusal | None) -> Surroundings:
        namespace = service.metadata.namespace
        return environment.surroundings(
            service,
            wanted,
            refusal,
            get=lambda name: self._caches.environments.get(namespace, name),
            users_of=lambda name: (*self._store.users_of(namespace, name), *self._caches.pools(namespace, name)),
        )

    async def _write_status(self, key: Key, service: TokenService, step: Plan, hand: Hand) -> float | None:
        """Returns seconds after which to look again, if the status is to be written later."""
        if step.status is None:
            self._late.pop(key, None)
        else:
            # Of a pod that goes from a pool to the Deployment numbers change half a dozen times.
            written = self._written.get(key) if service.pool_name else None
            now = self._now()
            left = numbers_wait(service.status, step.status, NUMBERS, written, now)
            left = left or warm.passing(service.status, step.status, hand.claims, now)
            if step.status.last_good_revision == service.status.last_good_revision:  # which nothing else tells
                left = left or self._put_off(key, service)
            if left:
                return left
            patch = status_patch(service.status, step.status)
            try:
                body = await self._client.patch_status(TOKENSERVICES, *key, patch)
            except ApiError as error:
                if not error.is_not_found:
                    raise
                self._store.remove(key)
                return None
            self._store.observe(read(body))
            self._written[key] = self._now()
            self._late.pop(key, None)
            if service.pool_name and step.status.warm_replicas != service.status.warm_replicas:
                self._warm.changed((key[0], service.pool_name))
        self._tell(key, service, step.events)
        return None

    def _put_off(self, key: Key, service: TokenService) -> float:
        """Seconds for which what nobody waits for can wait, since somebody waits for what others do."""
        if not (service.pool_name and self._hurry()):
            return 0.0
        now = self._now()
        left = PATIENCE_SECONDS - (now - self._late.setdefault(key, now)).total_seconds()
        return min(max(left, 0.0), LATER_SECONDS)

    def _tell(self, key: Key, service: TokenService, events: Iterable[Event]) -> None:
        about = ObjectRef(names.API_VERSION, TOKENSERVICES.kind, *key, uid=service.metadata.uid)
        for event in events:
            _log.info("transition", reason=event.reason, note=event.note)
            self._recorder.event(about, event.reason, event.note, action="Reconcile", type=event.type)


def _asks(service: TokenService) -> tuple[str, int, str, str | None]:
    """What of a TokenService, its status aside, leads to another plan."""
    metadata = service.metadata
    retry = metadata.annotations.get(names.ANNOTATION_RETRY, "")
    return metadata.uid, metadata.generation, retry, metadata.deletion_timestamp


def _lost(apply: Apply) -> bool:
    """Whether it is about something that was as it should be before."""
    return apply.child != "revision" and apply.why != "changed"


def _serves(pod: Pod) -> bool:
    return names.LABEL_SERVICE in pod.metadata.labels
