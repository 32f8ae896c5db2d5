"""Reconciles CondaEnvironments: observes, asks the plan, carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.jobs import CollectRequest
from tokenservice.api.meta import time_of
from tokenservice.api.v1alpha1 import TokenService
from tokenservice.environments import housekeeping
from tokenservice.environments.jobs import Jobs, RefusedError
from tokenservice.environments.needs import NAME_DIGITS, Stage
from tokenservice.environments.plan import Create, Plan, needed, plan
from tokenservice.environments.problems import InvalidEnvironment
from tokenservice.environments.snapshot import Refusal, Snapshot
from tokenservice.environments.spec import Canonical, canonical
from tokenservice.environments.store import Key, Store, read
from tokenservice.kube.client import Client
from tokenservice.kube.errors import ApiError
from tokenservice.kube.events import EventRecorder, ObjectRef
from tokenservice.kube.resources import CONDAENVIRONMENTS
from tokenservice.kube.status import status_patch
from tokenservice.runtime.controller import Result
from tokenservice.runtime.logs import get_logger

HOUSEKEEPING: Key = ("", "")
"""The key of what concerns no single CondaEnvironment."""
HOUSEKEEPING_SECONDS = 600.0

_log = get_logger("tokenservice.environments")


class StageMetrics(Protocol):
    """What the reconciler reports."""

    def stage(self, stage: Stage, seconds: float) -> None:
        """From the making of a Job to its result being taken in."""


@dataclass(frozen=True)
class Collection:
    """How images are collected: `services` are asked what they run, `more` gives images that others may go back to;
    `complete` says whether all resources were read.

    None in its place: never.
    """

    services: Iterable[TokenService]
    complete: Callable[[], bool]
    more: Callable[[], Iterable[str | None]] = tuple


@dataclass
class _Memo:
    """What was worked out for one version of a CondaEnvironment; losing it costs time only."""

    uid: str
    generation: int
    canonical: Canonical | InvalidEnvironment


class Reconciler:
    """Reconciles one CondaEnvironment at a time; the runtime's controller calls it, serially for each key.

    ask: puts a key into its queue.
    """

    def __init__(
        self,
        client: Client,
        store: Store,
        jobs: Jobs,
        recorder: EventRecorder,
        *,
        ask: Callable[[Key], None],
        metrics: StageMetrics,
        collection: Collection | None,
        keep_images: int,
        now: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._store = store
        self._jobs = jobs
        self._recorder = recorder
        self._ask = ask
        self._metrics = metrics
        self._collection = collection
        self._keep_images = keep_images
        self._now = now
        self._memos: dict[Key, _Memo] = {}
        self._refusals: dict[str, Refusal] = {}
        self._stale = True
        """Whether there may be images that nobody uses; after a start nobody knows."""

    async def reconcile(self, key: Key) -> Result:
        """One step towards what the CondaEnvironment asks for; or some tidying, for the key HOUSEKEEPING.

        Raises:
            ApiError, Unreachable: the step was cut short; the caller tries again.

        """
        if key == HOUSEKEEPING:
            return await self._tidy()
        environment = self._store.get(*key)
        if environment is None or environment.metadata.deletion_timestamp:
            self._memos.pop(key, None)
            self._store.want(key, frozenset() if environment else None)
            self._stale = True
            self._ask(HOUSEKEEPING)
            return Result()
        step = await self._plan(key, environment)
        if self._store.want(key, step.wants):
            self._ask(HOUSEKEEPING)
        if step.actions:
            for action in step.actions:
                if isinstance(action, Create):
                    await self._create(action)
                else:
                    await self._jobs.delete(action.job, action.why)
            # The answers may show more than the watches have told so far.
            step = await self._plan(key, environment)
        if await self._write_status(key, environment, step):
            for stage in step.finished:
                began = time_of(stage.began)
                self._metrics.stage(stage.stage, (self._now() - began).total_seconds() if began else 0.0)
            self._stale = self._stale or step.trimmed
            newest = self._store.get(*key)
            if newest is not None and _asks(newest) != _asks(environment):
                # The answer to our own write brought a newer spec, which the watch then takes for known.
                return Result(requeue_after=0.0)
        return Result(requeue_after=step.requeue_after)

    async def _plan(self, key: Key, environment: CondaEnvironment) -> Plan:
        snapshot = Snapshot(
            environment=environment,
            canonical=self._canonical(key, environment),
            now=self._now(),
            refusals=self._refusals,
            enabled=self._jobs.enabled,
            collecting=housekeeping.collecting(self._jobs.all(), self._now()),
            keep_images=self._keep_images,
        )
        while True:  # the build is known once the lock is
            missing = [need for need in needed(snapshot) if need.hash not in snapshot.attempts]
            found = [(need, await self._jobs.attempt(need, snapshot.now)) for need in missing]
            known = {need.hash: attempt for need, attempt in found if attempt is not None}
            if not known:
                return plan(snapshot)
            snapshot = replace(snapshot, attempts={**snapshot.attempts, **known})

    def _canonical(self, key: Key, environment: CondaEnvironment) -> Canonical | InvalidEnvironment:
        metadata = environment.metadata
        memo = self._memos.get(key)
        if memo is None or (memo.uid, memo.generation) != (metadata.uid, metadata.generation):
            try:
                made: Canonical | InvalidEnvironment = canonical(environment.spec)
            except InvalidEnvironment as problem:
                made = problem
            memo = self._memos[key] = _Memo(metadata.uid, metadata.generation, made)
        return memo.canonical

    async def _create(self, action: Create) -> None:
        need = action.need
        try:
            await self._jobs.create(need)
        except RefusedError as error:
            _log.warning("refused", action="Job", stage=need.stage, error=str(error))
            self._refusals[need.hash] = Refusal(str(error), self._now())
        else:
            self._refusals.pop(need.hash, None)

    async def _write_status(self, key: Key, environment: CondaEnvironment, step: Plan) -> bool:
        """Returns whether the CondaEnvironment is still there."""
        if step.status is not None:
            patch = status_patch(environment.status, step.status)
            try:
                body = await self._client.patch_status(CONDAENVIRONMENTS, *key, patch)
            except ApiError as error:
                if not error.is_not_found:
                    raise
                self._store.remove(key)
                return False
            self._store.observe(read(body))
        about = ObjectRef(names.API_VERSION, CONDAENVIRONMENTS.kind, *key, uid=environment.metadata.uid)
        for event in step.events:
            _log.info("transition", reason=event.reason, note=event.note)
            self._recorder.event(about, event.reason, event.note, action="Reconcile", type=event.type)
        return True

    async def _tidy(self) -> Result:
        """Deletes Jobs that nobody waits for, and has images collected that nobody uses."""
        wanted = self._store.wanted
        if wanted is None:  # not every environment was looked at since the start
            return Result(requeue_after=housekeeping.ORPHAN_SECONDS)
        now = self._now()
        self._refusals = {need: found for need, found in self._refusals.items() if need in wanted}
        orphans, wait = housekeeping.orphans(self._jobs.unfinished(), wanted, now)
        for job in orphans:
            await self._jobs.delete(job, "nobody waits for it")
        wait = HOUSEKEEPING_SECONDS if wait is None else wait
        if self._collection is not None and self._stale and self._jobs.enabled and self._collection.complete():
            left = housekeeping.collect_in(self._jobs.all(), wanted, now)
            if left > 0:
                return Result(requeue_after=min(left, wait))
            digests = housekeeping.keep(self._store, self._collection.services, self._collection.more())
            need = housekeeping.keep_hash(digests)
            earlier = [job for job in self._jobs.all() if job.metadata.labels.get(names.LABEL_ENVIRONMENT_HASH) == need]
            for job in earlier:  # when the same was to be kept; what came and went since is none of its business
                await self._jobs.delete(job, "another try")
            if earlier:
                return Result(requeue_after=housekeeping.ORPHAN_SECONDS)
            try:
                await self._jobs.create_as(f"collect-{need[:NAME_DIGITS]}", need, CollectRequest(keep=digests))
            except RefusedError as error:
                _log.warning("refused", action="Job", stage="collect", error=str(error))
            else:
                self._stale = False
        return Result(requeue_after=wait)


def _asks(environment: CondaEnvironment) -> tuple[str, int, str, str | None]:
    """What of a CondaEnvironment, its status aside, leads to another plan."""
    metadata = environment.metadata
    retry = metadata.annotations.get(names.ANNOTATION_RETRY, "")
    return metadata.uid, metadata.generation, retry, metadata.deletion_timestamp
