"""Reconciles TokenServices: observes, asks the plan, carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, Protocol

import msgspec

from tokenservice.api import conditions, names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.events import Event
from tokenservice.api.meta import Condition, ControllerRevision, Deployment, Node, Object, ObjectMeta, Pod
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import EnvironmentStatus, TokenService, TokenServiceSpec
from tokenservice.handover.claim import CLAIMS
from tokenservice.kube.apply import applied_hash, keep_own_fields, needs_apply, owned_fields, with_hash
from tokenservice.kube.cache import Cache
from tokenservice.kube.client import Client, Resource, decode
from tokenservice.kube.errors import ApiError
from tokenservice.kube.events import EventRecorder, ObjectRef
from tokenservice.kube.resources import (
    BUDGETS,
    CONDAENVIRONMENTS,
    DEPLOYMENTS,
    PODS,
    REVISIONS,
    SERVICES,
    TOKENSERVICES,
    WARMPOOLS,
)
from tokenservice.kube.status import numbers_wait, status_patch
from tokenservice.pods.manifests import Manifest
from tokenservice.pods.refusal import RETRY_REFUSED_SECONDS, Refusal
from tokenservice.pods.schema import InvalidTemplateError
from tokenservice.pods.source import SchemaSource
from tokenservice.runtime.controller import Result
from tokenservice.runtime.logs import get_logger
from tokenservice.services import environment, render, revisions, rollout, warm
from tokenservice.services.plan import Apply, Child, Plan, plan, pull_events, wanted
from tokenservice.services.rollout import Step
from tokenservice.services.snapshot import Snapshot, Surroundings
from tokenservice.services.store import Key, Store, read
from tokenservice.services.taking import WarmPods
from tokenservice.services.verify import Answer
from tokenservice.services.warm import Hand

RESOURCES: dict[Child, Resource] = {
    "environment": CONDAENVIRONMENTS,
    "revision": REVISIONS,
    "deployment": DEPLOYMENTS,
    "service": SERVICES,
    "budget": BUDGETS,
    "pool": WARMPOOLS,
}

CACHES: dict[Child, str] = {
    "revision": "revisions",
    "deployment": "deployments",
    "service": "services",
    "budget": "budgets",
    "pool": "warm_pools",
}
PULLS = "/pull"
"""Behind "namespace/TokenService name": the key of pods that bring images to nodes."""

STAGES = {
    conditions.PRE_PULLING: "pre-pull",
    conditions.ROLLING_OUT: "update",
    conditions.VERIFYING: "verify",
    conditions.ROLLING_BACK: "roll-back",
}
"""Reasons of Progressing whose time is measured."""

NUMBERS = ("replicas", "ready_replicas", "updated_replicas", "warm_replicas", "last_start")
"""Fields of a status that need not be written at once."""
LATER_SECONDS, PATIENCE_SECONDS = 2.5, 10.0
"""While many take pods of pools, what nobody waits for is put off by so much, and again, but for so long at most."""
CLAIM_TRIES = 5
"""Looks for warm pods in one step, where others take them first."""

_log = get_logger("tokenservice.services")


class Environments(Protocol):
    """The CondaEnvironments known to the operator, whoever made them.

    Of their managed fields at least our own must be kept (`kube.apply.keep_own_fields`): they show what of a
    CondaEnvironment that we applied somebody has changed.
    """

    def get(self, namespace: str, name: str, /) -> CondaEnvironment | None: ...

    def observe(self, environment: CondaEnvironment, /) -> object:
        """Takes in the answer to a write of ours, unless a newer version is known.

        Whoever keeps them has it reconciled then: the watch will have nothing to tell that is newer.
        """


class Asks(Protocol):
    """Asks pods for a token, in the background."""

    @property
    def answers(self) -> Mapping[str, Answer]: ...

    @property
    def asking(self) -> Mapping[str, datetime]: ...

    def ask(self, pod: Pod, /) -> None: ...


class RolloutMetrics(Protocol):
    """What the reconciler reports; times are seconds."""

    def rollout_stage(self, stage: str, seconds: float, /) -> None: ...

    def rolled_back(self) -> None: ...


@dataclass(frozen=True)
class Caches:
    """Caches of the children; revisions and pods are indexed by "namespace/TokenService name", pods that bring images
    to nodes by that and `PULLS`, claimed ones by that and `CLAIMS`. nodes: all nodes, none where they cannot be seen.
    pools: the WarmPools of a namespace that run in the CondaEnvironment of that name. warm_pools: all of them.
    """

    deployments: Cache[Deployment]
    services: Cache[Object]
    budgets: Cache[Object]
    pods: Cache[Pod]
    environments: Environments
    revisions: Cache[ControllerRevision]
    nodes: Callable[[], Iterable[Node]] = tuple
    pools: Callable[[str, str], Iterable[object]] = lambda _namespace, _name: ()
    warm_pools: Cache[WarmPool] | None = None


@dataclass
class _Memo:
    """What was worked out for one version of a TokenService, to do it once; losing it costs time only."""

    uid: str
    generation: int
    spec: TokenServiceSpec
    """Without the replicas."""
    retry: str
    runs_in: tuple[str, str | None] | None
    """Image, and the environment in it."""
    environment: Manifest | None
    children: render.Children | Refusal
    since: datetime
    environment_refusal: Refusal | None = None
    environment_since: datetime | None = None
    pool_refusal: Refusal | None = None
    """Why the WarmPool of its own cannot be applied, since `pool_since`."""
    pool_since: datetime | None = None
    composed: tuple[object, Manifest] | None = None
    """The Deployment with the template of a revision, and which."""
    unpullable: dict[str, str] = field(default_factory=dict)
    """Nodes for which no pod could be made that brings images there, and why."""
    checked: dict[Child, tuple[tuple[bytes | None, str], str | None]] = field(default_factory=dict)
    """Child -> what there is (managed fields, hash) and the hash of what should be, for which nothing was to apply."""

    def holds(self, metadata: ObjectMeta, retry: str, spec: TokenServiceSpec) -> bool:
        """Whether it is about what is asked for now, but for the replicas; `spec` is without them."""
        if (self.uid, self.retry) != (metadata.uid, retry):
            return False
        if self.generation == metadata.generation:
            return True
        return self.spec == spec and not isinstance(self.children, Refusal)  # what was refused may be taken now

    def scaled(self, service: TokenService) -> None:
        """Other replicas are asked for, and nothing else."""
        self.generation = service.metadata.generation
        self.environment_refusal = self.pool_refusal = None
        self.unpullable.clear()
        if not isinstance(self.children, Refusal) and self.children.deployment:
            spec = {**self.children.deployment["spec"], "replicas": service.spec.replicas}
            self.children = replace(self.children, deployment={**self.children.deployment, "spec": spec})


@dataclass
class _Picture:
    """What is, and what follows from it."""

    snapshot: Snapshot
    found: Step
    hand: Hand
    memo: _Memo

    @cached_property
    def plan(self) -> Plan:
        """Worked out when it is asked for: who only gives a pod its model need not know it."""
        snapshot = replace(self.snapshot, children=_composed(self.memo, self.found, self.hand))
        return plan(snapshot, _changes(snapshot, self.memo, self.found), self.found, self.hand)


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
        self._schemas = schemas
        self._recorder = recorder
        self._asker = asker
        self._warm = warm_pods
        self._metrics = metrics
        self._stages: dict[Key, tuple[str, datetime | None]] = {}
        """The newest reason of Progressing, and since when; None where that was not seen."""
        self._written: dict[Key, datetime] = {}
        """When a status was written last."""
        self._late: dict[Key, datetime] = {}
        """Since when what nobody waits for is put off."""
        self._cluster_domain = cluster_domain
        self._now = now
        self._memos: dict[Key, _Memo] = {}

    async def reconcile(self, key: Key) -> Result:
        """One step towards what the TokenService asks for.

        Raises:
            ApiError, Unreachable: the step was cut short; the caller tries again.

        """
        service = self._store.get(key)
        if service is None:
            self._memos.pop(key, None)
            self._stages.pop(key, None)
            self._written.pop(key, None)
            self._late.pop(key, None)
            self._warm.gone(key)
            return Result()
        memo = await self._memo(key, service)
        picture, taken = await self._taken(key, service, memo)
        snapshot, found, hand = picture.snapshot, picture.found, picture.hand
        self._warm.assign(key, service, found, hand)
        wrote = await self._warm.put_into_service(found, hand)
        if (taken or wrote) and not hand.waits and (pause := self._put_off(key, service)):
            return Result(requeue_after=pause)  # the rest can wait: there is somebody whose request cannot
        step = picture.plan
        if service.status.observed_generation and (found.adopt or any(_lost(apply) for apply in step.applies)):
            # Children that were right are gone or different. That may be since the TokenService is being deleted,
            # unseen by the watch as yet: an orphan must not get its owner back.
            current = await self._current(service)
            if current is None:
                self._store.remove(key)
            if current is None or current.deletion_timestamp:
                return Result()
        wrote = await self._mark(key, service, found) or wrote
        for apply in step.applies:
            refusal = await self._apply(key, apply, memo)
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
        wrote = await self._pull(key, found, memo) or wrote
        wrote = await self._go_cold(key, found, hand) or wrote
        wrote = await self._warm.hand_over(service, snapshot, found, hand) or wrote
        if step.leftover:
            await self._delete(CONDAENVIRONMENTS, key, step.leftover.metadata, "nothing runs from it any more")
        if step.unwanted:
            await self._delete(WARMPOOLS, key, step.unwanted.metadata, "nobody asks for it any more")
        await self._clear(key, found)
        if step.applies or wrote:
            # The answers may show more than the watches have told so far, and the watches will not tell it again.
            picture = self._picture(service, memo)
            snapshot, found, hand, step = picture.snapshot, picture.found, picture.hand, picture.plan
            self._warm.assign(key, service, found, hand)
        self._warm.note(key, service, hand)
        for pod in found.ask:
            self._asker.ask(pod)
        self._warm.time(service, snapshot.pods)
        if _image(snapshot.surroundings.runs_in) != memo.runs_in:
            # Another image has come in the meantime, which the Deployment is to have before the status speaks of it.
            return Result(requeue_after=0.0)
        later = await self._write_status(key, service, step, hand)
        self._time_stage(key, (step.status or service.status).condition(conditions.PROGRESSING), found)
        newest = self._store.get(key)
        if newest is not None and _asks(newest) != _asks(service):
            # The answer to our own write brought a newer spec, which the watch then takes for known.
            return Result(requeue_after=0.0)
        if step.applies or found.mark or found.again is not None or hand.acts:
            # Seen only after the first writes, of which no watch tells anything that is new.
            return Result(requeue_after=0.0)
        return Result(
            requeue_after=min((each for each in (step.requeue_after, later) if each is not None), default=None)
        )

    def _picture(self, service: TokenService, memo: _Memo) -> _Picture:
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

    async def _taken(self, key: Key, service: TokenService, memo: _Memo) -> tuple[_Picture, bool]:
        """The picture, once the warm pods are claimed that it asks for: nothing is to come before that. And whether
        there were any.
        """
        picture, tries = self._picture(service, memo), 0
        while picture.hand.balance.take and not service.metadata.deletion_timestamp and tries < CLAIM_TRIES:
            await self._warm.claim(key, service, picture.hand)
            picture, tries = self._picture(service, memo), tries + 1
        return picture, tries > 0

    async def _go_cold(self, key: Key, found: Step, hand: Hand) -> bool:
        """Writes on a revision that it goes without warm pods. Returns whether there was anything to write."""
        if hand.cold is None or found.target is None:
            return False
        name = found.target.name
        await self._patch_revision(key, name, warm.mark(hand.cold))
        reason, message = hand.cold.reason, hand.cold.message
        _log.warning("goes without warm pods", action=REVISIONS.kind, revision=name, reason=reason, error=message)
        return True

    def _surroundings(self, service: TokenService, wanted: Manifest | None, refusal: Refusal | None) -> Surroundings:
        namespace = service.metadata.namespace
        return environment.surroundings(
            service,
            wanted,
            refusal,
            get=lambda name: self._caches.environments.get(namespace, name),
            users_of=lambda name: (*self._store.users_of(namespace, name), *self._caches.pools(namespace, name)),
        )

    async def _memo(self, key: Key, service: TokenService) -> _Memo:
        metadata = service.metadata
        retry = metadata.annotations.get(names.ANNOTATION_RETRY, "")
        runs_in = self._surroundings(service, None, None).runs_in
        image = _image(runs_in)
        memo = self._memos.get(key)
        spec = msgspec.structs.replace(service.spec, replicas=0)
        if memo and memo.holds(metadata, retry, spec):
            if memo.generation != metadata.generation:
                memo.scaled(service)
            # What may have passed is asked again, which costs one request an event.
            if self._may_pass(memo.environment_refusal, memo.environment_since):
                memo.environment_refusal = None
            if self._may_pass(memo.pool_refusal, memo.pool_since):
                memo.pool_refusal = None
            if memo.runs_in != image or self._may_pass(memo.children, memo.since):
                memo.runs_in, memo.since = image, self._now()
                memo.children = await self._children(service, runs_in)
                memo.composed = None
                memo.unpullable.clear()
            return memo
        inline = render.environment(service)
        memo = _Memo(
            *(metadata.uid, metadata.generation, spec, retry, image),
            environment=with_hash(inline) if inline else None,
            children=await self._children(service, runs_in),
            since=self._now(),
        )
        self._memos[key] = memo
        return memo

    def _may_pass(self, refusal: object, since: datetime | None) -> bool:
        """Whether it is a refusal, and one that may be another answer by now."""
        if not isinstance(refusal, Refusal) or since is None:
            return False
        return refusal.passing or (self._now() - since).total_seconds() >= RETRY_REFUSED_SECONDS

    async def _children(self, service: TokenService, runs_in: EnvironmentStatus | None) -> render.Children | Refusal:
        try:
            children = await self._schemas.checked(lambda schema: render.children(service, schema, runs_in))
        except InvalidTemplateError as error:
            return Refusal("InvalidTemplate", str(error))
        return replace(
            children,
            service=with_hash(children.service),
            budget=with_hash(children.budget),
            pool=with_hash(children.pool) if children.pool else None,
        )

    async def _current(self, service: TokenService) -> ObjectMeta | None:
        """The TokenService's metadata as of now, None if it is gone."""
        try:
            body = await self._client.get(TOKENSERVICES, service.metadata.namespace, service.metadata.name)
        except ApiError as error:
            if error.is_not_found:
                return None
            raise
        metadata = decode(body, Object).metadata
        return metadata if metadata.uid == service.metadata.uid else None

    async def _apply(self, key: Key, apply: Apply, memo: _Memo) -> Refusal | None:
        resource, name = RESOURCES[apply.child], apply.manifest["metadata"]["name"]
        try:
            try:
                body = await self._client.apply(resource, key[0], name, apply.manifest, force=apply.force)
            except ApiError as error:
                if not (error.is_invalid and apply.why.startswith("drift")):
                    raise
                body = await self._restore(key, apply, error)
        except ApiError as error:
            # Fields that somebody else manages are named as causes; a write in between has none and is no verdict.
            if error.is_conflict and error.causes and not apply.force:
                return Refusal(
                    "NameConflict",
                    f"{resource.kind} {name} exists and was not made for this TokenService; it is left alone: "
                    f"delete it, or give this TokenService another name ({error.message})",
                    passing=True,
                )
            if error.is_forbidden:
                return Refusal("Rejected", f"The API server forbids the {resource.kind}: {error.message}", passing=True)
            if error.is_invalid:
                # Of a revision it is what one of the same name holds, of a TokenService that is on its way out.
                passing = apply.child == "revision"
                said = f"The API server refuses the {resource.kind}: {error.message}"
                return Refusal(_invalid(apply, error), said, passing=passing)
            raise
        _log.info("applied", action=resource.kind, reason=apply.why)
        live = self._observe(apply.child, body)
        if apply.child == "revision":
            return None
        if apply.child == "pool":
            self._warm.changed(key)  # the answer is known now, and the watch has nothing to tell that is newer
        # What we own right after our own apply is all there is to own: nothing is applied again before it changes.
        memo.checked[apply.child] = _state(live), applied_hash(apply.manifest)
        return None

    async def _mark(self, key: Key, service: TokenService, found: Step) -> bool:
        """Writes on revisions what has become of them. Returns whether there was anything to write."""
        for orphan in found.adopt:
            await self._patch_revision(key, orphan.metadata.name, revisions.adoption(service))
        if found.update is None:
            return False
        name = found.update.name
        if found.again is not None:
            await self._patch_revision(key, name, revisions.again(found.again, self._now()))
            _log.info("asked for again", action=REVISIONS.kind, revision=name, number=found.again)
        if found.mark is not None:
            await self._patch_revision(key, name, revisions.mark(found.mark))
            _log.warning(
                "failed", action=REVISIONS.kind, revision=name, reason=found.mark.reason, error=found.mark.message
            )
            if found.back:
                self._metrics.rolled_back()
        return bool(found.adopt) or found.again is not None or found.mark is not None

    async def _patch_revision(self, key: Key, name: str, patch: Manifest) -> None:
        body = await self._client.patch(REVISIONS, key[0], name, patch)
        self._caches.revisions.observe(self._caches.revisions.decode(body))

    async def _pull(self, key: Key, found: Step, memo: _Memo) -> bool:
        """Makes the pods that bring images to nodes. Returns whether there were any to make."""
        for manifest in found.pull:
            node = manifest["spec"]["nodeName"]
            try:
                body = await self._client.create(PODS, key[0], manifest)
            except ApiError as error:
                if error.is_already_exists:  # the watch will tell
                    continue
                _log.info("no images are brought there", action="Pod", node=node, error=error.message)
                memo.unpullable[node] = error.message
            else:
                _log.info("created", action="Pod", reason="pre-pull", node=node)
                self._caches.pods.observe(self._caches.pods.decode(body))
        return bool(found.pull)

    async def _clear(self, key: Key, found: Step) -> None:
        """Deletes what has done its service: pods that brought images, and the oldest revisions."""
        done: list[tuple[Resource, ObjectMeta]] = [(PODS, pod.metadata) for pod in found.unpull]
        done += [(REVISIONS, revision.metadata) for revision in found.drop]
        for resource, metadata in done:
            try:
                await self._client.delete(resource, key[0], metadata.name, uid=metadata.uid)
            except ApiError as error:
                if not (error.is_not_found or error.is_conflict):
                    raise

    def _time_stage(self, key: Key, progressing: Condition | None, found: Step) -> None:
        """Measures how long stages last; of one that began before this process did, nobody knows. Of a revision that is
        good already, scaling aside, there are none.
        """
        reason = progressing.reason if progressing else ""
        before, since = self._stages.get(key, (reason, None))
        if reason == before:
            self._stages[key] = (before, since)
            return
        now = self._now()
        if since is not None and before in STAGES:
            self._metrics.rollout_stage(STAGES[before], (now - since).total_seconds())
        self._stages[key] = (reason, None if found.verified else now)

    def _observe(self, child: Child, body: bytes) -> ObjectMeta:
        """Takes in the answer to an apply, so that the next look does not see the state before it."""
        if child == "environment":
            made = decode(body, CondaEnvironment)
            kept = keep_own_fields(made.metadata.managed_fields)
            msgspec.structs.force_setattr(made.metadata, "managed_fields", kept)
            self._caches.environments.observe(made)
            return made.metadata
        cache: Cache[Any] = getattr(self._caches, CACHES[child])
        live: Deployment | Object = cache.decode(body)
        cache.observe(live)
        return live.metadata

    async def _delete(self, resource: Resource, key: Key, leftover: ObjectMeta, why: str) -> None:
        try:
            await self._client.delete(resource, *key, uid=leftover.uid)
        except ApiError as error:
            if not error.is_not_found:
                raise
        else:
            _log.info("deleted", action=resource.kind, reason=why)

    async def _restore(self, key: Key, apply: Apply, refused: ApiError) -> bytes:
        """Puts back a child whose merge with what somebody else wrote is invalid, such as two ports of one name.

        Its spec is replaced: of what others added to it, lists go. Then it is applied as ever, and the record of the
        replacing is dropped, or whatever a later spec takes out would be held back by it.
        """
        resource = RESOURCES[apply.child]
        _log.info("replacing", action=resource.kind, reason=apply.why, error=refused.message)
        await self._client.patch(resource, *key, {"spec": apply.manifest["spec"]})
        body = await self._client.apply(resource, *key, apply.manifest)
        entries = msgspec.json.decode(body)["metadata"]["managedFields"]
        kept = [entry for entry in entries if (entry["manager"], entry["operation"]) != (names.OPERATOR, "Update")]
        return await self._client.patch(resource, *key, {"metadata": {"managedFields": kept}})

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


