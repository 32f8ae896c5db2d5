"""Where a new replica's seconds go: onto a node without its image, onto one with it, and from a pool.

    python -m bench.start [--warm 30] [--cold 10] [--chart docs/start-stages.svg]

What is measured, and what the figures mean, stands in docs/benchmarks.md. Progress goes to stderr, a table to stdout,
and the last line is one JSON object; null stands for what was not measured. A start that fails is told and counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tokenservice.api import names
from tokenservice.api.meta import Pod
from tokenservice.api.v1alpha1 import LastStart
from tokenservice.handover.claim import claimed_at, served_at

from bench import environment_setup, start_runs
from bench import start_setup as setup
from bench.client import MERGE
from bench.cluster import BenchError, Cluster
from bench.containerd import KUBELET, Containerd
from bench.program import run
from bench.start_asker import Asker
from bench.start_client import Answer, Order
from bench.start_report import NAMES, Figures, drawing, result, table
from bench.start_runs import Edit, Failure, Run, StartPath
from bench.start_setup import BIG, POOL, SPACE, TINY
from bench.start_watch import Onlooker, Scene, settled

BUILD_SECONDS, READY_SECONDS = 1200.0, 300.0
TOKEN_SECONDS: dict[StartPath, float] = {"Cold": 300.0, "Prepulled": 120.0, "Warm": 60.0}
TOLD_SECONDS = 15.0
"""For the operator to tell of a start that is over."""
QUIET_SECONDS = 2.0
"""Between two starts, with everything there that the next one needs."""
BARE_RUNS = 5
OURS = f"/apis/{names.API_VERSION}/namespaces/{SPACE}"
PULLED = "Successfully pulled image"


class _Event(msgspec.Struct):
    message: str = ""


class _Events(msgspec.Struct):
    items: list[_Event]


class _Spec(msgspec.Struct, rename="camel", frozen=True):
    cluster_ip: str = msgspec.field(name="clusterIP", default="")


class _Service(msgspec.Struct):
    spec: _Spec


@dataclass(frozen=True)
class Started:
    """A start that came to a token: the pod, and what the operator tells of it."""

    pod: Pod
    told: LastStart


class Bench:
    """The starts, one after the other, on one cluster."""

    def __init__(
        self, arguments: argparse.Namespace, cluster: Cluster, api: Onlooker, scene: Scene, asker: Asker
    ) -> None:
        self._counts: dict[StartPath, int] = {
            "Cold": arguments.cold,
            "Prepulled": arguments.cold,
            "Warm": arguments.warm,
        }
        self._cluster = cluster
        self._containerd = Containerd(cluster)
        self._api = api
        self._scene = scene
        self._asker = asker
        self._image = ""
        self._addresses: dict[str, str] = {}
        self._pooled = False
        self.figures = Figures()

    async def run(self) -> Figures:
        figures = self.figures
        await self._begin()
        figures.load = (environment_setup.load(), 0.0)
        figures.bare = await self._bare()
        for model in (TINY, BIG):
            await self._many("Prepulled", model)
        await self._pool()
        for model in (TINY, BIG):
            await self._many("Warm", model)
        await self._no_pool()
        await self._many("Cold", TINY)
        figures.load = (figures.load[0], environment_setup.load())
        return figures

    async def _begin(self) -> None:
        """Models on their volume; both TokenServices have served once, and are at no replicas."""
        await self._api.make_namespace(SPACE)
        folder = Path(self._cluster.facts["hostpath"]) / setup.CLAIM
        say("writing the models")
        self.figures.weights = await asyncio.to_thread(setup.make_models, folder)
        await asyncio.to_thread(self._cluster.apply, *setup.claim(folder))
        for model in (TINY, BIG):
            say(f"TokenService {model}: its environment, and a first start that does not count")
            await asyncio.to_thread(self._cluster.apply, setup.service(model))
            seconds = BUILD_SECONDS if model == TINY else READY_SECONDS
            await self._until(lambda model=model: self._good(model), f"{model} does not serve", seconds, model)
            found = await self._api.send("GET", f"/api/v1/namespaces/{SPACE}/services/{model}")
            self._addresses[model] = msgspec.json.decode(found, type=_Service).spec.cluster_ip
            await self._clean(model)
        environment = self._scene.status(TINY).environment
        self._image = (environment.image if environment else None) or ""
        if not self._image:
            raise BenchError("the TokenService tells no image of its environment")

    def _good(self, model: str) -> bool:
        status = self._scene.status(model)
        good = status.last_good_revision
        return bool(status.ready_replicas) and good is not None and good == status.update_revision

    async def _bare(self) -> dict[str, dict[str, float]]:
        """Imports and loads by themselves, by model."""
        say("imports and loads by themselves, in a pod of the image")
        await asyncio.to_thread(self._cluster.apply, *setup.bare_pod(self._image, BARE_RUNS))
        words = ("-n", SPACE, "--for=jsonpath={.status.phase}=Succeeded", f"--timeout={READY_SECONDS:g}s")
        try:
            await asyncio.to_thread(self._cluster.run, "kubectl", "wait", f"pod/{setup.BARE}", *words)
        except BenchError as error:
            log = await asyncio.to_thread(self._cluster.run, "kubectl", "logs", setup.BARE, "-n", SPACE)
            raise BenchError(f"{error}\n{log}") from error
        log = await asyncio.to_thread(self._cluster.run, "kubectl", "logs", setup.BARE, "-n", SPACE)
        await asyncio.to_thread(self._cluster.run, "kubectl", "delete", "pod", setup.BARE, "-n", SPACE, "--wait")
        found: dict[str, dict[str, float]] = json.loads(log.strip().splitlines()[-1])
        return {folder.rpartition("/")[2]: seconds for folder, seconds in found.items()}

    async def _pool(self) -> None:
        """From now on new replicas come from the pool."""
        if not self._counts["Warm"]:
            return
        await asyncio.to_thread(self._cluster.apply, setup.pool())
        for model in (TINY, BIG):
            await self._patch(model, {"warmPool": {"name": POOL}})
        self._pooled = True
        await self._full()
        for model in (TINY, BIG):
            await self._until(lambda model=model: self._fits(model), f"the pool does not fit {model}", 60.0, model)

    def _fits(self, model: str) -> bool:
        condition = self._scene.status(model).condition("WarmPoolReady")
        return condition is not None and condition.status == "True"

    async def _no_pool(self) -> None:
        """From now on they start cold, and nothing else holds the image."""
        if not self._pooled:
            return
        for model in (TINY, BIG):
            await self._patch(model, {"warmPool": None})
        await self._api.send("DELETE", f"{OURS}/warmpools/{POOL}")
        self._pooled = False
        await self._until(lambda: not self._scene.waiting(POOL), "pods of the pool are still there", READY_SECONDS)

    async def _many(self, path: StartPath, model: str) -> None:
        for number in range(1, self._counts[path] + 1):
            try:
                done: Run | Failure = await self._once(path, model)
            except BenchError as error:
                done = Failure(path, model, number, str(error))
            which = f"{model}, {NAMES[path]}, {number} of {self._counts[path]}"
            if isinstance(done, Run):
                self.figures.runs.append(done)
                say(f"{which}: {done.seconds:.3f} s")
            else:
                self.figures.failures.append(done)
                say(f"{which}: failed: {done.problem}")
            await self._clean(model)

    async def _once(self, path: StartPath, model: str) -> Run:
        """One start. Raises BenchError if it does not go the way it should."""
        if path == "Cold":
            await self._without_image()
        before = self._scene.status(model).last_start
        order = Order(self._addresses[model], 80, model, TOKEN_SECONDS[path])
        await self._asker.begin(order)
        edit = Edit(time.monotonic(), time.time())
        await self._patch(model, {"replicas": 1})
        answer = await self._asker.answer(order)
        if answer.token is None:
            raise BenchError(f"no token after {order.seconds:g} s: {answer.problem}; {self._scene.said(model)}")
        started = await self._started(model, before)
        if started.told.path != path:
            raise BenchError(
                f"the pod was to come {path}, and the operator tells of it that it came {started.told.path}"
            )
        if path == "Cold":
            await self._check_pulled(started.pod)
        seconds = answer.token - edit.at
        steps = self._steps(path, edit, answer, started.pod)
        run = Run(path, model, seconds, start_runs.stages(started.told, seconds), steps, answer.refused)
        if path == "Warm":
            uid = started.pod.metadata.uid
            await self._until(lambda: self._settled(uid), "the pod does not settle", READY_SECONDS, model)
        return run

    async def _started(self, model: str, before: LastStart | None) -> Started:
        """The pod that came up, and what its TokenService tells of it."""

        def find() -> Started | None:
            told = self._scene.status(model).last_start
            pods = [pod for pod in self._scene.of(model) if told and pod.metadata.name == told.pod]
            return Started(pods[0], told) if told and told != before and pods else None

        missing = "the operator does not tell of the start"
        return await self._scene.until(find, lambda: f"{missing} ({self._scene.said(model)})", TOLD_SECONDS)

    def _steps(self, path: StartPath, edit: Edit, answer: Answer, pod: Pod) -> dict[str, float]:
        marks = self._scene.marks[pod.metadata.uid]
        if path != "Warm":
            return start_runs.cold_steps(edit, marks, answer)
        claimed, served = claimed_at(pod), served_at(pod)
        if claimed is None or served is None:
            raise BenchError("the pod does not tell when it was claimed and when it was to serve")
        return start_runs.warm_steps(edit, claimed, served, marks, answer)

    def _settled(self, uid: str) -> bool:
        return uid in self._scene.pods and settled(self._scene.pods[uid])

    async def _without_image(self) -> None:
        """Removes the environment's image from the node, with every layer that no other image has."""
        await asyncio.to_thread(self._containerd.remove, KUBELET, self._image.partition("@")[0])

    async def _check_pulled(self, pod: Pod) -> None:
        selector = f"involvedObject.uid={pod.metadata.uid},reason=Pulled"
        path = f"/api/v1/namespaces/{SPACE}/events?fieldSelector={selector}"
        events = msgspec.json.decode(await self._api.send("GET", path), type=_Events).items
        if not any(event.message.startswith(PULLED) for event in events):
            raise BenchError("the kubelet has not pulled the image")

    async def _clean(self, model: str) -> None:
        """No replica, and the pool full: as before every start."""
        await self._patch(model, {"replicas": 0})
        await self._until(lambda: not self._scene.of(model), f"pods of {model} are still there", READY_SECONDS, model)
        if self._pooled:
            await self._full()
        await asyncio.sleep(QUIET_SECONDS)

    async def _full(self) -> None:
        await self._until(lambda: self._scene.full(POOL, 1), "the pool is not full", READY_SECONDS)

    async def _patch(self, model: str, spec: dict[str, Any]) -> None:
        await self._api.send("PATCH", f"{OURS}/tokenservices/{model}", json.dumps({"spec": spec}).encode(), MERGE)

    async def _until(self, wanted: Any, problem: str, seconds: float, model: str = "") -> None:
        """Until `wanted` holds. Raises BenchError with the problem, and with what the model's TokenService says."""

        def otherwise() -> str:
            return f"{problem} ({self._scene.said(model)})" if model else problem

        await self._scene.until(lambda: wanted() or None, otherwise, seconds)


