"""How fast, with how many writes and at what cost the operator brings many TokenServices up; a bare client beside it.

    python -m bench.reconcile [--services 1000] [--runs 3]

What is measured, and what the figures mean, stands in docs/benchmarks.md. Progress goes to stderr, a table to stdout,
and the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from bench.audit import AuditLog, after_ready, all_begun, counted, first_creation
from bench.client import Api, create, prepare, write_all
from bench.cluster import BenchError, Cluster, Identity, install
from bench.process import Operator

BEGIN_SECONDS = 600.0
READY_SECONDS = 900.0


@dataclass
class RawRun:
    """Figures of one run of the bare client."""

    services_per_s: float
    cpu_ms: float
    """The client's own processor time a service, in ms."""


@dataclass
class Run:
    """Figures of one run of the operator. Seconds, MiB, writes by kind."""

    services_per_s: float
    cpu_ms: float
    """Processor time a service until all had begun, in ms."""
    ready_s: float
    writes: Counter[str]
    later: int
    """Of the writes those of a status after its service was Ready: that its revision has proven good."""
    idle_writes: Counter[str]
    idle_cpu_percent: float
    rss_mib: float
    peak_mib: float
    restart_seconds: float
    restart_writes: Counter[str] = field(default_factory=Counter)


class Bench:
    """The runs, one after the other, on one cluster."""

    def __init__(
        self, arguments: argparse.Namespace, cluster: Cluster, operator: Identity, client: Identity, logs: Path
    ) -> None:
        self._services: int = arguments.services
        self._runs: int = arguments.runs
        self._in_flight: int = arguments.in_flight
        self._idle_seconds: float = arguments.idle_seconds
        self._wrapper: tuple[str, ...] = tuple(arguments.wrapper.split())
        self._operator = operator
        self._client = client
        self._cluster = cluster
        self._logs = logs
        self._names = [f"svc-{number:05}" for number in range(self._services)]

    async def run(self) -> tuple[list[RawRun], list[Run]]:
        """Alternating runs: the figures of each, the bare client's first."""
        raw: list[RawRun] = []
        runs: list[Run] = []
        async with Api(self._cluster.server, self._cluster.ca, self._client.token) as api:
            await self._warm_up(api, "warm-up")
            for number in range(1, self._runs + 1):
                raw.append(await self._raw(api, f"raw-{number}"))
                say(f"run {number} of {self._runs}: bare client, {raw[-1].services_per_s:.1f} services/s")
                runs.append(await self._operated(api, f"operated-{number}"))
                if number < self._runs:
                    await self._remove(api, f"operated-{number}")
                say(f"run {number} of {self._runs}: operator, {runs[-1].services_per_s:.1f} services/s")
        return raw, runs

    async def _warm_up(self, api: Api, namespace: str) -> None:
        """A few services by the bare client: what an API server does once only must not count for whoever is first."""
        names = self._names[: max(1, min(100, self._services // 4))]
        say(f"{namespace}: {len(names)} services")
        await api.make_namespace(namespace)
        await write_all(api, await prepare(api, namespace), namespace, names, self._in_flight)
        await self._remove(api, namespace)

    async def _raw(self, api: Api, namespace: str) -> RawRun:
        await api.make_namespace(namespace)
        texts = await prepare(api, namespace)
        audit = self._audit()
        say(f"{namespace}: a bare client makes {6 * self._services} writes")
        cpu = time.process_time()
        await write_all(api, texts, namespace, self._names, self._in_flight)
        cpu_ms = 1000 * (time.process_time() - cpu) / self._services
        rate, _, _ = await self._begun(audit, self._client.user, namespace)
        await self._check(api, namespace)
        await self._remove(api, namespace)
        return RawRun(rate, cpu_ms)

    async def _operated(self, api: Api, namespace: str) -> Run:
        await api.make_namespace(namespace)
        operator = Operator(self._operator.kubeconfig, self._logs / f"{namespace}.log", self._in_flight, self._wrapper)
        await operator.start()
        try:
            await operator.ready()
            run = await self._measure(api, namespace, operator)
            await operator.stop()
        finally:
            await operator.kill()
        return run

    async def _measure(self, api: Api, namespace: str, operator: Operator) -> Run:
        audit = self._audit()
        cpu = operator.cpu_seconds()
        say(f"{namespace}: applying {self._services} TokenServices")
        await create(api, namespace, self._names, self._in_flight)
        rate, began, begun = await self._begun(audit, self._operator.user, namespace)
        cpu_ms = 1000 * (operator.cpu_seconds() - cpu) / self._services
        say(f"{namespace}: all children and first statuses exist after {(begun - began).total_seconds():.1f} s")
        ready = await api.until_ready(namespace, self._services, progress(namespace, self._services), READY_SECONDS)
        ready_s = (max(ready.values()) - began).total_seconds()
        say(f"{namespace}: all Ready after {ready_s:.1f} s")
        await operator.settled()
        writes = counted(audit.read(), self._operator.user, began, datetime.now(UTC))
        later = after_ready(audit.read(), self._operator.user, namespace, ready)

        say(f"{namespace}: idle for {self._idle_seconds:g} s")
        idle_from, cpu, clock = datetime.now(UTC), operator.cpu_seconds(), time.monotonic()
        await asyncio.sleep(self._idle_seconds)
        percent = 100 * (operator.cpu_seconds() - cpu) / (time.monotonic() - clock)
        rss, peak = operator.memory_mib()
        idle = counted(audit.read(), self._operator.user, idle_from, datetime.now(UTC))

        say(f"{namespace}: restarting the operator")
        restart_from, clock = datetime.now(UTC), time.monotonic()
        await operator.stop()
        await operator.start()
        await operator.ready()
        last = await operator.settled(known=self._services, reconciles=self._services)
        restart = counted(audit.read(), self._operator.user, restart_from, datetime.now(UTC))
        await self._check(api, namespace)
        return Run(rate, cpu_ms, ready_s, writes, later, idle, percent, rss, peak, last - clock, restart)

    async def _begun(self, audit: AuditLog, user: str, namespace: str) -> tuple[float, datetime, datetime]:
        """Services per second, from when, until when: see `all_begun`. The log's times are those of this machine."""
        deadline = time.monotonic() + BEGIN_SECONDS
        while True:
            writes = audit.read()
            began = first_creation(writes, namespace)
            begun = all_begun(writes, user, namespace, self._services)
            if began and begun:
                return self._services / (begun - began).total_seconds(), began, begun
            if time.monotonic() > deadline:
                raise BenchError(f"{namespace}: children or statuses are missing after {BEGIN_SECONDS:g} s")
            await asyncio.sleep(1.0)

    async def _check(self, api: Api, namespace: str) -> None:
        """Raises BenchError unless the audit log told the truth: every service has the status of its generation."""
        seen = await api.services(namespace)
        right = sum(one.status.observed_generation == one.metadata.generation == 1 for one in seen)
        if right != self._services:
            raise BenchError(f"{namespace}: {right} of {self._services} services have a status of their generation")

    async def _remove(self, api: Api, namespace: str) -> None:
        say(f"{namespace}: removing everything")
        await api.remove_namespace(namespace)

    def _audit(self) -> AuditLog:
        return AuditLog(self._cluster.audit_log, (self._operator.user, self._client.user))


def result(services: int, idle_seconds: float, raw: list[RawRun], runs: list[Run]) -> dict[str, float]:
    """The figures: medians, and of what should be none the worst."""

    def median(name: str) -> float:
        return float(statistics.median(getattr(run, name) for run in runs))

    raw_per_s, services_per_s = statistics.median(one.services_per_s for one in raw), median("services_per_s")
    return {
        "services": services,
        "services_per_s": round(services_per_s, 2),
        "raw_per_s": round(raw_per_s, 2),
        "ratio_to_raw": round(services_per_s / raw_per_s, 3),
        "ready_s": round(median("ready_s"), 1),
        "writes_per_service": round(statistics.median(run.writes.total() - run.later for run in runs) / services, 2),
        "restart_seconds": round(median("restart_seconds"), 2),
        "restart_writes": max(run.restart_writes.total() for run in runs),
        "idle_writes_per_min": round(max(run.idle_writes.total() for run in runs) * 60 / idle_seconds, 2),
        "idle_cpu_percent": round(median("idle_cpu_percent"), 2),
        "rss_mib": round(max(run.rss_mib for run in runs), 1),
    }


def table(services: int, raw: list[RawRun], runs: list[Run]) -> str:
    """Every run's figures, a line each."""
    rows: list[tuple[str, list[str]]] = [
        ("bare client, services/s", [f"{one.services_per_s:.1f}" for one in raw]),
        ("  processor time a service, ms", [f"{one.cpu_ms:.1f}" for one in raw]),
        ("operator, services/s", [f"{run.services_per_s:.1f}" for run in runs]),
        ("  processor time a service, ms", [f"{run.cpu_ms:.1f}" for run in runs]),
        ("all Ready after, s", [f"{run.ready_s:.1f}" for run in runs]),
        ("writes a service, to Ready", [f"{(run.writes.total() - run.later) / services:.2f}" for run in runs]),
        ("  after that", [f"{run.later / services:.2f}" for run in runs]),
        ("idle, writes", [str(run.idle_writes.total()) for run in runs]),
        ("idle, % of a core", [f"{run.idle_cpu_percent:.2f}" for run in runs]),
        ("resident memory, MiB", [f"{run.rss_mib:.0f}" for run in runs]),
        ("  at its peak", [f"{run.peak_mib:.0f}" for run in runs]),
        ("restart to converged, s", [f"{run.restart_seconds:.2f}" for run in runs]),
        ("restart, writes", [str(run.restart_writes.total()) for run in runs]),
    ]
    kinds = sorted({kind for run in runs for kind in run.writes})
    rows += [(f"  {kind}", [str(run.writes[kind]) for run in runs]) for kind in kinds]
    head = ("", [f"run {number}" for number in range(1, len(runs) + 1)])
    return "\n".join(f"{name:<44}" + "".join(f"{value:>10}" for value in values) for name, values in (head, *rows))


def progress(namespace: str, count: int) -> Callable[[int], None]:
    """Says how many are Ready, every few seconds."""
    said = time.monotonic()

    def tell(ready: int) -> None:
        nonlocal said
        if time.monotonic() - said > 5:
            said = time.monotonic()
            say(f"{namespace}: {ready} of {count} Ready")

    return tell


def say(message: str) -> None:
    """A line of progress."""
    print(f"bench-reconcile: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the benchmark; 0 if it came to figures, whatever they are."""
    parser = argparse.ArgumentParser(
        prog="bench.reconcile", description="TokenServices at once, against a bare client."
    )
    parser.add_argument("--services", type=int, default=1000, help="TokenServices a run, default 1000")
    parser.add_argument("--runs", type=int, default=3, help="runs of each of the two, default 3")
    parser.add_argument(
        "--in-flight", type=int, default=16, help="requests in flight, and the operator's workers, default 16"
    )
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="how long to watch it idle, default 60")
    parser.add_argument("--cluster", default="bench-reconcile", help="name of the local cluster that is made for it")
    parser.add_argument("--keep-cluster", action="store_true", help="leave the cluster up afterwards")
    parser.add_argument(
        "--wrapper", default="", help="what runs the operator instead of this Python, such as a profiler"
    )
    arguments = parser.parse_args()
    if min(arguments.services, arguments.runs, arguments.in_flight, arguments.idle_seconds) < 1:
        parser.error("--services, --runs, --in-flight and --idle-seconds must be at least 1")
    folder = Path(tempfile.mkdtemp(prefix="bench-reconcile-"))
    try:
        raw, runs = _on_a_cluster(arguments, folder)
    except (BenchError, aiohttp.ClientError) as error:
        say(f"{error}\nThe operator's logs are in {folder}")
        return 1
    except KeyboardInterrupt:
        say(f"interrupted; the operator's logs are in {folder}")
        return 130
    shutil.rmtree(folder)
    print(table(arguments.services, raw, runs))
    print(json.dumps(result(arguments.services, arguments.idle_seconds, raw, runs)))
    return 0


def _on_a_cluster(arguments: argparse.Namespace, folder: Path) -> tuple[list[RawRun], list[Run]]:
    options = ("--shape", "control-plane", "--kwok-nodes", "10", "--raise-client-limits", "--audit")
    try:
        cluster = Cluster.up(arguments.cluster, *options)
        operator, client = install(cluster, folder)
        bench = Bench(arguments, cluster, operator, client, folder)
        return asyncio.run(bench.run())
    finally:
        if not arguments.keep_cluster:
            Cluster({"name": arguments.cluster}).down()


if __name__ == "__main__":
    sys.exit(main())
