"""What a TokenService has to do with CondaEnvironments: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Collection

from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import ObjectMeta
from tokenservice.api.v1alpha1 import TokenService
from tokenservice.kube.apply import owned_fields
from tokenservice.pods.environment import runs_in
from tokenservice.pods.manifests import Manifest
from tokenservice.pods.refusal import Refusal
from tokenservice.services.snapshot import Surroundings


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
        users_of: the TokenServices and WarmPools of the namespace whose specs ask for the CondaEnvironment of that
            name.

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


def from_newest(service: TokenService, environment: CondaEnvironment | None) -> bool:
    """Whether `runs_in` is something that the spec names now, not what an earlier one left."""
    return service.spec.environment.image is not None or bool(environment and environment.status.image)
