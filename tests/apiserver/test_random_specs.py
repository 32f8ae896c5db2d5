"""Over a thousand random specs, good and bad, against the real API server: none breaks the operator."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings

from tests.apiserver.conftest import ROOT, Plane, Space
from tests.support.api import RefusedError, path_of
from tests.support.cluster import token_service
from tests.support.operator_process import OperatorProcess
from tests.support.random_specs import specs
from tests.support.wait import eventually

COUNT = 1050
BATCH = 50


@pytest.fixture
def no_pods(plane: Plane) -> Iterator[None]:
    """Without the controller manager: ten thousand replicas would become ten thousand pods."""
    plane.control("stop", "kube-controller-manager")
    yield
    plane.control("start", "kube-controller-manager")


def drawn(plane: Plane) -> list[Any]:
    """The specs, the same ones in every run."""
    crd = yaml.safe_load((ROOT / "crds" / "tokenservice.dev_tokenservices.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    pods = plane.api.request("GET", "/openapi/v3/apis/apps/v1")["components"]["schemas"]
    found: list[Any] = []

    @settings(
        max_examples=COUNT,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(spec=specs(schema, pods))
    def draw(spec: Any) -> None:
        found.append(spec)

    draw()
    return found


def test_no_spec_breaks_the_operator(plane: Plane, space: Space, operator: OperatorProcess, no_pods: None) -> None:
    """The same fifty TokenServices get one spec after the other, so that each follows upon something else."""
    every = drawn(plane)
    assert len(every) >= 1000
    names = [f"random-{number}" for number in range(BATCH)]
    for name in names:
        space.apply(name)
    pid = operator.pid
    reasons: Counter[str] = Counter()

    def give(name: str, spec: Any) -> int | None:
        """The generation that the API server made of it, None if it refused it."""
        patch = [{"op": "replace", "path": "/spec", "value": spec}]
        try:
            path = path_of("TokenService", space.name, name)
            made = space.api.request("PATCH", path, patch, media="application/json-patch+json")
        except RefusedError as error:
            if error.code not in (400, 422):
                raise AssertionError(f"{error}: {json.dumps(spec)}") from None
            return None
        return int(made["metadata"]["generation"])

    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(every), BATCH):
            batch = dict(zip(names, every[start : start + BATCH], strict=False))
            accepted = {
                name: generation
                for name, generation in zip(batch, pool.map(give, batch, batch.values()), strict=True)
                if generation is not None
            }
            reasons["refused by the API server"] += len(batch) - len(accepted)

            def behind(accepted: dict[str, int] = accepted) -> list[str]:
                services = {item["metadata"]["name"]: item for item in space.api.list("TokenService", space.name)}
                return [
                    name
                    for name, generation in accepted.items()
                    if services[name].get("status", {}).get("observedGeneration", 0) < generation
                ]

            try:
                eventually(lambda behind=behind: not behind(), "every accepted spec has a status", seconds=40)
            except AssertionError as error:
                lines = [line for line in operator.lines() if line.get("name") in behind()][-3:]
                stuck = {name: batch[name] for name in behind()[:3]}
                raise AssertionError(f"{error}: {json.dumps(stuck)}; {lines}") from None
            assert operator.running
            for item in space.api.list("TokenService", space.name):
                if item["metadata"]["name"] in accepted:
                    reasons[item["status"]["conditions"][0]["reason"]] += 1

    print(dict(reasons))
    assert operator.pid == pid
    assert not operator.surprises()
    # A test in which everything is refused, or everything is fine, would show nothing.
    assert reasons["Starting"] + reasons["ScaledToZero"] + reasons["RollingOut"] + reasons["Paused"] > COUNT / 10
    assert reasons["InvalidTemplate"] > COUNT / 10
    assert reasons["refused by the API server"] < COUNT / 2

    token = token_service("last", replicas=0)
    space.api.create("TokenService", space.name, token)
    eventually(lambda: space.get("Deployment", "last"), "it works as ever")
    # The garbage collector is stopped: the children are not left to it.
    for kind in ("TokenService", "Deployment", "PodDisruptionBudget"):
        space.api.delete_all(kind, space.name)
    for service in space.api.list("Service", space.name):
        space.delete("Service", service["metadata"]["name"])
