"""What an environment costs: its first build, the same again, and a change of one small package, up to the node.

    python -m bench.environment [--runs 3] [--cuda]

What is measured, and what the figures mean, stands in docs/benchmarks.md. Progress goes to stderr, a table to stdout,
and the last line is one JSON object; null stands for what could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from tokenservice.api import names
from tokenservice.builder.errors import BuildError
from tokenservice.builder.settings import Settings

from bench import environment_cuda as cuda
from bench import environment_layout as layout
from bench import environment_setup as setup
from bench.client import MERGE
from bench.cluster import SYSTEM, BenchError, Cluster
from bench.environment_layout import Difference
from bench.environment_node import ARMS, Node, Ran
from bench.environment_registry import Registry
from bench.environment_watch import Environment, Moments, Watching, stage_seconds
from bench.program import run

FIRST_SECONDS = 1200.0
CHANGE_SECONDS = 300.0
NAME = "tiny"
PATH = f"/apis/{names.API_VERSION}/namespaces"
MB = 1e6

T = TypeVar("T")


@dataclass
class Run:
    """Figures of one run, from an empty registry on. Seconds and bytes; None: not measured."""

    load: float
    """Of the machine when the run began: processes that ran or waited for a core."""
    first_s: float
    first_lock_s: float | None
    first_build_s: float | None
    first_pushed: int
    unchanged_pushed: int
    lock_s: float | None
    build_s: float | None
    pushed: int


@dataclass
class Pulls:
    """What nodes pull for the change, in bytes; `kept` by one that keeps layers, `pod` by this cluster's kubelet."""

    first: int
    kept: int
    pod: Ran | None = None


@dataclass
class Figures:
    """All that was measured."""

    runs: list[Run] = field(default_factory=list)
    change: Difference | None = None
    pulls: Pulls | None = None
    dockerfile_change: Difference | None = None
    dockerfile_pulls: Pulls | None = None
    cpu: tuple[int, int] | None = None
    cuda: tuple[int, int] | None = None


