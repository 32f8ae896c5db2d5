"""How many threads torch computes with: no more than the container's CPU limit pays for, of which torch knows nothing.

Left alone it takes every core that the process may run on. Under a limit these threads use up one common quota, a part
of it by spinning at barriers for those that the kernel has stopped. On two cores with a limit of one, a token of a
model of 130 million weights took 0.128 s with two threads, and 0.063 s with one.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Optional

OPENMP, MKL = "OMP_NUM_THREADS", "MKL_NUM_THREADS"
CGROUP = Path("/sys/fs/cgroup")  # where a container sees its own
CPU_MAX = "cpu.max"  # of cgroup v2: "QUOTA PERIOD" in microseconds, "max" for no limit
CFS_QUOTA, CFS_PERIOD = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"  # of cgroup v1; -1 for no limit
DEFAULT_PERIOD = 100_000  # the kernel's, in microseconds


def affordable(cores: int, cpu_max: str = "", cfs_quota: str = "", cfs_period: str = "") -> Optional[int]:
    """Threads that a limit pays for, from its files' texts (empty: no such file); None if it pays for all `cores`.

    Rounded down, at least 1: the last thread of a limit of 1.5 would be stopped half of the time, and the other would
    spin for it after every operation (for the same model 0.070 to 0.38 s for a token instead of 0.06 s). What is left
    over serves tokenizer and HTTP.
    """
    fields = (cpu_max or f"{cfs_quota or 'max'} {cfs_period}").split()
    try:
        quota, period = int(fields[0]), int(fields[1]) if len(fields) > 1 else DEFAULT_PERIOD
    except (ValueError, IndexError):
        return None
    if quota <= 0 or period <= 0:
        return None
    threads = max(1, quota // period)
    return threads if threads < cores else None


def settle(wanted: int, environ: MutableMapping[str, str], cgroup: Path = CGROUP) -> str:
    """Sets the variables that torch's libraries read when they are loaded; returns what they hold, or `all`.

    `wanted` of the user's (0: nothing) comes before the variable of the user's, and that before the limit. Without a
    limit nothing is set: the libraries take all cores by themselves, of two that hyper-threading makes of one only one.
    """
    if wanted:
        environ.update({OPENMP: str(wanted), MKL: str(wanted)})
    elif not environ.get(OPENMP):  # and MKL's own would come before it
        cpu_max, quota, period = (_text(cgroup / name) for name in (CPU_MAX, CFS_QUOTA, CFS_PERIOD))
        threads = affordable(_cores(), cpu_max, quota, period)
        if threads is not None:
            environ[OPENMP] = str(threads)
            environ.setdefault(MKL, str(threads))
    return environ.get(OPENMP) or "all"


def _cores() -> int:
    """That the process may run on; a cpuset counts, where `os.cpu_count` gives the node's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _text(path: Path) -> str:
    with suppress(OSError, ValueError):
        return path.read_text(encoding="ascii")
    return ""
