"""CondaEnvironment of tokenservice.dev/v1alpha1 as structs; crds/ is the source of truth, as for v1alpha1.py."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tokenservice.api.jobs import VirtualPackages
from tokenservice.api.meta import Condition, ObjectMeta, Struct


class Rebuild(Struct, frozen=True, kw_only=True):
    """When the image is built again of the same lock; `schedule` as tokenservice.environments.schedule reads it."""

    schedule: str


class CondaEnvironmentSpec(Struct, frozen=True, kw_only=True):
    """What the schema promises; the environment itself is checked by tokenservice.environments.spec.

    `channels`, `dependencies` and `variables` may hold anything that YAML allows, so that mistakes in them are told by
    the operator, with the entry and what to write instead, and not by a decoder.
    """

    name: Any = None
    channels: Any = None
    dependencies: Any = None
    variables: Any = None
    platform: Literal["linux-64", "linux-aarch64"] = "linux-64"
    virtual_packages: VirtualPackages = VirtualPackages()
    base_image: str | None = None
    exclude_newer: str | None = None
    lock: str | None = None
    rebuild: Rebuild | None = None


class EnvironmentBytes(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Bytes of the image as stored in the registry (compressed), sent for it, and there before.

    Written whole: in a merge patch, a zero that is left out would leave the number of the image before.
    """

    total: int = 0
    pushed: int = 0
    shared: int = 0


class HistoryEntry(Struct, frozen=True, kw_only=True):
    """An image that was built of this environment, and the lock it was built of."""

    lock_digest: str
    lock: str
    image: str


class CondaEnvironmentStatus(Struct, frozen=True, kw_only=True, omit_defaults=False):
    observed_generation: int = 0
    hash: str | None = None
    hash_version: int | None = None
    lock_digest: str | None = None
    lock: str | None = None
    image: str | None = None
    build_hash: str | None = None
    base: str | None = None
    packages: int | None = None
    bytes: EnvironmentBytes | None = None
    history: tuple[HistoryEntry, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        """The condition of that type, if it was ever written."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


class CondaEnvironment(Struct, frozen=True, kw_only=True):
    """`spec` is kept as it stands, unknown keys included, for the check that names them; `typed` reads it."""

    metadata: ObjectMeta
    spec: dict[str, Any]
    status: CondaEnvironmentStatus = CondaEnvironmentStatus()

    @property
    def typed(self) -> CondaEnvironmentSpec:
        """The spec's fields that the CRD's schema has checked."""
        return msgspec.convert(self.spec, CondaEnvironmentSpec)
