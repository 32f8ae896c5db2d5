"""What a start cost, from the first moment of the process on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_server import start
from token_server.start import Start, age, process_age


def stat(name: str, began: int) -> str:
    """/proc/PID/stat of a process that began so many ticks after boot."""
    return f"1 ({name}) S 0 1 1 0 -1 4194560 100 0 0 0 5 1 0 0 20 0 1 0 {began} 1000 200 18446744073709551615\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (stat("python", 9_900), 1.0),
        (stat("a) S 1 (b", 9_900), 1.0),  # a program may be called so
        (stat("python", 10_000), 0.0),
        (stat("python", 10_001), None),  # a sandbox's clock that knows another boot
        ("", None),
        ("1 (python) S 0 1", None),
    ],
)
def test_the_age_of_a_process(text: str, expected: float | None) -> None:
    assert age(text, 100, 100.0) == expected


@given(st.text(max_size=15), st.integers(0, 10**9), st.floats(0, 10**7))
def test_an_age_is_never_negative(name: str, began: int, now: float) -> None:
    found = age(stat(name, began), 100, now)
    assert found is None or found >= 0


def test_this_process() -> None:
    first = process_age()
    assert first is not None
    assert 0 < first < time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_child_is_younger() -> None:
    reading, writing = os.pipe()
    began = time.monotonic()
    child = os.posix_spawn("/bin/cat", ["cat", "/proc/self/stat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)])
    os.close(writing)
    with os.fdopen(reading) as output:
        text = output.read()
    os.waitpid(child, 0)
    found = age(text, os.sysconf("SC_CLK_TCK"), time.clock_gettime(time.CLOCK_BOOTTIME))
    assert found is not None
    assert found <= time.monotonic() - began + 0.02, "ticks are hundredths of a second"


@pytest.mark.parametrize("content", [None, "", "1 (python) S" + " x" * 30])
def test_where_proc_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    monkeypatch.setattr(start, "STAT", tmp_path / "stat")
    if content is not None:
        start.STAT.write_text(content)
    assert process_age() is None


def test_what_was_told_stays() -> None:
    made = Start()
    assert made.add("process", 0.12345) == 0.123
    told = made.report(warm=False)
    made.add("total", 2)
    assert told == {"stages": {"process": 0.123}, "warm": False}
    assert made.report(warm=True) == {"stages": {"process": 0.123, "total": 2}, "warm": True}
