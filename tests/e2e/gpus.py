"""A node that says that it has GPUs, which it has not: enough for the scheduler, and for containers that use none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tests.support.api import Api
from tests.support.cluster import Cluster
from tests.support.wait import eventually

GPU = "nvidia.com/gpu"


@contextlib.contextmanager
def node_with_gpus(cluster: Cluster, api: Api, count: int) -> Iterator[str]:
    """As the documentation of extended resources has it: the node's status is patched, and the kubelet leaves it."""
    (node,) = cluster.facts["nodes"]
    name = str(node["name"])

    def patch(value: str | None) -> None:
        resources: dict[str, Any] = {GPU: value}
        api.patch("Node", None, name, {"status": {"capacity": resources, "allocatable": resources}}, sub="status")

    def allocatable() -> bool:
        found = api.get("Node", None, name)
        return found is not None and found["status"]["allocatable"].get(GPU) == str(count)

    patch(str(count))
    eventually(allocatable, f"the node has {count} GPUs")
    try:
        yield name
    finally:
        patch(None)
