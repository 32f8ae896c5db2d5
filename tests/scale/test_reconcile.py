"""What `make bench-reconcile` measures, small: what must hold at any size and on a busy machine.

How fast it is, says the benchmark itself; here a limit on speed only catches what is slower by a multiple.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = 60


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.reconcile", "--cluster", "test-scale"]
    command += ["--services", str(SERVICES), "--runs", "1", "--idle-seconds", "10"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout.splitlines()[-1])


def test_every_figure_is_told(figures: dict[str, Any]) -> None:
    assert list(figures) == [
        "services",
        "services_per_s",
        "raw_per_s",
        "ratio_to_raw",
        "ready_s",
        "writes_per_service",
        "restart_seconds",
        "restart_writes",
        "idle_writes_per_min",
        "idle_cpu_percent",
        "rss_mib",
    ]
    assert figures["services"] == SERVICES


def test_a_service_takes_few_writes(figures: dict[str, Any]) -> None:
    # Four children (one of them the revision), an event, and a status at the least: at the beginning, when the pods are
    # there, and when they serve, of which the operator may see two at once.
    assert 6 <= figures["writes_per_service"] <= 8


def test_nothing_is_written_on_a_restart_or_while_idle(figures: dict[str, Any]) -> None:
    assert figures["restart_writes"] == 0
    assert figures["idle_writes_per_min"] == 0


def test_it_is_lean_and_quick(figures: dict[str, Any]) -> None:
    assert figures["rss_mib"] <= 200
    assert figures["idle_cpu_percent"] <= 10
    assert figures["restart_seconds"] <= 30
    assert figures["ratio_to_raw"] >= 0.2
