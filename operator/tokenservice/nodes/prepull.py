"""Bringing the images of a pod to nodes before it is started there. Pure functions.

A pod per node, bound to it by name, asks the kubelet for the images and for next to nothing else: no GPU, no volume.
These pods are also the record of how far it is. A node that fails, or takes too long, is named and holds nothing up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tokenservice.api import names
from tokenservice.api.conditions import first_line
from tokenservice.api.meta import ContainerStatus, Node, Pod, time_of
from tokenservice.nodes.fit import takes, unfit

Manifest = dict[str, Any]

PARALLEL = 4
"""Nodes of one resource that pull at the same time: they share a registry and a network."""

_PULLED = frozenset({"RunContainerError", "CrashLoopBackOff", "CreateContainerError", "CreateContainerConfigError"})
_NEVER_STARTED = "ContainerStatusUnknown"
"""The kubelet's reason for a container of a pod that it ended, say for want of disk, before it could say more."""


@dataclass(frozen=True)
class Pulls:
    """How far images are on their way to nodes."""

    todo: tuple[str, ...] = ()
    """Nodes for which to make a pod now."""
    done: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    """Node and why it has no image."""

    @property
    def over(self) -> bool:
        """Whether nothing more is to be waited for."""
        return not self.todo and not self.waiting

    @property
    def said(self) -> str:
        """Such as: 1 of 3 nodes have the images."""
        total = len(self.done) + len(self.waiting) + len(self.failed) + len(self.todo)
        text = f"{len(self.done)} of {total} nodes have the new images"
        return f"{text}; without: {self.failures}" if self.failed else text

    @property
    def failures(self) -> str:
        """The nodes that failed, each with the reason."""
        return ", ".join(f"{node} ({why})" for node, why in self.failed)


def images(template: Mapping[str, Any]) -> tuple[str, ...]:
    """The images of a pod template's containers, each once, in their order."""
    spec = template["spec"]
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    return tuple(dict.fromkeys(container["image"] for container in containers if container.get("image")))


def choose(
    running: Iterable[Pod], nodes: Sequence[Node], pod: Mapping[str, Any], surge: int, size: int | None = None
) -> dict[str, str]:
    """The nodes that are going to need the images, each with why it cannot get them, or "".

    Args:
        running: the pods that are going to be replaced.
        nodes: all nodes of the cluster; empty if they cannot be seen: those with pods are then taken as they are.
        pod: the new PodSpec.
        surge: how many pods may come up beside the running ones, wherever the scheduler puts them.
        size: bytes of the images as the registry has them, if known.

    """
    by_name = {node.metadata.name: node for node in nodes}
    hosts = {item.spec.node_name for item in running if item.spec.node_name}
    if not nodes:
        return dict.fromkeys(sorted(hosts), "")
    suit = (by_name[name] for name in sorted(hosts) if name in by_name and takes(by_name[name], pod))
    found = {node.metadata.name: unfit(node, size) or "" for node in suit}
    others = sorted(
        node.metadata.name
        for node in nodes
        if node.metadata.name not in hosts and unfit(node, size) is None and takes(node, pod)
    )
    return {**found, **dict.fromkeys(others[:surge], "")}


def pulls(
    wanted: Mapping[str, str], pods: Iterable[Pod], refused: Mapping[str, str], now: datetime, *, seconds: float
) -> Pulls:
    """How far the pods are that were made for these nodes.

    Args:
        wanted: from `choose`.
        pods: the pods that `pod` describes, of the revision that is asked for.
        refused: node -> why no pod could be made for it.
        now: the time.
        seconds: after the first pod was made, after which none is waited for any longer.

    """
    by_node = {item.spec.node_name: item for item in pods if not item.metadata.deletion_timestamp}
    late = any(_age(found, now) > seconds for found in by_node.values())
    todo: list[str] = []
    done: list[str] = []
    waiting: list[str] = []
    failed: list[tuple[str, str]] = []
    for node in sorted(wanted):
        pod = by_node.get(node)
        verdict = _verdict(pod) if pod else (wanted[node] or refused.get(node) or None)
        if verdict is None and late:
            verdict = f"not there after {seconds:g} s"
        if verdict:
            failed.append((node, first_line(verdict)))
        elif verdict is not None:
            done.append(node)
        else:
            (waiting if pod else todo).append(node)
    room = max(0, PARALLEL - len(waiting))
    # What there is no room for now comes when another is done: it is still to do, and waited for.
    return Pulls(tuple(todo[:room]), tuple(done), (*waiting, *todo[room:]), tuple(failed))


def pod(name: str, template: Mapping[str, Any], node: str, *, metadata: Mapping[str, Any], seconds: int) -> Manifest:
    """The pod that brings the images of a pod template to a node.

    Its containers run `true`, whose end does not matter: before a container can start or fail, its image is there.

    Args:
        name: of the resource that is about to need the images; with the node's it makes the pod's name.
        template: the pod template.
        node: the node's name.
        metadata: namespace, labels and ownerReferences.
        seconds: after which the kubelet ends it.

    """
    spec, needed = template["spec"], images(template)
    digest = hashlib.sha256(f"{name}/{node}/{'/'.join(needed)}".encode()).hexdigest()[:10]
    kept = {
        key: spec[key]
        for key in ("imagePullSecrets", "tolerations", "securityContext", "serviceAccountName", "schedulerName")
        if spec.get(key)
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**metadata, "name": f"{name[:40].rstrip('-.')}-pull-{digest}"},
        "spec": {
            **kept,
            "nodeName": node,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": seconds,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [
                {
                    "name": f"image-{number}",
                    "image": image,
                    "command": ["true"],
                    "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}, "limits": {"memory": "64Mi"}},
                    "securityContext": {
                        "runAsNonRoot": True,
                        "seccompProfile": {"type": "RuntimeDefault"},
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
                for number, image in enumerate(needed)
            ],
        },
    }


def labels(name: str, revision: str) -> dict[str, str]:
    """The labels of such pods; none that a Service or a Deployment selects."""
    return {
        names.LABEL_MANAGED_BY: names.OPERATOR,
        names.LABEL_PRE_PULL: name,
        names.LABEL_REVISION: revision,
    }


def _verdict(found: Pod) -> str | None:
    """None while it is under way, "" if the images are there, else why not."""
    statuses = found.status.container_statuses
    for status in statuses:
        waiting = status.state.waiting
        if waiting and not waiting.patient and waiting.reason not in _PULLED:
            return f"{waiting.cause}: {first_line(waiting.message)}"
    if statuses and all(_has_image(status) for status in statuses):
        return ""
    if found.status.phase == "Failed":
        return ": ".join(filter(None, (found.status.reason or "Failed", first_line(found.status.message))))
    return None


def _has_image(status: ContainerStatus) -> bool:
    state = status.state
    past = state.waiting is not None and state.waiting.reason in _PULLED
    ended = state.terminated is not None and state.terminated.reason != _NEVER_STARTED
    return past or state.running is not None or ended


def _age(found: Pod, now: datetime) -> float:
    created = time_of(found.metadata.creation_timestamp)
    return (now - created).total_seconds() if created else 0.0
