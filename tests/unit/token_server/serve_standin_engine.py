"""The real server process with an engine that is a stand-in: says "token1 token2 ...", one every 50 ms.

Started by test_process.py. What the model's source names decides how loading goes: `file:///...` is checked as ever;
last folders `broken` and `slow` mean what they mean to the stand-in server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from token_server.engine import Engine, FinishReason, Message, OnToken, Sampling
from token_server.engines import Engines
from token_server.loading import LoadError, check_folder
from token_server.process import run
from token_server.settings import Settings

INTERVAL = 0.05  # seconds
SLOW_SECONDS = 5.0


class CountingEngine:
    context_length = 10_000
    vocabulary_size = 10_000
    default_max_tokens = 16

    def encode(self, text: str) -> list[int]:
        return list(range(len(text.split())))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return self.encode(" ".join(message.content for message in messages))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(f" token{token}" for token in tokens)

    def generate(self, prompt: Sequence[int], sampling: Sampling, on_token: OnToken) -> FinishReason:
        for token in range(1, sampling.max_tokens + 1):
            threading.Event().wait(INTERVAL)
            if not on_token(token):
                break
        return "length"


def prepare(settings: Settings, stage: Callable[[str, float], None]) -> None:
    if "NeverWarm" in settings.preload:
        threading.Event().wait()
    if "NoSuchModel" in settings.preload:
        raise LoadError("TOKEN_SERVER_PRELOAD: no such architecture")
    stage("imports", 0.0)
    stage("prepare", 0.0)


def load(settings: Settings, stage: Callable[[str, float], None]) -> Engine:
    check_folder(settings)
    if settings.model_path == "never/loads":
        threading.Event().wait()
    if settings.model_path == "broken/loader":
        raise ZeroDivisionError
    if settings.model_path.endswith("/broken"):
        raise LoadError(f"cannot load model {settings.model_source}: a weights file is damaged")
    if settings.model_path.endswith("/slow"):
        threading.Event().wait(SLOW_SECONDS)
    stage("imports", 0.0)
    stage("weights", 0.0)
    return CountingEngine()


if __name__ == "__main__":
    run(engines=Engines(prepare, load))
