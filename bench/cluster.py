"""The cluster of a benchmark, and the identities that it is asked under."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "tokenservice-operator"
SYSTEM = "tokenservice-system"
CLIENT = "bench-client"


class BenchError(Exception):
    """The benchmark cannot go on; the text says why."""


@dataclass(frozen=True)
class Identity:
    """A service account, and a kubeconfig file with a token of its."""

    user: str
    token: str
    kubeconfig: Path


@dataclass(frozen=True)
class Cluster:
    """A cluster made by tools/localcluster; `facts` is what `up --json` said."""

    facts: dict[str, Any]

    @classmethod
    def up(cls, name: str, *arguments: str) -> Cluster:
        """A fresh cluster of that name; what a run before has left is taken down first."""
        _localcluster("down", "--name", name)
        return cls(json.loads(_localcluster("up", "--name", name, "--json", *arguments).splitlines()[-1]))

    def down(self) -> None:
        """Takes it down; leaves nothing."""
        _localcluster("down", "--name", self.facts["name"])

    def first_machine(self) -> int:
        """The process whose namespaces are those of the machine with the control plane."""
        told = json.loads(_localcluster("status", "--name", self.facts["name"], "--json"))
        return int(next(iter(told["machines"].values()))["pid"])

    @property
    def server(self) -> str:
        return str(self.facts["server"])

    @property
    def audit_log(self) -> Path:
        return Path(self.facts["audit_log"])

    @property
    def ca(self) -> str:
        """The certificate authority, PEM."""
        config = yaml.safe_load(Path(self.facts["kubeconfig"]).read_text())
        entry = config["clusters"][0]["cluster"]
        if "certificate-authority" in entry:
            return Path(entry["certificate-authority"]).read_text()
        return base64.b64decode(entry["certificate-authority-data"]).decode()

    def run(self, *command: str, text: str = "") -> str:
        """Runs kubectl or helm as the administrator. Raises BenchError with its words."""
        environment = {
            **os.environ,
            "KUBECONFIG": self.facts["kubeconfig"],
            "PATH": f"{self.facts['bin']}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            command, env=environment, input=text, capture_output=True, text=True, check=False, cwd=ROOT
        )
        if done.returncode:
            raise BenchError(f"{' '.join(command[:3])}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Server-side apply of the objects."""
        self.run("kubectl", "apply", "--server-side", "-f", "-", text=yaml.safe_dump_all(objects))

    def identity(self, account: str, folder: Path) -> Identity:
        """The service account of that name in `SYSTEM`."""
        token = self.run("kubectl", "create", "token", account, "-n", SYSTEM, "--duration", "6h").strip()
        path = folder / f"{account}.kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "bench",
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "clusters": [
                {
                    "name": "bench",
                    "cluster": {
                        "server": self.server,
                        "certificate-authority-data": base64.b64encode(self.ca.encode()).decode(),
                    },
                }
            ],
            "users": [{"name": "bench", "user": {"token": token}}],
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        return Identity(f"system:serviceaccount:{SYSTEM}:{account}", token, path)


def install(cluster: Cluster, folder: Path) -> tuple[Identity, Identity]:
    """Installs the CRD and the chart's service account and rights. Returns the operator's identity and the client's.

    The client is a service account too: the API server treats administrators differently, past its fair queues.
    """
    words = ["helm", "template", "tokenservice-operator", str(CHART), "-n", SYSTEM, "--set", "image.repository=unused"]
    wanted = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    rendered = [item for item in yaml.load_all(cluster.run(*words), yaml.CSafeLoader) if item]
    objects = [
        item
        for item in rendered
        if item["kind"] in wanted and "helm.sh/hook" not in (item["metadata"].get("annotations") or {})
    ]
    [account] = [item["metadata"]["name"] for item in objects if item["kind"] == "ServiceAccount"]
    subject = {"kind": "ServiceAccount", "name": CLIENT, "namespace": SYSTEM}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": CLIENT, "namespace": SYSTEM}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": CLIENT},
            "roleRef": role,
            "subjects": [subject],
        },
        *objects,
    )
    cluster.run("kubectl", "wait", "--for=condition=Established", "crd/tokenservices.tokenservice.dev", "--timeout=60s")
    return cluster.identity(account, folder), cluster.identity(CLIENT, folder)


def _localcluster(*arguments: str) -> str:
    command = (sys.executable, str(ROOT / "tools" / "localcluster"), *arguments)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise BenchError(f"localcluster {' '.join(arguments)}: exit status {done.returncode}")
    return done.stdout
