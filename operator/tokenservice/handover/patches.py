"""The writes that take a pod from a pool to a Deployment, as merge patches (RFC 7386) of the pod. Pure functions.

Each names the pod's uid, so that it reaches that pod or none; the first one its resourceVersion, too: of two who want
one pod, the API server refuses the second with a conflict.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from tokenservice.api import names
from tokenservice.api.meta import Pod
from tokenservice.handover.claim import Taker, stamp_exactly

Patch = dict[str, Any]

LABEL_HASH = "pod-template-hash"
"""By which a ReplicaSet finds its pods, beside the Deployment's labels."""
COST = "1000"
"""The deletion cost of a pod that a ReplicaSet takes in: pods have 0 unless somebody says otherwise."""


def claim(pod: Pod, taker: Taker, revision: str, pool: str, now: datetime) -> Patch:
    """Takes the pod out of its pool. revision: the value of the label of the TokenService's pods."""
    labels = {names.LABEL_POOL: None, names.LABEL_CLAIM: taker.name, names.LABEL_REVISION: revision}
    annotations = {names.ANNOTATION_CLAIMED_AT: stamp_exactly(now), names.ANNOTATION_CLAIMED_FROM: pool}
    return _patch(
        pod,
        resourceVersion=pod.metadata.resource_version,
        labels=labels,
        annotations=annotations,
        ownerReferences=[names.owner("TokenService", taker.name, taker.uid)],
    )


def adopt(pod: Pod, taker: Taker) -> Patch:
    """Gives a claimed pod that nobody owns to the TokenService."""
    return _patch(pod, ownerReferences=[names.owner("TokenService", taker.name, taker.uid)])


def serve(pod: Pod, template: Mapping[str, Any], stages: Mapping[str, float], now: datetime) -> Patch:
    """Puts the pod into the Service: it gets the metadata of the revision's template, without the Deployment's label.

    With that it would count for the PodDisruptionBudget, which adds up the replicas of all owners.
    """
    metadata = template.get("metadata") or {}
    wanted = {name: value for name, value in metadata["labels"].items() if name != names.LABEL_DEPLOYMENT}
    gone = dict.fromkeys(sorted(_of_pool(pod) - wanted.keys()))
    annotations = {
        **(metadata.get("annotations") or {}),
        names.ANNOTATION_SERVED_AT: stamp_exactly(now),
        names.ANNOTATION_STAGES: msgspec.json.encode(stages).decode(),
    }
    return _patch(pod, labels={**gone, **wanted}, annotations=annotations)


def _of_pool(pod: Pod) -> set[str]:
    """The labels that the pod has of its pool's template. Those that a mesh or a node has given it stay."""
    noted, has = pod.metadata.annotations.get(names.ANNOTATION_POOL_LABELS), pod.metadata.labels.keys()
    if noted is None:  # made by an operator that did not note them, or somebody took the note away
        return has - {names.LABEL_CLAIM, names.LABEL_SHAPE}
    return has & {*noted.split(",")}


def settle(pod: Pod, taker: Taker, template_hash: str) -> Patch:
    """Hands the pod to the ReplicaSet of that pod-template-hash, which takes what has its labels and no controller.

    The TokenService stays an owner, without controlling it, until the ReplicaSet has: a pod that nobody owns would
    outlive both.
    """
    labels = {names.LABEL_DEPLOYMENT: taker.name, LABEL_HASH: template_hash, names.LABEL_CLAIM: None}
    owner = {**names.owner("TokenService", taker.name, taker.uid), "controller": False, "blockOwnerDeletion": False}
    annotations = {names.ANNOTATION_DELETION_COST: COST}
    return _patch(pod, labels=labels, annotations=annotations, ownerReferences=[owner])


def finish(pod: Pod, taker: Taker) -> Patch:
    """Makes a pod that was taken in one like the others. A strategic merge patch."""
    gone = (names.ANNOTATION_DELETION_COST, names.ANNOTATION_CLAIMED_FROM, names.ANNOTATION_CLAIMED_AT)
    found = _patch(
        pod,
        labels={names.LABEL_SHAPE: None},
        annotations=dict.fromkeys((*gone, names.ANNOTATION_NONCE, names.ANNOTATION_KEY, names.ANNOTATION_POOL_LABELS)),
    )
    found["metadata"]["ownerReferences"] = [{"$patch": "delete", "uid": taker.uid}]
    return found


def nothing(pod: Pod) -> Patch:
    """Changes nothing."""
    return _patch(pod)


def _patch(pod: Pod, **metadata: Any) -> Patch:
    return {"metadata": {"uid": pod.metadata.uid, **metadata}}
