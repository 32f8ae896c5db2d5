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
class Stream:
    process: subprocess.Popen[str]

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def answer(self) -> Answer:
        """The whole of it, once it has ended."""
        return Answer(**json.loads(self.process.communicate(timeout=90)[0]))


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
        """One request: GET without a body, else POST."""
        given = request(body, method, headers)
        return Answer(**json.loads(self.space.kubectl(*self.command("ask", url), input=given)))

    @contextlib.contextmanager
    def stream(self, url: str, body: Any, **headers: str) -> Iterator[Stream]:
        """One request whose answer comes in pieces; the block begins when the first has come."""
        with self.process("stream", url) as process:
            assert process.stdin
            process.stdin.write(request(body, None, headers))
            process.stdin.close()
            process.stdin = None  # communicate() would flush it
            said(process, "answering")
            yield Stream(process)

    @contextlib.contextmanager
    def asking_steadily(self, url: str, model: str, *, each: int = 2) -> Iterator[Report]:
        """Asks for as long as the block runs; begins once each kind of request was answered. each: clients a kind."""
        report = Report()
        with self.process("steadily", url, model, str(each)) as process:
            said(process, "asking")
            yield report
            seen, _ = process.communicate(timeout=60)
        assert process.returncode == 0, seen
        report.__dict__.update(json.loads(seen.splitlines()[-1]))

    @contextlib.contextmanager
    def process(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """client_pod.py at work; stopped when the block ends."""
        command = ("kubectl", "--namespace", self.space.name, *self.command(*words))
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=self.cluster.environment, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def command(self, *words: str) -> tuple[str, ...]:
        """Arguments of kubectl, after the namespace, that run client_pod.py in the pod."""
        return ("exec", "--stdin", POD, "--", "python3.11", f"/program/{PROGRAM.name}", *words)


def request(body: Any, method: str | None, headers: dict[str, str]) -> str:
    """What client_pod.py wants to be told."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return json.dumps({"method": method, "body": body, "headers": {"Content-Type": "application/json", **named}})


def said(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout
    assert process.stdout.readline() == f"{word}\n", f"the client did not get as far as {word!r}"