def say(message: str) -> None:
    """A line of progress."""
    print(f"bench-start: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the benchmark; 0 if it came to figures, whatever they are."""
    parser = argparse.ArgumentParser(prog="bench.start", description="Where a new replica's seconds go.")
    parser.add_argument("--warm", type=int, default=30, help="starts from the pool, of each model; default 30")
    parser.add_argument("--cold", type=int, default=10, help="cold starts, of each kind; default 10")
    parser.add_argument("--chart", type=Path, help="a file for the stages as bars, SVG; none without it")
    parser.add_argument("--cluster", default="bench-start", help="name of the local cluster that is made for it")
    parser.add_argument("--keep-cluster", action="store_true", help="leave the cluster up afterwards")
    arguments = parser.parse_args()
    if min(arguments.warm, arguments.cold) < 0:
        parser.error("--warm and --cold must be 0 or more")
    return run("start", lambda folder: _on_a_cluster(arguments, folder), table, result, say)


def _on_a_cluster(arguments: argparse.Namespace, folder: Path) -> Figures:
    try:
        cluster = Cluster.up(arguments.cluster)
        say("images, the local channel, the operator")
        setup.install(cluster, folder)
        figures = asyncio.run(_measured(arguments, cluster, folder))
    finally:
        if not arguments.keep_cluster:
            Cluster({"name": arguments.cluster}).down()
    if arguments.chart:
        arguments.chart.write_text(drawing(figures))
    return figures


async def _measured(arguments: argparse.Namespace, cluster: Cluster, folder: Path) -> Figures:
    identity = environment_setup.client(cluster, folder)
    api = Onlooker(cluster.server, cluster.ca, identity.token)
    async with api, api.scene(SPACE) as scene, Asker.beside(cluster) as asker:
        return await Bench(arguments, cluster, api, scene, asker).run()


if __name__ == "__main__":
    sys.exit(main())