class Bench:
    """The measurements, one after the other, on one cluster."""

    def __init__(
        self, arguments: argparse.Namespace, registry: Registry, node: Node, settings: Settings, channel: Path
    ) -> None:
        self._runs: int = arguments.runs
        self._cuda: bool = arguments.cuda
        self._registry = registry
        self._node = node
        self._settings = settings
        self._channel = channel
        self._environment: dict[str, Any] = yaml.safe_load(setup.ENVIRONMENT.read_text())
        self._version = setup.older_release(setup.OLDER.read_text())
        self._repository = "environments"

    async def run(self, api: Watching, cluster: Cluster, folder: Path) -> Figures:
        figures = Figures()
        async with api.seen() as moments:
            for number in range(1, self._runs + 1):
                run, first, changed = await self._once(api, moments, cluster, number)
                figures.runs.append(run)
                told = f"first build {run.first_s:.1f} s, lock {shown(run.lock_s)} s, build {shown(run.build_s)} s"
                say(f"run {number} of {self._runs}: {told}")
        figures.change = layout.difference(self._layers(first), self._layers(changed))
        images = (self._image(first), self._image(changed))
        figures.pulls = await attempt("pulling", lambda: self._pull("layers", images))
        figures.cpu = await attempt("the image's weight", lambda: self._weight(first))
        await attempt("a Dockerfile's layout", lambda: self._dockerfile(figures, (first, changed), folder))
        if self._cuda:
            base = self._settings.base_image
            figures.cuda = await attempt("CUDA", lambda: cuda.image_weight(self._registry, base, folder))
        return figures

    async def _once(
        self, api: Watching, moments: Moments, cluster: Cluster, number: int
    ) -> tuple[Run, Environment, Environment]:
        registry, (one, other) = self._registry, (f"env-{number}", f"env-{number}-again")
        await asyncio.to_thread(self._from_nothing, cluster, number)
        for namespace in (one, other):
            await api.make_namespace(namespace)
        load = setup.load()

        say(f"run {number}: from an empty registry")
        mark = registry.mark()
        since = await self._create(api, one)
        first = await moments.until_ready((one, NAME), since, None, FIRST_SECONDS)
        first_s, first_pushed = moments.at(first) - since, await asyncio.to_thread(registry.pushed_since, mark)
        first_lock_s, first_build_s = (stage_seconds(moments.runs(), stage, since) for stage in ("lock", "build"))

        say(f"run {number}: the same environment, all Jobs of the first forgotten")
        await asyncio.to_thread(forget_jobs, cluster)
        mark = registry.mark()
        since = await self._create(api, other)
        again = await moments.until_ready((other, NAME), since, None, CHANGE_SECONDS)
        if again.status.image != first.status.image:
            raise BenchError(f"the same environment gave another image: {again.status.image}, {first.status.image}")
        if stage_seconds(moments.runs(), "build", since) is None:
            raise BenchError("the same environment was not built again, so that nothing was measured")
        unchanged = await asyncio.to_thread(registry.pushed_since, mark)

        say(f"run {number}: {setup.PACKAGE} {self._version}")
        mark, since = registry.mark(), time.monotonic()
        spec = setup.pinned(self._environment, setup.PACKAGE, self._version)
        body = json.dumps({"spec": {"dependencies": spec["dependencies"]}}).encode()
        await api.send("PATCH", f"{PATH}/{one}/condaenvironments/{NAME}", body, MERGE)
        changed = await moments.until_ready((one, NAME), since, first.status.image, CHANGE_SECONDS)
        lock_s, build_s = (stage_seconds(moments.runs(), stage, since) for stage in ("lock", "build"))
        pushed = await asyncio.to_thread(registry.pushed_since, mark)
        run = Run(load, first_s, first_lock_s, first_build_s, first_pushed, unchanged, lock_s, build_s, pushed)
        return run, first, changed

    def _from_nothing(self, cluster: Cluster, number: int) -> None:
        """No environment, no Job, nothing in the registry but the base."""
        if number > 1:
            for namespace in (f"env-{number - 1}", f"env-{number - 1}-again"):
                cluster.run("kubectl", "delete", "namespace", namespace, "--wait")
        forget_jobs(cluster)
        self._registry.storage.clear()
        base = setup.push(self._registry.url, "base")
        if base != self._settings.base_image:
            raise BenchError(f"the base image has changed: {base}, {self._settings.base_image}")

    async def _create(self, api: Watching, namespace: str) -> float:
        """Applies the CondaEnvironment; when (monotonic seconds)."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "CondaEnvironment",
            "metadata": {"name": NAME},
            "spec": self._environment,
        }
        since = time.monotonic()
        await api.send("POST", f"{PATH}/{namespace}/condaenvironments", json.dumps(body).encode())
        return since

    def _image(self, environment: Environment) -> str:
        return str(environment.status.image)

    def _layers(self, environment: Environment) -> layout.Layers:
        digest = self._image(environment).partition("@")[2]
        return layout.layers_of(self._registry.storage.manifest(self._repository, digest))

    def _weight(self, environment: Environment) -> tuple[int, int]:
        return layout.weight(self._registry.storage, self._repository, self._image(environment).partition("@")[2])

    def _pull(self, name: str, images: Sequence[str]) -> Pulls:
        """Pulls the first image, then the changed one, by a node that had neither."""
        first, changed = images
        self._node.empty()
        say(f"{name}: pulling")
        pulls = Pulls(self._node.pull(first), self._node.pull(changed))
        self._node.empty()
        try:
            for number, image in enumerate((first, changed), 1):
                pulls.pod = self._node.run(f"{name}-{number}", image)
        except BenchError as error:
            pulls.pod = None
            say(f"{name}, by a pod: not measured: {error}")
        else:
            if pulls.pod and pulls.pod.said != self._version:
                raise BenchError(f"the pod has {setup.PACKAGE} {pulls.pod.said} in place of {self._version}")
        self._node.empty(self._registry.pull_url)
        return pulls

    def _dockerfile(self, figures: Figures, environments: Sequence[Environment], folder: Path) -> None:
        say("making the same images in a Dockerfile's layout: all packages in one layer, the code on top")
        digests = []
        for number, environment in enumerate(environments):
            scratch = folder / f"dockerfile-{number}"
            scratch.mkdir()
            digests.append(layout.build(str(environment.status.lock), self._settings, self._channel, scratch))
            shutil.rmtree(scratch)
        manifests = [self._registry.storage.manifest(layout.REPOSITORY, digest) for digest in digests]
        figures.dockerfile_change = layout.difference(*(layout.layers_of(each) for each in manifests))
        images = [f"{self._registry.pull_url}/{layout.REPOSITORY}@{digest}" for digest in digests]
        figures.dockerfile_pulls = self._pull("dockerfile", images)


async def attempt(what: str, measure: Callable[[], T]) -> T | None:
    """What `measure` (which blocks) gives, None where it cannot: that figure is null, and the others still come."""
    try:
        return await asyncio.to_thread(measure)
    except (BenchError, BuildError, OSError) as error:
        say(f"{what}: not measured: {error}")
        return None


def forget_jobs(cluster: Cluster) -> None:
    """Deletes all Jobs of environments, and waits until they and their pods are gone."""
    words = ("-n", SYSTEM, "-l", names.LABEL_JOB, "--wait")
    cluster.run("kubectl", "delete", "jobs", *words, "--cascade=foreground")


def median(values: Sequence[float | None]) -> float | None:
    """Of those that were measured, if all were."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found and len(found) == len(values) else None


