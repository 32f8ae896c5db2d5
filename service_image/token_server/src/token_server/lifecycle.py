"""loading -> serving -> draining: what each state means for probes, how long a drain takes. Decides, does nothing."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum
from typing import Optional

# Kept of the grace period for ending the process itself, before SIGKILL; seconds.
RESERVE_SECONDS = 2.0


class Phase(str, Enum):  # noqa: UP042 - StrEnum came with Python 3.11
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(frozen=True)
class DrainPlan:
    """Seconds from SIGTERM: new requests are accepted until `accept_s`, what runs is ended at `finish_s`."""

    accept_s: float
    finish_s: float


def drain_plan(phase: Phase, grace_s: float, delay_s: float) -> DrainPlan:
    """The plan at SIGTERM. Endpoints lag behind /readyz, hence the delay; a pod that never was ready had no traffic.

    The delay never takes more than the grace period leaves.
    """
    finish = max(0.0, grace_s - RESERVE_SECONDS)
    if phase is Phase.LOADING:
        return DrainPlan(0.0, finish)
    return DrainPlan(min(delay_s, finish), finish)


class Lifecycle:
    """The state, shared between the loading thread, the HTTP server and the signal handler."""

    def __init__(self) -> None:
        self._phase = Phase.LOADING
        self._lock = threading.Lock()

    @property
    def phase(self) -> Phase:
        return self._phase

    def serve(self) -> bool:
        """The model is loaded. False if the pod drains already: it must not turn ready again."""
        with self._lock:
            if self._phase is not Phase.LOADING:
                return False
            self._phase = Phase.SERVING
            return True

    def drain(self) -> Optional[Phase]:
        """SIGTERM. The phase before, or None if this is not the first: then the process is to end at once."""
        with self._lock:
            if self._phase is Phase.DRAINING:
                return None
            before, self._phase = self._phase, Phase.DRAINING
            return before

    def readiness(self) -> tuple[int, dict[str, str]]:
        """Status and body of /readyz."""
        if self._phase is Phase.SERVING:
            return 200, {"status": "ready"}
        return 503, {"reason": self._phase.value}
