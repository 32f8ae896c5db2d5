"""What a plan wants to be posted as a Kubernetes event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Event:
    """What is posted on the resource that the plan is for."""

    type: Literal["Normal", "Warning"]
    reason: str
    note: str
