"""Chooses the next token: OpenAI's parameters, one random generator per request.

transformers samples from torch's global generator, which concurrent requests share: a seed would then mean nothing. So
the choice is made here, as a logits processor that leaves one token for generate's greedy search. It runs after the
model's own processors (repetition penalty, suppressed tokens).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
import transformers

NEVER = float("-inf")
GREEDY = 1e-5  # temperatures below it choose the likeliest; divided by them, logits could overflow


@dataclass(frozen=True)
class Choice:
    """temperature 0 is greedy; top_k 0 is off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: Optional[int] = None


class Sampler(transformers.LogitsProcessor):  # type: ignore[misc]
    """Scores of shape (1, vocabulary) in, the same shape out with one finite entry: the chosen token's."""

    def __init__(self, choice: Choice, prompt_length: int, device: Any) -> None:
        self._choice = choice
        self._prompt_length = prompt_length
        self._random = torch.Generator(device=device)
        if choice.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(choice.seed)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        logits = self._penalised(scores[0].float(), input_ids[0, self._prompt_length :])
        token = int(logits.argmax()) if self._choice.temperature < GREEDY else self._sampled(logits)
        chosen = torch.full_like(scores, NEVER)
        chosen[0, token] = 0.0
        return chosen

    def _penalised(self, logits: Any, generated: Any) -> Any:
        """OpenAI's formula: logit - count * frequency_penalty - (count > 0) * presence_penalty, answer tokens only."""
        presence, frequency = self._choice.presence_penalty, self._choice.frequency_penalty
        if not (presence or frequency) or generated.numel() == 0:
            return logits
        counts = torch.bincount(generated, minlength=logits.shape[0])[: logits.shape[0]].to(logits.dtype)
        return logits - counts * frequency - (counts > 0).to(logits.dtype) * presence

    def _sampled(self, logits: Any) -> int:
        logits = logits / self._choice.temperature
        top_k = min(self._choice.top_k, logits.shape[0])
        if top_k:
            smallest = torch.topk(logits, top_k).values[-1]
            logits = logits.masked_fill(logits < smallest, NEVER)
        probabilities = torch.softmax(logits, dim=-1)
        if self._choice.top_p < 1.0:
            probabilities = nucleus(probabilities, self._choice.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._random))


def nucleus(probabilities: Any, top_p: float) -> Any:
    """Keeps the smallest set of most probable tokens that reaches `top_p`, at least one; not normalised again."""
    ordered, order = torch.sort(probabilities, descending=True)
    # A token stays while those before it have not reached top_p: the first always does.
    keep = (torch.cumsum(ordered, dim=-1) - ordered) < top_p
    keep[0] = True
    kept = torch.zeros_like(probabilities)
    kept[order[keep]] = ordered[keep]
    return kept
