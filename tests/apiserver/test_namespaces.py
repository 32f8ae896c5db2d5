"""An operator that is told to watch some namespaces only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apiserver.conftest import Plane, Space
from tests.support.wait import eventually, holds

MENDED = {"tokenservice.dev/service": "llm"}


@pytest.fixture
def others(plane: Plane, space: Space) -> Iterator[tuple[Space, Space]]:
    """Two more namespaces."""
    made = [Space(f"{space.name}-{letter}", plane.api) for letter in "bc"]
    for one in made:
        plane.api.create("Namespace", None, {"metadata": {"name": one.name}})
    yield made[0], made[1]
    for one in made:
        plane.api.delete("Namespace", None, one.name)


def test_tokenservices_elsewhere_are_left_alone(
    plane: Plane, space: Space, others: tuple[Space, Space], alone: None
) -> None:
    second, elsewhere = others
    elsewhere.apply("before", replicas=0)
    operator = plane.operator(f"--namespaces={space.name},{second.name}")
    operator.start()
    elsewhere.apply("after", replicas=0)
    for one in (space, second):
        one.apply("llm", replicas=0)
        one.ready("llm", "ScaledToZero")
        # Children are watched in both, too.
        one.patch("Service", "llm", {"spec": {"selector": {"tokenservice.dev/service": "x"}}})
        eventually(lambda one=one: one.there("Service", "llm")["spec"]["selector"] == MENDED, "drift is undone")
    holds(lambda: not elsewhere.api.list("Deployment", elsewhere.name), "nothing is made elsewhere", seconds=1)
    assert "status" not in elsewhere.there("TokenService", "before")
    assert operator.stop() == 0
    assert not operator.surprises()
