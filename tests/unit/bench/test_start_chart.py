"""The chart of a start's stages."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from bench.start_chart import COLOURS, LEFT, RIGHT, WIDTH, Bar, chart, shown
from bench.start_runs import STAGES

SVG = "{http://www.w3.org/2000/svg}"
BARS = (
    Bar("no image", {"scheduling": 0.0, "pull": 12.0, "container": 1.0, "imports": 5.0, "rest": 2.0}, 19.8),
    Bar("image there", {"container": 1.0, "imports": 5.0, "endpoint": 1.0, "rest": -0.4}, 6.6),
    Bar("from the pool", {"claim": 0.02, "weights": 0.05, "rest": 0.08}, 0.151),
)


def drawn() -> str:
    return chart("Starts & stops", BARS, "Medians.")


def segments(svg: str) -> list[tuple[str, float, float]]:
    """Text that a segment shows when pointed at, where it begins, how wide it is; all in pixels."""
    root = ElementTree.fromstring(svg)
    return [
        (str(found.text), float(rect.attrib["x"]), float(rect.attrib["width"]))
        for rect in root.iter(f"{SVG}rect")
        if (found := rect.find(f"{SVG}title")) is not None
    ]


def test_the_same_figures_give_the_same_bytes() -> None:
    assert drawn() == drawn()


def test_segments_follow_each_other_on_one_scale() -> None:
    found = segments(drawn())
    scale = (WIDTH - LEFT - RIGHT) / 20.0
    names = [name for name, _, _ in found]
    assert names[:4] == ["pull: 12.0 s", "container: 1.0 s", "imports: 5.0 s", "rest: 2.0 s"]
    assert names[4:7] == ["container: 1.0 s", "imports: 5.0 s", "endpoint: 1.0 s"]
    assert found[0][1:] == pytest.approx((LEFT, 12 * scale), abs=0.1)
    assert found[1][1] == pytest.approx(LEFT + 12 * scale, abs=0.1)
    assert found[5][2] == pytest.approx(5 * scale, abs=0.1)


def test_the_last_bar_is_drawn_again_in_full_width() -> None:
    found = segments(drawn())
    assert [name for name, _, _ in found[7:10]] == [name for name, _, _ in found[10:]]
    assert sum(width for _, _, width in found[7:10]) < 6
    assert sum(width for _, _, width in found[10:]) == pytest.approx(WIDTH - LEFT - RIGHT, abs=0.2)


def test_it_can_be_read_without_eyes_and_in_the_dark() -> None:
    svg = drawn()
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.findtext(f"{SVG}title") == "Starts & stops"
    assert root.findtext(f"{SVG}desc") == "no image: 19.8 s; image there: 6.6 s; from the pool: 151 ms"
    assert "prefers-color-scheme: dark" in svg


def test_the_legend_has_what_the_bars_have() -> None:
    root = ElementTree.fromstring(drawn())
    legend = [rect.attrib["fill"] for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is None]
    used = {stage for bar in BARS for stage in bar.stages}
    assert legend == [colour for name, colour in COLOURS if name in used]


def test_every_stage_has_a_colour_that_white_text_can_be_read_on() -> None:
    assert [name for name, _ in COLOURS] == list(STAGES)
    for name, colour in COLOURS:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        assert 1.05 / (luminance + 0.05) >= 4.5, name
        assert (luminance + 0.05) / 0.05 >= 2, f"{name} on black"


def test_nothing_measured() -> None:
    assert segments(chart("Nothing", [Bar("none", {}, 0.0)], "")) == []


def test_shown() -> None:
    assert [shown(value) for value in (0.0421, 0.999, 1.0, 43.21)] == ["42 ms", "999 ms", "1.0 s", "43.2 s"]
