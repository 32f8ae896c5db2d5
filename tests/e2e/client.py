"""A client in a pod of the cluster: it asks through DNS and the Service, as the users of a TokenService do."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.api import Object
from tests.support.cluster import Cluster
from tests.support.space import Space
from tests.support.wait import eventually

PROGRAM = Path(__file__).parent / "client_pod.py"
POD = "client"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Report:
    """What a steady client saw; filled when it has ended."""

    answers: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Client:
    cluster: Cluster
    space: Space

    @classmethod
    def start(cls, space: Space, image: str) -> Client:
        """Starts the pod, of the stand-in's image since that has Python."""
        safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
        container = {
            "name": "client",
            "image": image,
            "command": ["python3.11", "-c", "import signal; signal.pause()"],
            "securityContext": safe,
            "volumeMounts": [{"name": "program", "mountPath": "/program"}],
        }
        spec = {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "program", "configMap": {"name": POD}}],
        }
        space.make("ConfigMap", POD, data={PROGRAM.name: PROGRAM.read_text()})
        space.make("Pod", POD, spec=spec)
        space.kubectl("wait", "--for=condition=Ready", f"pod/{POD}", "--timeout=60s")
        return cls(space.cluster, space)

    def reach(self, service: Object) -> str:
        """The URL of a TokenService that is Ready, once its Service leads there: kube-proxy takes a moment."""
        url = str(service["status"]["url"])
        eventually(lambda: self.ask(url.removesuffix("v1") + "healthz").status == 200, f"{url} leads somewhere")
        return url

    def ask(self, url: str, body: Any = None, *, method: str | None = None, **headers: str) -> Answer:
        """One request: GET without a body, else POST. An underscore in a header's name stands for a hyphen."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        given = json.dumps({"method": method, "body": body, "headers": {"Content-Type": "application/json", **named}})
        return Answer(**json.loads(self.space.kubectl(*self.command("ask", url), input=given)))

    @contextlib.contextmanager
    def asking_steadily(self, url: str, model: str, *, each: int = 2) -> Iterator[Report]:
        """Asks for as long as the block runs; begins once each kind of request was answered. each: clients a kind."""
        command = ("kubectl", "--namespace", self.space.name, *self.command("steadily", url, model, str(each)))
        report = Report()
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=self.cluster.environment, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                assert process.stdout
                assert process.stdout.readline() == "asking\n", "the client did not begin"
                yield report
                seen, _ = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 0, seen
        report.__dict__.update(json.loads(seen.splitlines()[-1]))

    def command(self, *words: str) -> tuple[str, ...]:
        """Arguments of kubectl, after the namespace, that run client_pod.py in the pod."""
        return ("exec", "--stdin", POD, "--", "python3.11", f"/program/{PROGRAM.name}", *words)
