"""Logs: one JSON object a line, whoever logs."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tokenservice.runtime import logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    stream = io.StringIO()
    root, ours = logging.getLogger(), logging.getLogger("tokenservice")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    logs.setup("INFO", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    logging.captureWarnings(capture=False)


def test_a_line(lines: Lines) -> None:
    logs.get_logger("tokenservice.x").info("Applied", namespace="ns", duration_s=0.5, action=None)
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert (line.pop("level"), line.pop("logger"), line.pop("msg")) == ("info", "tokenservice.x", "Applied")
    assert line == {"namespace": "ns", "duration_s": 0.5, "action": None}


def test_context_reaches_lines_of_every_module(lines: Lines) -> None:
    with logs.context(controller="c", name="outer"):
        with logs.context(name="inner"):
            logging.getLogger("tokenservice.y").warning("Odd", extra={"data": {"n": 1}})
        logs.get_logger("tokenservice.x").info("Back")
    logs.get_logger("tokenservice.x").info("Outside")
    odd, back, outside = lines()
    assert (odd["controller"], odd["name"], odd["n"]) == ("c", "inner", 1)
    assert back["name"] == "outer"
    assert "name" not in outside


def test_levels(lines: Lines) -> None:
    logs.get_logger("tokenservice.x").debug("no")
    logging.getLogger("aiohttp.access").info("no")
    logging.getLogger("kopf.objects").warning(
        "Handler %r failed",
        "h",
        extra={"k8s_ref": {"kind": "TokenService", "namespace": "ns", "name": "a", "uid": "u"}},
    )
    (line,) = lines()
    assert line["msg"] == "Handler 'h' failed"
    assert (line["kind"], line["namespace"], line["name"]) == ("TokenService", "ns", "a")


def test_exceptions_and_odd_values(lines: Lines) -> None:
    try:
        raise ValueError("first line\nsecond")
    except ValueError:
        logs.get_logger("tokenservice.x").exception("Failed", path=object, numbers=(1, 2), bad="\ud800", big=2**70)
    (line,) = lines()
    assert line["level"] == "error"
    assert line["error"] == "first line"
    assert line["numbers"] == [1, 2]
    assert line["big"] == 2**70
    assert line["traceback"].endswith("second\n")


def test_keys_cannot_hide_the_message(lines: Lines) -> None:
    logging.getLogger("tokenservice").info("Real", extra={"data": {"msg": "fake", "level": "fake"}})
    (line,) = lines()
    assert (line["msg"], line["level"]) == ("Real", "info")
    assert (line["msg_"], line["level_"]) == ("fake", "fake")
