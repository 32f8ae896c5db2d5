"""How fast warm pods are claimed, and whether any claim is lost or made twice; a bare client beside the operator.

    python -m bench.claim [--client both] [--nodes 100] [--pool 1050]

What is measured, and what the figures mean, stands in docs/benchmarks.md. Warm pods are KWOK's, so their servers are a
stand-in (bench/claim_standin.py). Progress goes to stderr, a table to stdout, and the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from tokenservice.api.pools import WarmPool

from bench import claim_setup as setup
from bench.audit import counted
from bench.child import Child
from bench.claim_check import check
from bench.claim_figures import figures
from bench.claim_log import story
from bench.claim_race import prove
from bench.claim_report import BARE, OPERATOR, Outcome, Report, proof, result, table
from bench.claim_setup import CONNECTIONS, Setting
from bench.client import Api
from bench.cluster import BenchError, Cluster, install
from bench.network import inside
from bench.process import Operator
from bench.program import run

WARM_UP = 20
"""Claims before those that count: connections are made, and code runs for the first time."""
WARM_UP_PER_S = 10.0
SPARE = 30
"""Pods that nobody asks for: the last claims are to find some, too."""
READY_SECONDS = 900.0
FINISH_SECONDS = 60.0
"""Without a claim that is finished, for so long: what is not by then is lost."""


@dataclass(frozen=True)
class Scenario:
    """What is offered. per_s: edits a second, None for all at once; refill_per_s: the pool's refill.maxPerSecond."""

    name: str
    edits: int
    per_s: float | None
    refill_per_s: int


def scenarios(arguments: argparse.Namespace) -> tuple[Scenario, ...]:
    """What is measured, from the size of the pool."""
    return (
        Scenario("without_refill", arguments.pool - WARM_UP - SPARE, arguments.rate, 1),
        Scenario("with_refill", round(arguments.seconds * arguments.refill_rate), arguments.refill_rate, 100),
        Scenario("burst", min(300, arguments.pool - WARM_UP - SPARE), None, 10),
    )


class Bench:
    """The phases, one after the other, on one cluster."""

    def __init__(self, arguments: argparse.Namespace, setting: Setting) -> None:
        self._pool: int = arguments.pool
        self._workers: int = arguments.workers
        self._setting = setting
        self._api = setting.api

    async def phase(self, who: str, scenario: Scenario, number: int) -> Outcome:
        """One scenario, in a namespace of its own that is gone afterwards."""
        namespace = f"{who}-{scenario.name.replace('_', '-')}-{number}"
        called = [f"svc-{each:05}" for each in range(WARM_UP + scenario.edits)]
        say(f"{namespace}: a pool of {self._pool}, {len(called)} TokenServices")
        await self._api.make_namespace(namespace)
        audit = self._setting.audit(namespace)
        claims = self._bare if who == BARE else self._operated
        async with claims(namespace, scenario, called) as operator:
            warm_up, measured = called[:WARM_UP], called[WARM_UP:]
            await setup.offer(self._api, namespace, warm_up, WARM_UP_PER_S)
            await asyncio.sleep(2.0)
            rate = f"{scenario.per_s:g} a second" if scenario.per_s else "all at once"
            say(f"{namespace}: {len(measured)} edits, {rate}")
            late = await setup.offer(self._api, namespace, measured, scenario.per_s)
            await setup.finished(audit, namespace, len(called), FINISH_SECONDS)
            if operator:
                await setup.settled(self._api, namespace)
        told = story(audit.read(), namespace)
        seen = figures(told, without=warm_up)
        if seen.began is None or seen.ended is None:
            raise BenchError(f"no edit of {namespace} is in the audit log")
        user = self._setting.operator.user if operator else self._setting.client.user
        made = counted(audit.writes, user, seen.began, seen.ended)["create pods"]
        seconds = (seen.ended - seen.began).total_seconds()
        writes = counted(audit.writes, user, seen.began, datetime.now(UTC))
        writes.pop("patch tokenservices", None)  # the edits themselves
        refilled = made / seconds if seconds else 0.0
        outcome = Outcome(who, scenario.name, seen, check(told), 1000 * late, refilled, writes)
        say(f"{namespace}: {seen.claims} claims, p99 {seen.p99_ms or 0:.0f} ms")
        for word in outcome.verdict.words:
            say(f"{namespace}: {word}")
        await self._api.remove_namespace(namespace)
        return outcome

    @contextlib.asynccontextmanager
    async def _bare(self, namespace: str, scenario: Scenario, called: list[str]) -> AsyncIterator[None]:
        """A bare client claims. What the operator has made is there, so that a claim has the same consequences."""
        async with self._prepared(namespace, scenario, called) as (pool, operator):
            await operator.stop()
            text = setup.pod_text(await setup.pod_schema(self._api), pool)
            task = self._setting.bare(namespace, pool, pod=text, refill_per_s=scenario.refill_per_s)
            log = self._setting.logs / f"{namespace}-client.log"
            async with Child("bench.claim_bare", msgspec.json.encode(task), log):
                yield

    @contextlib.asynccontextmanager
    async def _operated(self, namespace: str, scenario: Scenario, called: list[str]) -> AsyncIterator[Operator]:
        """The operator claims, and fills the pool."""
        async with self._prepared(namespace, scenario, called) as (_, operator):
            yield operator
            await operator.stop()

    @contextlib.asynccontextmanager
    async def _prepared(
        self, namespace: str, scenario: Scenario, called: list[str]
    ) -> AsyncIterator[tuple[WarmPool, Operator]]:
        """TokenServices with all that is theirs but a replica, and a full pool; the operator that has made them."""
        log = self._setting.logs / f"{namespace}.log"
        operator = Operator(self._setting.operator.kubeconfig, log, self._workers)
        await operator.start()
        try:
            await operator.ready()
            pool = await setup.make_pool(self._api, namespace, self._pool, setup.FILLING_PER_S)
            await setup.make_services(self._api, namespace, called)
            await self._api.until_ready(namespace, len(called), lambda _: None, READY_SECONDS)
            await setup.filled(self._api, namespace, self._pool)
            await setup.set_refill(self._api, namespace, scenario.refill_per_s)
            await operator.settled()
            yield pool, operator
        finally:
            await operator.kill()


