"""A cluster made by tools/localcluster for tests, and short ways to talk to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS = 1200.0
"""For an image or a channel, with nothing cached: gigabytes may have to come over the network first."""
LOCALCLUSTER = (sys.executable, str(ROOT / "tools" / "localcluster"))


def localcluster(*arguments: str) -> str:
    """Runs tools/localcluster; its progress goes to the terminal. Returns its standard output."""
    done = subprocess.run((*LOCALCLUSTER, *arguments), stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"localcluster {' '.join(arguments)}: exit code {done.returncode}"
    return done.stdout


@dataclass(frozen=True)
class Cluster:
    """A running cluster. `facts` is what `localcluster up --json` said."""

    facts: dict[str, Any]

    @classmethod
    def up(cls, name: str, *arguments: str) -> Cluster:
        """A fresh cluster of that name; what a run before has left is taken down first."""
        if not os.environ.get("KEEP_CLUSTER"):
            localcluster("down", "--name", name)
        return cls(json.loads(localcluster("up", "--name", name, "--json", *arguments).strip().splitlines()[-1]))

    def down(self) -> None:
        if not os.environ.get("KEEP_CLUSTER"):
            localcluster("down", "--name", self.name)

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def kubeconfig(self) -> Path:
        return Path(self.facts["kubeconfig"])

    @property
    def registry(self) -> str:
        return str(self.facts["registry"])

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.facts['bin']}:{os.environ['PATH']}"
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path}

    def run(
        self, *command: str, input: str | None = None, check: bool = True, seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program against this cluster; fails the test with its words unless `check` is off."""
        done = subprocess.run(
            command,
            env=self.environment,
            input=input,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=seconds,
        )
        if check:
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done

    def kubectl(
        self, *arguments: str, input: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self.run("kubectl", *arguments, input=input, check=check)

    def helm(self, *arguments: str, input: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("helm", *arguments, input=input, check=check)

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any] | None:
        """The object, or None if there is none."""
        done = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def list(self, kind: str, namespace: str, *arguments: str) -> list[dict[str, Any]]:
        done = self.kubectl("get", kind, "-n", namespace, "-o", "json", *arguments)
        items: list[dict[str, Any]] = json.loads(done.stdout)["items"]
        return items

    def apply(self, *objects: dict[str, Any], namespace: str = "default") -> None:
        body = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "-n", namespace, "-f", "-", input=body)


def token_service(name: str, image: str = "registry.invalid/serving:1", **spec: Any) -> dict[str, Any]:
    """A TokenService; `spec` adds to or replaces fields of the spec."""
    return {
        "apiVersion": "tokenservice.dev/v1alpha1",
        "kind": "TokenService",
        "metadata": {"name": name},
        "spec": {"model": {"source": "file:///models/tiny"}, "environment": {"image": {"reference": image}}, **spec},
    }


def condition(resource: dict[str, Any] | None, kind: str = "Ready") -> dict[str, Any]:
    """The condition of that type, {} if there is none or it speaks of an older spec."""
    status = (resource or {}).get("status", {})
    if not resource or status.get("observedGeneration") != resource["metadata"]["generation"]:
        return {}
    return next((c for c in status.get("conditions", ()) if c["type"] == kind), {})
