"""The containerd of a cluster's first node, by `ctr`."""

from __future__ import annotations

import subprocess
import sys

from bench.cluster import ROOT, BenchError, Cluster

LOCALCLUSTER = (sys.executable, str(ROOT / "tools" / "localcluster"))
KUBELET = "k8s.io"
"""The kubelet's namespace of containerd."""


class Containerd:
    """Its functions block."""

    def __init__(self, cluster: Cluster) -> None:
        self._name = str(cluster.facts["name"])

    def ctr(self, namespace: str, *words: str) -> str:
        """Runs `ctr` on the node. Raises BenchError with its words."""
        command = (*LOCALCLUSTER, "exec", "--name", self._name, "--", "ctr", "--namespace", namespace, *words)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise BenchError(f"ctr {' '.join(words[:2])}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def remove(self, namespace: str, prefix: str = "") -> int:
        """Removes the images whose names begin so, and what only they have; returns how many names were removed."""
        images = [name for name in self.lines(namespace, "images", "ls", "-q") if name.startswith(prefix)]
        if namespace == KUBELET and images:
            # The kubelet's images have a second name: their config's digest.
            images += self._second_names(images)
        if images:
            self.ctr(namespace, "images", "rm", "--sync", *images)
        return len(images)

    def lines(self, namespace: str, *words: str) -> list[str]:
        return self.ctr(namespace, *words).split()

    def _second_names(self, images: list[str]) -> list[str]:
        rows = [line.split() for line in self.ctr(KUBELET, "images", "ls").splitlines()[1:]]
        digests = {row[2] for row in rows if row[0] in images}
        return [row[0] for row in rows if row[0].startswith("sha256:") and row[2] in digests]
