"""Waiting for something to become true, with a deadline and the last thing seen in the message."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(probe: Callable[[], T | None], what: str, *, seconds: float = 30.0, every: float = 0.05) -> T:
    """The first result of `probe` that is true; AssertionErrors count as not yet.

    Raises AssertionError after `seconds`, with `what` and the last failure or result.
    """
    deadline = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            result = probe()
            if result:
                return result
            last = result
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}; last seen: {last}")
        time.sleep(every)


def holds(probe: Callable[[], bool], what: str, *, seconds: float, every: float = 0.2) -> None:
    """For what must not happen: `probe` is true at every look during `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        assert probe(), f"no longer true: {what}"
        if time.monotonic() > deadline:
            return
        time.sleep(every)
