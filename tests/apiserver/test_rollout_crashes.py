"""The operator is killed at every write of a rollout and of a rollback, before and after it: nothing is left between.

API server, scheduler and the controllers of Deployments are real; the kubelet is a stand-in (played_kubelet.py).
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
from tests.support.played_kubelet import CRASH_MESSAGE, PRE_PULL, TOLERATION
from tests.support.wait import eventually

DEADLINE_SECONDS = 4
IMAGES = {"rollout": "registry.invalid/new:2", "rollback": "registry.invalid/bad:2"}
OLD = "registry.invalid/old:1"
NAME = "llm"
ALWAYS = {("patch", "controllerrevisions"), ("create", "pods"), ("patch", "deployments"), ("delete", "pods")}


@dataclass
class Life:
    """A namespace with a TokenService whose revision is good."""

    plane: Plane
    namespace: str
    folder: Path

    def get(self, kind: str, name: str = NAME) -> Object:
        found = self.plane.api.get(kind, self.namespace, name)
        assert found, f"no {kind} {name}"
        return found

    @property
    def service(self) -> Object:
        return self.get("TokenService")

    def pods(self) -> dict[str, str]:
        """uid -> image of the pods that serve, or are to."""
        found = self.plane.api.list("Pod", self.namespace, labelSelector=f"tokenservice.dev/service={NAME}")
        staying = (pod for pod in found if "deletionTimestamp" not in pod["metadata"])
        return {pod["metadata"]["uid"]: pod["spec"]["containers"][0]["image"] for pod in staying}

    def good(self) -> bool:
        status = self.service.get("status", {})
        assert status.get("lastGoodRevision") is not None, status
        return bool(status["lastGoodRevision"] == status["updateRevision"] == status["currentRevision"])

    def rolled_out(self) -> bool:
        """The new revision serves, whole, and is good."""
        assert condition(self.service).get("reason") == "Serving", condition(self.service)
        assert set(self.pods().values()) == {IMAGES["rollout"]}, self.pods()
        return self.good() and self.clean()

    def rolled_back(self) -> bool:
        """The pod that served before serves still, and nothing else is left."""
        told = condition(self.service, "RolledBack")
        assert told.get("reason") == "CrashLoopBackOff", self.service["status"]
        assert CRASH_MESSAGE in told["message"]
        assert condition(self.service, "Progressing")["reason"] == "RolledBack"
        assert set(self.pods().values()) == {OLD}, self.pods()
        assert self.get("Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == OLD
        return self.clean()

    def clean(self) -> bool:
        """No pod is left that brought images."""
        return not self.plane.api.list("Pod", self.namespace, labelSelector=PRE_PULL)

    def run(self, scenario: str, point: Point | None) -> tuple[list[Asked], bool]:
        """The change, with the operator killed at that point. Returns the writes, and whether it came to that."""
        before = set(self.pods())

        def begin() -> None:
            change = {"environment": {"image": {"reference": IMAGES[scenario]}}}
            self.plane.api.patch("TokenService", self.namespace, NAME, {"spec": change})

        done = self.rolled_out if scenario == "rollout" else self.rolled_back
        found = crashes.run(self.plane, self.namespace, self.folder, point, begin=begin, done=done)
        if scenario == "rollback":
            assert set(self.pods()) == before, "what served was not touched"
        return found


@pytest.fixture(scope="module")
def kubelet(plane: Plane) -> Iterator[None]:
    with crashes.kubelet(plane):
        yield


@pytest.fixture
def make(plane: Plane, kubelet: None, alone: None, tmp_path: Path) -> Iterator[Callable[[int], list[Life]]]:
    """Makes so many TokenServices in a namespace each, good, with nobody to look after them any more."""
    every: list[Life] = []
    spec: dict[str, Any] = {
        "template": {"spec": {"tolerations": [TOLERATION]}},
        "rollout": {"progressDeadlineSeconds": DEADLINE_SECONDS},
    }

    def made(count: int) -> list[Life]:
        lives = [Life(plane, f"crash-{len(every) + number}", tmp_path) for number in range(count)]
        every.extend(lives)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(
                pool.map(
                    lambda life: plane.api.create("Namespace", None, {"metadata": {"name": life.namespace}}), lives
                )
            )
            list(pool.map(lambda life: plane.api.apply(life.namespace, token_service(NAME, OLD, **spec)), lives))
        operator = plane.operator(name=f"prepare-{len(every)}")
        operator.start()
        for life in lives:
            eventually(life.good, f"{life.namespace} is good", seconds=120)
        assert operator.stop() == 0
        return lives

    yield made
    for life in every:
        plane.api.delete_all("TokenService", life.namespace)
        plane.api.delete("Namespace", None, life.namespace)


@pytest.mark.timeout(900)
def test_killed_at_any_write_nothing_is_left_between(make: Callable[[int], list[Life]]) -> None:
    """A run to see what is written, then one for every write, killed before it, and one, killed after it."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        first = {
            scenario: pool.submit(life.run, scenario, None) for scenario, life in zip(IMAGES, make(2), strict=True)
        }
        recorded = {scenario: run.result()[0] for scenario, run in first.items()}
        for writes in recorded.values():
            assert kinds(writes) >= ALWAYS
        where = [(scenario, point) for scenario, writes in recorded.items() for point in points(writes)]
        runs = [
            (scenario, point, pool.submit(life.run, scenario, point))
            for (scenario, point), life in zip(where, make(len(where)), strict=True)
        ]
        struck = [(scenario, point) for scenario, point, run in runs if run.result()[1]]
    for scenario, writes in recorded.items():
        for moment in MOMENTS:
            hit = crashes.struck((point for which, point in struck if which == scenario), moment)
            assert kinds(writes) <= hit, f"{scenario}: never killed {moment} {kinds(writes) - hit}"
