"""loading -> serving -> draining, or loading -> warm -> assigned -> serving -> draining for a server without a model.

What each state means for probes, how long a drain takes. Decides, and lets others wait for it; does nothing.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Callable, Optional

# Kept of the grace period for ending the process itself, before SIGKILL; seconds.
RESERVE_SECONDS = 2.0


class Phase(str, Enum):  # noqa: UP042 - StrEnum came with Python 3.11
    LOADING = "loading"  # imports, and the model if there is one already
    WARM = "warm"  # ready for a model
    ASSIGNED = "assigned"  # loads the model it was given
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(frozen=True)
class DrainPlan:
    """Seconds from SIGTERM: new requests are accepted until `accept_s`, what runs is ended at `finish_s`."""

    accept_s: float
    finish_s: float


def drain_plan(phase: Phase, grace_s: float, delay_s: float) -> DrainPlan:
    """The plan at SIGTERM. Endpoints lag behind /readyz, hence the delay; a pod that never served had no traffic.

    The delay never takes more than the grace period leaves.
    """
    finish = max(0.0, grace_s - RESERVE_SECONDS)
    if phase is Phase.SERVING:
        return DrainPlan(min(delay_s, finish), finish)
    return DrainPlan(0.0, finish)


class Lifecycle:
    """The state, shared between the loading thread, the HTTP server and the signal handler."""

    def __init__(self) -> None:
        self._phase = Phase.LOADING
        self._lock = threading.Lock()
        self._waiting: set[Callable[[], object]] = set()  # to be called when the phase is LOADING no more

    @property
    def phase(self) -> Phase:
        return self._phase

    def warm(self) -> bool:
        """All is prepared for a model. False if the pod drains already."""
        return self._pass(Phase.WARM, Phase.LOADING)

    def assign(self) -> bool:
        """A model was given. False if that cannot be: not yet, no more, or not again."""
        return self._pass(Phase.ASSIGNED, Phase.WARM)

    def serve(self) -> bool:
        """The model is loaded. False if the pod drains already: it must not turn ready again."""
        return self._pass(Phase.SERVING, Phase.LOADING, Phase.ASSIGNED)

    def _pass(self, to: Phase, *sources: Phase) -> bool:
        with self._lock:
            if self._phase not in sources:
                return False
            self._enter(to)
            return True

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        while self._waiting:
            with suppress(RuntimeError):  # its event loop has ended
                self._waiting.pop()()

    async def loaded(self, seconds: float) -> None:
        """Returns as soon as the phase is not LOADING, or after so many seconds."""
        loop, left = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(left.set)

        with self._lock:
            if self._phase is not Phase.LOADING:
                return
            self._waiting.add(tell)
        try:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(left.wait(), seconds)
        finally:
            with self._lock:
                self._waiting.discard(tell)

    def drain(self) -> Optional[Phase]:
        """SIGTERM. The phase before, or None if this is not the first: then the process is to end at once."""
        with self._lock:
            if self._phase is Phase.DRAINING:
                return None
            before = self._phase
            self._enter(Phase.DRAINING)
            return before

    def readiness(self) -> tuple[int, dict[str, str]]:
        """Status and body of /readyz.

        A warm server is ready for a model, and stays so while it loads one: the operator, not a probe's period, puts it
        into its Service. After a restart it is loading like any other.
        """
        phase = self._phase
        if phase in (Phase.WARM, Phase.ASSIGNED, Phase.SERVING):
            return 200, {"status": "ready" if phase is Phase.SERVING else phase.value}
        return 503, {"reason": phase.value}
