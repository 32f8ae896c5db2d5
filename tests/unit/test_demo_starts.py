"""The table in which the demo shows two starts."""

from __future__ import annotations

from tools.demo_starts import side_by_side

COLD = {
    "path": "Prepulled",
    "seconds": 9.0,
    "stages": {"scheduling": 0.0, "pull": 0.0, "container": 1.2, "imports": 5.5, "weights": 0.05, "claim": None},
}
WARM = {"path": "Warm", "seconds": 0.123, "stages": {"claim": 0.07, "weights": 0.04, "warmup": 0.013}}


def test_every_stage_has_a_line_that_one_of_them_had() -> None:
    lines = side_by_side(COLD, WARM).splitlines()
    assert lines[0].split() == ["prepulled", "warm"]
    assert [line.split()[0] for line in lines[1:]] == [
        *("scheduling", "pull", "container", "claim", "imports", "weights", "warmup", "together")
    ]
    assert lines[4].split() == ["claim", "0.070", "s"]
    assert lines[-1].split() == ["together", "9.000", "s", "0.123", "s"]
    assert len({len(line) for line in lines if line.endswith("s")}) == 1, "one column under the other"
