"""CRDs that tests remove."""

from __future__ import annotations

from .cluster import Cluster


def listed(cluster: Cluster, *names: str) -> None:
    """Waits until the API server can list the objects of these CRDs from its cache; passes by those that do not exist.

    A CRD deleted before that, within a second of its making, may stay for five minutes: the API server's finalizer
    fails with "storage is (re)initializing", tries again 5 ms later on what it has cached, takes the conflict for a
    change that will call it again, and forgets the CRD until its informer's resync (crd_finalizer.go, Kubernetes 1.37:
    5 of 240 on two busy cores). kubectl asks again by itself while the answer is 429.
    """
    there = cluster.kubectl("get", "crd", *names, "--ignore-not-found", "--output=name").stdout.split()
    if there:
        cluster.kubectl("wait", "--for=condition=Established", *there, "--timeout=30s")
    for name in there:
        plural, group = name.partition("/")[2].split(".", 1)
        cluster.kubectl("get", "--raw", f"/apis/{group}/v1alpha1/{plural}")


def remove(cluster: Cluster, *names: str) -> None:
    """Deletes these CRDs, and with them every object of theirs; returns when they are gone."""
    listed(cluster, *names)
    cluster.kubectl("delete", "crd", *names, "--ignore-not-found", "--timeout=60s")
