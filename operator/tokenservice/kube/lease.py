"""Leader election by a Lease of coordination.k8s.io/v1.

Safety rests on two clocks that only ever measure durations. The leader counts from *before* it sent its last
successful renewal and ends after `renew_deadline`; another candidate counts from when it first *saw* the record and
takes over after `lease_duration`. Seeing comes after sending, and the deadline is shorter than the duration, so the
old leader has ended when the new one begins, whatever either wall clock says. Source of the record: LeaseSpec in the
Kubernetes API reference.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from tokenservice.api.names import OPERATOR
from tokenservice.kube.client import Client
from tokenservice.kube.errors import ApiError, Unreachable
from tokenservice.kube.resources import LEASES

log = logging.getLogger(__name__)

Step = Literal["create", "acquire", "renew", "wait", "lost"]


class LeaseLost(Exception):  # noqa: N818 - an event, not a mistake
    """This process no longer leads, or cannot prove that it does: it must end without another write."""


@dataclass(frozen=True)
class Timing:
    """Seconds. lease_duration: after which others take over. renew_deadline: after which a leader without a successful
    renewal ends. retry_period: between attempts."""

    lease_duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_period < self.renew_deadline < self.lease_duration:
            raise ValueError("leader election needs retry period < renew deadline < lease duration")


@dataclass(frozen=True)
class Observed:
    """The record as last read. first_seen: monotonic seconds when this very resourceVersion was first seen, None: no
    Lease.
    """

    holder: str = ""
    duration: float = 0.0
    version: str | None = None
    first_seen: float = 0.0


def next_step(observed: Observed, now: float, identity: str, leading_since: float | None, timing: Timing) -> Step:
    """What a candidate does now.

    now: monotonic seconds. leading_since: when the last renewal that succeeded was sent, None for a process that does
    not lead.
    """
    if leading_since is not None:
        if now - leading_since >= timing.renew_deadline or (
            observed.version is not None and observed.holder != identity
        ):
            return "lost"
        return "create" if observed.version is None else "renew"
    if observed.version is None:
        return "create"
    # Our own name in the record: an acquisition whose answer was lost, or the process before this one under the same
    # name, which has ended (identities are unique among the living).
    if observed.holder in {"", identity}:
        return "acquire"
    if now - observed.first_seen >= (observed.duration or timing.lease_duration):
        return "acquire"
    return "wait"


def see(observed: Observed, lease: dict[str, Any] | None, now: float) -> Observed:
    """The record after a read or write; the time it was first seen starts again only when its version changed."""
    if lease is None:
        return Observed(first_seen=now)
    version = lease["metadata"]["resourceVersion"]
    if version == observed.version:
        return observed
    spec = lease.get("spec") or {}
    return Observed(spec.get("holderIdentity") or "", float(spec.get("leaseDurationSeconds") or 0), version, now)


class Elector:
    """Runs something while this process leads.

    identity: unique among running processes, for example the pod's name. timeout of each call: what is
    left until the deadline, at most `renew_deadline / 2`. on_leading(bool) is told of every turn, for metrics.
    """

    def __init__(
        self,
        client: Client,
        *,
        identity: str,
        namespace: str,
        name: str = OPERATOR,
        timing: Timing = Timing(),
        on_leading: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.identity = identity
        self._client = client
        self._namespace = namespace
        self._name = name
        self._timing = timing
        self._on_leading = on_leading
        self._clock = clock
        self._rand = rand
        self._observed = Observed()
        self._lease: dict[str, Any] | None = None
        self._leading_since: float | None = None

    @property
    def leading(self) -> bool:
        """Whether this process may write now."""
        return self._leading_since is not None and self._clock() - self._leading_since < self._timing.renew_deadline

    @property
    def holder(self) -> str:
        """Who led when last seen, "" for nobody."""
        return self._observed.holder

    async def run(self, on_started: Callable[[], Awaitable[None]]) -> None:
        """Waits to lead, runs `on_started`, and gives the Lease back when that ends or this is cancelled.

        Raises LeaseLost when leadership cannot be held, and what `on_started` raises.
        """
        await self._acquire()
        log.info("Leading", extra={"data": {"identity": self.identity, "lease": f"{self._namespace}/{self._name}"}})
        self._on_leading(True)
        work = asyncio.ensure_future(on_started())
        hold = asyncio.create_task(self._hold())
        try:
            await asyncio.wait({work, hold}, return_when=asyncio.FIRST_COMPLETED)
            if hold.done():
                hold.result()
            work.result()
        except LeaseLost:
            self._leading_since = None
            raise
        finally:
            self._on_leading(False)
            hold.cancel()
            work.cancel()
            # Someone else may lead in lease_duration - renew_deadline seconds: no waiting for slow work beyond that.
            slack = self._timing.lease_duration - self._timing.renew_deadline
            await asyncio.wait({work, hold}, timeout=slack if self._leading_since is not None else slack / 2)
            if self._leading_since is not None and work.done():
                await self._release()

    async def _acquire(self) -> None:
        said = None
        while self._leading_since is None:
            data: dict[str, Any] = {}
            try:
                await self._step()
            except (ApiError, Unreachable) as error:
                data["error"] = str(error)
            if self._leading_since is None:
                data["holder"] = self._observed.holder
                if data != said:
                    level = logging.WARNING if "error" in data else logging.INFO
                    log.log(level, "Waiting to lead", extra={"data": data})
                    said = data
                await asyncio.sleep(self._timing.retry_period * (1 + self._rand() / 5))

    async def _hold(self) -> None:
        error = "no answer"
        while True:
            await asyncio.sleep(min(self._timing.retry_period, self._left()))
            try:
                await self._step()
            except (ApiError, Unreachable) as caught:
                error = str(caught)
                log.warning(
                    "Renewing the Lease failed", extra={"data": {"error": error, "left_s": round(self._left(), 1)}}
                )
            step = next_step(self._observed, self._clock(), self.identity, self._leading_since, self._timing)
            if step == "lost":
                holder = self._observed.holder
                raise LeaseLost(
                    f"Lease {self._namespace}/{self._name} is now held by {holder!r}"
                    if holder != self.identity
                    else f"Lease {self._namespace}/{self._name} could not be renewed for "
                    f"{self._timing.renew_deadline:g} s: {error}"
                )

    def _left(self) -> float:
        since = self._leading_since
        return (
            self._timing.renew_deadline
            if since is None
            else max(0.0, since + self._timing.renew_deadline - self._clock())
        )

    async def _step(self) -> None:
        """One attempt, with fresh knowledge: at most one read and one write. Raises ApiError or Unreachable."""
        if self._leading_since is None or self._lease is None:
            await self._read()
        now = self._clock()
        step = next_step(self._observed, now, self.identity, self._leading_since, self._timing)
        if step in {"wait", "lost"}:
            return
        try:
            await self._write(step, now)
        except ApiError as error:
            if not (error.is_conflict or error.is_already_exists or error.is_not_found):
                raise
            self._lease = None  # somebody wrote in between, perhaps we ourselves in a call whose answer was lost
            await self._read()

    async def _read(self) -> None:
        try:
            data = await self._call("GET", LEASES.path(self._namespace, self._name))
        except ApiError as error:
            if not error.is_not_found:
                raise
            self._take(None)
        else:
            self._take(data)

    async def _write(self, step: Step, now: float) -> None:
        body = record(self._lease, self.identity, self._timing.lease_duration, datetime.now(UTC), step)
        body["metadata"].update(name=self._name, namespace=self._namespace)
        if step == "create":
            data = await self._call("POST", LEASES.path(self._namespace), body)
        else:
            data = await self._call("PUT", LEASES.path(self._namespace, self._name), body)
        self._take(data)
        self._leading_since = now  # from before the request was sent

    async def _release(self) -> None:
        try:
            for _ in range(2):
                body = record(self._lease, "", 1.0, datetime.now(UTC), "renew")
                try:
                    await self._call("PUT", LEASES.path(self._namespace, self._name), body)
                    break
                except ApiError as error:
                    if not error.is_conflict:
                        raise
                    await self._read()  # a renewal was under way when the end came
                    if self._observed.holder != self.identity:
                        break
        except (ApiError, Unreachable) as error:
            log.warning("The Lease could not be given back", extra={"data": {"error": str(error)}})
        self._leading_since = None

    def _take(self, data: bytes | None) -> None:
        self._lease = None if data is None else msgspec.json.decode(data)
        self._observed = see(self._observed, self._lease, self._clock())

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        seconds = max(0.05, min(self._left(), self._timing.renew_deadline / 2))
        try:
            async with asyncio.timeout(seconds):
                return await self._client.request(
                    method, path, body=body, idempotent=False, seconds=seconds, queue=False
                )
        except TimeoutError:
            raise Unreachable(f"{method} {path}: no answer in {seconds:.1f} s") from None


def record(lease: dict[str, Any] | None, holder: str, duration: float, now: datetime, step: Step) -> dict[str, Any]:
    """The Lease to write: what is not ours in it stays, its resourceVersion guards against a write in between."""
    old: dict[str, Any] = lease or {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": {}}
    at = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = dict(old.get("spec") or {})
    if step in {"create", "acquire"}:
        spec["acquireTime"] = at
        spec["leaseTransitions"] = (spec.get("leaseTransitions") or 0) + (step == "acquire")
    spec.update(holderIdentity=holder, leaseDurationSeconds=max(1, round(duration)), renewTime=at)
    return {**old, "metadata": dict(old["metadata"]), "spec": spec}
