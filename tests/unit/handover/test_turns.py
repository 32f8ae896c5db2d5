"""One after the other, and nobody twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tokenservice.handover.turns import Turns

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def test_the_first_is_at_once_and_the_others_follow() -> None:
    turns: Turns[str] = Turns(5)
    assert [turns.wait(key, NOW) for key in "abc"] == [0.0, 0.2, 0.4]
    assert turns.wait("b", NOW) == 0.2, "it keeps its turn"
    assert turns.wait("b", NOW + timedelta(seconds=0.3)) == 0.0
    turns.done("b")
    assert turns.wait("b", NOW + timedelta(seconds=0.3)) == 0.3, "another turn is behind those of others"


def test_after_a_pause_it_is_at_once_again() -> None:
    turns: Turns[str] = Turns(5)
    for key in "abc":
        turns.wait(key, NOW)
    assert turns.wait("d", NOW + timedelta(minutes=1)) == 0.0
    turns.done("nobody")


def test_nothing_begins_while_somebody_waits_for_something_else() -> None:
    turns: Turns[str] = Turns(5, calm=1, patience=30)
    assert turns.wait("a", NOW) == 0.0
    turns.disturbed(NOW)
    assert turns.wait("a", NOW) == 1.0
    assert turns.wait("b", NOW + timedelta(seconds=2)) == 0.0
    for second in range(29):
        turns.disturbed(NOW + timedelta(seconds=second))
        assert turns.wait("a", NOW + timedelta(seconds=second)) == 1.0
    turns.disturbed(NOW + timedelta(seconds=30))
    assert turns.wait("a", NOW + timedelta(seconds=30)) == 0.0, "it has waited for long enough"
