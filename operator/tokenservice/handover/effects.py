"""What is done to pods that go from a pool to a Deployment: one write each, and what it answers is taken in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from tokenservice.api import names
from tokenservice.api.meta import ObjectMeta, Pod, Struct
from tokenservice.handover import patches
from tokenservice.handover.claim import Claim, Taker
from tokenservice.kube.cache import Cache
from tokenservice.kube.client import STRATEGIC, Client, decode
from tokenservice.kube.errors import ApiError
from tokenservice.kube.resources import PODS, REPLICASETS
from tokenservice.runtime.logs import get_logger

T = TypeVar("T")

_log = get_logger("tokenservice.handover")


class ReplicaSetSpec(Struct, frozen=True, kw_only=True):
    replicas: int = 1


class ReplicaSet(Struct, frozen=True, kw_only=True):
    metadata: ObjectMeta
    spec: ReplicaSetSpec = ReplicaSetSpec()


class _Page(Struct, frozen=True, kw_only=True):
    items: tuple[ReplicaSet, ...] = ()


async def delete(client: Client, pods: Cache[Pod], pod: Pod, **only: str) -> bool:
    """Deletes that very pod, and takes in the answer. Returns False if it is gone already.

    only: further preconditions, as `Client.delete` has them.

    Raises:
        ApiError, Unreachable: among them a conflict, where a precondition does not hold.

    """
    metadata = pod.metadata
    try:
        body = await client.delete(PODS, metadata.namespace, metadata.name, uid=metadata.uid, **only)
    except ApiError as error:
        if not error.is_not_found:
            raise
        return False
    going = pods.decode(body)
    if going.metadata.deletion_timestamp:  # an answer without is of one that is gone already
        pods.observe(going)
    return True


async def each_in_turn(writes: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Does all of them, and returns what each did. What the API server refuses of one pod keeps no other from its turn.

    Raises the first refusal once all are done; anything else at once.
    """
    done: list[T] = []
    refused: ApiError | None = None
    for write in writes:
        try:
            done.append(await write())
        except ApiError as error:
            if not error.is_refused:
                raise
            refused = refused or error
    if refused:
        raise refused
    return done


