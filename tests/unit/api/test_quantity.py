"""How much a quantity is."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api.quantity import PATTERN, amount

AMOUNTS: dict[str, str | None] = {
    "0": "0",
    "2": "2",
    "+2": "2",
    "500m": "0.5",
    "1.5": "1.5",
    ".5": "0.5",
    "2.": "2",
    "1Ki": "1024",
    "1.5Gi": "1610612736",
    "1Ei": "1152921504606846976",
    "1k": "1000",
    "1E": "1000000000000000000",
    "2e3": "2000",
    "2E3": "2000",
    "5e-1": "0.5",
    "100n": "0.0000001",
    "": None,
    "Gi": None,
    ".": None,
    "1 Gi": None,
    "1K": None,
    "1gi": None,
    "1e": None,
    "1e3Gi": None,
    "٣": None,
    "-1": None,
    "many": None,
    "1e999999999": None,
}


@pytest.mark.parametrize(("text", "expected"), AMOUNTS.items())
def test_how_much_it_is(text: str, expected: str | None) -> None:
    assert amount(text) == (None if expected is None else Decimal(expected))


@given(st.from_regex(PATTERN, fullmatch=True))
def test_whatever_the_api_server_takes_can_be_read(text: str) -> None:
    found = amount(text)
    assert found is None or found >= 0


@given(st.text(max_size=12))
def test_whatever_else_is_no_amount(text: str) -> None:
    assert amount(text) is None or PATTERN.fullmatch(text)
