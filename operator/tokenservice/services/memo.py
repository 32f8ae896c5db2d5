"""What is worked out about a TokenService once, and holds until it asks for something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

import msgspec

from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import Deployment, Object, ObjectMeta
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import EnvironmentStatus, TokenService, TokenServiceSpec
from tokenservice.kube.apply import applied_hash, needs_apply, owned_fields, with_hash
from tokenservice.pods.manifests import Manifest
from tokenservice.pods.refusal import RETRY_REFUSED_SECONDS, Refusal
from tokenservice.pods.schema import InvalidTemplateError
from tokenservice.pods.source import SchemaSource
from tokenservice.services import render, revisions
from tokenservice.services.plan import Child, wanted
from tokenservice.services.rollout import Step
from tokenservice.services.snapshot import Snapshot
from tokenservice.services.store import Key
from tokenservice.services.warm import Hand


@dataclass
class Memo:
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


class Memos:
    """The memos of all TokenServices. schemas: against which pod templates are checked."""

    def __init__(self, schemas: SchemaSource, now: Callable[[], datetime]) -> None:
        self._schemas = schemas
        self._now = now
        self._memos: dict[Key, Memo] = {}

    def forget(self, key: Key) -> None:
        """A TokenService is gone."""
        self._memos.pop(key, None)

    async def of(self, key: Key, service: TokenService, runs_in: EnvironmentStatus | None) -> Memo:
        """What holds for the TokenService as it is, in that environment."""
        metadata = service.metadata
        retry = metadata.annotations.get(names.ANNOTATION_RETRY, "")
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
            if memo.runs_in != image(runs_in) or self._may_pass(memo.children, memo.since):
                memo.runs_in, memo.since = image(runs_in), self._now()
                memo.children = await self._children(service, runs_in)
                memo.composed = None
                memo.unpullable.clear()
            return memo
        inline = render.environment(service)
        memo = Memo(
            *(metadata.uid, metadata.generation, spec, retry, image(runs_in)),
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


def composed(memo: Memo, found: Step, hand: Hand) -> render.Children | Refusal:
    """What should be, the Deployment with the template of the revision that it is to have."""
    children, target = memo.children, found.target
    if isinstance(children, Refusal) or children.deployment is None or target is None:
        return children
    which = (target.name, target.number > 1, found.hold, hand.deployed)
    if memo.composed is None or memo.composed[0] != which:
        made = revisions.deployment(children.deployment, target, hold=found.hold, replicas=hand.deployed)
        memo.composed = which, made
    return replace(children, deployment=memo.composed[1])


def changes(snapshot: Snapshot, memo: Memo, step: Step) -> dict[Child, str]:
    """The children that differ from what they should be, with the reason."""
    found: dict[Child, str] = {"revision": "new"} if step.create else {}
    live_objects: dict[Child, Deployment | Object | CondaEnvironment | WarmPool | None] = {
        "environment": snapshot.surroundings.own,
        "deployment": snapshot.deployment,
        "service": snapshot.service_object,
        "budget": snapshot.budget,
        "pool": snapshot.own_pool,
    }
    for child, live in live_objects.items():
        manifest = wanted(snapshot, child, step)
        metadata = live.metadata if live else None
        if manifest is None:
            continue
        if metadata and memo.checked.get(child) == (state(metadata), applied_hash(manifest)):
            continue
        reason = needs_apply(manifest, metadata)
        if reason:
            found[child] = reason
        elif metadata:
            memo.checked[child] = state(metadata), applied_hash(manifest)
    return found


def image(runs_in: EnvironmentStatus | None) -> tuple[str, str | None] | None:
    """What of an environment the pod template holds."""
    return (runs_in.image, runs_in.conda_env) if runs_in else None


def state(metadata: ObjectMeta) -> tuple[bytes | None, str]:
    """What of a child changes when somebody changes what we applied of it."""
    return owned_fields(metadata.managed_fields), metadata.annotations.get(names.ANNOTATION_APPLIED_HASH, "")
