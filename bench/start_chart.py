"""The chart of the stages of a start: bars as an SVG, by a pure function. The same figures give the same bytes.

Three bars beside each other on one scale, and the last one, which is short, once more on a scale of its own. Text and
lines take the colour scheme that the reader prefers; each segment says what it is when pointed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT = 840, 150, 80
BAR, GAP, TOP = 34, 16, 58
LEGEND_LINE, LEGEND_COLUMNS = 22, 5
LEAST_LABEL = 46
"""Pixels from which on a segment has its seconds written in it."""
COLOURS = (
    ("claim", "#8250df"),
    ("scheduling", "#57606a"),
    ("pull", "#b35900"),
    ("container", "#0969da"),
    ("imports", "#bf3989"),
    ("prepare", "#7d6608"),
    ("weights", "#1a7f37"),
    ("warmup", "#0e7c86"),
    ("endpoint", "#a40e26"),
    ("rest", "#6e7781"),
)
"""A stage and its colour: on each, white text has a contrast of 4.5 or more; they stand out on white and on black."""
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 15px }
  .in { fill: #ffffff; font-size: 12px; text-anchor: middle }
  .axis { stroke: #8c959f; stroke-width: 1 }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .in { fill: #ffffff } }
"""


@dataclass(frozen=True)
class Bar:
    """One path: its name, seconds by stage, in the order in which they happen, and seconds as a whole.

    Medians of stages do not add up to the median of the whole, which is what is written behind the bar.
    """

    name: str
    stages: Mapping[str, float]
    seconds: float

    @property
    def length(self) -> float:
        return sum(self._shown.values())

    @property
    def _shown(self) -> dict[str, float]:
        """A median of differences of whole seconds can be less than nothing, which no bar can be."""
        return {name: max(0.0, value) for name, value in self.stages.items()}

    def segments(self) -> Iterator[tuple[str, float, float]]:
        """Stage, where it begins, how long it takes; without those that take nothing."""
        since = 0.0
        for name, value in self._shown.items():
            if value > 0:
                yield name, since, value
            since += value


def chart(title: str, bars: Sequence[Bar], note: str) -> str:
    """The SVG. The last bar is drawn twice."""
    used = [(name, colour) for name, colour in COLOURS if any(name in bar.stages for bar in bars)]
    enlarged = TOP + len(bars) * (BAR + GAP) + 34
    legend = enlarged + BAR + GAP + 14
    height = legend + LEGEND_LINE * -(-len(used) // LEGEND_COLUMNS) + 34
    longest = max((bar.length for bar in bars), default=0.0)
    words = "; ".join(f"{bar.name}: {shown(bar.seconds)}" for bar in bars)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' role="img" aria-labelledby="title about">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="about">{escape(words)}</desc>',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
    ]
    for number, bar in enumerate(bars):
        lines += _bar(bar, TOP + number * (BAR + GAP), longest)
    if bars:
        lines.append(_text(16, enlarged - 12, f"{bars[-1].name}, on a scale of its own"))
        lines += _bar(bars[-1], enlarged, bars[-1].length)
    for number, (name, colour) in enumerate(used):
        x = 16 + number % LEGEND_COLUMNS * (WIDTH - 32) // LEGEND_COLUMNS
        y = legend + number // LEGEND_COLUMNS * LEGEND_LINE
        lines.append(f'<rect x="{x}" y="{y}" width="13" height="13" rx="2" fill="{colour}"/>')
        lines.append(_text(x + 20, y + 11, name))
    lines += [_text(16, height - 14, note), "</svg>"]
    return "\n".join(lines) + "\n"


def _bar(bar: Bar, y: int, longest: float) -> Iterator[str]:
    scale = (WIDTH - LEFT - RIGHT) / longest if longest > 0 else 0.0
    colours, middle = dict(COLOURS), y + BAR // 2 + 5
    yield _text(16, middle, bar.name)
    yield f'<line class="axis" x1="{LEFT}" y1="{y - 4}" x2="{LEFT}" y2="{y + BAR + 4}"/>'
    for name, since, value in bar.segments():
        x, width = LEFT + since * scale, value * scale
        place = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}"'
        yield f'<rect {place} fill="{colours[name]}"><title>{name}: {shown(value)}</title></rect>'
        if width >= LEAST_LABEL:
            yield f'<text class="in" x="{x + width / 2:.1f}" y="{middle}">{shown(value)}</text>'
    yield _text(LEFT + bar.length * scale + 8, middle, shown(bar.seconds))


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y}">{escape(words)}</text>'


def shown(seconds: float) -> str:
    """As people say it: milliseconds below a second."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
