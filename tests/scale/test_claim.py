"""That a broken claim would be seen: what `make bench-claim` proves of its checker before it measures, on a few nodes.

How fast claims are, says the benchmark itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.claim", "--cluster", "test-claim", "--nodes", "5", "--proof-only"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout.splitlines()[-1])


def test_two_clients_with_the_optimistic_lock_never_get_the_same_pod(verdicts: dict[str, Any]) -> None:
    assert verdicts["with_lock"] == {"edits": 16, "lost": 0, "duplicated": 0}


def test_without_it_the_checker_finds_the_pods_that_two_services_have(verdicts: dict[str, Any]) -> None:
    assert verdicts["without_lock"]["edits"] == 16
    assert verdicts["without_lock"]["duplicated"] > 0
