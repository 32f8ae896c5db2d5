"""The kinds of objects that the operator reads and writes."""

from __future__ import annotations

from tokenservice.api.names import GROUP, VERSION
from tokenservice.kube.client import Resource

TOKENSERVICES = Resource(GROUP, VERSION, "tokenservices", "TokenService")
CONDAENVIRONMENTS = Resource(GROUP, VERSION, "condaenvironments", "CondaEnvironment")
WARMPOOLS = Resource(GROUP, VERSION, "warmpools", "WarmPool")

PODS = Resource("", "v1", "pods", "Pod")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
SERVICES = Resource("", "v1", "services", "Service")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
REPLICASETS = Resource("apps", "v1", "replicasets", "ReplicaSet")
REVISIONS = Resource("apps", "v1", "controllerrevisions", "ControllerRevision")
BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
JOBS = Resource("batch", "v1", "jobs", "Job")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")

EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
CORE_EVENTS = Resource("", "v1", "events", "Event")
"""The same objects in their older form, in which they can be selected by the object that they are about."""
