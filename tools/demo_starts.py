"""The demo's last part: one more replica, cold and out of a warm pool, and where the seconds of each start went."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

STAGES = ("scheduling", "pull", "container", "claim", "imports", "prepare", "weights", "warmup", "endpoint")
SECONDS = 180.0

Start = Mapping[str, Any]
"""`status.lastStart` of a TokenService."""
Kubectl = Callable[..., str]
"""kubectl in the demo's namespace; returns what it says."""


def scale(kubectl: Kubectl, name: str, replicas: int) -> None:
    """What `kubectl scale` does, which says so."""
    print("    " + kubectl("scale", "tsvc", name, "--replicas", str(replicas)).strip())


def started(kubectl: Kubectl, name: str, replicas: int, *paths: str) -> Start | None:
    """The newest start, once so many replicas serve; None if it took another path, or is not known in time."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        status = json.loads(kubectl("get", "tsvc", name, "-o", "json")).get("status", {})
        start: Start | None = status.get("lastStart")
        if status.get("readyReplicas") == replicas and start and start["path"] in paths:
            return start
        time.sleep(0.2)
    return None


def filled(kubectl: Kubectl, pool: str) -> bool:
    """Whether the pool became warm in time."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = json.loads(kubectl("get", "twp", pool, "--ignore-not-found", "-o", "json") or "{}")
        wanted, status = found.get("spec", {}).get("replicas"), found.get("status", {})
        if wanted and status.get("readyReplicas") == wanted:
            return True
        time.sleep(0.2)
    return False


def side_by_side(cold: Start, warm: Start) -> str:
    """A table: a line for each stage that one of the two had, and their sums."""
    lines = [f"    {'':<12}{cold['path'].lower():>12}{warm['path'].lower():>12}"]
    for stage in STAGES:
        times = [(start.get("stages") or {}).get(stage) for start in (cold, warm)]
        if any(each is not None for each in times):
            cells = "".join(f"{'' if each is None else f'{each:.3f} s':>12}" for each in times)
            lines.append(f"    {stage:<12}{cells}")
    lines.append(f"    {'together':<12}{cold['seconds']:>10.3f} s{warm['seconds']:>10.3f} s")
    return "\n".join(lines)
