"""What the benchmark of rollouts needs in its cluster: the stand-in's two images, the operator, the clients."""

from __future__ import annotations

import asyncio
import io
import random
import tarfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from tokenservice.api import names

from bench import environment_setup, rollout_client
from bench.client import Api
from bench.cluster import CHART, SYSTEM, BenchError, Cluster
from bench.rollout_client import Record

SPACE = "rollout"
"""Namespace of the TokenService and the clients."""
NAME = "standin"
CLIENTS = "clients"
REPLICAS = 2
IMAGE = "token-server-standin"
MODEL = "/opt/standin"
"""A folder of the stand-in's image; a model's name is its last part."""
LAYER_BYTES = 4 << 20
READY_SECONDS = 300.0

T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """References by digest. `new` has a layer more than `old`, as an environment has after an edit."""

    old: str
    new: str


def make_images(cluster: Cluster, folder: Path) -> Images:
    """Pushes the stand-in's image, and the same with one layer on top, which nodes have to pull."""
    registry = cluster.facts["registry"]
    old = environment_setup.push(registry, IMAGE)
    layer = folder / "layer.tar"
    layer.write_bytes(edition(LAYER_BYTES))
    repository = old.partition("@")[0]
    words = ("--insecure", "--base", old, "--new_layer", str(layer), "--new_tag", f"{repository}:bench-rollout-new")
    new = cluster.run("crane", "append", *words).strip().splitlines()[-1]
    return Images(old, new)


def edition(size: int) -> bytes:
    """A layer (tar) of that many bytes of content that cannot be compressed; the same each time."""
    content, info = random.Random(0).randbytes(size), tarfile.TarInfo("opt/environment/package")
    info.size = size
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.addfile(info, io.BytesIO(content))
    return layer.getvalue()


def install(cluster: Cluster) -> None:
    """Installs the operator with the chart's own values."""
    repository, digest = environment_setup.push(cluster.facts["registry"], "operator").split("@")
    values = ("--set", f"image.repository={repository}", "--set", f"image.digest={digest}")
    cluster.run(
        *("helm", "upgrade", "--install", names.OPERATOR, str(CHART), "--namespace", SYSTEM, "--create-namespace"),
        *(*values, "--wait", "--timeout", "5m"),
    )


def service(image: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The TokenService. Its pods, of one template each, are spread over the nodes that take pods: a drain finds one."""
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "nodeTaintsPolicy": "Honor",
        "labelSelector": {"matchLabels": {names.LABEL_DEPLOYMENT: NAME}},
        "matchLabelKeys": ["pod-template-hash"],
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": "TokenService",
        "metadata": {"name": NAME},
        "spec": {
            "model": {"source": f"file://{MODEL}"},
            "environment": {"image": {"reference": image}},
            "engine": {"args": list(arguments)},
            "replicas": REPLICAS,
            "template": {"spec": {"topologySpreadConstraints": [spread]}},
        },
    }


def clients_pod(image: str, node: str, arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The clients' program and their pod, on the node of that name."""
    program = Path(rollout_client.__file__)
    metadata = {"name": CLIENTS, "namespace": SPACE}
    container = {
        "name": "clients",
        "image": image,
        "command": ["/usr/bin/python3.11", f"/program/{program.name}", *arguments],
        "volumeMounts": [{"name": "program", "mountPath": "/program"}],
    }
    spec = {
        "automountServiceAccountToken": False,
        "nodeSelector": {"kubernetes.io/hostname": node},
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": [{"name": "program", "configMap": {"name": CLIENTS}}],
    }
    return (
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {program.name: program.read_text()}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
    )


class _Told(msgspec.Struct):
    running: int
    records: list[tuple[int, bool, bool, float, float | None, float, int, bool, str, str]]


@dataclass
class Clients:
    """The clients at work, asked through the API server; `records` are those that were fetched."""

    api: Api
    records: list[Record] = field(default_factory=list)

    async def fetch(self) -> int:
        """Fetches what is new; how many clients still run."""
        told = msgspec.json.decode(await self._get(f"records?from={len(self.records)}"), type=_Told)
        self.records += [Record(*each) for each in told.records]
        return told.running

    async def wait_at_work(self, count: int) -> None:
        """Until each of them has an answer. Raises BenchError."""

        async def all_answered() -> bool:
            try:
                await self.fetch()
            except BenchError as error:  # it starts
                raise NotYetError(str(error)) from error
            return len({record.client for record in self.records if record.done}) == count

        await eventually(all_answered, "not every client has an answer", READY_SECONDS)

    async def stop(self) -> None:
        """Ends them, and fetches their last records. What waits for an answer may take its time."""
        await self._get("stop")

        async def ended() -> bool:
            return await self.fetch() == 0

        await eventually(ended, "the clients do not end", 4 * rollout_client.SECONDS)

    async def _get(self, path: str) -> bytes:
        pod = f"/api/v1/namespaces/{SPACE}/pods/{CLIENTS}:{rollout_client.PORT}/proxy"
        return await self.api.send("GET", f"{pod}/{path}")


class _PodMetadata(msgspec.Struct, rename="camel"):
    name: str
    uid: str
    deletion_timestamp: str | None = None


class _PodSpec(msgspec.Struct, rename="camel"):
    node_name: str = ""


class _Condition(msgspec.Struct):
    type: str
    status: str


class _PodStatus(msgspec.Struct, rename="camel", frozen=True):
    conditions: tuple[_Condition, ...] = ()


class Pod(msgspec.Struct):
    """A pod of the Deployment."""

    metadata: _PodMetadata
    spec: _PodSpec
    status: _PodStatus = _PodStatus()

    @property
    def ready(self) -> bool:
        return any(each.type == "Ready" and each.status == "True" for each in self.status.conditions)


class _Pods(msgspec.Struct):
    items: list[Pod]


async def pods(api: Api) -> list[Pod]:
    """All pods of the Deployment, those that leave included."""
    path = f"/api/v1/namespaces/{SPACE}/pods?labelSelector={names.LABEL_DEPLOYMENT}={NAME}"
    return msgspec.json.decode(await api.send("GET", path), type=_Pods).items


def settled(found: Sequence[Pod]) -> bool:
    """Whether nothing comes or goes, and each of the pods is Ready."""
    return len(found) == REPLICAS and all(pod.ready and not pod.metadata.deletion_timestamp for pod in found)


async def settled_pods(api: Api, seconds: float) -> dict[str, str]:
    """The pods' uids with their nodes, once nothing comes or goes. Raises BenchError."""

    async def look() -> dict[str, str] | None:
        found = await pods(api)
        return {pod.metadata.uid: pod.spec.node_name for pod in found} if settled(found) else None

    return await eventually(look, "pods still come or go", seconds)


class NotYetError(Exception):
    """Not there yet; the text says what is in the way."""


async def eventually(look: Callable[[], Awaitable[T | None]], problem: str, seconds: float) -> T:
    """What `look` gives, once that is something. Raises BenchError with `problem` after so long."""
    deadline, why = time.monotonic() + seconds, ""
    while True:
        try:
            if found := await look():
                return found
        except NotYetError as error:
            why = f": {error}"
        if time.monotonic() > deadline:
            raise BenchError(f"{problem} after {seconds:g} s{why}")
        await asyncio.sleep(0.25)
