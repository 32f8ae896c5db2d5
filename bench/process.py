"""The operator as a process of its own: started, asked for its metrics, measured, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from bench.cluster import SYSTEM, BenchError
from tools.ports import free_port

QUIET_SECONDS = 5.0
"""Without a reconcile for so long, nothing more is to come."""


@dataclass(frozen=True)
class Work:
    """What the operator says of itself: TokenServices it knows, reconciles done, keys waiting, reconciles under way."""

    known: int
    reconciles: int
    waiting: int
    active: int

    @property
    def drained(self) -> bool:
        return self.waiting == 0 and self.active == 0


class Operator:
    """`tokenservice manager`, one process. `wrapper` comes before the command, for profilers."""

    def __init__(self, kubeconfig: Path, log: Path, workers: int, wrapper: tuple[str, ...] = ()) -> None:
        self._kubeconfig = kubeconfig
        self._log = log
        self._workers = workers
        self._wrapper = wrapper or (sys.executable,)
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    async def start(self) -> None:
        """Starts the process; does not wait until it is ready."""
        self._port = free_port()
        command = [
            *self._wrapper, "-m", "tokenservice.cli", "manager",
            "--kubeconfig", str(self._kubeconfig),
            "--lease-namespace", SYSTEM,
            "--http-port", str(self._port),
            "--workers", str(self._workers),
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)

    async def ready(self, seconds: float = 60.0) -> None:
        """Waits until /readyz answers 200. Raises BenchError if the process ends or takes longer."""
        deadline = time.monotonic() + seconds
        while True:
            self._check_alive()
            try:
                status, _ = await self._get("/readyz")
            except aiohttp.ClientError:
                status = 0
            if status == 200:
                return
            if time.monotonic() > deadline:
                raise BenchError(f"the operator is not ready within {seconds:g} s; its log is {self._log}")
            await asyncio.sleep(0.05)

    async def work(self) -> Work:
        """What /metrics says. Raises BenchError if the process has ended."""
        self._check_alive()
        _, text = await self._get("/metrics")
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return Work(
            known=int(sums.get("tokenservice_services", 0)),
            reconciles=int(sums.get("controller_runtime_reconcile_total", 0)),
            waiting=int(sums.get("workqueue_depth", 0)),
            active=int(sums.get("controller_runtime_active_workers", 0)),
        )

    async def settled(self, known: int = 0, reconciles: int = 0, seconds: float = 300.0) -> float:
        """Waits until it has had nothing to do for a while; returns when it did the last thing (monotonic seconds).

        known, reconciles: so many TokenServices it must know, and so many times have looked at one. Raises BenchError
        after `seconds`.
        """
        deadline = time.monotonic() + seconds
        before: Work | None = None
        since = time.monotonic()
        while True:
            now = await self.work()
            if before is None or now != before or not now.drained or now.known < known or now.reconciles < reconciles:
                before, since = now, time.monotonic()
            elif time.monotonic() - since >= QUIET_SECONDS:
                return since
            if time.monotonic() > deadline:
                raise BenchError(f"the operator does not settle within {seconds:g} s: {now}")
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """SIGTERM, and waits for the end. Raises BenchError unless it ends by itself with exit status 0."""
        process = self._process
        if process is None:
            return
        self._check_alive()
        process.send_signal(signal.SIGTERM)
        try:
            status = await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            raise BenchError("the operator does not end on SIGTERM within 30 s") from None
        self._process = None
        if status:
            raise BenchError(f"the operator ended with exit status {status}; its log is {self._log}")

    async def kill(self) -> None:
        """Ends it in any case."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._process = None

    def cpu_seconds(self) -> float:
        """Processor time used so far, user and system."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))

    def memory_mib(self) -> tuple[float, float]:
        """Resident memory now and at its peak (VmRSS, VmHWM)."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{self._pid}/status").read_text().splitlines())
        now, peak = (int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak

    @property
    def _pid(self) -> int:
        if self._process is None:
            raise BenchError("the operator does not run")
        return self._process.pid

    def _check_alive(self) -> None:
        if self._process is None or self._process.returncode is not None:
            words = self._log.read_text(errors="replace").splitlines()[-5:]
            raise BenchError("the operator has ended by itself; its last words:\n" + "\n".join(words))

    async def _get(self, path: str) -> tuple[int, str]:
        timeout = aiohttp.ClientTimeout(total=10)
        url = f"http://127.0.0.1:{self._port}{path}"
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
            return answer.status, await answer.text()
