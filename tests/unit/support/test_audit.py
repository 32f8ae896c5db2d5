"""tests.support.audit: which writes lie after a position of a log that grows meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.audit import AuditLog


def line(name: str, user: str = "op") -> bytes:
    about = {"resource": "pods", "namespace": "a", "name": name}
    event = {"stage": "ResponseComplete", "user": {"username": user}, "verb": "patch", "objectRef": about}
    return json.dumps(event).encode() + b"\n"


def test_a_line_that_was_half_there_belongs_to_what_was_before(tmp_path: Path) -> None:
    whole = line("a") + line("b") + line("c")
    path, first = tmp_path / "audit.log", len(line("a"))
    for position in range(len(whole)):
        path.write_bytes(whole[:position])
        log = AuditLog(path)
        mark = log.position()
        path.write_bytes(whole)
        begun = -(-mark // first)  # lines that were there, whole or in part
        assert [write.name for write in log.writes(mark, "op")] == ["a", "b", "c"][begun:]


def test_what_is_half_there_now_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(line("a") + line("b")[:-9])
    log = AuditLog(path)
    assert [write.name for write in log.writes(0, "op")] == ["a"]
    path.write_bytes(line("a") + line("b") + line("c", "somebody"))
    assert [write.name for write in log.writes(0, "op")] == ["a", "b"]
