"""Names of the API group, labels, annotations and well-known strings, each in this one place."""

from __future__ import annotations

GROUP = "tokenservice.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

OPERATOR = "tokenservice-operator"
"""Name of the operator: field manager, event reporter, Lease, user agent."""

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_SERVICE = f"{GROUP}/service"
"""On pods: the TokenService they serve; the Service selects it."""
LABEL_DEPLOYMENT = f"{GROUP}/deployment"
"""On pods: the Deployment they belong to; the Deployment and its PodDisruptionBudget select it.

A pod that serves without belonging to the Deployment yet carries `LABEL_SERVICE` alone, since the disruption
controller would otherwise count the replicas of both owners.
"""
LABEL_REVISION = f"{GROUP}/revision"
"""On pods: the end of the name of the ControllerRevision that they were made from."""
LABEL_PRE_PULL = f"{GROUP}/pre-pull"
"""On pods that do nothing but bring images to a node: the TokenService that is about to need them there."""
LABEL_POOL = f"{GROUP}/pool"
"""On pods that wait for a model: the WarmPool they wait in. A pod that was claimed has it no more."""
LABEL_SHAPE = f"{GROUP}/shape"
"""On the same: what of them cannot be changed any more, and must be as in the TokenService that claims them."""
LABEL_CLAIM = f"{GROUP}/claim"
"""On pods that were taken from a pool and do not belong to a Deployment yet: the TokenService that took them."""
APP_NAME = "token-server"
LABEL_JOB = f"{GROUP}/job"
"""On Jobs and their pods: `lock`, `build` or `collect`."""
LABEL_ENVIRONMENT_HASH = f"{GROUP}/environment-hash"
"""On Jobs and their pods: hash of what the Job was asked for, the same for all who ask for it."""
JOB_CONTAINER = "job"

ANNOTATION_APPLIED_HASH = f"{GROUP}/applied-hash"
ANNOTATION_RETRY = f"{GROUP}/retry"
"""On a TokenService: any new value makes the operator try again what it had given up until the spec changes."""

ANNOTATION_REVISION = f"{GROUP}/revision"
"""On a Deployment: the ControllerRevision that it has its template from."""
ANNOTATION_FAILED = f"{GROUP}/failed"
"""On a ControllerRevision whose rollout failed: why and when, and what was asked for; JSON."""
ANNOTATION_ASKED_AT = f"{GROUP}/asked-at"
"""On a ControllerRevision that was asked for again: when."""

ANNOTATION_NONCE = f"{GROUP}/nonce"
ANNOTATION_KEY = f"{GROUP}/key"
"""On a warm pod: what its token was made with, and which key; see handover/tokens.py."""

ANNOTATION_POOL_LABELS = f"{GROUP}/pool-labels"
"""Names of the labels that a pod has of its pool's template, commas between them: what others put on it is theirs."""

ANNOTATION_CLAIMED_AT = f"{GROUP}/claimed-at"
ANNOTATION_CLAIMED_FROM = f"{GROUP}/claimed-from"
"""On a pod that was taken from a pool: when, and the WarmPool's name."""
ANNOTATION_SERVED_AT = f"{GROUP}/served-at"
"""On the same: when its model was there, and the Service was to send requests."""
ANNOTATION_STAGES = f"{GROUP}/start-stages"
"""On the same: what the server said of its start; JSON, stage -> seconds."""
ANNOTATION_DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""On the same, while its ReplicaSet takes it in: what else it has goes first."""
ANNOTATION_COLD = f"{GROUP}/cold"
"""On a ControllerRevision that warm pods could not be given to: why and when; JSON."""

MANAGED_SELECTOR = f"{LABEL_MANAGED_BY}={OPERATOR}"
CONTAINER = "server"
"""Name of the container that serves; `spec.template` overrides reach it by this name."""


def child_labels(service: str) -> dict[str, str]:
    """Labels of every object that belongs to the TokenService of that name."""
    return {
        LABEL_MANAGED_BY: OPERATOR,
        LABEL_NAME: APP_NAME,
        LABEL_INSTANCE: service,
        LABEL_SERVICE: service,
    }


def owner(kind: str, name: str, uid: str) -> dict[str, str | bool]:
    """The reference to the resource of ours that controls an object."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
