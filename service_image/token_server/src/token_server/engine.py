"""What the HTTP layer needs of an engine, so that it can be tested and changed without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, Literal, Optional, Protocol

FinishReason = Literal["stop", "length"]
# Called for each generated token, the end-of-sequence token included; False asks the engine to stop now.
OnToken = Callable[[int], bool]


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. None means the model's own default (its generation_config), else OpenAI's (1.0)."""

    max_tokens: int
    temperature: Optional[float] = None
    top_p: Optional[float] = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: Optional[int] = None


class PromptError(ValueError):
    """The messages cannot be turned into a prompt: the model's chat template refuses them."""


class Engine(Protocol):
    """One loaded model. Every method may be called from several threads at once."""

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def vocabulary_size(self) -> int:
        """Token ids are 0 to this, exclusive."""

    @property
    def default_max_tokens(self) -> Optional[int]:
        """The model's own answer length if a request names none; None: as far as the context reaches."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a completion's prompt, with the special tokens the tokenizer adds."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation, ready for the assistant's turn. Raises PromptError."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens and those that end an answer; incomplete characters appear as U+FFFD."""

    def generate(self, prompt: Sequence[int], sampling: Sampling, on_token: OnToken) -> FinishReason:
        """Blocks until the answer ends; why it ended, unless on_token stopped it (then either value)."""
