"""What clients notice while pods are replaced: a change of the environment, a rollback, a drained node.

    python -m bench.rollout [--before-seconds 30] [--clients 20]

A local cluster with two real nodes; the operator by its own chart; a TokenService of two replicas. What serves is the
stand-in server (tests/e2e/standin_server): it keeps token_server's contract, streams canned tokens and has no model,
since rollouts are measured here and not generation. The clients run in one pod on the node that stays, and ask through
the Service, half of them on connections that they keep; rollout_client.py tells how.

| phase | what happens |
| --- | --- |
| before | nothing |
| change | `environment.image` (a layer more, which nodes pull) and the engine's arguments: both pods are replaced |
| rollback | an edit whose pods crash, with a deadline of 15 s; once it is rolled back, the edit is taken back |
| drain | `kubectl drain` of the other node, which has one of the pods |

A phase lasts until nothing comes or goes any more, and five seconds. A request belongs to the phase in which it ended.

requests, failed, cut   of all phases. failed: no connection, a connection that broke before the answer, or a status
                        that is not 200. cut: a stream that began and did not end with `[DONE]`, or broke
edit_to_new_serving_s   from the PATCH to Ready=True of the new spec: every pod is new
edit_to_rolled_back_s   from the PATCH to RolledBack=True with every replica of the last good revision there. The
                        deadline of 15 s is a part of it
p99_latency_ratio       99th percentile of whole requests, connecting included, in the three later phases together,
                        divided by that before. Failed and cut ones have no latency

Progress goes to stderr, a table to stdout, and the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from tokenservice.api import names

from bench import environment_setup
from bench import rollout_setup as setup
from bench.client import JSON, MERGE
from bench.cluster import BenchError, Cluster
from bench.program import run
from bench.rollout_report import Figures, result, table
from bench.rollout_requests import Phase, summary, told, verdict
from bench.rollout_setup import NAME, SPACE, Clients, Images
from bench.rollout_watch import Following, State, Story, stages

WARM_UP_SECONDS = 5.0
MARGIN_SECONDS = 5.0
EDIT_SECONDS = 300.0
CRASH_DEADLINE_SECONDS = 15
DRAIN_SECONDS = 180
SHOWN_FAILURES, SHOWN_SLOW = 20, 5
SERVICES = f"/apis/{names.API_VERSION}/namespaces/{SPACE}/tokenservices"


class _Metadata(msgspec.Struct):
    generation: int


class _Patched(msgspec.Struct):
    metadata: _Metadata


@dataclass(frozen=True)
class Edit:
    """An edit of the spec: when (monotonic seconds), and the generation that it made."""

    at: float
    generation: int


class Bench:
    """The phases, one after the other, on one cluster."""

    def __init__(
        self, arguments: argparse.Namespace, cluster: Cluster, api: Following, images: Images, story: Story
    ) -> None:
        self._before_seconds: float = arguments.before_seconds
        self._count: int = arguments.clients
        self._tokens: int = arguments.tokens
        self._interval: float = arguments.token_interval
        self._pause: float = arguments.pause
        self._records: Path | None = arguments.records
        self._cluster = cluster
        self._api = api
        self._images = images
        self._story = story
        self._clients = Clients(api)
        self._figures = Figures(
            f"The stand-in server (no model), {setup.REPLICAS} replicas on 2 nodes: streams of {self._tokens} tokens, "
            f"{self._interval * 1000:g} ms apart.\n{self._count} clients, {(self._count + 1) // 2} of which keep their "
            f"connection; {self._pause * 1000:g} ms on average between two requests of one.",
            CRASH_DEADLINE_SECONDS,
        )
        # The first has the control plane and the clients; the second is drained.
        self._stays, self._leaves = (str(node["name"]) for node in cluster.facts["nodes"])

    async def run(self) -> Figures:
        figures = self._figures
        await self._begin()
        figures.load = (environment_setup.load(), 0.0)
        starts = [time.monotonic()]
        say(f"before: nothing happens for {self._before_seconds:g} s")
        await asyncio.sleep(self._before_seconds)
        for name, part in (("change", self._change), ("rollback", self._rollback), ("drain", self._drain)):
            await self._so_far()
            starts.append(time.monotonic())
            pods = await setup.settled_pods(self._api, EDIT_SECONDS)
            await part(pods)
            after = await setup.settled_pods(self._api, EDIT_SECONDS)
            figures.replaced[name] = len(set(pods) - set(after))
            say(f"{name}: {figures.replaced[name]} pods replaced, nothing comes or goes any more")
            await asyncio.sleep(MARGIN_SECONDS)
        await self._clients.stop()
        figures.load = (figures.load[0], environment_setup.load())
        self._sum_up([*starts, time.monotonic()])
        return figures

    async def _begin(self) -> None:
        """A TokenService that serves, and clients that ask it."""
        await self._api.make_namespace(SPACE)
        manifest = setup.service(self._images.old, self._serving("old"))
        await self._api.send("POST", SERVICES, json.dumps(manifest).encode(), JSON)
        state = await self._story.first(1, lambda state: state.verified, "verified", setup.READY_SECONDS)
        model = setup.MODEL.rpartition("/")[2]
        words = (rooted(str(state.status.url)), model, "--clients", str(self._count), "--tokens", str(self._tokens))
        manifests = setup.clients_pod(self._images.old, self._stays, (*words, "--pause", str(self._pause)))
        await asyncio.to_thread(self._cluster.apply, *manifests)
        await self._clients.wait_at_work(self._count)
        await asyncio.sleep(WARM_UP_SECONDS)

    async def _change(self, before: dict[str, str]) -> None:
        image = {"environment": {"image": {"reference": self._images.new}}}
        edit = await self._edit("change", {**image, "engine": {"args": self._serving("new")}})
        state = await self._story.first(edit.generation, lambda state: state.serving, "Ready", EDIT_SECONDS)
        found = await setup.pods(self._api)
        old = [pod for pod in found if not pod.metadata.deletion_timestamp and pod.metadata.uid in before]
        if old:
            raise BenchError(f"the TokenService is Ready, and {len(old)} pods of before the edit are there to stay")
        self._figures.new_serving_s = state.at - edit.at
        await self._story.first(edit.generation, lambda state: state.verified, "verified", EDIT_SECONDS)
        self._figures.stages["change"] = stages(self._story.states, edit.at, edit.generation)

    async def _rollback(self, before: dict[str, str]) -> None:
        crash = {"engine": {"args": [*self._serving("crash"), "--crash-on-start"]}}
        late = {"rollout": {"progressDeadlineSeconds": CRASH_DEADLINE_SECONDS}}
        edit = await self._edit("rollback", {**crash, **late})
        state = await self._story.first(edit.generation, lambda state: state.rolled_back, "rolled back", EDIT_SECONDS)
        self._figures.rolled_back_s = state.at - edit.at
        self._figures.stages["rollback"] = stages(self._story.states, edit.at, edit.generation)
        after = await setup.settled_pods(self._api, EDIT_SECONDS)
        if set(after) != set(before):
            say(f"rollback: {len(set(before) - set(after))} pods of the good revision were replaced")
        edit = await self._edit("rollback, taken back", {"engine": {"args": self._serving("new")}, "rollout": None})
        await self._story.first(edit.generation, lambda state: state.verified, "verified", EDIT_SECONDS)

    async def _drain(self, before: dict[str, str]) -> None:
        if self._leaves not in before.values():
            raise BenchError(f"no pod is on {self._leaves}, so that a drain would show nothing")
        words = ("--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={DRAIN_SECONDS}s")
        say(f"drain: {self._leaves}")
        since = time.monotonic()
        await asyncio.to_thread(self._cluster.run, "kubectl", "drain", self._leaves, *words)
        self._figures.drain_s = time.monotonic() - since
        say(f"drain: done after {self._figures.drain_s:.1f} s")
        await setup.settled_pods(self._api, EDIT_SECONDS)
        await self._story.now(lambda state: state.verified, "verified", EDIT_SECONDS)
        self._figures.drained_serving_s = time.monotonic() - since
        await asyncio.to_thread(self._cluster.run, "kubectl", "uncordon", self._leaves)

    def _serving(self, version: str) -> list[str]:
        return ["--token-interval", str(self._interval), "--version-text", version]

    async def _edit(self, name: str, spec: dict[str, Any]) -> Edit:
        say(f"{name}: the spec is edited")
        since = time.monotonic()
        answer = await self._api.send("PATCH", f"{SERVICES}/{NAME}", json.dumps({"spec": spec}).encode(), MERGE)
        return Edit(since, msgspec.json.decode(answer, type=_Patched).metadata.generation)

    async def _so_far(self) -> None:
        await self._clients.fetch()
        records = self._clients.records
        bad = sum(verdict(record) != "ok" for record in records)
        say(f"{len(records)} requests so far, {bad} of them failed or cut")

    def _sum_up(self, moments: Sequence[float]) -> None:
        figures, records = self._figures, self._clients.records
        if self._records:
            self._records.write_text("".join(f"{json.dumps(asdict(record))}\n" for record in records))
        for name, start, end in zip(("before", *figures.replaced), moments, moments[1:], strict=False):
            figures.phases[name] = Phase(name, start, end)
            figures.summaries[name] = summary(figures.phases[name].of(records))
        figures.during = summary(Phase("during", moments[1], moments[-1]).of(records))
        bad = [record for record in records if verdict(record) != "ok"]
        slow = sorted(records, key=lambda record: record.start - record.end)
        for record in [*bad[:SHOWN_FAILURES], *slow[:SHOWN_SLOW]]:
            phase = next((each for each in figures.phases.values() if each.of([record])), None)
            where = f"{phase.name} +{record.end - phase.start:.1f} s" if phase else "warming up"
            say(f"{where}: {told(record)}")


def rooted(url: str) -> str:
    """The URL with its host's name as an absolute one: DNS would be asked for others first, for each connection."""
    scheme, there, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{there}{host.rstrip('.')}.{slash}{path}"


