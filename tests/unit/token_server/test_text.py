"""Whole characters only, and nothing of a stop string, however the text is cut into tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_server.text import MOST_HELD, Detokenizer, StopMatcher

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="�"), max_size=30)
# Few letters, so that stop strings occur, overlap and almost occur.
AB_TEXTS = st.text("ab", max_size=25)
AB_STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def cut(data: Sequence[int], places: list[int]) -> list[list[int]]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [list(data[start:end]) for start, end in itertools.pairwise(edges)]


class Vocabulary:
    """Tokens of several bytes each, cut anywhere; decodes as byte-level tokenizers do."""

    def __init__(self, pieces: list[list[int]]) -> None:
        self.pieces = pieces

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(byte for token in tokens for byte in self.pieces[token]).decode("utf-8", "replace")


@given(TEXTS, st.lists(st.integers(0, 200), max_size=40))
def test_a_text_arrives_whole_and_in_whole_characters(text: str, places: list[int]) -> None:
    vocabulary = Vocabulary(cut(text.encode(), places))
    detokenizer = Detokenizer(vocabulary.decode)
    given_out = ""
    for token in range(len(vocabulary.pieces)):
        given_out += detokenizer.add(token)
        assert text.startswith(given_out)
    assert given_out + detokenizer.flush() == text


@given(st.binary(max_size=40))
def test_any_bytes_become_text_that_can_be_sent(data: bytes) -> None:
    detokenizer = Detokenizer(lambda tokens: bytes(tokens).decode("utf-8", "replace"))
    text = "".join(detokenizer.add(byte) for byte in data) + detokenizer.flush()
    text.encode("utf-8")
    assert detokenizer.flush() == ""


def test_bytes_that_never_become_a_character_are_not_held_for_ever() -> None:
    detokenizer = Detokenizer(lambda tokens: bytes(tokens).decode("utf-8", "replace"))
    given_out = [detokenizer.add(0xFF) for _ in range(MOST_HELD)]
    assert "".join(given_out) == "�" * MOST_HELD


def test_a_space_that_tokenizers_drop_at_the_start_is_kept_between_words() -> None:
    # SentencePiece: the first token loses its leading space when decoded alone.
    words = ["▁Hello", "▁my", "▁world"]
    detokenizer = Detokenizer(lambda tokens: "".join(words[token] for token in tokens).replace("▁", " ").lstrip(" "))
    assert [detokenizer.add(token) for token in range(3)] == ["Hello", " my", " world"]


def test_what_goes_on_a_text_keeps_the_space_between_them() -> None:
    words = ["▁France", "▁is", "▁Paris", "▁▁"]
    decode = lambda tokens: "".join(words[token] for token in tokens).replace("▁", " ").removeprefix(" ")  # noqa: E731
    detokenizer = Detokenizer(decode, before=[0, 1] * 9)
    assert detokenizer.add(2) + detokenizer.add(3) + detokenizer.flush() == " Paris  "


@given(TEXTS, TEXTS, st.lists(st.integers(0, 200), max_size=40))
def test_whatever_it_goes_on_a_text_arrives_whole(before: str, text: str, places: list[int]) -> None:
    pieces = cut(before.encode(), places)
    vocabulary = Vocabulary([*pieces, *cut(text.encode(), places)])
    detokenizer = Detokenizer(vocabulary.decode, before=range(len(pieces)))
    found = "".join(map(detokenizer.add, range(len(pieces), len(vocabulary.pieces)))) + detokenizer.flush()
    assert found == text


def test_a_prompt_that_ends_within_a_character() -> None:
    detokenizer = Detokenizer(lambda tokens: bytes(tokens).decode("utf-8", "replace"), before=[0x61, 0xC3])
    assert "".join(map(detokenizer.add, b"bcd")) == "bcd"


def naive_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the text before the first stop string that is complete."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(AB_TEXTS, AB_STOPS, st.lists(st.integers(0, 200), max_size=25))
def test_stop_strings_end_the_text_however_it_is_cut(text: str, stops: list[str], places: list[int]) -> None:
    matcher = StopMatcher(stops)
    wanted, stopped = naive_stop(text, stops)
    given_out = ""
    for piece in cut([ord(letter) for letter in text], places):
        given_out += matcher.add("".join(map(chr, piece)))
        assert wanted.startswith(given_out)
    assert given_out + matcher.flush() == wanted
    assert matcher.stopped is stopped


@given(AB_TEXTS, AB_STOPS)
def test_no_more_is_held_back_than_a_stop_string_needs(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    given_out = "".join(matcher.add(letter) for letter in text)
    if not matcher.stopped:
        held = text[len(given_out) :]
        assert held == "" or any(len(stop) > len(held) and stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "sent"),
    [
        (["one ST", "OP two"], ["STOP"], ["one ", ""]),
        (["one ST", "ART"], ["STOP"], ["one ", "START"]),
        (["a\n", "\nb"], ["\n\n"], ["a", ""]),
        (["User", ":", " hi"], ["User:"], ["", "", ""]),
        (["x", "y"], [], ["x", "y"]),
        (["🙂end"], ["end"], ["🙂"]),
    ],
)
def test_stop_strings_across_tokens(pieces: list[str], stops: list[str], sent: list[str]) -> None:
    matcher = StopMatcher(stops)
    assert [matcher.add(piece) for piece in pieces] == sent
