"""The CRD comes late, or goes and comes back, as when a chart is installed, uninstalled and installed again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apiserver.conftest import Plane, Space
from tests.support import crds
from tests.support.operator_process import OperatorProcess
from tests.support.wait import eventually


@pytest.fixture
def installed_again(plane: Plane) -> Iterator[None]:
    """The tests after this one have the CRD, whatever happens."""
    yield
    plane.apply_crd()


def collected(space: Space) -> None:
    """Waits until the garbage collector watches TokenServices, which it looks for every 30 s: it sees no other go."""
    space.apply("probe", replicas=0)
    space.ready("probe", "ScaledToZero")
    space.delete("TokenService", "probe")
    gone = "the garbage collector takes the children of a TokenService that was deleted"
    eventually(lambda: space.get("Deployment", "probe") is None, gone, seconds=90)


def says(operator: OperatorProcess, code: int, words: str) -> bool:
    status, text = operator.get("/readyz")
    assert (status, words in text) == (code, True), (status, text)
    return True


def test_without_the_crd_the_operator_waits_and_says_so(
    plane: Plane, space: Space, alone: None, installed_again: None
) -> None:
    crds.remove(plane.cluster, crds.TOKENSERVICES)
    operator = plane.operator()
    operator.spawn()
    eventually(lambda: says(operator, 503, "is the CRD installed"), "readyz says what is missing", seconds=60)
    assert operator.get("/healthz")[0] == 200
    plane.apply_crd()
    eventually(lambda: says(operator, 200, "ok"), "it goes on by itself")
    space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero")
    assert operator.stop() == 0
    assert not operator.surprises()


def test_the_crd_goes_and_comes_back_while_the_operator_runs(
    plane: Plane, space: Space, operator: OperatorProcess, installed_again: None
) -> None:
    space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero")
    pid = operator.pid
    collected(space)
    crds.remove(plane.cluster, crds.TOKENSERVICES)
    eventually(lambda: says(operator, 503, "is the CRD installed"), "readyz says what is missing", seconds=60)
    eventually(lambda: space.get("Deployment", "llm") is None, "the children go with their TokenService")
    plane.apply_crd()
    eventually(lambda: says(operator, 200, "ok"), "it goes on by itself")
    assert space.get("Deployment", "llm") is None
    space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero")
    assert operator.running
    assert operator.pid == pid
