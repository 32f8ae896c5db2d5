"""Schedules of rebuilds: which period a moment belongs to, and what is no schedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.environments.schedule import InvalidSchedule, check, period


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "now", "began", "following"),
    [
        ("@monthly", "2026-03-01 00:00:00", "2026-03-01", "2026-04-01"),
        ("@monthly", "2026-02-28 23:59:59.999999", "2026-02-01", "2026-03-01"),
        ("@weekly", "2026-03-04 12:00", "2026-03-01", "2026-03-08"),  # the 1st is a Sunday
        ("@daily", "2026-12-31 12:00", "2026-12-31", "2027-01-01"),
        ("@hourly", "2026-03-01 12:00:00.000001", "2026-03-01 12:00", "2026-03-01 13:00"),
        ("@yearly", "2026-03-01", "2026-01-01", "2027-01-01"),
        ("@annually", "2026-03-01", "2026-01-01", "2027-01-01"),
        ("30 3 1 * *", "2026-03-01 03:29:59", "2026-02-01 03:30", "2026-03-01 03:30"),
        ("0 3 * * 1", "2026-03-01", "2026-02-23 03:00", "2026-03-02 03:00"),
        ("0 3 * * mon", "2026-03-01", "2026-02-23 03:00", "2026-03-02 03:00"),
        ("0 3 * * 7", "2026-03-01", "2026-02-22 03:00", "2026-03-01 03:00"),
        ("0 */6 * * *", "2026-03-01 13:00", "2026-03-01 12:00", "2026-03-01 18:00"),
        # Day of month and day of week both given: either will do, as cron has it.
        ("0 0 15 * 1", "2026-03-12", "2026-03-09", "2026-03-15"),
        ("0 0 29 2 *", "2026-03-01", "2024-02-29", "2028-02-29"),
        ("0 0 L * *", "2026-03-01", "2026-02-28", "2026-03-31"),
        # Summer time is of no concern.
        ("30 2 * * *", "2026-03-29 02:30", "2026-03-29 02:30", "2026-03-30 02:30"),
    ],
)
def test_the_period_of_a_moment(schedule: str, now: str, began: str, following: str) -> None:
    check(schedule)
    assert period(schedule, utc(now)) == (utc(began), utc(following))


def test_another_time_zone_is_the_same_moment() -> None:
    east = timezone(timedelta(hours=9))
    found = period("@monthly", datetime(2026, 3, 1, 8, tzinfo=east))
    assert found == (utc("2026-02-01"), utc("2026-03-01"))
    assert [moment.isoformat() for moment in found] == ["2026-02-01T00:00:00+00:00", "2026-03-01T00:00:00+00:00"]


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("", "must have five fields; write minute, hour,"),
        ("monthly", "must have five fields"),
        ("0 3 1 *", "must have five fields"),
        ("0 0 3 1 * *", "must have five fields"),
        ("@reboot", "is no name of a schedule"),
        ("@Monthly", "is no name of a schedule"),
        ("61 3 1 * *", "names no possible minute"),
        ("x 3 1 * *", "names no possible minute"),
        ("0 24 1 * *", "names no possible hour"),
        ("0 5-3 1 * *", "names no possible hour"),
        ("0 3 0 * *", "names no possible day-of-month"),
        ("0 3 1 13 *", "names no possible month"),
        ("0 3 1 * 8", "names no possible day-of-week"),
        ("0 */0 * * *", "names no possible hour"),
        ("0 0 31 2 *", "names no possible day-of-month"),
        ("0 0 31 4,6,9,11 *", "names no possible day-of-month"),
        ("0 0 */20 2 1L", "never fires"),  # the last Monday of February is neither the 1st nor the 21st
        ("* * * * *", "names several minutes"),
        ("*/30 3 * * *", "names several minutes"),
        ("0 3 1 * " + "1," * 100 + "1", "is longer than 100 characters"),
        ("9" * 5000 + " 3 1 * *", "is longer than 100 characters"),
    ],
)
def test_what_is_no_schedule_is_told_with_an_example(schedule: str, words: str) -> None:
    with pytest.raises(InvalidSchedule, match=words) as caught:
        check(schedule)
    assert '"0 3 1 * *"' in str(caught.value)


@given(st.text(alphabet="0123456789*/,-#@LWMONJANmonthly ²?", max_size=30))
def test_any_text_is_a_schedule_or_told(text: str) -> None:
    try:
        check(text)
    except InvalidSchedule:
        return
    period(text, utc("2026-03-01"))


def fields(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    few = st.lists(number, min_size=1, max_size=3).map(lambda many: ",".join(map(str, many)))
    return st.one_of(st.just("*"), few, st.integers(1, high).map(lambda step: f"*/{step}"))


# Days of every month, and no Feb 29 with a weekday: what fires once in decades takes long to look through.
EXPRESSIONS = st.builds(
    lambda *parts: " ".join(map(str, parts)),
    st.integers(0, 59),
    fields(0, 23),
    fields(1, 28),
    fields(1, 12),
    st.one_of(st.just("*"), fields(0, 7)),
)
SCHEDULES = st.one_of(
    EXPRESSIONS, st.sampled_from(["@yearly", "@monthly", "@weekly", "@daily", "@hourly", "0 0 L * *"])
)
MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))


@given(SCHEDULES, MOMENTS)
def test_a_moment_lies_in_its_period_and_nothing_fires_within(schedule: str, now: datetime) -> None:
    began, following = period(schedule, now)
    assert began <= now < following
    assert began.utcoffset() == timedelta(0)
    for inside in (began, following - timedelta(microseconds=1), began + (following - began) / 2):
        assert period(schedule, inside) == (began, following)


@given(SCHEDULES, MOMENTS, MOMENTS)
def test_periods_follow_one_another(schedule: str, one: datetime, other: datetime) -> None:
    (began, following), (later_began, later_following) = (period(schedule, moment) for moment in sorted((one, other)))
    assert began <= later_began
    assert following <= later_following
    assert (began == later_began) == (following == later_following)
    assert period(schedule, following)[0] == following


@given(EXPRESSIONS, MOMENTS)
def test_it_fires_when_cron_does(schedule: str, now: datetime) -> None:
    began, following = period(schedule, now)
    assert fires(schedule, began)
    assert fires(schedule, following)
    for hours in range(-60, 60):
        moment = now.replace(minute=began.minute, second=0, microsecond=0) + timedelta(hours=hours)
        assert not (began < moment < following and fires(schedule, moment))


def fires(schedule: str, moment: datetime) -> bool:
    """As crontab(5) has it; a day's two fields must both hold if one of them begins with a star."""
    minute, hour, day, month, weekday = schedule.split()
    days = has(day, moment.day, 1), has(weekday, moment.isoweekday() % 7, 0) or has(weekday, moment.isoweekday(), 0)
    both = day.startswith("*") or weekday.startswith("*")
    on = all(days) if both else any(days)
    return on and moment.minute == int(minute) and has(hour, moment.hour, 0) and has(month, moment.month, 1)


def has(field: str, value: int, first: int) -> bool:
    if field.startswith("*"):
        return (value - first) % int(field[2:] or 1) == 0
    return str(value) in field.split(",")
