"""The real operator as a process of this machine: start, stop, kill; its log, metrics and readiness."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.support.wait import eventually
from tools.ports import free_port

START_SECONDS = 60.0


class OperatorProcess:
    """`tokenservice manager` with this kubeconfig. Its log goes to files in `folder`, one for each start."""

    def __init__(self, kubeconfig: Path, folder: Path, *flags: str, name: str = "operator") -> None:
        self.kubeconfig = kubeconfig
        self.flags = flags
        self.name = name
        self.port = free_port()
        self.starts = 0
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log_file(self) -> Path:
        return self._folder / f"{self.name}-{self.starts}.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def spawn(self) -> None:
        """Starts the process, and does not wait for it."""
        assert not self.running, f"{self.name} runs already"
        self.starts += 1
        command = [
            *(sys.executable, "-m", "tokenservice.cli", "manager", f"--kubeconfig={self.kubeconfig}"),
            *(f"--http-port={self.port}", f"--pod-name={self.name}", *self.flags),
        ]
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def start(self) -> None:
        """Starts the process and waits until it reconciles."""
        self.spawn()
        eventually(self.reconciles, f"{self.name} reconciles: {self.log_file}", seconds=START_SECONDS)

    def reconciles(self) -> bool:
        """Whether this process leads and its caches are full."""
        assert self.running, f"{self.name} ended: {self.text()[-2000:]}"
        return any(line.get("msg") == "reconciling" for line in self.lines())

    def wait(self, seconds: float = 30.0) -> int:
        """The exit status, once the process has ended."""
        assert self._process is not None
        return self._process.wait(seconds)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL: no chance to clean up."""
        assert self._process is not None
        self._process.kill()
        self.wait()

    def end(self) -> None:
        """For the end of a test: whatever state it is in, it is gone afterwards."""
        if self.running:
            self.kill()

    def text(self) -> str:
        return self.log_file.read_text(errors="replace") if self.starts else ""

    def lines(self) -> list[dict[str, Any]]:
        """The log of the newest process. Every complete line must be JSON."""
        text = self.text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def says(self, message: str) -> list[dict[str, Any]]:
        """The lines with this message."""
        return [line for line in self.lines() if line.get("msg") == message]

    def surprises(self) -> list[dict[str, Any]]:
        """Lines that only a mistake in the operator causes. kopf adds a traceback to every refusal that it meets."""

        def ours(line: dict[str, Any]) -> bool:
            return not str(line.get("logger", "")).startswith("kopf")

        return [
            line for line in self.lines() if ours(line) and ("traceback" in line or line.get("verdict") == "unexpected")
        ]

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of the operator's own HTTP server; status 0 while nobody listens."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=5, trust_env=False)
        except httpx.TransportError:
            return 0, ""
        return answer.status_code, answer.text

    def metric(self, series: str) -> float:
        """The value of a series, for example `workqueue_depth{name="tokenservice"}`; the sum without labels."""
        _, text = self.get("/metrics")
        found = re.findall(rf"^{re.escape(series)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))
