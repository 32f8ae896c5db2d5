"""Reconciles TokenServices: observes, asks the plan, carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import Deployment, Object, ObjectMeta, Pod
from tokenservice.api.v1alpha1 import EnvironmentStatus, TokenService
from tokenservice.kube.apply import keep_own_fields, needs_apply, owned_fields, with_hash
from tokenservice.kube.client import Client, Resource, decode
from tokenservice.kube.errors import ApiError
from tokenservice.kube.events import EventRecorder, ObjectRef
from tokenservice.kube.status import status_patch
from tokenservice.runtime.controller import Result
from tokenservice.runtime.logs import get_logger
from tokenservice.services import environment, render
from tokenservice.services.plan import CHILDREN, RETRY_REFUSED_SECONDS, Apply, Child, Plan, plan, wanted
from tokenservice.services.podschema import InvalidTemplateError
from tokenservice.services.schemas import SchemaSource
from tokenservice.services.snapshot import Refusal, Snapshot, Surroundings
from tokenservice.services.store import Key, Store, read

TOKENSERVICES = Resource(names.GROUP, names.VERSION, "tokenservices", "TokenService")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
SERVICES = Resource("", "v1", "services", "Service")
BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
PODS = Resource("", "v1", "pods", "Pod")
CONDAENVIRONMENTS = Resource(names.GROUP, names.VERSION, "condaenvironments", "CondaEnvironment")

RESOURCES: dict[Child, Resource] = {
    "environment": CONDAENVIRONMENTS,
    "deployment": DEPLOYMENTS,
    "service": SERVICES,
    "budget": BUDGETS,
}

CACHES: dict[Child, str] = {"deployment": "deployments", "service": "services", "budget": "budgets"}

T = TypeVar("T")

_log = get_logger("tokenservice.services")


class Cache(Protocol[T]):
    """What the reconciler needs of an informer, or of several that watch a namespace each."""

    def get(self, namespace: str, name: str) -> T | None: ...

    def by_index(self, key: str) -> tuple[T, ...]: ...

    def decode(self, data: bytes) -> T: ...

    def observe(self, obj: T) -> None: ...


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


@dataclass(frozen=True)
class Caches:
    """Caches of the children; pods are indexed by "namespace/TokenService name"."""

    deployments: Cache[Deployment]
    services: Cache[Object]
    budgets: Cache[Object]
    pods: Cache[Pod]
    environments: Environments


@dataclass
class _Memo:
    """What was worked out for one version of a TokenService, to do it once; losing it costs time only."""

    uid: str
    generation: int
    retry: str
    runs_in: tuple[str, str | None] | None
    """Image, and the environment in it."""
    environment: render.Manifest | None
    children: render.Children | Refusal
    since: datetime
    environment_refusal: Refusal | None = None
    environment_since: datetime | None = None
    checked: dict[Child, tuple[bytes | None, str]] = field(default_factory=dict)
    """Child -> (managed fields, hash) for which nothing was to apply."""


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
        cluster_domain: str,
        now: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._store = store
        self._caches = caches
        self._schemas = schemas
        self._recorder = recorder
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
            return Result()
        memo = await self._memo(key, service)
        snapshot, step = self._plan(service, memo)
        if service.status.observed_generation and any(apply.why != "changed" for apply in step.applies):
            # Children that were right are gone or different. That may be since the TokenService is being deleted,
            # unseen by the watch as yet: an orphan must not get its owner back.
            current = await self._current(service)
            if current is None:
                self._store.remove(key)
            if current is None or current.deletion_timestamp:
                return Result()
        for apply in step.applies:
            refusal = await self._apply(key, apply, memo)
            if refusal and apply.child == "environment":
                memo.environment_refusal, memo.environment_since = refusal, snapshot.now
            elif refusal:
                memo.children, memo.since = refusal, snapshot.now
                break
        if step.leftover:
            await self._delete(key, step.leftover)
        if step.applies:
            # The answers may show more than the watches have told so far, and the watches will not tell it again.
            snapshot, step = self._plan(service, memo)
        if _image(snapshot.surroundings.runs_in) != memo.runs_in:
            # Another image has come in the meantime, which the Deployment is to have before the status speaks of it.
            return Result(requeue_after=0.0)
        await self._write_status(key, service, step)
        newest = self._store.get(key)
        if newest is not None and _asks(newest) != _asks(service):
            # The answer to our own write brought a newer spec, which the watch then takes for known.
            return Result(requeue_after=0.0)
        return Result(requeue_after=step.requeue_after)

    def _plan(self, service: TokenService, memo: _Memo) -> tuple[Snapshot, Plan]:
        namespace, name = service.metadata.namespace, service.metadata.name
        snapshot = Snapshot(
            service=service,
            children=memo.children,
            deployment=self._caches.deployments.get(namespace, name),
            service_object=self._caches.services.get(namespace, name),
            budget=self._caches.budgets.get(namespace, name),
            pods=self._caches.pods.by_index(f"{namespace}/{name}"),
            now=self._now(),
            cluster_domain=self._cluster_domain,
            surroundings=self._surroundings(service, memo.environment, memo.environment_refusal),
        )
        return snapshot, plan(snapshot, _changes(snapshot, memo))

    def _surroundings(
        self, service: TokenService, wanted: render.Manifest | None, refusal: Refusal | None
    ) -> Surroundings:
        namespace = service.metadata.namespace
        return environment.surroundings(
            service,
            wanted,
            refusal,
            get=lambda name: self._caches.environments.get(namespace, name),
            users_of=lambda name: self._store.users_of(namespace, name),
        )

    async def _memo(self, key: Key, service: TokenService) -> _Memo:
        metadata = service.metadata
        retry = metadata.annotations.get(names.ANNOTATION_RETRY, "")
        runs_in = self._surroundings(service, None, None).runs_in
        image = _image(runs_in)
        memo = self._memos.get(key)
        if memo and (memo.uid, memo.generation, memo.retry) == (metadata.uid, metadata.generation, retry):
            # What may have passed is asked again, which costs one request an event.
            if self._may_pass(memo.environment_refusal, memo.environment_since):
                memo.environment_refusal = None
            if memo.runs_in != image or self._may_pass(memo.children, memo.since):
                memo.runs_in, memo.since = image, self._now()
                memo.children = await self._children(service, runs_in)
                memo.checked.clear()
            return memo
        inline = render.environment(service)
        memo = _Memo(
            *(metadata.uid, metadata.generation, retry, image),
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
        schema = self._schemas.schema or await self._schemas.load()
        try:
            try:
                children = render.children(service, schema, runs_in)
            except InvalidTemplateError:
                if not self._schemas.stale:
                    raise
                children = render.children(service, await self._schemas.load(), runs_in)
        except InvalidTemplateError as error:
            return Refusal("InvalidTemplate", str(error))
        return render.Children(
            deployment=with_hash(children.deployment) if children.deployment else None,
            service=with_hash(children.service),
            budget=with_hash(children.budget),
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
        resource = RESOURCES[apply.child]
        try:
            try:
                body = await self._client.apply(resource, *key, apply.manifest, force=apply.force)
            except ApiError as error:
                if not (error.is_invalid and apply.why.startswith("drift")):
                    raise
                body = await self._restore(key, apply, error)
        except ApiError as error:
            # Fields that somebody else manages are named as causes; a write in between has none and is no verdict.
            if error.is_conflict and error.causes and not apply.force:
                return Refusal(
                    "NameConflict",
                    f"{resource.kind} {key[1]} exists and was not made for this TokenService; it is left alone: "
                    f"delete it, or give this TokenService another name ({error.message})",
                    passing=True,
                )
            if error.is_forbidden and "being terminated" not in error.message:
                # A quota, an admission policy, or a right that the operator lacks.
                return Refusal("Rejected", f"The API server forbids the {resource.kind}: {error.message}", passing=True)
            if error.is_invalid:
                return Refusal(_invalid(apply, error), f"The API server refuses the {resource.kind}: {error.message}")
            raise
        _log.info("applied", action=resource.kind, reason=apply.why)
        # What we own right after our own apply is all there is to own: nothing is applied again before it changes.
        memo.checked[apply.child] = _state(self._observe(apply.child, body))
        return None

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

    async def _delete(self, key: Key, leftover: CondaEnvironment) -> None:
        try:
            await self._client.delete(CONDAENVIRONMENTS, *key, uid=leftover.metadata.uid)
        except ApiError as error:
            if not error.is_not_found:
                raise
        else:
            _log.info("deleted", action=CONDAENVIRONMENTS.kind, reason="nothing runs from it any more")

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

    async def _write_status(self, key: Key, service: TokenService, step: Plan) -> None:
        if step.status is not None:
            patch = status_patch(service.status, step.status)
            try:
                body = await self._client.patch_status(TOKENSERVICES, *key, patch)
            except ApiError as error:
                if not error.is_not_found:
                    raise
                self._store.remove(key)
                return
            self._store.observe(read(body))
        about = ObjectRef(names.API_VERSION, TOKENSERVICES.kind, *key, uid=service.metadata.uid)
        for event in step.events:
            _log.info("transition", reason=event.reason, note=event.note)
            self._recorder.event(about, event.reason, event.note, action="Reconcile", type=event.type)


def _asks(service: TokenService) -> tuple[str, int, str, str | None]:
    """What of a TokenService, its status aside, leads to another plan."""
    metadata = service.metadata
    retry = metadata.annotations.get(names.ANNOTATION_RETRY, "")
    return metadata.uid, metadata.generation, retry, metadata.deletion_timestamp


def _changes(snapshot: Snapshot, memo: _Memo) -> dict[Child, str]:
    """The children that differ from what they should be, with the reason."""
    changes: dict[Child, str] = {}
    live_objects: dict[Child, Deployment | Object | CondaEnvironment | None] = {
        "environment": snapshot.surroundings.own,
        "deployment": snapshot.deployment,
        "service": snapshot.service_object,
        "budget": snapshot.budget,
    }
    for child in CHILDREN:
        manifest, live = wanted(snapshot, child), live_objects[child]
        metadata = live.metadata if live else None
        if manifest is None or (metadata and memo.checked.get(child) == _state(metadata)):
            continue
        reason = needs_apply(manifest, metadata)
        if reason:
            changes[child] = reason
        elif metadata:
            memo.checked[child] = _state(metadata)
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
