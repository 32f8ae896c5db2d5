"""The CRDs: which there are, waiting until they are served, and removing them."""

from __future__ import annotations

from .cluster import Cluster

TOKENSERVICES = "tokenservices.tokenservice.dev"
ALL = (TOKENSERVICES, "condaenvironments.tokenservice.dev", "warmpools.tokenservice.dev")


def established(cluster: Cluster, *names: str) -> None:
    """Waits until these CRDs, which exist, are served."""
    cluster.kubectl("wait", "--for=condition=Established", *(f"crd/{name}" for name in names), "--timeout=30s")


def listed(cluster: Cluster, *names: str) -> None:
    """Waits until the API server can list the objects of these CRDs from its cache; passes by those that do not exist.

    A CRD deleted before that, within a second of its making, may stay for five minutes: the API server's finalizer
    fails with "storage is (re)initializing", tries again 5 ms later on what it has cached, takes the conflict for a
    change that will call it again, and forgets the CRD until its informer's resync (crd_finalizer.go, Kubernetes 1.37:
    5 of 240 on two busy cores). kubectl asks again by itself while the answer is 429.
    """
    found = cluster.kubectl("get", "crd", *names, "--ignore-not-found", "--output=name").stdout.split()
    there = [name.partition("/")[2] for name in found]
    if there:
        established(cluster, *there)
    for name in there:
        plural, group = name.split(".", 1)
        cluster.kubectl("get", "--raw", f"/apis/{group}/v1alpha1/{plural}")


def remove(cluster: Cluster, *names: str) -> None:
    """Deletes these CRDs, and with them every object of theirs; returns when they are gone."""
    listed(cluster, *names)
    cluster.kubectl("delete", "crd", *names, "--ignore-not-found", "--timeout=60s")
