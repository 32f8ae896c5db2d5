"""The CondaEnvironments known to the operator, fed by an informer and by the answers to our own writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from tokenservice.api.environments import CondaEnvironment
from tokenservice.kube.apply import keep_own_fields

_decoder = msgspec.json.Decoder(CondaEnvironment)

Key = tuple[str, str]
"""Namespace and name."""

OnChange = Callable[[CondaEnvironment | None, CondaEnvironment | None], None]


def read(data: bytes | msgspec.Raw) -> CondaEnvironment:
    """The struct for a resource as the API server sends it.

    Raises:
        msgspec.ValidationError: it does not follow the CRD that this operator knows; the text names the field.

    """
    return _lean(_decoder.decode(data))


class Store:
    """Newest known version of each CondaEnvironment, and the Jobs that work for it.

    on_change(old, new) is told of each that became newer, whoever brought the news: old is None for a new one, new is
    None for one that is gone.
    """

    def __init__(self, on_change: OnChange = lambda _old, _new: None) -> None:
        self._on_change = on_change
        self._items: dict[Key, CondaEnvironment] = {}
        self._wants: dict[Key, frozenset[str]] = {}
        self._wanted_by: dict[str, set[Key]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[CondaEnvironment]:
        return iter(self._items.values())

    def get(self, namespace: str, name: str) -> CondaEnvironment | None:
        return self._items.get((namespace, name))

    def observe(self, environment: CondaEnvironment) -> bool:
        """Keeps `environment` unless a newer version is known. Returns whether it was new."""
        key = (environment.metadata.namespace, environment.metadata.name)
        known = self._items.get(key)
        if known and known.metadata.uid == environment.metadata.uid and _version(environment) <= _version(known):
            return False
        self._items[key] = environment
        self._on_change(known, environment)
        return True

    def remove(self, key: Key) -> None:
        self.want(key, None)
        known = self._items.pop(key, None)
        if known is not None:
            self._on_change(known, None)

    # -- who waits for which Job

    def want(self, key: Key, hashes: frozenset[str] | None) -> bool:
        """The environment waits for the Jobs of these needs, and no others; None: it is not known yet, or gone.

        Returns whether it no longer waits for something that it waited for.
        """
        before = self._wants.pop(key, frozenset())
        for one in before:
            waiting = self._wanted_by[one]
            waiting.discard(key)
            if not waiting:
                del self._wanted_by[one]
        if hashes is not None:
            self._wants[key] = hashes
        for one in hashes or ():
            self._wanted_by.setdefault(one, set()).add(key)
        return bool(before - (hashes or frozenset()))

    def waiting_for(self, need: str) -> tuple[Key, ...]:
        """The environments that wait for the Job of this need."""
        return tuple(self._wanted_by.get(need, ()))

    @property
    def wanted(self) -> frozenset[str] | None:
        """The needs of all; None before every environment was looked at."""
        if any(key not in self._wants for key in self._items):
            return None
        return frozenset(self._wanted_by)


def _lean(environment: CondaEnvironment) -> CondaEnvironment:
    """Without the managed fields of others, which would keep the whole message in memory."""
    metadata = environment.metadata
    msgspec.structs.force_setattr(metadata, "managed_fields", keep_own_fields(metadata.managed_fields))
    return environment


def _version(environment: CondaEnvironment) -> int:
    return int(environment.metadata.resource_version or 0)
