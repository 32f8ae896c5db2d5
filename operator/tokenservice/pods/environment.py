"""What pods run in, and how far the CondaEnvironment is that is asked for: pure functions."""

from __future__ import annotations

from tokenservice.api import conditions as names
from tokenservice.api.conditions import Verdict
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import Condition
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import EnvironmentStatus, TokenService
from tokenservice.pods.refusal import Refusal

User = TokenService | WarmPool
"""Whose pods run in an environment."""


def runs_in(user: User, environment: CondaEnvironment | None) -> EnvironmentStatus | None:
    """What the pods are to run in; None if no image was ever there.

    A CondaEnvironment's image is always its last good one. Where it has none (it is new, or gone), what the pods ran in
    until now stays, also while the spec moves from one environment to another.
    """
    prebuilt = user.spec.environment.image
    if prebuilt:
        return EnvironmentStatus(image=prebuilt.reference, conda_env=prebuilt.conda_env)
    before = user.status.environment
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


def verdict(
    user: User, environment: CondaEnvironment | None, refusal: Refusal | None = None, *, outdated: bool = False
) -> Verdict | None:
    """EnvironmentReady, in the CondaEnvironment's own words; None for a prebuilt image.

    refusal: why the CondaEnvironment that the spec has inline cannot be applied.
    outdated: the CondaEnvironment is yet to be applied: what it says is about another spec.
    """
    name = user.environment_name
    if name is None:
        return None
    if refusal:
        return "False", refusal.reason, refusal.message
    if environment is None and user.spec.environment.ref:
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
