"""What the benchmark reads out of the API server's audit log."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.audit import AuditLog, Write, all_begun, counted, first_creation, parse

START = datetime(2026, 1, 1, tzinfo=UTC)
OPERATOR, CLIENT = "system:serviceaccount:system:operator", "system:serviceaccount:system:client"


def write(what: str, name: str, at: float, user: str = OPERATOR, verb: str = "patch", code: int = 200) -> Write:
    moment = START + timedelta(seconds=at)
    return Write(user, verb, what, "ns", name, code, moment - timedelta(milliseconds=100), moment)


def begun(name: str, at: float) -> list[Write]:
    kinds = ("controllerrevisions", "deployments", "services", "poddisruptionbudgets", "tokenservices/status")
    return [write(kind, name, at + number) for number, kind in enumerate(kinds)]


def line(user: str, **reference: str) -> bytes:
    entry = {
        "kind": "Event",
        "verb": "patch",
        "user": {"username": user, "groups": ["g"]},
        "objectRef": reference,
        "responseStatus": {"metadata": {}, "code": 201},
        "requestReceivedTimestamp": "2026-01-01T00:00:01.250000Z",
        "stageTimestamp": "2026-01-01T00:00:01.500000Z",
    }
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def test_a_line_is_read() -> None:
    read = parse(line(OPERATOR, resource="tokenservices", subresource="status", namespace="ns", name="a"))
    assert (read.what, read.name, read.code) == ("tokenservices/status", "a", 201)
    assert (read.answered - read.received) == timedelta(milliseconds=250)


def test_the_log_is_followed_from_where_it_was_for_the_users_named(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(line(OPERATOR, resource="services", name="before"))
    log = AuditLog(path, [OPERATOR])
    text = line(OPERATOR, resource="services", name="a") + line(CLIENT, resource="services", name="b")
    half = line(OPERATOR, resource="services", name="c")
    path.write_bytes(path.read_bytes() + text + half[:40])
    assert [one.name for one in log.read()] == ["a"]
    path.write_bytes(path.read_bytes() + half[40:])
    assert [one.name for one in log.read()] == ["a", "c"]


def test_the_begin_is_when_the_first_service_was_received() -> None:
    writes = [
        write("tokenservices", "", 5, CLIENT, "create"),
        write("tokenservices", "", 3, CLIENT, "create"),
        write("tokenservices", "a", 1),
    ]
    assert first_creation(writes, "ns") == START + timedelta(seconds=2.9)
    assert first_creation(writes, "other") is None


def test_all_have_begun_with_the_last_first_status() -> None:
    writes = begun("a", 0) + begun("b", 10)
    assert all_begun(writes, OPERATOR, "ns", 2) == START + timedelta(seconds=14)
    later = [*writes, write("tokenservices/status", "a", 99)]
    assert all_begun(later, OPERATOR, "ns", 2) == START + timedelta(seconds=14)


def test_not_all_have_begun_while_one_write_is_missing_refused_or_of_another() -> None:
    writes = begun("a", 0)
    last = writes.pop()
    assert all_begun(writes, OPERATOR, "ns", 1) is None
    assert all_begun([*writes, write(last.what, "a", 3, code=409)], OPERATOR, "ns", 1) is None
    assert all_begun([*writes, write(last.what, "a", 3, CLIENT)], OPERATOR, "ns", 1) is None
    assert all_begun([*writes, last], OPERATOR, "ns", 2) is None


def test_writes_count_with_events_and_refusals_without_the_lease() -> None:
    writes = [
        write("services", "a", 1),
        write("events", "e", 2, verb="create"),
        write("services", "a", 3, code=409),
        write("leases", "l", 4, verb="update"),
        write("services", "b", 5, CLIENT),
        write("services", "late", 60),
    ]
    found = counted(writes, OPERATOR, START, START + timedelta(seconds=10))
    assert found == {"patch services": 1, "create events": 1, "patch services (409)": 1}
