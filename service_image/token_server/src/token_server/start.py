"""What a start cost, stage by stage, for /readyz, /metrics and the log."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

STAGES = ("process", "imports", "prepare", "weights", "warmup", "total")
STAT = Path("/proc/self/stat")


class Start:
    """Seconds of the stages that have happened."""

    def __init__(self) -> None:
        self._stages: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> float:
        """Keeps the seconds, rounded to three decimals, and returns them so."""
        self._stages[stage] = round(seconds, 3)
        return self._stages[stage]

    def stages(self) -> dict[str, float]:
        """A copy: what was told does not change."""
        return dict(self._stages)

    def report(self, *, warm: bool) -> dict[str, Any]:
        """What /readyz tells; `warm`: the model came by an assignment in this life of the process."""
        return {"stages": self.stages(), "warm": warm}


def process_age() -> Optional[float]:
    """Seconds since the kernel made this process, or None where that cannot be known.

    Interpreter and first imports take a part of a second before any code of ours could look at a clock.
    """
    with suppress(AttributeError, OSError, ValueError):  # no Linux; no /proc; a /proc of a sandbox's own making
        text = STAT.read_text(encoding="utf-8", errors="replace")
        return age(text, os.sysconf("SC_CLK_TCK"), time.clock_gettime(time.CLOCK_BOOTTIME))
    return None


def age(stat: str, ticks: int, now: float) -> Optional[float]:
    """From the text of /proc/PID/stat (proc(5): field 22 is the start, in `ticks` per second since boot).

    `now` is on the same clock, CLOCK_BOOTTIME: /proc/uptime may be the container's instead (lxcfs). None if that gives
    no age; raises ValueError for a text that is none of the kernel's.
    """
    fields = stat.rpartition(")")[2].split()  # the second field, the program's name, may hold spaces and parentheses
    if len(fields) < 20:
        return None
    seconds = now - int(fields[19]) / ticks
    return seconds if seconds >= 0 else None
