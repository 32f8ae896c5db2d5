"""What the clients' records say: which requests failed, which streams were cut, how long the others took."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.rollout_client import Record

Verdict = Literal["ok", "failed", "cut"]


def verdict(record: Record) -> Verdict:
    """ok: status 200, `[DONE]` at the end, no error. cut: a stream that began and lacks any of it. failed: all else."""
    if record.status != 200:
        return "failed"
    return "ok" if record.done and not record.error else "cut"


def percentile(values: Iterable[float], percent: float) -> float | None:
    """The smallest value that so many percent of all do not exceed (nearest rank); None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None


@dataclass(frozen=True)
class Phase:
    """A part of the run. A request belongs to the one in which it ended: what harms it is seen there."""

    name: str
    start: float
    end: float

    def of(self, records: Iterable[Record]) -> list[Record]:
        return [record for record in records if self.start <= record.end < self.end]


@dataclass(frozen=True)
class Summary:
    """Of some requests. Latencies are of those that were ok, from before the connection to the end, in seconds."""

    requests: int
    failed: int
    cut: int
    p50: float | None
    p99: float | None
    longest: float | None
    first_p99: float | None
    """Until the first event."""
    reused: int
    """How many were sent on a connection that had carried one before."""
    versions: Counter[str]


def summary(records: Sequence[Record]) -> Summary:
    verdicts = Counter(verdict(record) for record in records)
    good = [record for record in records if verdict(record) == "ok"]
    latencies = [record.end - record.start for record in good]
    firsts = [record.first - record.start for record in good if record.first is not None]
    return Summary(
        requests=len(records),
        failed=verdicts["failed"],
        cut=verdicts["cut"],
        p50=percentile(latencies, 50),
        p99=percentile(latencies, 99),
        longest=max(latencies, default=None),
        first_p99=percentile(firsts, 99),
        reused=sum(record.reused for record in records),
        versions=Counter(record.version for record in good),
    )


def ratio(during: float | None, before: float | None) -> float | None:
    return during / before if during is not None and before else None


def told(record: Record) -> str:
    """A request that went badly or slowly, for people."""
    habit = "connection kept" if record.keeps else "a connection each"
    carried = ", used before" if record.reused else ""
    said = f"{verdict(record)} after {record.end - record.start:.2f} s"
    if record.first is not None:
        said += f", first event after {record.first - record.start:.2f} s"
    if verdict(record) != "ok":
        said += f": {record.error or ('no [DONE] at the end' if record.status == 200 else f'HTTP {record.status}')}"
    return f"client {record.client} ({habit}{carried}), {record.version or 'no answer'}: {said}"
