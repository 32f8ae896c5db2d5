"""When something was first to be seen: a watch that notes the time of every change."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import httpx

from tests.support.api import Api, Object
from tests.support.wait import eventually


class Timeline:
    """Every state of the objects of a kind in a namespace, each with the time at which it arrived (monotonic, seconds).

    Two timelines of one process can be compared: both times are those at which an onlooker saw it.
    """

    def __init__(self, api: Api, kind: str, namespace: str) -> None:
        self._api, self._kind, self._namespace = api, kind, namespace
        self._seen: list[tuple[float, Object]] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        # Ends with the API server, of which nobody waits to be told.
        with contextlib.suppress(httpx.HTTPError):
            for event in self._api.watch(self._kind, self._namespace):
                self._seen.append((time.monotonic(), event["object"]))

    def states(self, wanted: Callable[[Object], bool]) -> list[tuple[float, Object]]:
        return [(when, state) for when, state in list(self._seen) if wanted(state)]

    def first(self, wanted: Callable[[Object], bool], what: str, *, seconds: float = 30.0) -> tuple[float, Object]:
        """The first state that is `wanted`, with its time; waits for it."""
        return eventually(lambda: self.states(wanted)[:1], what, seconds=seconds)[0]
