"""Why a spec leads to nothing that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RETRY_REFUSED_SECONDS = 3600.0
RETRY_PASSING_SECONDS = 60.0
"""How often to see whether a taken name is free, or a quota has room: objects of others are not watched."""


@dataclass(frozen=True)
class Refusal:
    """Why a spec leads to no children: the operator's own check, or the API server's answer.

    `reason` becomes the condition's; it is not tried again until the spec or the retry annotation changes, or an
    hour has passed. `passing`: the cause is not in the spec and can go at any time, unseen: tried again on every
    event, and after a minute.
    """

    reason: Literal["InvalidTemplate", "InvalidEnvironment", "Rejected", "NameConflict"]
    message: str
    passing: bool = False

    @property
    def wait(self) -> float:
        """Seconds after which to try again without a change."""
        return RETRY_PASSING_SECONDS if self.passing else RETRY_REFUSED_SECONDS
