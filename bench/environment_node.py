"""What a node pulls: the bytes that containerd reads from the registry for an image.

Two kinds of nodes. `pull`: containerd as it comes, which keeps layers as it got them, by `ctr`, in a containerd
namespace of the benchmark's own. `run`: the kubelet of this cluster, whose containerd discards layers once they are
unpacked, by a pod; it gets again every layer above the lowest that changed.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from bench.cluster import BenchError, Cluster
from bench.containerd import KUBELET, Containerd
from bench.environment_registry import Registry

ARMS = "bench"
"""Namespace of containerd, and of the pods."""
PULL_SECONDS = 600.0
EMPTY_SECONDS = 60.0
_IMPORTS = "import tqdm, numpy, torch; print(tqdm.__version__)"


@dataclass(frozen=True)
class Ran:
    """What a pod's image took to get there, in bytes and in seconds, and what the pod printed."""

    pulled: int
    pull_seconds: float | None
    said: str


class Node:
    """The cluster's first node. Its functions block."""

    def __init__(self, cluster: Cluster, registry: Registry) -> None:
        self._cluster = cluster
        self._registry = registry
        self._containerd = Containerd(cluster)

    def pull(self, image: str) -> int:
        """Pulls with `ctr`; bytes read."""
        mark = self._registry.mark()
        self._containerd.ctr(ARMS, "images", "pull", "--plain-http", image)
        return self._registry.pulled_since(mark)

    def empty(self, kubelets: str = "") -> None:
        """Removes what `pull` has brought and, of the kubelet's images, those whose name begins with `kubelets`.

        Raises BenchError if something of it stays.
        """
        self._containerd.remove(ARMS)
        if kubelets:
            self._containerd.remove(KUBELET, kubelets)
        deadline = time.monotonic() + EMPTY_SECONDS
        while left := self._containerd.lines(ARMS, "content", "ls", "-q"):
            if time.monotonic() > deadline:
                raise BenchError(f"containerd keeps {len(left)} blobs of images that were removed")
            time.sleep(0.5)

    def run(self, name: str, image: str) -> Ran:
        """Runs a pod of the image, which imports PyTorch and prints tqdm's version. Raises BenchError if it cannot."""
        mark = self._registry.mark()
        container = {
            "name": "main",
            "image": image,
            "command": ["/opt/env/bin/python", "-c", _IMPORTS],
            "resources": {"requests": {"cpu": "10m"}},
        }
        self._cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": ARMS},
                "spec": {"containers": [container], "restartPolicy": "Never", "automountServiceAccountToken": False},
            }
        )
        try:
            self._cluster.run(
                *("kubectl", "wait", f"pod/{name}", "-n", ARMS, "--for=jsonpath={.status.phase}=Succeeded"),
                f"--timeout={PULL_SECONDS:g}s",
            )
        except BenchError as error:
            raise BenchError(f"{error}\n{self._cluster.run('kubectl', 'describe', 'pod', name, '-n', ARMS)}") from error
        said = self._cluster.run("kubectl", "logs", name, "-n", ARMS).strip()
        seconds = self._pull_seconds(name)
        pulled = self._registry.pulled_since(mark)
        self._cluster.run("kubectl", "delete", "pod", name, "-n", ARMS, "--wait")
        return Ran(pulled, seconds, said)

    def _pull_seconds(self, pod: str) -> float | None:
        """As the kubelet tells it in the event Pulled."""
        selector = f"involvedObject.name={pod},reason=Pulled"
        found = json.loads(
            self._cluster.run("kubectl", "get", "events", "-n", ARMS, "--field-selector", selector, "-o", "json")
        )
        for event in found["items"]:
            _, there, rest = event["message"].partition(" in ")
            if there:
                return seconds_of(rest.split(" ", 1)[0])
        return None


def seconds_of(duration: str) -> float | None:
    """Go's way to write a duration of less than an hour, such as 1m2.5s or 312ms, in seconds."""
    minutes, there, rest = duration.partition("m")
    if there and not rest.startswith("s"):
        left = seconds_of(rest) if rest else 0.0
        return None if left is None else int(minutes) * 60 + left
    try:
        return (
            float(duration.removesuffix("ms")) / 1000 if duration.endswith("ms") else float(duration.removesuffix("s"))
        )
    except ValueError:
        return None
