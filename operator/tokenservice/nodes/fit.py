"""Whether a node would take a pod, as far as that can be told without its other pods. Pure functions.

Source: the scheduler's filters (kube-scheduler, NodeUnschedulable, TaintToleration, NodeAffinity and
NodeResourcesFit), of which this is the part that concerns a node alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tokenservice.api.meta import Node, Taint
from tokenservice.api.quantity import amount

_BLOCKING = frozenset({"NoSchedule", "NoExecute"})


UNPACKED = 3
"""Room that an image takes on a node, as a multiple of its size in the registry: as it came, and unpacked."""


def unfit(node: Node, size: int | None = None) -> str | None:
    """Why images should not be brought to a node; None if they can be. size: theirs in the registry, in bytes."""
    if node.metadata.deletion_timestamp:
        return "it is being deleted"
    if node.spec.unschedulable:
        return "it is cordoned"
    state = {condition.type: condition.status for condition in node.status.conditions}
    if state.get("Ready") != "True":
        return "it is not Ready"
    if state.get("DiskPressure") == "True":
        return "its disk is full (DiskPressure)"
    disk = amount(node.status.allocatable.get("ephemeral-storage", ""))
    if size is not None and disk is not None and disk < UNPACKED * size:
        return f"its disk is too small: {disk / 10**9:.0f} GB for images of about {UNPACKED * size / 1e9:.0f} GB"
    return None


def lost(node: Node) -> bool:
    """Whether a node does not answer any more."""
    return not any(condition.type == "Ready" and condition.status == "True" for condition in node.status.conditions)


def takes(node: Node, pod: Mapping[str, Any]) -> bool:
    """Whether the pod of this PodSpec could be scheduled there, were nothing else on the node."""
    labels = node.metadata.labels
    if any(labels.get(key) != value for key, value in (pod.get("nodeSelector") or {}).items()):
        return False
    if not _affine(pod, node):
        return False
    tolerations = pod.get("tolerations") or ()
    if any(taint.effect in _BLOCKING and not tolerated(taint, tolerations) for taint in node.spec.taints):
        return False
    return all(_whole(node.status.allocatable.get(name, "0")) >= count for name, count in _devices(pod).items())


def tolerated(taint: Taint, tolerations: Iterable[Mapping[str, Any]]) -> bool:
    """Whether one of the tolerations is for this taint."""
    return any(_tolerates(toleration, taint) for toleration in tolerations)


def _tolerates(toleration: Mapping[str, Any], taint: Taint) -> bool:
    if toleration.get("effect") not in (None, "", taint.effect):
        return False
    if not toleration.get("key"):  # every taint
        return toleration.get("operator") == "Exists"
    if toleration["key"] != taint.key:
        return False
    return toleration.get("operator") == "Exists" or (toleration.get("value") or "") == taint.value


def _affine(pod: Mapping[str, Any], node: Node) -> bool:
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    return any(_matches(term, node) for term in required.get("nodeSelectorTerms") or ())


def _matches(term: Mapping[str, Any], node: Node) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(_holds(item, node.metadata.labels) for item in expressions) and all(
        _holds(item, {"metadata.name": node.metadata.name}) for item in fields
    )


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    found: str | None = labels.get(expression["key"])
    values: list[str] = expression.get("values") or []
    match expression.get("operator"):
        case "In":
            return found in values
        case "NotIn":
            return found not in values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt" as operator if found is not None and _is_whole(found):
            return int(found) > int(values[0]) if operator == "Gt" else int(found) < int(values[0])
    return False


def _devices(pod: Mapping[str, Any]) -> dict[str, int]:
    """What a pod asks for of extended resources such as nvidia.com/gpu."""
    asked: dict[str, int] = {}
    for container in pod.get("containers") or ():
        limits = (container.get("resources") or {}).get("limits") or {}
        for name, quantity in limits.items():
            if "/" in name:
                asked[name] = asked.get(name, 0) + _whole(str(quantity))
    return asked


def _whole(text: str) -> int:
    return int(text) if _is_whole(text) else 0


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