def teller() -> Callable[[State], None]:
    """Says what Progressing says, whenever that changes."""
    last = ""

    def tell(state: State) -> None:
        nonlocal last
        reason = state.reason("Progressing")
        if reason and reason != last:
            say(f"  {reason}")
        last = reason or last

    return tell


def say(message: str) -> None:
    """A line of progress."""
    print(f"bench-rollout: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the benchmark; 0 if it came to figures, whatever they are."""
    parser = argparse.ArgumentParser(prog="bench.rollout", description="What clients notice while pods are replaced.")
    parser.add_argument("--before-seconds", type=float, default=30.0, help="how long nothing happens first, default 30")
    parser.add_argument("--clients", type=int, default=20, help="half of them keep their connection; default 20")
    parser.add_argument("--tokens", type=int, default=8, help="of a stream, default 8")
    parser.add_argument("--token-interval", type=float, default=0.015, help="seconds before each token, default 0.015")
    parser.add_argument(
        "--pause", type=float, default=0.05, help="mean seconds between two requests of a client, default 0.05"
    )
    parser.add_argument("--records", type=Path, help="a file for all requests, as JSON, a line each")
    parser.add_argument("--cluster", default="bench-rollout", help="name of the local cluster that is made for it")
    parser.add_argument("--keep-cluster", action="store_true", help="leave the cluster up afterwards")
    arguments = parser.parse_args()
    if arguments.before_seconds <= 0 or min(arguments.clients, arguments.tokens) < 1:
        parser.error("--before-seconds, --clients and --tokens must be more than nothing")
    return run("rollout", lambda folder: _on_a_cluster(arguments, folder), table, result, say)


def _on_a_cluster(arguments: argparse.Namespace, folder: Path) -> Figures:
    try:
        cluster = Cluster.up(arguments.cluster, "--nodes", "2")
        images = setup.make_images(cluster, folder)
        say("installing the operator")
        setup.install(cluster)
        return asyncio.run(_measured(arguments, cluster, images, folder))
    finally:
        if not arguments.keep_cluster:
            Cluster({"name": arguments.cluster}).down()


async def _measured(arguments: argparse.Namespace, cluster: Cluster, images: Images, folder: Path) -> Figures:
    identity = environment_setup.client(cluster, folder)
    api = Following(cluster.server, cluster.ca, identity.token)
    async with api, api.story(SPACE, NAME, teller()) as story:
        return await Bench(arguments, cluster, api, images, story).run()


if __name__ == "__main__":
    sys.exit(main())
