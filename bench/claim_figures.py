"""How long claims took, and how many there were a second: out of a namespace's story. Pure functions.

A claim's latency is the API server's: from when it received the edit of `spec.replicas` (requestReceivedTimestamp) to
when it had answered the second patch of the pod (stageTimestamp of ResponseComplete), both to the microsecond and by
one clock, whoever made the claim.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from bench.claim_log import Story
from bench.rollout_requests import percentile


@dataclass(frozen=True)
class Figures:
    """Of one phase. Latencies in ms; None where no claim was finished.

    Attributes:
        claims: that were finished.
        began: the first edit.
        ended: the end of the last claim, or else the first edit. Both None where nothing was asked for.
        edits_s: seconds from the first edit to the last, as the API server received them.
        per_s: claims divided by the seconds from the first edit to the end of the last claim.

    """

    claims: int
    began: datetime | None
    ended: datetime | None
    edits_s: float
    per_s: float | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    longest_ms: float | None


def figures(told: Story, without: Collection[str] = ()) -> Figures:
    """The figures of a phase. A TokenService's first edit belongs to its first claim, and so on.

    without: TokenServices that do not count.
    """
    edited = {service: times for service, times in told.edits.items() if service not in without}
    edits = [at for times in edited.values() for at in times]
    pairs = [
        (at, end)
        for service, times in edited.items()
        for at, end in zip(times, told.finished.get(service, []), strict=False)
    ]
    latencies = [1000 * (end - at).total_seconds() for at, end in pairs]
    began = min(edits, default=None)
    ended = max((end for _, end in pairs), default=began)
    seconds = (ended - began).total_seconds() if began and ended else 0.0
    return Figures(
        claims=len(latencies),
        began=began,
        ended=ended,
        edits_s=(max(edits) - began).total_seconds() if began else 0.0,
        per_s=len(latencies) / seconds if seconds > 0 else None,
        p50_ms=percentile(latencies, 50),
        p90_ms=percentile(latencies, 90),
        p99_ms=percentile(latencies, 99),
        longest_ms=max(latencies, default=None),
    )
