"""The operator is killed at every write of a claim and of its settling, before and after it: nothing is left between.

API server, scheduler and the controllers of Deployments are real; the kubelet, and the server that takes the model, are
stand-ins (played_kubelet.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.apiserver import crashes
from tests.apiserver.conftest import Plane
from tests.apiserver.crashes import AT_ONCE, MOMENTS, Point, kinds, points
from tests.support.api import Object
from tests.support.cluster import condition, token_service
from tests.support.faulty_proxy import Asked
from tests.support.played_kubelet import TOLERATION
from tests.support.wait import eventually

IMAGE = "registry.invalid/slow:1"
NAME = "llm"
POOL = "warm"
WARM = 2
TEMPLATE: Object = {"spec": {"tolerations": [TOLERATION]}}
COST = "controller.kubernetes.io/pod-deletion-cost"
ALWAYS = {("patch", "pods"), ("patch", "deployments"), ("create", "pods"), ("patch", "tokenservices/status")}


@dataclass
class Life:
    """A namespace with a TokenService of one replica, and a full pool of two."""

    plane: Plane
    namespace: str
    folder: Path

    def get(self, kind: str, name: str = NAME) -> Object:
        found = self.plane.api.get(kind, self.namespace, name)
        assert found, f"no {kind} {name}"
        return found

    def pods(self, selector: str = "") -> list[Object]:
        found = self.plane.api.list("Pod", self.namespace, labelSelector=selector)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def full(self) -> bool:
        assert self.get("WarmPool", POOL).get("status", {}).get("readyReplicas") == WARM
        return True

    def served(self, replicas: int) -> bool:
        """So many replicas serve, each the Deployment's like any other; the pool is full; nothing else is left."""
        assert condition(self.get("TokenService")).get("reason") == "Serving", condition(self.get("TokenService"))
        status = self.get("TokenService")["status"]
        assert (status["readyReplicas"], status["warmReplicas"]) == (replicas, 0), status
        assert self.get("Deployment")["spec"]["replicas"] == replicas
        serving = self.pods(f"tokenservice.dev/service={NAME},tokenservice.dev/deployment={NAME}")
        assert len(serving) == replicas
        for pod in serving:
            metadata = pod["metadata"]
            assert [owner["kind"] for owner in metadata.get("ownerReferences", [])] == ["ReplicaSet"], metadata
            assert COST not in metadata.get("annotations", {}), metadata
            assert "tokenservice.dev/claim" not in metadata["labels"], metadata
        assert len(self.pods()) == replicas + WARM, [pod["metadata"]["name"] for pod in self.pods()]
        return self.full()

    def run(self, flags: tuple[str, ...], point: Point | None) -> tuple[list[Asked], bool]:
        """Scaled up by one out of the pool, with the operator killed at that point."""

        def begin() -> None:
            self.plane.api.patch("TokenService", self.namespace, NAME, {"spec": {"replicas": 2}})

        warm = {pod["metadata"]["uid"] for pod in self.pods(f"tokenservice.dev/pool={POOL}")}
        cold = {pod["metadata"]["uid"] for pod in self.pods(f"tokenservice.dev/service={NAME}")}
        run = crashes.run(
            *(self.plane, self.namespace, self.folder, point), begin=begin, done=lambda: self.served(2), flags=flags
        )
        serving = {pod["metadata"]["uid"] for pod in self.pods(f"tokenservice.dev/service={NAME}")}
        assert cold <= serving, "what served was not touched"
        if point is None:  # where nobody looks after it for long enough, the cold pod that settling begins is first
            assert serving - cold <= warm, "the new replica came from the pool"
        return run


@pytest.fixture(scope="module")
def kubelet(plane: Plane) -> Iterator[None]:
    with crashes.kubelet(plane):
        yield


@pytest.fixture
def flags(tmp_path: Path) -> tuple[str, ...]:
    """One key of tokens for all operators, as the chart's Secret is one."""
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    return (f"--token-key-file={key}",)


@pytest.fixture
def make(
    plane: Plane, kubelet: None, alone: None, tmp_path: Path, flags: tuple[str, ...]
) -> Iterator[Callable[[int], list[Life]]]:
    """Makes so many namespaces with a TokenService and a pool, with nobody to look after them any more."""
    every: list[Life] = []
    environment: dict[str, Any] = {"image": {"reference": IMAGE}}
    pool = {"environment": environment, "template": TEMPLATE, "replicas": WARM}

    def prepare(life: Life) -> None:
        plane.api.create("Namespace", None, {"metadata": {"name": life.namespace}})
        kind = {"apiVersion": "tokenservice.dev/v1alpha1", "kind": "WarmPool"}
        plane.api.apply(life.namespace, {**kind, "metadata": {"name": POOL}, "spec": pool})
        service = token_service(NAME, IMAGE, template=TEMPLATE, warmPool={"name": POOL})
        plane.api.apply(life.namespace, service)

    def made(count: int) -> list[Life]:
        lives = [Life(plane, f"claim-{len(every) + number}", tmp_path) for number in range(count)]
        every.extend(lives)
        with ThreadPoolExecutor(AT_ONCE) as workers:
            list(workers.map(prepare, lives))
        operator = plane.operator(*flags, name=f"prepare-claims-{len(every)}")
        operator.start()
        for life in lives:
            eventually(lambda life=life: life.served(1), f"{life.namespace} serves, and its pool is full", seconds=120)
        assert operator.stop() == 0
        return lives

    yield made
    for life in every:
        for kind in ("TokenService", "WarmPool"):
            plane.api.delete_all(kind, life.namespace)
        plane.api.delete("Namespace", None, life.namespace)


@pytest.mark.timeout(900)
def test_killed_at_any_write_nothing_is_left_between(make: Callable[[int], list[Life]], flags: tuple[str, ...]) -> None:
    """A run to see what is written, then one for every write, killed before it, and one, killed after it."""
    recorded, _ = make(1)[0].run(flags, None)
    assert kinds(recorded) >= ALWAYS
    where = list(points(recorded))
    with ThreadPoolExecutor(AT_ONCE) as workers:
        runs = [
            (point, workers.submit(life.run, flags, point)) for point, life in zip(where, make(len(where)), strict=True)
        ]
        struck = [point for point, run in runs if run.result()[1]]
    for moment in MOMENTS:
        hit = crashes.struck(struck, moment)
        assert kinds(recorded) <= hit, f"never killed {moment} {kinds(recorded) - hit}"
