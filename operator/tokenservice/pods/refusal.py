"""Why a spec leads to nothing that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
