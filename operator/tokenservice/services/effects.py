"""What is done for a TokenService, its pods of pools aside: each write is short, and what it answers is taken in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

import msgspec

from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import Deployment, Object, ObjectMeta
from tokenservice.api.v1alpha1 import TokenService
from tokenservice.kube.apply import applied_hash, keep_own_fields
from tokenservice.kube.cache import Cache
from tokenservice.kube.client import Client, Resource, decode
from tokenservice.kube.errors import ApiError
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
from tokenservice.pods.manifests import Manifest
from tokenservice.pods.refusal import Refusal
from tokenservice.runtime.logs import get_logger
from tokenservice.services import revisions, warm
from tokenservice.services.caches import Caches
from tokenservice.services.memo import Memo, state
from tokenservice.services.plan import Apply, Child
from tokenservice.services.rollout import Step
from tokenservice.services.store import Key
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

_log = get_logger("tokenservice.services")


class Effects:
    """The writes. Each raises ApiError and Unreachable, unless it says otherwise."""

    def __init__(self, client: Client, caches: Caches, now: Callable[[], datetime]) -> None:
        self._client = client
        self._caches = caches
        self._now = now

    async def apply(self, key: Key, apply: Apply, memo: Memo) -> Refusal | None:
        """Applies a child. Returns why the API server will not have it, if it says so."""
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
        # What we own right after our own apply is all there is to own: nothing is applied again before it changes.
        memo.checked[apply.child] = state(live), applied_hash(apply.manifest)
        return None

    async def mark(self, key: Key, service: TokenService, found: Step) -> bool:
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
        return bool(found.adopt) or found.again is not None or found.mark is not None

    async def _patch_revision(self, key: Key, name: str, patch: Manifest) -> None:
        body = await self._client.patch(REVISIONS, key[0], name, patch)
        self._caches.revisions.observe(self._caches.revisions.decode(body))

    async def pull(self, key: Key, found: Step, memo: Memo) -> bool:
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

    async def clear(self, key: Key, found: Step) -> None:
        """Deletes what has done its service: pods that brought images, and the oldest revisions."""
        done: list[tuple[Resource, ObjectMeta]] = [(PODS, pod.metadata) for pod in found.unpull]
        done += [(REVISIONS, revision.metadata) for revision in found.drop]
        for resource, metadata in done:
            try:
                await self._client.delete(resource, key[0], metadata.name, uid=metadata.uid)
            except ApiError as error:
                if not (error.is_not_found or error.is_conflict):
                    raise

    async def go_cold(self, key: Key, found: Step, hand: Hand) -> bool:
        """Writes on a revision that it goes without warm pods. Returns whether there was anything to write."""
        if hand.cold is None or found.target is None:
            return False
        name = found.target.name
        if self._caches.revisions.get(key[0], name) is None:  # it could not be made
            return False
        await self._patch_revision(key, name, warm.mark(hand.cold))
        reason, message = hand.cold.reason, hand.cold.message
        _log.warning("goes without warm pods", action=REVISIONS.kind, revision=name, reason=reason, error=message)
        return True

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

    async def delete(self, resource: Resource, key: Key, leftover: ObjectMeta, why: str) -> None:
        """Deletes that very object; `why` is for the log."""
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

    async def current(self, service: TokenService) -> ObjectMeta | None:
        """The TokenService's metadata as of now, None if it is gone."""
        try:
            body = await self._client.get(TOKENSERVICES, service.metadata.namespace, service.metadata.name)
        except ApiError as error:
            if error.is_not_found:
                return None
            raise
        metadata = decode(body, Object).metadata
        return metadata if metadata.uid == service.metadata.uid else None


def _invalid(apply: Apply, error: ApiError) -> Literal["InvalidEnvironment", "InvalidTemplate", "Rejected"]:
    """Which part of the spec the API server refuses, in the name of a child."""
    if apply.child == "environment":
        return "InvalidEnvironment"
    return "InvalidTemplate" if "spec.template" in error.message else "Rejected"
