"""The figures of the benchmark of starts: a table, one JSON object, and the bars of the chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.start_chart import Bar, chart
from bench.start_runs import PATHS, STAGES, STEPS, Failure, Run, StartPath, median, medians, of, p99
from bench.start_setup import BIG, TINY

GROUPS: tuple[tuple[StartPath, str], ...] = (
    ("Cold", TINY),
    ("Prepulled", TINY),
    ("Warm", TINY),
    ("Prepulled", BIG),
    ("Warm", BIG),
)
NAMES: Mapping[StartPath, str] = {"Cold": "no image", "Prepulled": "image there", "Warm": "from the pool"}


@dataclass
class Figures:
    """All that was measured.

    Attributes:
        runs: those that went well.
        failures: those that did not.
        bare: by model, seconds of imports, of the model's load and of its first token by themselves.
        weights: by model, bytes.
        load: of the machine, before and after: processes that ran or waited for a core.

    """

    runs: list[Run] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    bare: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    load: tuple[float, float] = (0.0, 0.0)

    def seconds(self, path: StartPath, model: str) -> float | None:
        """From the edit to the first token: the median of that path."""
        return median([run.seconds for run in of(self.runs, path, model)])

    def stages(self, path: StartPath, model: str = TINY) -> dict[str, float]:
        return medians([run.stages for run in of(self.runs, path, model)], STAGES)

    def steps(self, path: StartPath, model: str = TINY) -> dict[str, float]:
        return medians([run.steps for run in of(self.runs, path, model)], STEPS)

    def imports(self) -> float | None:
        return self.bare.get(TINY, {}).get("imports")

    def bare_load(self, model: str) -> float | None:
        """To the first token, as a start goes: the model's load, and one token."""
        found = self.bare.get(model)
        return found["load"] + found["token"] if found else None


def result(figures: Figures) -> dict[str, Any]:
    """The figures of the last line; null for what has no runs."""
    cold, warm = figures.seconds("Prepulled", TINY), figures.seconds("Warm", TINY)
    big = figures.seconds("Warm", BIG)
    return {
        "pull_s": rounded(figures.seconds("Cold", TINY)),
        "cold_s": rounded(cold),
        "warm_s": rounded(warm),
        "warm_p99_s": rounded(p99(of(figures.runs, "Warm", TINY))),
        "cold_over_warm": rounded(cold / warm if cold and warm else None, 1),
        "imports_s": rounded(figures.imports()),
        "cold_over_imports_s": rounded(minus(cold, figures.imports())),
        "load_s": rounded(figures.bare_load(TINY)),
        "big": {
            "weights_mb": rounded(figures.weights.get(BIG, 0) / 1e6, 1),
            "cold_s": rounded(figures.seconds("Prepulled", BIG)),
            "warm_s": rounded(big),
            "warm_p99_s": rounded(p99(of(figures.runs, "Warm", BIG))),
            "load_s": rounded(figures.bare_load(BIG)),
            "warm_over_load_s": rounded(minus(big, figures.bare_load(BIG))),
        },
        "stages": {path: each(figures.stages(path)) for path in PATHS},
        "steps": {path: each(figures.steps(path)) for path in PATHS},
        "failed": len(figures.failures),
    }


def each(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in parts.items()}


def minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def drawing(figures: Figures) -> str:
    """The chart of the tiny model's stages, as SVG."""
    counts = ", ".join(str(len(of(figures.runs, path, TINY))) for path in PATHS)
    bars = [Bar(NAMES[path], figures.stages(path), figures.seconds(path, TINY) or 0.0) for path in PATHS]
    note = f"Medians; starts: {counts}. rest: the operator's and the Service's reaction, and the token."
    return chart("Where a start's seconds go: from replicas 0 → 1 to the first token", bars, note)


def table(figures: Figures) -> str:
    """Seconds by path and model, then where they went."""
    groups = [of(figures.runs, *group) for group in GROUPS]
    failed = [sum((each.path, each.model) == group for each in figures.failures) for group in GROUPS]
    head = ("", [f"{model} {NAMES[path]}" for path, model in GROUPS])
    values = [[run.seconds for run in runs] for runs in groups]
    rows = [
        ("runs", [str(len(runs)) for runs in groups]),
        ("  failed", [str(count) for count in failed]),
        ("edit to first token, s: median", [shown(median(each)) for each in values]),
        ("  fastest", [shown(min(each, default=None)) for each in values]),
        ("  slowest", [shown(max(each, default=None)) for each in values]),
        *_parts("stages, as status.lastStart tells them", STAGES, [figures.stages(*group) for group in GROUPS]),
        *_parts("steps, as they were seen", STEPS, [figures.steps(*group) for group in GROUPS]),
        *_bare(figures),
    ]
    text = [f"{name:<42}" + "".join(f"{value:>20}" for value in row).rstrip() for name, row in (head, *rows)]
    told = [f"{each.path}, {each.model}, run {each.number}: {each.problem}" for each in figures.failures]
    load = f"load of the machine before, after         {figures.load[0]:.2f}, {figures.load[1]:.2f}"
    return "\n".join([*text, load, *(["", "failed:", *told] if told else [])])


def _parts(title: str, order: Sequence[str], columns: Sequence[Mapping[str, float]]) -> list[tuple[str, list[str]]]:
    """A heading, and a row for each part that any column has."""
    used = [name for name in order if any(name in column for column in columns)]
    return [(title, []), *((f"  {name}", [shown(column.get(name)) for column in columns]) for name in used)]


def _bare(figures: Figures) -> list[tuple[str, list[str]]]:
    columns: list[Mapping[str, float]] = [figures.bare.get(model, {}) for _, model in GROUPS]
    return _parts("bare, in a pod of the image", ("imports", "load", "token"), columns)


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
