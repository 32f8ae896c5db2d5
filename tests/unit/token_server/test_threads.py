"""Threads of torch: by the container's CPU limit, unless the user says how many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_server import threads
from token_server.threads import affordable, settle


@pytest.mark.parametrize(
    ("cores", "cpu_max", "quota", "period", "expected"),
    [
        (64, "200000 100000\n", "", "", 2),
        (64, "250000 100000\n", "", "", 2),
        (64, "150000 100000\n", "", "", 1),
        (64, "50000 100000\n", "", "", 1),
        (64, "1000 100000\n", "", "", 1),
        (64, "400000 50000\n", "", "", 8),
        (64, "300000", "", "", 3),
        (2, "200000 100000\n", "", "", None),
        (2, "800000 100000\n", "", "", None),
        (1, "50000 100000\n", "", "", None),
        (64, "max 100000\n", "", "", None),
        (64, "", "150000\n", "100000\n", 1),
        (64, "", "400000\n", "100000\n", 4),
        (64, "", "400000\n", "", 4),
        (64, "", "-1\n", "100000\n", None),
        (64, "", "", "100000\n", None),
        (64, "", "", "", None),
        (64, "max 100000\n", "200000\n", "100000\n", None),
        (64, "200000 0\n", "", "", None),
        (64, "many 100000\n", "", "", None),
        (64, "0 100000\n", "", "", None),
    ],
)
def test_what_a_limit_pays_for(cores: int, cpu_max: str, quota: str, period: str, expected: int | None) -> None:
    assert affordable(cores, cpu_max, quota, period) == expected


@given(st.integers(1, 256), st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_no_text_gives_more_threads_than_cores(cores: int, cpu_max: str, quota: str, period: str) -> None:
    found = affordable(cores, cpu_max, quota, period)
    assert found is None or 1 <= found < cores


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container with a limit of 2.5 on 8 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / threads.CPU_MAX).write_text("250000 100000\n")
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "before", "after", "said"),
    [
        (0, {}, {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, "2"),
        (0, {"OMP_NUM_THREADS": ""}, {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, "2"),
        (0, {"OMP_NUM_THREADS": "5"}, {"OMP_NUM_THREADS": "5"}, "5"),
        (0, {"MKL_NUM_THREADS": "5"}, {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "5"}, "2"),
        (3, {"OMP_NUM_THREADS": "5"}, {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}, "3"),
    ],
)
def test_what_the_user_sets_comes_first(
    cgroup: Path, wanted: int, before: dict[str, str], after: dict[str, str], said: str
) -> None:
    environ = dict(before)
    assert settle(wanted, environ, cgroup) == said
    assert environ == after


def test_the_first_version_of_cgroups(cgroup: Path) -> None:
    (cgroup / threads.CPU_MAX).unlink()
    (cgroup / "cpu").mkdir()
    (cgroup / threads.CFS_QUOTA).write_text("400000\n")
    (cgroup / threads.CFS_PERIOD).write_text("100000\n")
    assert settle(0, environ := {}, cgroup) == "4"
    assert environ["OMP_NUM_THREADS"] == "4"


def test_without_a_limit_the_libraries_decide(cgroup: Path) -> None:
    (cgroup / threads.CPU_MAX).write_text("max 100000\n")
    for folder in (cgroup, cgroup / "missing"):
        environ: dict[str, str] = {}
        assert settle(0, environ, folder) == "all"
        assert environ == {}
