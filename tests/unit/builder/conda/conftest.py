from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenservice.builder.conda import sandbox

from tests.support.conda_channel import ChannelServer
from tests.unit.builder.conda.toy_build import Toy
from tests.unit.builder.standin_registry import StandinRegistry


@pytest.fixture(autouse=True)
def toy_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy Python is a shell script that starts the tests' own interpreter: a sandbox has to let it."""
    outside = (*sandbox.TOOLS, sys.base_prefix, sys.prefix)
    monkeypatch.setattr(sandbox, "LIBRARIES", (*sandbox.LIBRARIES, *outside))


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    with ChannelServer(tmp_path / "served") as server, StandinRegistry().running() as registry:
        yield Toy(server, registry, tmp_path)
