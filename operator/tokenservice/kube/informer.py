"""Keeps a copy of all objects of one kind: a list, then the watch, whatever happens to server or network."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from tokenservice.api.meta import ObjectMeta
from tokenservice.api.names import OPERATOR
from tokenservice.kube.apply import keep_own_fields
from tokenservice.kube.client import Batch, Client, Resource, decode
from tokenservice.kube.errors import ApiError, Status, Unreachable
from tokenservice.kube.store import HasMetadata, Key, Store, version_of

__all__ = ["HasMetadata", "Informer", "InformerMetrics"]

log = logging.getLogger(__name__)

T = TypeVar("T", bound=HasMetadata)

CHUNK = 500
_STEADY_SECONDS = 5.0  # a watch that held this long shows that the trouble before it is over


class InformerMetrics(Protocol):
    """What an informer reports; implemented where metrics are kept."""

    def event(self, resource: str, kind: str) -> None:
        """One watch event: ADDED, MODIFIED, DELETED or BOOKMARK."""

    def restarted(self, resource: str, cause: str) -> None:
        """The watch begins again: closed (by the server, in time), expired, unreachable, refused or undecodable."""


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _Only(msgspec.Struct):
    metadata: ObjectMeta


class _RawPage(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Envelope(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Expired(Exception):  # noqa: N818 - a turn in the protocol
    """The watch cannot go on from where it was: list again."""


class Informer(Generic[T]):
    """A cache of the objects of one kind that match a label selector.

    decode_type: a msgspec struct with `metadata: ObjectMeta`; of managedFields only `manager`'s entry is kept. index:
    a secondary key, for example the owner as "namespace/name". on_change(old, new): see `Store`; it is called from
    the event loop and must only take note. inactivity: seconds of silence, bookmarks included (one a minute), after
    which the watch is begun again.

    `run` never ends by itself. Reading is possible at any time, and complete once `synced` is set.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        decode_type: type[T],
        *,
        on_change: Callable[[T | None, T | None], None],
        label_selector: str | None = None,
        namespace: str | None = None,
        index: Callable[[T], str | None] | None = None,
        manager: str = OPERATOR,
        metrics: InformerMetrics | None = None,
        inactivity: float = 120.0,
        watch_seconds: int = 300,
        backoff: tuple[float, float] = (0.5, 30.0),
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
        self._client = client
        self._where: dict[str, Any] = {"namespace": namespace, "label_selector": label_selector}
        self._manager = manager
        self._metrics = metrics
        self._inactivity = inactivity
        self._watch_seconds = watch_seconds
        self._backoff = backoff
        self._clock = clock
        self._rand = rand
        self._store: Store[T] = Store(on_change, index)
        self._decoder = msgspec.json.Decoder(decode_type)
        items: Any = list[decode_type] | None  # type: ignore[valid-type]
        page = msgspec.defstruct("Page", [("metadata", _ListMeta), ("items", items, None)])
        self._page_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(page)
        self._failures = 0
        self._last_event: float | None = None

    # -- reading

    def get(self, namespace: str, name: str) -> T | None:
        """The object, or None."""
        return self._store.get(namespace, name)

    def by_index(self, key: str) -> tuple[T, ...]:
        """The objects whose secondary key is `key`."""
        return self._store.by_index(key)

    def all(self) -> Iterable[T]:
        """Every object, as of now."""
        return self._store.all()

    def __len__(self) -> int:
        return len(self._store)

    def last_event_age(self) -> float:
        """Seconds since the server was last heard of; infinite before the first list."""
        return float("inf") if self._last_event is None else self._clock() - self._last_event

    # -- read your writes

    def decode(self, data: bytes) -> T:
        """An object out of an answer to one of our own requests. Raises msgspec.ValidationError."""
        return self._lean(self._decoder.decode(data))

    def observe(self, obj: T) -> None:
        """Takes in the answer to our own write, so that the next look does not see the state before it."""
        self._store.observe(obj)

    # -- following

    async def run(self) -> None:
        """Lists, then watches, for ever; ends by cancellation only."""
        listed = False
        while True:
            started = self._clock()
            try:
                if not listed:
                    await self._list()
                    listed = True
                    self.synced.set()
                started = self._clock()
                await self._watch()
                cause = "closed"
            except _Expired as error:
                listed, cause = False, "expired"
                log.info("Listing again", extra={"data": {"resource": self.resource.plural, "cause": str(error)}})
            except Unreachable as error:
                cause = "unreachable"
                self._complain("The API server cannot be reached", error)
            except ApiError as error:
                listed = listed and not error.is_expired
                cause = "expired" if error.is_expired else "refused"
                self._complain("The API server refuses the list or watch", error)
            except msgspec.MsgspecError as error:
                cause = "undecodable"
                self._complain("The API server's answer makes no sense", error)
            if self._metrics is not None:
                self._metrics.restarted(self.resource.plural, cause)
            await self._pause(steady=self._clock() - started >= _STEADY_SECONDS and listed)

    async def _pause(self, *, steady: bool) -> None:
        if steady:
            self._failures = 0
            return
        low, high = self._backoff
        ceiling = min(high, low * 2 ** min(self._failures, 16))
        self._failures += 1
        await asyncio.sleep(ceiling * (0.5 + self._rand() / 2))

    def _complain(self, message: str, error: Exception) -> None:
        # The first failure may be a connection that broke; people should hear of the second.
        level = logging.WARNING if self._failures else logging.INFO
        log.log(level, message, extra={"data": {"resource": self.resource.plural, "error": str(error)}})

    async def _list(self) -> None:
        token, first, limit = "", True, CHUNK
        while True:
            try:
                data = await self._client.list_page(self.resource, **self._where, limit=limit, continue_token=token)
            except ApiError as error:
                if not (error.is_expired and token):
                    raise
                # The list took longer than the server remembers: once more, in one piece, as client-go does.
                token, first, limit = "", True, 0
                continue
            meta = self._page(data, first=first)
            self._heard()
            token, first = meta.continue_, False
            if not token:
                break
        self._store.end_list()

    def _page(self, data: bytes, *, first: bool) -> _ListMeta:
        try:
            page = self._page_decoder.decode(data)
            objects: Iterable[T] = page.items or ()
            unreadable: tuple[Key, ...] = ()
        except msgspec.ValidationError:  # one bad object must not hide the others
            page = decode(data, _RawPage)
            objects, unreadable = self._one_by_one(page.items or ())
        if first:
            self._store.begin_list(int(page.metadata.resource_version))
        for obj in objects:
            self._store.listed(self._lean(obj))
        for key in unreadable:
            self._store.listed_unreadable(key)
        meta: _ListMeta = page.metadata
        return meta

    def _one_by_one(self, items: Iterable[msgspec.Raw]) -> tuple[list[T], tuple[Key, ...]]:
        objects: list[T] = []
        unreadable: list[Key] = []
        for item in items:
            try:
                objects.append(self._decoder.decode(item))
            except msgspec.ValidationError as error:
                meta = decode(item, _Only).metadata
                self._skip(meta, error)
                unreadable.append((meta.namespace, meta.name))
        return objects, tuple(unreadable)

    async def _watch(self) -> None:
        position = self._store.position
        seconds = int(self._watch_seconds * (1 + self._rand()))  # spread, so that all watches do not end at once
        stream = self._client.watch(
            self.resource, **self._where, resource_version=str(position), seconds=seconds, inactivity=self._inactivity
        )
        async with aclosing(stream) as batches:
            async for batch in batches:
                self._heard()
                self._take(batch)

    def _take(self, batch: Batch) -> None:
        for line in batch:
            # The usual line is cut by its known beginning, which spares a second pass over the object.
            if line.startswith(_MODIFIED):
                self._event("MODIFIED", memoryview(line)[len(_MODIFIED) : -1])
            elif line.startswith(_ADDED):
                self._event("ADDED", memoryview(line)[len(_ADDED) : -1])
            else:
                envelope = decode(line, _Envelope)
                self._event(envelope.type, envelope.object)

    def _event(self, kind: str, data: memoryview | msgspec.Raw) -> None:
        store = self._store
        if kind in {"ADDED", "MODIFIED"}:
            try:
                obj = self._decoder.decode(data)
            except msgspec.ValidationError as error:
                meta = decode(data, _Only).metadata
                self._skip(meta, error)
                store.advance(int(meta.resource_version))
            else:
                store.changed(self._lean(obj))
        elif kind == "DELETED":
            gone = decode(data, _Only)
            store.deleted((gone.metadata.namespace, gone.metadata.name), version_of(gone))
        elif kind == "BOOKMARK":
            version = version_of(decode(data, _Only))
            if store.position is not None and version < store.position:
                raise _Expired("the server is behind what it has shown before")
            store.advance(version)
        elif kind == "ERROR":
            error_ = ApiError.from_status(decode(data, Status))
            if error_.is_expired:
                raise _Expired(error_.message)
            raise error_
        if self._metrics is not None:
            self._metrics.event(self.resource.plural, kind)

    def _lean(self, obj: T) -> T:
        meta = obj.metadata
        if meta.managed_fields:
            # A fresh object that nobody else has seen: changed in place rather than copied.
            msgspec.structs.force_setattr(meta, "managed_fields", keep_own_fields(meta.managed_fields, self._manager))
        return obj

    def _skip(self, meta: ObjectMeta, error: Exception) -> None:
        data = {"resource": self.resource.plural, "namespace": meta.namespace, "name": meta.name, "error": str(error)}
        log.error("An object cannot be read and is left as it was", extra={"data": data})

    def _heard(self) -> None:
        self._last_event = self._clock()


_ADDED = b'{"type":"ADDED","object":'
_MODIFIED = b'{"type":"MODIFIED","object":'