async def measure(arguments: argparse.Namespace, setting: Setting) -> Report:
    """First that the checker is no blind one, then everything."""
    report = Report(nodes=arguments.nodes, pool=arguments.pool, load=(os.getloadavg()[0], 0.0))
    async with Child("bench.claim_standin", b"{}", setting.logs / "standin.log"):
        say("two clients race for a pool, with the optimistic lock and without it")
        report.locked, report.broken = await prove(setting)
        say(f"{report.broken.duplicated} pods claimed twice without the lock, {report.locked.duplicated} with it")
        bench = Bench(arguments, setting)
        who = {"both": (BARE, OPERATOR), "bare": (BARE,), "operator": (OPERATOR,)}[arguments.client]
        for number in range(1, arguments.runs + 1 if not arguments.proof_only else 1):
            for scenario in scenarios(arguments):
                for each in who:
                    report.outcomes.append(await bench.phase(each, scenario, number))
    report.load = (report.load[0], os.getloadavg()[0])
    return report


def on_a_cluster(arguments: argparse.Namespace, folder: Path) -> Report:
    """Measures on a cluster that is made for it."""
    options = ("--shape", "control-plane", "--kwok-nodes", str(arguments.nodes), "--raise-client-limits")
    try:
        cluster = Cluster.up(arguments.cluster, *options, "--audit", "--audit-bodies")
        operator, client = install(cluster, folder)

        async def everything() -> Report:
            async with Api(cluster.server, cluster.ca, client.token, CONNECTIONS) as api:
                return await measure(arguments, Setting(cluster, client, operator, api, folder))

        with inside(cluster.first_machine()):
            return asyncio.run(everything())
    finally:
        if not arguments.keep_cluster:
            Cluster({"name": arguments.cluster}).down()


def say(message: str) -> None:
    """A line of progress."""
    print(f"bench-claim: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the benchmark; 0 if it came to figures, whatever they are."""
    parser = argparse.ArgumentParser(prog="bench.claim", description="Claims of warm pods, against a bare client.")
    parser.add_argument("--client", choices=("both", "bare", "operator"), default="both", help="who claims")
    parser.add_argument("--nodes", type=int, default=100, help="KWOK's nodes, default 100")
    parser.add_argument("--pool", type=int, default=1050, help="warm pods, default 1050; all but 50 are claimed")
    parser.add_argument("--rate", type=float, default=105.0, help="edits a second without refill, default 105")
    parser.add_argument("--refill-rate", type=float, default=32.0, help="edits a second with refill, default 32")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the edits with refill, default 30")
    parser.add_argument("--runs", type=int, default=1, help="runs of everything, default 1; figures are medians")
    parser.add_argument("--workers", type=int, default=16, help="the operator's, default 16")
    parser.add_argument("--proof-only", action="store_true", help="only prove that the checker sees a broken claim")
    parser.add_argument("--cluster", default="bench-claim", help="name of the local cluster that is made for it")
    parser.add_argument("--keep-cluster", action="store_true", help="leave the cluster up afterwards")
    arguments = parser.parse_args()
    if arguments.pool < WARM_UP + SPARE + 10:
        parser.error(f"--pool must be at least {WARM_UP + SPARE + 10}")
    if min(arguments.nodes, arguments.rate, arguments.refill_rate, arguments.seconds, arguments.runs) < 1:
        parser.error("--nodes, --rate, --refill-rate, --seconds and --runs must be at least 1")
    return run(
        "claim", lambda folder: on_a_cluster(arguments, folder), table, proof if arguments.proof_only else result, say
    )


if __name__ == "__main__":
    sys.exit(main())
