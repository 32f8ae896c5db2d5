"""What a TokenService runs in, and how far the CondaEnvironment is that it asks for: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Collection

from tokenservice.api import conditions as names
from tokenservice.api.conditions import Verdict
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import Condition, ObjectMeta
from tokenservice.api.v1alpha1 import EnvironmentStatus, TokenService
from tokenservice.kube.apply import owned_fields
from tokenservice.pods.manifests import Manifest
from tokenservice.services.snapshot import Refusal, Surroundings


def ours(service: TokenService, metadata: ObjectMeta) -> bool:
    """Whether an object with the service's name is its child, or may become it.

    What this operator made and nobody controls is adopted, as Kubernetes' own controllers do: its owner reference was
    removed by hand, or it was orphaned on purpose (`kubectl delete --cascade=orphan`) to outlive its TokenService.
    """
    owner = metadata.controller
    if owner is None:
        return owned_fields(metadata.managed_fields) is not None
    return owner.uid == service.metadata.uid


def surroundings(
    service: TokenService,
    wanted: Manifest | None,
    refusal: Refusal | None,
    get: Callable[[str], CondaEnvironment | None],
    users_of: Callable[[str], Collection[object]],
) -> Surroundings:
    """The part of a snapshot that is about CondaEnvironments.

    Args:
        service: the TokenService.
        wanted: the CondaEnvironment of its inline spec, to be applied.
        refusal: why that cannot be applied.
        get: the CondaEnvironment of that name in the namespace.
        users_of: the TokenServices of the namespace whose specs ask for the CondaEnvironment of that name.

    """
    name = service.metadata.name
    own, used = get(name), None
    if service.spec.environment.ref:
        used = get(service.spec.environment.ref.name)
    elif service.spec.environment.conda is not None and own and ours(service, own.metadata):
        used = own
    others = len(users_of(name)) - (service.environment_name == name) if own else 0
    return Surroundings(
        wanted=wanted,
        refusal=refusal,
        used=used,
        own=own,
        shared=others > 0,
        runs_in=runs_in(service, used),
    )


def runs_in(service: TokenService, environment: CondaEnvironment | None) -> EnvironmentStatus | None:
    """What the pods are to run in; None if no image was ever there.

    A CondaEnvironment's image is always its last good one. Where it has none (it is new, or gone), what the pods ran in
    until now stays, also while the spec moves from one environment to another.
    """
    prebuilt = service.spec.environment.image
    if prebuilt:
        return EnvironmentStatus(image=prebuilt.reference, conda_env=prebuilt.conda_env)
    before = service.status.environment
    image = environment.status.image if environment else None
    if environment is None or image is None:
        return before
    found = environment.status
    if _ready(environment):
        return EnvironmentStatus(image=image, hash=found.hash, lock_digest=found.lock_digest)
    # Hash and lock of its status may speak of the next image already, which is not built yet.
    if before and (before.image, before.conda_env) == (image, None):
        return before
    locked = next((past.lock_digest for past in found.history if past.image == image), None)
    return EnvironmentStatus(image=image, lock_digest=locked)


def from_newest(service: TokenService, environment: CondaEnvironment | None) -> bool:
    """Whether `runs_in` is something that the spec names now, not what an earlier one left."""
    return service.spec.environment.image is not None or bool(environment and environment.status.image)


def verdict(
    service: TokenService, environment: CondaEnvironment | None, refusal: Refusal | None, *, outdated: bool
) -> Verdict | None:
    """EnvironmentReady, in the CondaEnvironment's own words; None for a prebuilt image.

    outdated: the CondaEnvironment is yet to be applied: what it says is about another spec.
    """
    name = service.environment_name
    if name is None:
        return None
    if refusal:
        return "False", refusal.reason, refusal.message
    if environment is None and service.spec.environment.ref:
        return (
            "False",
            names.NOT_FOUND,
            f"no CondaEnvironment {name} in this namespace; make it, or name another one in spec.environment.ref",
        )
    if environment is None:
        return "Unknown", names.LOCKING, f"CondaEnvironment {name} is being made"
    if outdated or environment.status.observed_generation < environment.metadata.generation:
        return "Unknown", names.LOCKING, f"CondaEnvironment {name} has changed and is about to be looked at"
    if _ready(environment):
        return "True", names.BUILT, f"CondaEnvironment {name} is built"
    wanting = _wanting(environment)
    if wanting is None:
        return "Unknown", names.LOCKING, f"CondaEnvironment {name} is about to be looked at"
    return wanting.status, wanting.reason, wanting.message


def _ready(environment: CondaEnvironment) -> bool:
    """Whether the image is that of the newest spec."""
    status = environment.status
    ready = status.condition(names.READY)
    newest = status.observed_generation >= environment.metadata.generation
    return status.image is not None and newest and ready is not None and ready.status == "True"


def _wanting(environment: CondaEnvironment) -> Condition | None:
    """The first step that is not done: of several, the cause of the others."""
    steps = (environment.status.condition(kind) for kind in ("Locked", "Built", names.READY))
    return next((step for step in steps if step and step.status != "True"), None)
