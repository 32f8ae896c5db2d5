"""What a reconciler needs of an informer, or of several that watch a namespace each."""

from __future__ import annotations

from typing import Protocol, TypeVar

T = TypeVar("T")


class Cache(Protocol[T]):
    """What is known of the objects of one kind."""

    def get(self, namespace: str, name: str) -> T | None: ...

    def by_index(self, key: str) -> tuple[T, ...]: ...

    def decode(self, data: bytes) -> T: ...

    def observe(self, obj: T) -> None: ...
