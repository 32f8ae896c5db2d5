"""What a reconciler of TokenServices knows of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import ControllerRevision, Deployment, Node, Object, Pod
from tokenservice.api.pools import WarmPool
from tokenservice.kube.cache import Cache

PULLS = "/pull"
"""Behind "namespace/TokenService name": the key of pods that bring images to nodes."""


class Environments(Protocol):
    """The CondaEnvironments known to the operator, whoever made them.

    Of their managed fields at least our own must be kept (`kube.apply.keep_own_fields`): they show what of a
    CondaEnvironment that we applied somebody has changed.
    """

    def get(self, namespace: str, name: str, /) -> CondaEnvironment | None: ...

    def observe(self, environment: CondaEnvironment, /) -> object:
        """Takes in the answer to a write of ours, unless a newer version is known.

        Whoever keeps them has it reconciled then: the watch will have nothing to tell that is newer.
        """


@dataclass(frozen=True)
class Caches:
    """Caches of the children; revisions and pods are indexed by "namespace/TokenService name", pods that bring images
    to nodes by that and `PULLS`, claimed ones by that and `CLAIMS`. nodes: all nodes, none where they cannot be seen.
    pools: the WarmPools of a namespace that run in the CondaEnvironment of that name. warm_pools: all of them.
    """

    deployments: Cache[Deployment]
    services: Cache[Object]
    budgets: Cache[Object]
    pods: Cache[Pod]
    environments: Environments
    revisions: Cache[ControllerRevision]
    nodes: Callable[[], Iterable[Node]] = tuple
    pools: Callable[[str, str], Iterable[object]] = lambda _namespace, _name: ()
    warm_pools: Cache[WarmPool] | None = None
