"""Progress on stderr: what is done, how far, for how long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


def duration(seconds: float) -> str:
    """`7 s`, `2 min 5 s`: whole seconds."""
    whole = int(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def say(message: str) -> None:
    """One line on stderr."""
    print(f"localcluster: {message}", file=sys.stderr, flush=True)


class Step:
    """A step that takes long: while it runs, a line every `every` seconds says so.

    `detail` is asked for what to add, such as how far it is.
    """

    def __init__(self, what: str, detail: Callable[[], str] = lambda: "", every: float = 12.0) -> None:
        self.what = what
        self.detail = detail
        self.every = every
        self.began = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def line(self) -> str:
        detail = self.detail()
        return f"{self.what}: {detail + ', ' if detail else ''}{duration(time.monotonic() - self.began)} so far"

    def _tick(self) -> None:
        while not self._done.wait(self.every):
            say(self.line())

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
