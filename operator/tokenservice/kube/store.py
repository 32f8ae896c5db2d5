"""What an informer knows of the objects of one kind: merges lists, watch events and the answers to our own writes.

Pure: no input or output, no clock. `Store` decides what is newer and tells `on_change` what became different.

resourceVersions are compared as numbers: the events of one kind arrive in their order, and the *position* is the
version up to which everything has arrived (the last event, bookmark or list). From that follows how an answer to our
own write is judged without keeping tombstones: at or below the position the stream has told all there is to tell, so
an object that the store does not hold is gone; above it, the answer is news.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from tokenservice.api.meta import ObjectMeta

log = logging.getLogger(__name__)


class HasMetadata(Protocol):
    @property
    def metadata(self) -> ObjectMeta: ...


T = TypeVar("T", bound=HasMetadata)
Key = tuple[str, str]
"""Namespace (empty for objects of the whole cluster) and name."""


def key_of(obj: HasMetadata) -> Key:
    """Namespace and name."""
    return obj.metadata.namespace, obj.metadata.name


def version_of(obj: HasMetadata) -> int:
    """The resourceVersion as a number."""
    return int(obj.metadata.resource_version)


class Store(Generic[T]):
    """Objects by namespace and name, and by one secondary key.

    on_change(old, new) is called for every object that became different: old is None for a new one, new is None for
    one that is gone. What it raises is logged and goes no further. It is not called for `observe`: whoever wrote
    knows already.
    """

    def __init__(
        self, on_change: Callable[[T | None, T | None], None], index: Callable[[T], str | None] | None = None
    ) -> None:
        self._on_change = on_change
        self._index = index
        self._objects: dict[Key, T] = {}
        self._by_index: dict[str, dict[Key, T]] = {}
        self._seen: set[Key] = set()  # while a list comes in: what it has mentioned so far
        self._listed_at = 0
        self._rewound = False
        self.position: int | None = None
        """The resourceVersion up to which everything has arrived; None before the first list."""

    def get(self, namespace: str, name: str) -> T | None:
        """The object, or None."""
        return self._objects.get((namespace, name))

    def by_index(self, key: str) -> tuple[T, ...]:
        """The objects whose secondary key is `key`."""
        found = self._by_index.get(key)
        return tuple(found.values()) if found else ()

    def all(self) -> Iterable[T]:
        """Every object, as of now."""
        return tuple(self._objects.values())

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[T]:
        return iter(self.all())

    # -- lists

    def begin_list(self, version: int) -> None:
        """The first page of a list says that it shows the state at `version`."""
        # A list below the position can only come from a server that went back in time: its etcd was restored from a
        # backup. Then nothing that is held counts as newer.
        self._rewound = self.position is not None and version < self.position
        self._listed_at = version
        self._seen = set()

    def listed(self, obj: T) -> None:
        """An object in the list."""
        key = key_of(obj)
        self._seen.add(key)
        held = self._objects.get(key)
        if held is not None:
            newer = version_of(held) > version_of(obj)
            if (newer and not self._rewound) or held.metadata.resource_version == obj.metadata.resource_version:
                return
        self._put(key, obj, held)

    def listed_unreadable(self, key: Key) -> None:
        """An object in the list that cannot be decoded: what was known of it stays."""
        self._seen.add(key)

    def end_list(self) -> None:
        """The list is complete: what it did not mention is gone, unless it was written after the list was made."""
        for key, held in tuple(self._objects.items()):
            if key not in self._seen and (self._rewound or version_of(held) <= self._listed_at):
                self._drop(key, held)
        self._seen = set()
        self.position = self._listed_at

    # -- watch events

    def changed(self, obj: T) -> None:
        """ADDED or MODIFIED."""
        key = key_of(obj)
        held = self._objects.get(key)
        self.advance(version_of(obj))
        if held is None or version_of(held) < version_of(obj):
            self._put(key, obj, held)

    def deleted(self, key: Key, version: int) -> None:
        """DELETED, at `version`; an object of that name that we have seen being created since then stays."""
        held = self._objects.get(key)
        self.advance(version)
        if held is not None and version_of(held) <= version:
            self._drop(key, held)

    def advance(self, version: int) -> None:
        """Everything up to `version` has arrived."""
        if self.position is None or version > self.position:
            self.position = version

    # -- our own writes

    def observe(self, obj: T) -> None:
        """The answer to a write: kept unless the store holds something newer or knows that it is gone."""
        key = key_of(obj)
        version = version_of(obj)
        held = self._objects.get(key)
        if self.position is not None and version <= self.position:
            return  # the stream has been past it: what is held is that or newer, what is not held is gone
        if held is None or version_of(held) < version:
            self._replace(key, obj, held)

    # -- bookkeeping

    def _put(self, key: Key, obj: T, held: T | None) -> None:
        self._replace(key, obj, held)
        self._tell(held, obj)

    def _drop(self, key: Key, held: T) -> None:
        del self._objects[key]
        self._unindex(key, held)
        self._tell(held, None)

    def _replace(self, key: Key, obj: T, held: T | None) -> None:
        self._objects[key] = obj
        if self._index is None:
            return
        if held is not None:
            self._unindex(key, held)
        value = self._index(obj)
        if value is not None:
            self._by_index.setdefault(value, {})[key] = obj

    def _unindex(self, key: Key, held: T) -> None:
        value = self._index(held) if self._index is not None else None
        if value is not None:
            group = self._by_index[value]
            del group[key]
            if not group:
                del self._by_index[value]

    def _tell(self, old: T | None, new: T | None) -> None:
        try:
            self._on_change(old, new)
        except Exception:  # the stream must go on for everybody else
            log.exception("Handling a change failed")
