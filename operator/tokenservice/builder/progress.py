"""Lines on standard error that tell what a long step does, how far it is and how fast."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


def human_bytes(count: float) -> str:
    """1536 -> `1.5 KiB`. Binary units, as du and df have them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


class Meter(Protocol):
    """What long work tells its progress to: `total` bytes are expected (0: unknown), `done` are through."""

    def __call__(self, done: int, total: int) -> None: ...


def quiet(done: int, total: int) -> None:
    """A meter that says nothing."""


def say(text: str) -> None:
    """One line for the person who watches."""
    sys.stderr.write(f"{text}\n")  # in one piece: several threads speak
    sys.stderr.flush()


@dataclass
class LineMeter:
    """Prints `label: 12.3 MiB of 40.0 MiB, 8.1 MiB/s` at most every `every` seconds."""

    label: str
    every: float = 5.0
    clock: Callable[[], float] = time.monotonic
    write: Callable[[str], None] = say
    _begun: float = field(init=False)
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._begun = self._last = self.clock()

    def __call__(self, done: int, total: int) -> None:
        now = self.clock()
        if now - self._last < self.every:
            return
        self._last = now
        rate = human_bytes(done / max(now - self._begun, 1e-6))
        of = f" of {human_bytes(total)}" if total else ""
        self.write(f"{self.label}: {human_bytes(done)}{of}, {rate}/s")
