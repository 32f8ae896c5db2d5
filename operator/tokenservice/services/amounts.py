"""Numbers of pods that may be given as percentages."""

from __future__ import annotations

import math


def pods(value: int | str, replicas: int, *, up: bool = False) -> int:
    """maxUnavailable, or with `up` maxSurge, in pods: Deployments round the one down, the other up."""
    if isinstance(value, int):
        return value
    share = int(value.removesuffix("%")) * replicas / 100
    return math.ceil(share) if up else math.floor(share)
