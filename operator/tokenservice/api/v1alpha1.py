"""The resources of tokenservice.dev/v1alpha1 as structs.

The commented CRDs in crds/ are the source of truth; a contract test holds these types equal to them. What each field
means is said there. `None` stands for a field that is absent.
"""

from __future__ import annotations

from typing import Any, Literal

from tokenservice.api.meta import Condition, ObjectMeta, Struct


class SecretKeyRef(Struct, frozen=True, kw_only=True):
    name: str
    key: str = "token"


class SecretRef(Struct, frozen=True, kw_only=True):
    name: str


class Model(Struct, frozen=True, kw_only=True):
    source: str
    revision: str | None = None
    name: str | None = None
    auth_secret_ref: SecretKeyRef | None = None
    trust_remote_code: bool = False


class Engine(Struct, frozen=True, kw_only=True):
    name: Literal["transformers"] = "transformers"
    args: tuple[str, ...] = ()


class EnvironmentRef(Struct, frozen=True, kw_only=True):
    name: str


class ImageEnvironment(Struct, frozen=True, kw_only=True):
    reference: str
    conda_env: str | None = None


class Environment(Struct, frozen=True, kw_only=True):
    """Exactly one of the three is there, says the CRD. `conda` is passed on as it stands, so that nothing gets lost."""

    ref: EnvironmentRef | None = None
    conda: dict[str, Any] | None = None
    image: ImageEnvironment | None = None


class Rollout(Struct, frozen=True, kw_only=True):
    max_surge: int | str = 1
    max_unavailable: int | str = 0
    pre_pull: bool = True
    progress_deadline_seconds: int = 600
    on_failure: Literal["Rollback", "Pause"] = "Rollback"


class Api(Struct, frozen=True, kw_only=True):
    key_secret_ref: SecretRef


class ServicePool(Struct, frozen=True, kw_only=True):
    """Exactly one of `name` and `replicas` is there, says the CRD."""

    name: str | None = None
    replicas: int | None = None
    policy: Literal["Preferred", "Required", "Never"] = "Preferred"


class TokenServiceSpec(Struct, frozen=True, kw_only=True):
    model: Model
    environment: Environment
    engine: Engine = Engine()
    replicas: int = 1
    warm_pool: ServicePool | None = None
    template: dict[str, Any] | None = None
    rollout: Rollout = Rollout()
    api: Api | None = None
    paused: bool = False


class EnvironmentStatus(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What the newest pod template runs in; `hash` and `lock_digest` are those that `image` was made from.

    Written whole: in a merge patch, what is left out would stay as it was.
    """

    image: str
    conda_env: str | None = None
    hash: str | None = None
    lock_digest: str | None = None


class Failure(Struct, frozen=True, kw_only=True):
    """Why a pod does not serve, in the words of the kubelet, the scheduler or the container itself."""

    reason: str
    message: str = ""
    pod: str = ""
    container: str = ""


class StartStages(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Seconds of each stage that a start had. Written whole, as an EnvironmentStatus is."""

    claim: float | None = None
    scheduling: float | None = None
    pull: float | None = None
    container: float | None = None
    imports: float | None = None
    prepare: float | None = None
    weights: float | None = None
    warmup: float | None = None
    endpoint: float | None = None


class LastStart(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Where the seconds of the newest pod's start went."""

    path: Literal["Cold", "Prepulled", "Warm"]
    seconds: float
    stages: StartStages = StartStages()
    pod: str = ""
    at: str | None = None


class TokenServiceStatus(Struct, frozen=True, kw_only=True, omit_defaults=False):
    observed_generation: int = 0
    url: str | None = None
    selector: str | None = None
    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    warm_replicas: int = 0
    current_revision: str | None = None
    update_revision: str | None = None
    last_good_revision: str | None = None
    environment: EnvironmentStatus | None = None
    last_start: LastStart | None = None
    failures: tuple[Failure, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        """The condition of that type, if it was ever written."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


class TokenService(Struct, frozen=True, kw_only=True):
    metadata: ObjectMeta
    spec: TokenServiceSpec
    status: TokenServiceStatus = TokenServiceStatus()

    @property
    def environment_name(self) -> str | None:
        """The CondaEnvironment that it runs in: the one named, or of its own name; None for a prebuilt image."""
        environment = self.spec.environment
        if environment.ref:
            return environment.ref.name
        return None if environment.conda is None else self.metadata.name

    @property
    def pool_name(self) -> str | None:
        """The WarmPool that it takes pods from: the one named, or its own of its own name; None without one."""
        pool = self.spec.warm_pool
        if pool is None:
            return None
        return pool.name or self.metadata.name
