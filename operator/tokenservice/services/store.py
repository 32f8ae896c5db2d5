"""The TokenServices known to the operator, fed by kopf's watch and by the answers to our own writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tokenservice.api.v1alpha1 import TokenService

_decoder = msgspec.json.Decoder(TokenService)

Key = tuple[str, str]
"""Namespace and name."""


def key_of(raw: Mapping[str, Any]) -> Key:
    metadata = raw["metadata"]
    return metadata["namespace"], metadata["name"]


def decode(raw: Mapping[str, Any]) -> TokenService:
    """The struct for a resource as kopf hands it over.

    Raises:
        msgspec.ValidationError: it does not follow the CRD that this operator knows; the text names the field.

    """
    # Managed fields are a third of the object and of no use here.
    metadata = {name: value for name, value in raw["metadata"].items() if name != "managedFields"}
    return msgspec.convert({**raw, "metadata": metadata}, TokenService)


def read(data: bytes | msgspec.Raw) -> TokenService:
    """The struct for a resource as the API server sends it.

    Raises:
        msgspec.ValidationError: as `decode`.

    """
    service = _decoder.decode(data)
    # They would keep the whole message in memory, and nobody asks who owns what of a TokenService.
    msgspec.structs.force_setattr(service.metadata, "managed_fields", ())
    return service


class Store:
    """Newest known version of each TokenService."""

    def __init__(self) -> None:
        self._items: dict[Key, TokenService] = {}
        self._users: dict[Key, set[Key]] = {}
        """CondaEnvironment -> the TokenServices that run in it."""
        self._takers: dict[Key, set[Key]] = {}
        """WarmPool -> the TokenServices that take pods from it."""

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[TokenService]:
        return iter(self._items.values())

    def get(self, key: Key) -> TokenService | None:
        return self._items.get(key)

    def observe(self, service: TokenService) -> bool:
        """Keeps `service` unless a newer version is known. Returns whether it was new."""
        key = (service.metadata.namespace, service.metadata.name)
        known = self._items.get(key)
        if known and known.metadata.uid == service.metadata.uid and _version(service) <= _version(known):
            return False
        self._forget(key, known)
        self._items[key] = service
        if service.environment_name:
            self._users.setdefault((key[0], service.environment_name), set()).add(key)
        if service.pool_name:
            self._takers.setdefault((key[0], service.pool_name), set()).add(key)
        return True

    def remove(self, key: Key) -> None:
        self._forget(key, self._items.pop(key, None))

    def users_of(self, namespace: str, environment_name: str) -> tuple[Key, ...]:
        """The TokenServices whose spec names this CondaEnvironment, or has it inline; whether it exists or not."""
        return tuple(self._users.get((namespace, environment_name), ()))

    def takers_of(self, namespace: str, pool_name: str) -> tuple[Key, ...]:
        """The TokenServices whose spec names this WarmPool, or has it as their own; whether it exists or not."""
        return tuple(self._takers.get((namespace, pool_name), ()))

    def _forget(self, key: Key, service: TokenService | None) -> None:
        if service is None:
            return
        for name, group in ((service.environment_name, self._users), (service.pool_name, self._takers)):
            if not name:
                continue
            keys = group[key[0], name]
            keys.discard(key)
            if not keys:
                del group[key[0], name]


def _version(service: TokenService) -> int:
    # Comparable since KEP-5504: resource versions of one resource are increasing integers.
    return int(service.metadata.resource_version or 0)
