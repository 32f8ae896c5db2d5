"""The figures of the benchmark of rollouts, as a table and as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.rollout_requests import Phase, Summary, ratio
from bench.rollout_watch import Stage


@dataclass
class Figures:
    """All that was measured. Seconds; summaries and replaced pods by phase."""

    setting: str
    deadline_s: int
    """Of the edit that is rolled back."""
    phases: dict[str, Phase] = field(default_factory=dict)
    summaries: dict[str, Summary] = field(default_factory=dict)
    during: Summary | None = None
    """Of the phases after `before`, together."""
    replaced: dict[str, int] = field(default_factory=dict)
    stages: dict[str, list[Stage]] = field(default_factory=dict)
    new_serving_s: float | None = None
    rolled_back_s: float | None = None
    drain_s: float | None = None
    drained_serving_s: float | None = None
    load: tuple[float, float] = (0.0, 0.0)
    """Of the machine, at the beginning and at the end: processes that ran or waited for a core."""


def result(figures: Figures) -> dict[str, float | int | None]:
    """The figures of the last line."""
    parts = figures.summaries.values()
    before = figures.summaries["before"].p99
    return {
        "requests": sum(part.requests for part in parts),
        "failed": sum(part.failed for part in parts),
        "cut": sum(part.cut for part in parts),
        "edit_to_new_serving_s": rounded(figures.new_serving_s),
        "edit_to_rolled_back_s": rounded(figures.rolled_back_s),
        "p99_latency_ratio": rounded(ratio(figures.during.p99 if figures.during else None, before), 3),
    }


def rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)


def table(figures: Figures) -> str:
    """What was measured, phase by phase, then what the operator said of the edits."""
    phases, columns = figures.phases, dict(figures.summaries)
    if figures.during:
        columns["during"] = figures.during  # all but the first
    parts = columns.values()
    seconds = [f"{phases[name].end - phases[name].start:.1f}" if name in phases else "" for name in columns]
    replaced = [str(figures.replaced.get(name, 0)) if name in phases else "" for name in columns]
    rows: list[tuple[str, list[str]]] = [
        ("", list(columns)),
        ("seconds", seconds),
        ("pods replaced", replaced),
        ("requests", [str(part.requests) for part in parts]),
        ("  failed", [str(part.failed) for part in parts]),
        ("  cut", [str(part.cut) for part in parts]),
        ("  on a connection used before", [str(part.reused) for part in parts]),
        ("  answered by the old environment", [str(part.versions["old"]) for part in parts]),
        ("  by the new one", [str(part.versions["new"]) for part in parts]),
        ("whole request, p50, ms", [millis(part.p50) for part in parts]),
        ("  p99, ms", [millis(part.p99) for part in parts]),
        ("  longest, ms", [millis(part.longest) for part in parts]),
        ("first event, p99, ms", [millis(part.first_p99) for part in parts]),
    ]
    text = [figures.setting, "", *(f"{name:<40}" + "".join(f"{each:>10}" for each in row) for name, row in rows), ""]
    lines = [
        ("load of the machine before, after", f"{figures.load[0]:.2f}, {figures.load[1]:.2f}"),
        ("change: edit to every pod new and Ready, s", shown(figures.new_serving_s)),
        *_stage_lines(figures.stages.get("change", [])),
        ("rollback: edit to rolled back, s", shown(figures.rolled_back_s)),
        ("  of which the deadline is, s", str(figures.deadline_s)),
        *_stage_lines(figures.stages.get("rollback", [])),
        ("drain: kubectl drain, s", shown(figures.drain_s)),
        ("  until every replica serves on what is left, s", shown(figures.drained_serving_s)),
    ]
    return "\n".join([*text, *(f"{name:<50}{value}" for name, value in lines)])


def _stage_lines(found: Sequence[Stage]) -> list[tuple[str, str]]:
    return [
        (f"  {each.reason}", f"from {each.start:.1f}" + (f" to {each.end:.1f}" if each.end is not None else " on"))
        for each in found
    ]


def millis(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f}"


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
