"""Which CUDA a lock is made for: the oldest driver's among the GPU nodes."""

from __future__ import annotations

import pytest
from tokenservice.environments.nodes import oldest_cuda

FULL = "nvidia.com/cuda.runtime-version.full"
NEW = ("nvidia.com/cuda.runtime-version.major", "nvidia.com/cuda.runtime-version.minor")
OLD = ("nvidia.com/cuda.runtime.major", "nvidia.com/cuda.runtime.minor")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([], None),
        ([{}, {"kubernetes.io/arch": "amd64"}], None),
        ([{FULL: "12.4"}], "12.4"),
        ([{FULL: "12.10"}, {FULL: "12.9"}, {}], "12.9"),
        ([{FULL: "13.0.1"}], "13.0"),
        ([{FULL: "13"}], "13.0"),
        ([dict(zip(NEW, ("12", "2"), strict=True)), {FULL: "12.4"}], "12.2"),
        ([dict(zip(OLD, ("11", "8"), strict=True)), {FULL: "12.4"}], "11.8"),
        ([{OLD[0]: "12"}], "12.0"),
        ([{FULL: "unknown", OLD[0]: "12", OLD[1]: "1"}], "12.1"),
        ([{FULL: "unknown"}, {FULL: "12.4"}], "12.4"),
    ],
)
def test_the_oldest_of_all(labels: list[dict[str, str]], found: str | None) -> None:
    assert oldest_cuda(labels) == found
