"""The Kubernetes objects that a cluster begins with. Pure."""

from __future__ import annotations

from typing import Any

from .addresses import DNS
from .records import Record

Object = dict[str, Any]
_RBAC = "rbac.authorization.k8s.io/v1"


def initial(record: Record) -> list[Object]:
    """What `up` applies once the API server answers, KWOK nodes excepted."""
    found = [*binding("localcluster:kubelet-api-admin", "system:kubelet-api-admin", "kube-apiserver-kubelet-client")]
    if record.shape == "node":
        rules = [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
        ]
        found += [
            role("system:coredns", rules),
            *binding("system:coredns", "system:coredns", "system:coredns"),
            *dns(record),
        ]
    if record.kwok_nodes:
        everything = ["get", "list", "watch", "create", "update", "patch", "delete"]
        rules = [
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch", "patch", "update"]},
            {"apiGroups": [""], "resources": ["pods", "events"], "verbs": everything},
            {"apiGroups": [""], "resources": ["nodes/status", "pods/status"], "verbs": ["patch", "update"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": everything},
        ]
        found += [
            role("localcluster:kwok", rules),
            *binding("localcluster:kwok", "localcluster:kwok", "localcluster:kwok"),
        ]
    return found


def role(name: str, rules: list[Object]) -> Object:
    return {"apiVersion": _RBAC, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}


def binding(name: str, cluster_role: str, user: str) -> list[Object]:
    return [
        {
            "apiVersion": _RBAC,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": cluster_role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }
    ]


def dns(record: Record) -> list[Object]:
    """CoreDNS runs beside the control plane, as a process: a Service without selector leads to it."""
    ports = [("dns", "UDP"), ("dns-tcp", "TCP")]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
            "spec": {
                "clusterIP": str(DNS),
                "ports": [{"name": n, "protocol": p, "port": 53, "targetPort": 53} for n, p in ports],
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": {
                    "kubernetes.io/service-name": "kube-dns",
                    "endpointslice.kubernetes.io/managed-by": "localcluster",
                },
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [record.address], "conditions": {"ready": True}}],
            "ports": [{"name": n, "protocol": p, "port": 53} for n, p in ports],
        },
    ]


def kwok_node(number: int) -> Object:
    """A node that only KWOK keeps alive. Tainted, so that only pods that tolerate it are put there."""
    amounts = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "1Ti", "pods": "1000"}
    name = f"kwok-{number}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "type": "kwok",
            },
        },
        "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": amounts, "allocatable": amounts, "nodeInfo": {"kubeletVersion": "kwok"}},
    }
