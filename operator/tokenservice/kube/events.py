"""Posts Kubernetes events (events.k8s.io/v1) about what the operator does, without ever holding it up."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from tokenservice.api.conditions import cut
from tokenservice.api.names import OPERATOR
from tokenservice.kube.client import Client
from tokenservice.kube.errors import ApiError, Unreachable
from tokenservice.kube.resources import EVENTS

log = logging.getLogger(__name__)

NOTE_BYTES = 1024
_REMEMBERED = 8192


@dataclass(frozen=True)
class ObjectRef:
    """The object that an event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str = ""


@dataclass(frozen=True)
class _Event:
    regarding: ObjectRef
    type: str
    reason: str
    action: str
    note: str
    at: datetime


class EventRecorder:
    """Takes events at once and posts them in the background, in order.

    What was said about an object within `quiet` seconds is not said again: that costs no write, whereas a series
    costs one for every repetition. A full queue drops. instance: this process's name, usually the pod's.
    on_dropped(cause): repeated, full or refused, for metrics. The recorder posts while `run` runs; `flush` waits for
    what is queued.
    """

    def __init__(
        self,
        client: Client,
        *,
        instance: str,
        controller: str = OPERATOR,
        size: int = 1000,
        quiet: float = 600.0,
        retry_seconds: float = 1.0,
        on_dropped: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._instance = cut(instance, 128)  # the API's limit
        self._controller = controller
        self._quiet = quiet
        self._retry_seconds = retry_seconds
        self._on_dropped = on_dropped
        self._clock = clock
        self._queue: asyncio.Queue[_Event] = asyncio.Queue(size)
        self._said: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def event(
        self,
        regarding: ObjectRef,
        reason: str,
        note: str,
        *,
        action: str,
        type: Literal["Normal", "Warning"] = "Normal",
    ) -> None:
        """Takes note of an event; never waits and never raises.

        reason: CamelCase, why; action: CamelCase, what was done; note: for people, cut to 1,024 bytes.
        """
        note = cut(note, NOTE_BYTES)
        key = (regarding.uid, reason, note)
        now = self._clock()
        said = self._said.get(key)
        if said is not None and now - said < self._quiet:
            self._on_dropped("repeated")
            return
        try:
            self._queue.put_nowait(_Event(regarding, type, reason, action, note, datetime.now(UTC)))
        except asyncio.QueueFull:
            self._on_dropped("full")
            return
        self._said[key] = now
        self._said.move_to_end(key)
        if len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)

    async def run(self) -> None:
        """Posts until it is cancelled."""
        while True:
            event = await self._queue.get()
            try:
                await self._post(event)
            except Exception:  # an event is never worth the process
                log.exception("Posting an event failed", extra={"data": {"reason": event.reason}})
                self._on_dropped("refused")
            finally:
                self._queue.task_done()

    async def flush(self, seconds: float = 2.0) -> bool:
        """Waits until everything is posted, at most so long; whether it is."""
        try:
            async with asyncio.timeout(seconds):
                await self._queue.join()
        except TimeoutError:
            return False
        return True

    async def _post(self, event: _Event) -> None:
        namespace = event.regarding.namespace or "default"
        body = manifest(event.regarding, event, self._controller, self._instance, f"{uuid.uuid4().hex[:16]}")
        for last in (False, False, True):
            try:
                await self._client.create(EVENTS, namespace, body)
            except (ApiError, Unreachable) as error:
                if isinstance(error, ApiError) and error.is_already_exists:
                    return  # the answer to the first try was lost
                if last or (isinstance(error, ApiError) and not error.is_transient):
                    # Forbidden or not found is what a namespace answers that is being deleted: nobody misses the event.
                    data = {"reason": event.reason, "namespace": namespace, "error": str(error)}
                    log.debug("An event was not posted", extra={"data": data})
                    self._on_dropped("refused")
                    return
                await asyncio.sleep(max(self._retry_seconds, getattr(error, "retry_after", None) or 0.0))
            else:
                return


def manifest(regarding: ObjectRef, event: _Event, controller: str, instance: str, suffix: str) -> dict[str, Any]:
    """The Event object. Source: events.k8s.io/v1 in the Kubernetes API reference."""
    reference = {
        "apiVersion": regarding.api_version,
        "kind": regarding.kind,
        "namespace": regarding.namespace,
        "name": regarding.name,
        "uid": regarding.uid,
        "resourceVersion": regarding.resource_version,
    }
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        # The name is at most 253 characters, the regarded object's may be that long by itself.
        "metadata": {
            "name": f"{regarding.name[:230].rstrip('.-')}.{suffix}",
            "namespace": regarding.namespace or "default",
        },
        "eventTime": event.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": controller,
        "reportingInstance": instance,
        "action": event.action,
        "reason": event.reason,
        "type": event.type,
        "note": event.note,
        "regarding": {key: value for key, value in reference.items() if value},
    }
