"""WarmPool of tokenservice.dev/v1alpha1 as structs; crds/ is the source of truth, as for v1alpha1.py."""

from __future__ import annotations

from typing import Any

from tokenservice.api.meta import Condition, ObjectMeta, Struct
from tokenservice.api.v1alpha1 import Api, EnvironmentRef, EnvironmentStatus, Failure, ImageEnvironment


class PoolEnvironment(Struct, frozen=True, kw_only=True):
    """Exactly one of the two is there, says the CRD."""

    ref: EnvironmentRef | None = None
    image: ImageEnvironment | None = None


class Refill(Struct, frozen=True, kw_only=True):
    max_per_second: int = 10


class WarmPoolSpec(Struct, frozen=True, kw_only=True):
    environment: PoolEnvironment
    replicas: int = 1
    preload: tuple[str, ...] = ()
    template: dict[str, Any] | None = None
    api: Api | None = None
    refill: Refill = Refill()


class WarmPoolStatus(Struct, frozen=True, kw_only=True, omit_defaults=False):
    observed_generation: int = 0
    selector: str | None = None
    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    claimed: int = 0
    hits: int = 0
    misses: int = 0
    environment: EnvironmentStatus | None = None
    failures: tuple[Failure, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        """The condition of that type, if it was ever written."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


class WarmPool(Struct, frozen=True, kw_only=True):
    metadata: ObjectMeta
    spec: WarmPoolSpec
    status: WarmPoolStatus = WarmPoolStatus()

    @property
    def environment_name(self) -> str | None:
        """The CondaEnvironment whose image its pods run; None for a prebuilt image."""
        return self.spec.environment.ref.name if self.spec.environment.ref else None
