"""Which pods of TokenServices wait for a node, kept from what the watch tells: no pool looks through all pods."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tokenservice.api.meta import Pod
from tokenservice.api.names import LABEL_POOL, LABEL_PRE_PULL, LABEL_SERVICE
from tokenservice.pods.failures import unschedulable


def words(pod: Pod | None) -> str | None:
    """The scheduler's words about a pod of a TokenService that waits for a node; None for every other pod."""
    if pod is None or pod.metadata.deletion_timestamp:
        return None
    labels = pod.metadata.labels
    if LABEL_SERVICE not in labels or LABEL_POOL in labels or LABEL_PRE_PULL in labels:
        return None
    return unschedulable(pod)


def covered(pods: Iterable[Pod], taken: Callable[[str], int]) -> frozenset[str]:
    """Those of the pods that need no room, by uid, since a pod from a pool is about to take their place: the youngest.

    taken: how many places of its Deployment a TokenService of the namespace is about to fill so, by its name.
    """
    left: dict[str, int] = {}
    found = set()
    for pod in sorted(pods, key=_age, reverse=True):
        service = pod.metadata.labels[LABEL_SERVICE]
        left.setdefault(service, taken(service))
        if left[service] > 0:
            left[service] -= 1
            found.add(pod.metadata.uid)
    return frozenset(found)


def _age(pod: Pod) -> tuple[str, str]:
    return pod.metadata.creation_timestamp or "", pod.metadata.name


class Waiting:
    """Pods of TokenServices that are Unschedulable, by namespace."""

    def __init__(self) -> None:
        self._pods: dict[str, dict[str, Pod]] = {}

    def told(self, old: Pod | None, new: Pod | None) -> bool:
        """Takes in a change of a pod. Returns whether it is news to the pools of its namespace."""
        before, after = words(old), words(new)
        if new is not None and after is not None:
            self._pods.setdefault(new.metadata.namespace, {})[new.metadata.name] = new
        elif old is not None and before is not None:
            self._forget(old)
        return before != after

    def _forget(self, pod: Pod) -> None:
        namespace = pod.metadata.namespace
        found = self._pods.get(namespace, {})
        found.pop(pod.metadata.name, None)
        if not found:
            self._pods.pop(namespace, None)

    def in_namespace(self, namespace: str) -> tuple[Pod, ...]:
        """Those of a namespace."""
        return tuple(self._pods.get(namespace, {}).values())
