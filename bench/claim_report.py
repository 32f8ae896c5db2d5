"""The figures of the benchmark of claims, as a table and as one JSON object."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.claim_check import Verdict
from bench.claim_figures import Figures

BARE, OPERATOR = "bare", "operator"
NOTHING = Verdict(0, 0, 0, 0)


@dataclass(frozen=True)
class Outcome:
    """One phase.

    Attributes:
        late_ms: by how much the latest edit was sent late; if that is long, the load did not keep up.
        refilled_per_s: pods made in a second, from the first edit that counts to the end of the last claim.
        writes: of whoever claims, by kind, from the first edit that counts until nothing was left to do.

    """

    who: str
    scenario: str
    figures: Figures
    verdict: Verdict
    late_ms: float
    refilled_per_s: float
    writes: Counter[str] = field(default_factory=Counter)


@dataclass
class Report:
    """All that was measured. locked, broken: the verdicts on two clients with the optimistic lock, and without."""

    nodes: int
    pool: int
    load: tuple[float, float]
    """Of the machine, at the beginning and at the end."""
    locked: Verdict = NOTHING
    broken: Verdict = NOTHING
    outcomes: list[Outcome] = field(default_factory=list)

    def of(self, who: str, scenario: str) -> list[Outcome]:
        return [one for one in self.outcomes if (one.who, one.scenario) == (who, scenario)]


def result(report: Report) -> dict[str, Any]:
    """The figures of the last line: the operator's, and the bare client's p99 beside them; null was not measured.

    lost and duplicated are of all phases of the operator; of the bare client's where the operator had none.
    """

    def rates(scenario: str) -> dict[str, float | None]:
        operated = report.of(OPERATOR, scenario)
        return {
            "per_s": median(operated, "per_s"),
            "p50_ms": median(operated, "p50_ms"),
            "p99_ms": median(operated, "p99_ms"),
            "bare_p99_ms": median(report.of(BARE, scenario), "p99_ms"),
        }

    checked = [one for one in report.outcomes if one.who == OPERATOR] or report.outcomes
    found: dict[str, Any] = {name: rates(name) for name in ("with_refill", "without_refill")}
    found["burst_300_p90_ms"] = median(report.of(OPERATOR, "burst"), "p90_ms")
    found["lost"] = sum(one.verdict.lost for one in checked) if checked else None
    found["duplicated"] = sum(one.verdict.duplicated for one in checked) if checked else None
    return found


def proof(report: Report) -> dict[str, Any]:
    """What the checker says of two clients that race, as the figures of the last line."""
    return {
        name: {"edits": verdict.edits, "lost": verdict.lost, "duplicated": verdict.duplicated}
        for name, verdict in (("with_lock", report.locked), ("without_lock", report.broken))
    }


def median(outcomes: Sequence[Outcome], figure: str) -> float | None:
    values = [value for one in outcomes if (value := getattr(one.figures, figure)) is not None]
    return round(float(statistics.median(values)), 1) if values else None


def table(report: Report) -> str:
    """Every phase, a line each, in the order in which they were run."""
    head = ("", "claims", "per_s", "p50", "p90", "p99", "longest", "edits in", "late", "refill", "lost", "twice")
    rows: list[tuple[str, ...]] = [head, ("", "", "", "ms", "ms", "ms", "ms", "s", "ms", "per_s", "", "")]
    for one in report.outcomes:
        seen = one.figures
        latencies = (seen.p50_ms, seen.p90_ms, seen.p99_ms, seen.longest_ms)
        rows.append(
            (
                f"{one.who}, {one.scenario.replace('_', ' ')}",
                str(seen.claims),
                _shown(seen.per_s),
                *(_shown(value) for value in latencies),
                f"{seen.edits_s:.2f}",
                f"{one.late_ms:.0f}",
                f"{one.refilled_per_s:.1f}",
                str(one.verdict.lost),
                str(one.verdict.duplicated),
            )
        )
    lines = ["".join((f"{row[0]:<28}", *(f"{cell:>9}" for cell in row[1:]))).rstrip() for row in rows]
    measured = [
        f"{report.nodes} of KWOK's nodes, pools of {report.pool}; assignments are answered by a stand-in",
        f"load of the machine before {report.load[0]:.1f}, after {report.load[1]:.1f}",
        "",
        *lines,
        "",
        *_writes(report.outcomes),
        "",
    ]
    return "\n".join(
        [
            *(measured if report.outcomes else []),
            f"two clients without the optimistic lock: {report.broken.duplicated} pods claimed twice, "
            f"with it {report.locked.duplicated}",
        ]
    )


def _writes(outcomes: Sequence[Outcome]) -> list[str]:
    """Writes for each claim, by kind, a column a phase."""
    counted = [one for one in outcomes if one.writes and one.figures.claims]
    kinds = sorted({kind for one in counted for kind in one.writes})
    rows = [("writes a claim", *(f"{one.who} {one.scenario.split('_')[0]}" for one in counted))]
    rows += [(f"  {kind}", *(f"{one.writes[kind] / one.figures.claims:.2f}" for one in counted)) for kind in kinds]
    return [f"{row[0]:<44}" + "".join(f"{cell:>18}" for cell in row[1:]) for row in rows] if counted else []


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
