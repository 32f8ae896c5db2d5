"""One cache out of several informers that watch a namespace each, or of a single one that watches all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from tokenservice.kube.informer import HasMetadata, Informer

T = TypeVar("T", bound=HasMetadata)


class Namespaced(Generic[T]):
    """The informers of one resource.

    `make` makes the informer of a namespace, or of the whole cluster when it gets None.
    """

    def __init__(self, namespaces: Iterable[str], make: Callable[[str | None], Informer[T]]) -> None:
        self._by_namespace = {namespace: make(namespace) for namespace in namespaces}
        self._all = None if self._by_namespace else make(None)

    @property
    def informers(self) -> tuple[Informer[T], ...]:
        return (self._all,) if self._all is not None else tuple(self._by_namespace.values())

    def get(self, namespace: str, name: str) -> T | None:
        informer = self._informer(namespace)
        return informer.get(namespace, name) if informer is not None else None

    def by_index(self, key: str) -> tuple[T, ...]:
        return tuple(item for informer in self.informers for item in informer.by_index(key))

    def all(self) -> tuple[T, ...]:
        """Every object, as of now."""
        return tuple(item for informer in self.informers for item in informer.all())

    def decode(self, data: bytes) -> T:
        """An object out of an answer to one of our own requests."""
        return self.informers[0].decode(data)

    def observe(self, obj: T) -> None:
        informer = self._informer(obj.metadata.namespace)
        if informer is not None:
            informer.observe(obj)

    def _informer(self, namespace: str) -> Informer[T] | None:
        return self._by_namespace.get(namespace) if self._all is None else self._all
