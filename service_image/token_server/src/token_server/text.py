"""From tokens to text that may be sent: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Optional

REPLACEMENT = "�"
# A character has at most 4 bytes, so at most 3 tokens wait for its end. Text that still ends in U+FFFD after twice as
# many is what the model said, not a character under way.
MOST_HELD = 8
MOST_BEFORE = 6  # tokens; a few are enough for how the next one is written


class Detokenizer:
    """Text of a growing token sequence, piece by piece.

    Tokens are decoded together with those of the piece before, since many tokenizers write a token differently at the
    start of a text (the algorithm of text-generation-inference and vLLM). A piece that ends in the middle of a
    character is held back until its other bytes have come.

    before: tokens of a text that these go on; of them nothing is given out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tokens = list(before[-MOST_BEFORE:])
        if self._tokens and not _whole(decode, self._tokens):
            self._tokens = []
        self._context = 0  # where the piece before begins
        self._read = len(self._tokens)  # up to here the text was given out

    def add(self, token: int) -> str:
        """The text that is certain now; often a word, sometimes empty."""
        self._tokens.append(token)
        before, now = self._texts()
        held = len(self._tokens) - self._read
        if len(now) <= len(before) or (now.endswith(REPLACEMENT) and held < MOST_HELD):
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return now[len(before) :]

    def flush(self) -> str:
        """What is still held back, at the end, without the character that was cut off."""
        before, now = self._texts()
        self._context = self._read = len(self._tokens)
        return now[len(before) :].rstrip(REPLACEMENT)

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._tokens[self._context : self._read]), self._decode(self._tokens[self._context :])


def _whole(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> bool:
    """Whether they can be decoded, and end with a character: half of one would be taken for a part of what follows."""
    try:
        return not decode(tokens).endswith(REPLACEMENT)
    except Exception:  # noqa: BLE001 - a model may have places for tokens that its tokenizer does not know
        return False


class StopMatcher:
    """Ends a text before the first stop string, whichever way the text is cut into pieces.

    The stop string that completes first counts; of several that complete with the same character, the longest. Text
    that could still become a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """The text that may be sent; once `stopped` is true it is the last."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = self._first(text)
        if found is not None:
            self.stopped, self._held = True, ""
            return text[:found]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> Optional[int]:
        places = [(text.find(stop), len(stop)) for stop in self._stops]
        ends = [(start + length, start) for start, length in places if start >= 0]
        return min(ends)[1] if ends else None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, shorter than it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
