"""Tokens of warm pods."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from token_server.assignment import believed
from tokenservice.handover.tokens import digest, token

KEY = b"the operator's key"
NAMES = st.text(st.characters(codec="ascii", categories=("Ll", "Nd")), min_size=1, max_size=8)
PODS = st.tuples(NAMES, NAMES, NAMES)


@given(PODS, PODS)
def test_no_two_pods_have_the_same(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (token(KEY, *one) == token(KEY, *other)) == (one == other)


@given(PODS)
def test_another_key_makes_another(pod: tuple[str, str, str]) -> None:
    assert token(KEY, *pod) != token(b"another key", *pod)
    assert token(KEY, *pod) == token(KEY, *pod)


@given(PODS)
def test_the_server_believes_it_and_no_other(pod: tuple[str, str, str]) -> None:
    made = token(KEY, *pod)
    assert re.fullmatch("[0-9a-f]{64}", made)
    assert believed(f"Bearer {made}", digest(made))
    assert not believed(f"Bearer {digest(made)}", digest(made)), "what the pod's spec says is not enough"