class Effects:
    """The writes. Each raises ApiError and Unreachable, unless it says otherwise."""

    def __init__(self, client: Client, pods: Cache[Pod], now: Callable[[], datetime]) -> None:
        self._client = client
        self._pods = pods
        self._now = now
        self._wanted: set[str] = set()
        """Pods that are being claimed, by uid: others need not try."""
        self._stale: dict[str, str] = {}
        """Pods that are no more as they are known to be: uid -> the resourceVersion that was known."""

    def free(self, pod: Pod) -> bool:
        """Whether it makes sense to try and claim the pod."""
        uid = pod.metadata.uid
        if self._stale.get(uid) not in (None, pod.metadata.resource_version):
            del self._stale[uid]
        return uid not in self._wanted and uid not in self._stale

    def forget(self, uid: str) -> None:
        """A pod is gone."""
        self._stale.pop(uid, None)

    async def claim(self, taker: Taker, pods: Sequence[Pod], revision: str, pool: str) -> tuple[Pod, ...]:
        """Takes the pods out of their pool, side by side. Returns those that it got: others may have been faster."""

        async def one(pod: Pod) -> bool:
            uid = pod.metadata.uid
            patch = patches.claim(pod, taker, revision, pool, self._now())
            try:
                body = await self._client.patch(PODS, taker.namespace, pod.metadata.name, patch)
            except ApiError as error:
                # It may be there for the taking still, or ours already, where an answer was lost: of neither need the
                # watch tell anything that matters. A patch of nothing is answered with the pod as it is.
                if error.is_conflict and await self._patch(pod, patches.nothing(pod)):
                    return False
                if error.is_conflict or error.is_not_found or _another(error):
                    self._stale[uid] = pod.metadata.resource_version
                    return False
                raise
            _log.info("claimed", action="Pod", pod=pod.metadata.name, pool=pool)
            self._pods.observe(self._pods.decode(body))
            return True

        # Before anything is waited for: whoever chooses next is to choose others.
        uids = {pod.metadata.uid for pod in pods}
        self._wanted |= uids
        try:
            found = await asyncio.gather(*(one(pod) for pod in pods), return_exceptions=True)
        finally:
            self._wanted -= uids
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return tuple(pod for pod, got in zip(pods, found, strict=True) if got)

    async def serve(self, claim: Claim, template: Mapping[str, Any], stages: Mapping[str, float]) -> datetime | None:
        """Puts the pod into its Service. Returns when; None if it is gone."""
        now = self._now()
        if not await self._patch(claim.pod, patches.serve(claim.pod, template, stages, now)):
            return None
        seconds = round((now - claim.at).total_seconds(), 3)
        _log.info("serves", action="Pod", pod=claim.pod.metadata.name, duration_s=seconds, stages=dict(stages))
        return now

    async def drop(self, pod: Pod, why: str) -> None:
        """Deletes a claimed pod, which drains as every pod does. It never goes back to its pool."""
        try:
            deleted = await delete(self._client, self._pods, pod)
        except ApiError as error:
            if not error.is_conflict:
                raise
            return  # another one has its name
        if deleted:
            _log.info("deleted", action="Pod", pod=pod.metadata.name, reason=why)

    async def settle(self, taker: Taker, claims: Sequence[Claim], revision: str, ready: int) -> int:
        """Hands claimed pods to the ReplicaSet of a revision, as many as it has room for. Returns how many.

        Room is what the ReplicaSet is asked for and not Ready: a pod that comes before it has been scaled would be
        deleted as one too many. revision: the value of its pods' label. ready: how many of its pods are Ready.
        """
        selector = f"{names.LABEL_DEPLOYMENT}={taker.name},{names.LABEL_REVISION}={revision}"
        found: list[ReplicaSet] = []
        async for page in self._client.list(REPLICASETS, namespace=taker.namespace, label_selector=selector):
            found += decode(page, _Page).items
        wanted = max(found, key=lambda each: each.spec.replicas, default=None)
        template_hash = wanted.metadata.labels.get(patches.LABEL_HASH) if wanted else None
        if wanted is None or not template_hash:
            return 0
        replicaset = wanted.metadata.name

        async def one(pod: Pod) -> bool:
            done = await self._patch(pod, patches.settle(pod, taker, template_hash))
            if done:
                _log.info("settled", action="Pod", pod=pod.metadata.name, replicaset=replicaset)
            return done

        room = max(0, wanted.spec.replicas - ready)
        return sum(await each_in_turn(partial(one, claim.pod) for claim in claims[:room]))

    async def adopt(self, taker: Taker, pod: Pod) -> None:
        """Makes a claimed pod the TokenService's that an earlier one has left behind."""
        if await self._patch(pod, patches.adopt(pod, taker)):
            _log.info("adopted", action="Pod", pod=pod.metadata.name)

    async def finish(self, taker: Taker, pod: Pod) -> None:
        """Takes off what helped a pod to settle."""
        await self._patch(pod, patches.finish(pod, taker), content_type=STRATEGIC)

    async def _patch(self, pod: Pod, patch: patches.Patch, **how: Any) -> bool:
        """False if the pod is gone, or another one has its name."""
        try:
            body = await self._client.patch(PODS, pod.metadata.namespace, pod.metadata.name, patch, **how)
        except ApiError as error:
            if error.is_not_found or error.is_conflict or _another(error):
                return False
            raise
        self._pods.observe(self._pods.decode(body))
        return True


def _another(error: ApiError) -> bool:
    """Whether a patch reached another pod of that name: a uid is a field that cannot be changed (422)."""
    return error.is_invalid and any(field == "metadata.uid" for field, _ in error.causes)