def result(figures: Figures) -> dict[str, Any]:
    """The figures: medians, and of what should be none the worst. MB are 10^6 bytes."""
    runs = figures.runs
    kept = figures.pulls.kept if figures.pulls else None
    dockerfile = figures.dockerfile_pulls.kept if figures.dockerfile_pulls else None
    return {
        "first_build_s": rounded(median([run.first_s for run in runs]), 1),
        "unchanged_pushed_bytes": max((run.unchanged_pushed for run in runs), default=None),
        "one_package_change": {
            "lock_s": rounded(median([run.lock_s for run in runs]), 2),
            "build_s": rounded(median([run.build_s for run in runs]), 2),
            "pushed_mb": megabytes(median([run.pushed for run in runs])),
            "pulled_mb": megabytes(kept),
            "chain_mb": megabytes(figures.change.chain if figures.change else None),
        },
        "dockerfile_layout_pulled_mb": megabytes(dockerfile),
        "pull_ratio": rounded(kept / dockerfile if kept is not None and dockerfile else None, 5),
        "image_mb": {"cpu": weights(figures.cpu), "cuda": weights(figures.cuda)},
    }


def weights(found: tuple[int, int] | None) -> dict[str, float | None] | None:
    return {"compressed": megabytes(found[0]), "unpacked": megabytes(found[1])} if found else None


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def megabytes(count: float | None) -> float | None:
    """To the kilobyte."""
    return rounded(None if count is None else count / MB, 3)


def shown(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(figures: Figures) -> str:
    """Every run's figures, a line each, then the two layouts beside each other."""
    runs = figures.runs
    rows = [
        ("load of the machine before", [f"{run.load:.2f}" for run in runs]),
        ("from nothing to Ready, s", [shown(run.first_s) for run in runs]),
        ("  lock Job, s", [shown(run.first_lock_s) for run in runs]),
        ("  build Job, s", [shown(run.first_build_s) for run in runs]),
        ("  pushed, MB", [shown(run.first_pushed / MB) for run in runs]),
        ("unchanged, pushed bytes", [str(run.unchanged_pushed) for run in runs]),
        ("one package changed: lock Job, s", [shown(run.lock_s, 2) for run in runs]),
        ("  build Job, s", [shown(run.build_s, 2) for run in runs]),
        ("  pushed, MB", [shown(run.pushed / MB, 3) for run in runs]),
    ]
    text = lines(("", [f"run {number}" for number in range(1, len(runs) + 1)]), rows)
    pulls, changes = (figures.pulls, figures.dockerfile_pulls), (figures.change, figures.dockerfile_change)
    pods = [each.pod if each else None for each in pulls]
    rows = [
        ("the whole image, pulled, MB", [shown(each.first / MB) if each else "-" for each in pulls]),
        ("the change: layers that differ", [str(each.layers) if each else "-" for each in changes]),
        ("  pulled, MB", [shown(each.kept / MB, 3) if each else "-" for each in pulls]),
        ("  from the lowest one upwards, MB", [shown(each.chain / MB, 3) if each else "-" for each in changes]),
        ("  pulled where layers are discarded, MB", [shown(each.pulled / MB, 3) if each else "-" for each in pods]),
        ("  and unpacked, by the kubelet, s", [shown(each.pull_seconds, 2) if each else "-" for each in pods]),
    ]
    return f"{text}\n\n{lines(('', ['by package', 'Dockerfile']), rows)}"


def lines(head: tuple[str, list[str]], rows: Sequence[tuple[str, list[str]]]) -> str:
    return "\n".join(f"{name:<44}" + "".join(f"{value:>12}" for value in values) for name, values in (head, *rows))


def say(message: str) -> None:
    """A line of progress."""
    print(f"bench-environment: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the benchmark; 0 if it came to figures, whatever they are."""
    parser = argparse.ArgumentParser(prog="bench.environment", description="What an environment and a change cost.")
    parser.add_argument("--runs", type=int, default=3, help="runs from an empty registry, default 3")
    parser.add_argument(
        "--cuda", action="store_true", help="weigh the image with the real CUDA libraries, too: 3 GB of downloads"
    )
    parser.add_argument("--cluster", default="bench-environment", help="name of the local cluster that is made for it")
    parser.add_argument("--keep-cluster", action="store_true", help="leave the cluster up afterwards")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    return run("environment", lambda folder: _on_a_cluster(arguments, folder), table, result, say)


def _on_a_cluster(arguments: argparse.Namespace, folder: Path) -> Figures:
    registry: Registry | None = None
    try:
        cluster = Cluster.up(arguments.cluster)
        channel = setup.make_channel()
        registry = Registry(cluster)
        registry.start()
        servers = setup.serve_channel(cluster, channel)
        settings = setup.settings_for(registry, setup.push(registry.url, "base"), servers)
        say("installing the operator")
        setup.install(cluster, settings, folder)
        return asyncio.run(_measured(arguments, cluster, registry, settings, channel, folder))
    finally:
        if not arguments.keep_cluster:
            Cluster({"name": arguments.cluster}).down()
            if registry:
                registry.stopped()


async def _measured(
    arguments: argparse.Namespace, cluster: Cluster, registry: Registry, settings: Settings, channel: Path, folder: Path
) -> Figures:
    identity = setup.client(cluster, folder)
    bench = Bench(arguments, registry, Node(cluster, registry), settings, channel)
    api = Watching(cluster.server, cluster.ca, identity.token)
    async with api:
        await api.make_namespace(ARMS)
        return await bench.run(api, cluster, folder)


if __name__ == "__main__":
    sys.exit(main())
