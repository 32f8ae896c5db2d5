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
APP_NAME = "token-server"
LABEL_JOB = f"{GROUP}/job"
"""On Jobs and their pods: `lock`, `build` or `collect`."""
LABEL_ENVIRONMENT_HASH = f"{GROUP}/environment-hash"
"""On Jobs and their pods: hash of what the Job was asked for, the same for all who ask for it."""
JOB_CONTAINER = "job"

ANNOTATION_APPLIED_HASH = f"{GROUP}/applied-hash"
ANNOTATION_RETRY = f"{GROUP}/retry"
"""On a TokenService: any new value makes the operator try again what it had given up until the spec changes."""

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