def _composed(memo: _Memo, found: Step, hand: Hand) -> render.Children | Refusal:
    """What should be, the Deployment with the template of the revision that it is to have."""
    children, target = memo.children, found.target
    if isinstance(children, Refusal) or children.deployment is None or target is None:
        return children
    which = (target.name, target.number > 1, found.hold, hand.deployed)
    if memo.composed is None or memo.composed[0] != which:
        made = revisions.deployment(children.deployment, target, hold=found.hold, replicas=hand.deployed)
        memo.composed = which, made
    return replace(children, deployment=memo.composed[1])


def _changes(snapshot: Snapshot, memo: _Memo, found: Step) -> dict[Child, str]:
    """The children that differ from what they should be, with the reason."""
    changes: dict[Child, str] = {"revision": "new"} if found.create else {}
    live_objects: dict[Child, Deployment | Object | CondaEnvironment | WarmPool | None] = {
        "environment": snapshot.surroundings.own,
        "deployment": snapshot.deployment,
        "service": snapshot.service_object,
        "budget": snapshot.budget,
        "pool": snapshot.own_pool,
    }
    for child, live in live_objects.items():
        manifest = wanted(snapshot, child, found)
        metadata = live.metadata if live else None
        if manifest is None:
            continue
        if metadata and memo.checked.get(child) == (_state(metadata), applied_hash(manifest)):
            continue
        reason = needs_apply(manifest, metadata)
        if reason:
            changes[child] = reason
        elif metadata:
            memo.checked[child] = _state(metadata), applied_hash(manifest)
    return changes


def _image(runs_in: EnvironmentStatus | None) -> tuple[str, str | None] | None:
    """What of an environment the pod template holds."""
    return (runs_in.image, runs_in.conda_env) if runs_in else None


def _invalid(apply: Apply, error: ApiError) -> Literal["InvalidEnvironment", "InvalidTemplate", "Rejected"]:
    """Which part of the spec the API server refuses, in the name of a child."""
    if apply.child == "environment":
        return "InvalidEnvironment"
    return "InvalidTemplate" if "spec.template" in error.message else "Rejected"


def _state(metadata: ObjectMeta) -> tuple[bytes | None, str]:
    return owned_fields(metadata.managed_fields), metadata.annotations.get(names.ANNOTATION_APPLIED_HASH, "")
