"""How long claims took, and how many there were a second: out of a namespace's story. Pure functions.

A claim's latency is the API server's: from when it received the edit of `spec.replicas` (requestReceivedTimestamp) to
when it had answered the second patch of the pod (stageTimestamp of ResponseComplete), both to the microsecond and by
one clock, whoever made the claim.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from bench.claim_log import Story
from bench.rollout_requests import percentile


@dataclass(frozen=True)
class Figures:
    """Of one phase. Latencies in ms; None where no claim was finished.

    Attributes:
        claims: that were finished.
        edits_s: seconds from the first edit to the last, as the API server received them.
        per_s: claims divided by the seconds from the first edit to the end of the last claim.

    """

    claims: int
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
    ends = [end for _, end in pairs]
    seconds = (max(ends) - min(edits)).total_seconds() if edits and ends else 0.0
    return Figures(
        claims=len(latencies),
        edits_s=(max(edits) - min(edits)).total_seconds() if edits else 0.0,
        per_s=len(latencies) / seconds if seconds > 0 else None,
        p50_ms=percentile(latencies, 50),
        p90_ms=percentile(latencies, 90),
        p99_ms=percentile(latencies, 99),
        longest_ms=max(latencies, default=None),
    )
