"""Texts that are cut to fit, and conditions over time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api.conditions import MAX_MESSAGE_BYTES, cut, cut_front, merge
from tokenservice.api.meta import Condition

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "front", "end"),
    [
        ("", "", ""),
        ("  short \n", "short", "short"),
        ("0123456789", "0123456789", "0123456789"),
        ("0123456789a", "0123456…", "…456789a"),
        ("ääääää", "äää…", "…äää"),  # 12 bytes; no character is cut in two
    ],
)
def test_cut(text: str, front: str, end: str) -> None:
    assert cut(text, 10) == front
    assert cut_front(text, 10) == end


@pytest.mark.parametrize("made", [cut("a\ud83d"), cut_front("a\ud83d")])
def test_half_a_character_has_no_bytes_and_is_replaced(made: str) -> None:
    assert made == "a?"


@given(text=st.text(max_size=3000))
def test_what_is_cut_fits_and_is_a_part_of_it(text: str) -> None:
    for made, kept in ((cut(text), str.startswith), (cut_front(text), str.endswith)):
        assert len(made.encode()) <= MAX_MESSAGE_BYTES
        assert kept(text.strip(), made.strip("…")) or "…" in text


def condition(kind: str = "Ready", status: str = "True", **more: str) -> Condition:
    return Condition(type=kind, status=status, **more)


def test_a_condition_gets_the_time_of_its_transition() -> None:
    [new] = merge([], [condition(reason="Serving", message="  m ")], NOW.astimezone(timezone(timedelta(hours=5))))
    assert new.last_transition_time == "2026-03-01T12:00:00Z"
    assert (new.reason, new.message) == ("Serving", "m")


@pytest.mark.parametrize(("status", "time"), [("True", "2026-01-01T00:00:00Z"), ("False", "2026-03-01T12:00:00Z")])
def test_the_time_moves_with_the_status_alone(status: str, time: str) -> None:
    before = condition(reason="Old", last_transition_time="2026-01-01T00:00:00Z")
    [after] = merge([before], [condition(status=status, reason="New", message="other")], NOW)
    assert (after.status, after.reason, after.message, after.last_transition_time) == (status, "New", "other", time)


def test_the_order_is_that_of_the_new_ones() -> None:
    before = [condition("A"), condition("B"), condition("Gone")]
    assert [item.type for item in merge(before, [condition("B"), condition("A"), condition("C")], NOW)] == [
        "B",
        "A",
        "C",
    ]


def test_a_type_may_have_a_longer_message_than_others() -> None:
    long = "x" * 40_000
    found = merge([], [condition("A", message=long), condition("B", message=long)], NOW, limits={"B": 30_000})
    assert [len(item.message.encode()) for item in found] == [MAX_MESSAGE_BYTES, 30_000]
