"""The rate at which a pool fills."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from tokenservice.pools.bucket import Bucket

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
STEPS = st.lists(st.tuples(st.floats(-2, 5), st.integers(0, 50)), max_size=40)


@given(st.integers(1, 50), STEPS)
def test_never_more_than_the_rate(rate: int, steps: list[tuple[float, int]]) -> None:
    bucket, now, newest, made = Bucket.full(rate, NOW), NOW, NOW, 0
    for seconds, wanted in steps:
        now += timedelta(seconds=seconds)
        newest = max(newest, now)
        bucket = bucket.filled(rate, now)
        taken = min(wanted, bucket.whole)
        bucket = bucket.taken(taken)
        made += taken
        assert 0 <= bucket.level <= rate
    forward = sum(max(0.0, seconds) for seconds, _ in steps)
    assert made <= rate + rate * forward + 1e-6


def test_how_long_until_there_is_one() -> None:
    bucket = Bucket.full(4, NOW).taken(4)
    assert bucket.whole == 0
    assert bucket.wait(4) == timedelta(seconds=0.25)
    assert bucket.filled(4, NOW + bucket.wait(4)).whole == 1
    assert Bucket.full(4, NOW).wait(4) == timedelta(0)
