"""What is: everything a plan is made from, frozen at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import ControllerRevision, Deployment, Node, Object, Pod
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import EnvironmentStatus, LastStart, TokenService
from tokenservice.handover.claim import Claim
from tokenservice.pods.manifests import Manifest
from tokenservice.pods.refusal import Refusal
from tokenservice.services.render import Children
from tokenservice.services.verify import Answer


@dataclass(frozen=True)
class Surroundings:
    """What a TokenService has to do with CondaEnvironments; nothing at all with a prebuilt image.

    Attributes:
        wanted: the CondaEnvironment to apply, for a spec that has it inline.
        refusal: why that cannot be applied. It stops nothing else: what runs keeps running, and can be scaled.
        used: the one that the spec names or has inline, as it is.
        own: the one that has the service's own name, as it is, whosesoever.
        shared: whether other TokenServices run in `own`.
        runs_in: the image for the pods; None if none was ever there.

    """

    wanted: Manifest | None = None
    refusal: Refusal | None = None
    used: CondaEnvironment | None = None
    own: CondaEnvironment | None = None
    shared: bool = False
    runs_in: EnvironmentStatus | None = None


@dataclass(frozen=True)
class Snapshot:
    """One TokenService and all that belongs to it.

    `children` is what should be, or the refusal that says why there is nothing of it to apply. `deployment`,
    `service_object` and `budget` are what is; `pods` are all pods that carry the service's label, `pull_pods` those
    that bring its images to nodes, `claims` those that came from a pool and are not the Deployment's yet; the ones that
    serve are among `pods`, too. `nodes` is empty where they cannot be seen. `answers`: what pods answered, by uid;
    `asking`: since when they are being asked. `unpullable`: nodes for which no pod could be made, and why.
    `starts`: what is known of pods' starts. `own_pool`: the WarmPool that has the service's own name, as it is,
    whosesoever; `pool_refusal`: why it cannot be applied.
    """

    service: TokenService
    children: Children | Refusal
    deployment: Deployment | None
    service_object: Object | None
    budget: Object | None
    pods: tuple[Pod, ...]
    now: datetime
    cluster_domain: str
    surroundings: Surroundings
    revisions: tuple[ControllerRevision, ...] = ()
    pull_pods: tuple[Pod, ...] = ()
    claims: tuple[Claim, ...] = ()
    starts: tuple[LastStart, ...] = ()
    own_pool: WarmPool | None = None
    pool_refusal: Refusal | None = None
    nodes: tuple[Node, ...] = ()
    answers: Mapping[str, Answer] = field(default_factory=dict)
    asking: Mapping[str, datetime] = field(default_factory=dict)
    unpullable: Mapping[str, str] = field(default_factory=dict)

    @property
    def image_bytes(self) -> int | None:
        """Size of the image in the registry, where an environment tells."""
        used = self.surroundings.used
        return used.status.bytes.total if used and used.status.bytes else None
