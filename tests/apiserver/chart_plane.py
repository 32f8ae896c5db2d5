"""A control plane of its own for tests of the chart: they install and remove what is cluster-wide."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import crds
from tests.support.cluster import ROOT, Cluster

CHART = ROOT / "charts" / "tokenservice-operator"
ACCOUNT = "system:serviceaccount:system:op-tokenservice-operator"
IMAGE = "--set=image.repository=registry.example.com/operator"


@dataclass(frozen=True)
class Plane:
    """A control plane; releases live in its namespace `system`."""

    cluster: Cluster

    @property
    def state(self) -> Path:
        return Path(self.cluster.facts["state"])

    def call(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        return self.cluster.run(program, *args, check=False)

    def helm(self, *args: str) -> str:
        return self.cluster.helm(*args, "--namespace=system").stdout

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl(*args, input=stdin).stdout

    def may(self, account: str, *args: str) -> bool:
        return self.call("kubectl", "auth", "can-i", "--as", account, *args).returncode == 0

    def has_crds(self) -> bool:
        """Whether any of the operator's CRDs is there."""
        return bool(self.kubectl("get", "crd", *crds.ALL, "--ignore-not-found", "--output=name"))


@contextmanager
def control_plane(*options: str) -> Iterator[Plane]:
    """A control plane with the namespaces system, team-a and team-b; gone afterwards."""
    cluster = Cluster.up("test-chart", "--shape", "control-plane", *options)
    try:
        for namespace in ("system", "team-a", "team-b"):
            cluster.kubectl("create", "namespace", namespace)
        yield Plane(cluster)
    finally:
        cluster.down()


def declare(plane: Plane) -> None:
    """The TokenService team-a/kept, of an image that exists."""
    service: dict[str, Any] = {
        "apiVersion": "tokenservice.dev/v1alpha1",
        "kind": "TokenService",
        "metadata": {"name": "kept", "namespace": "team-a"},
        "spec": {"model": {"source": "file:///model"}, "environment": {"image": {"reference": "example.com/s"}}},
    }
    crds.established(plane.cluster, *crds.ALL)
    plane.kubectl("create", "--filename=-", stdin=json.dumps(service))
