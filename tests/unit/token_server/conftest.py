"""An engine that is a stand-in, and servers around it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import httpx
import pytest
from token_server.app import Service, make_app
from token_server.engine import FinishReason, Message, OnToken, PromptError, Sampling
from token_server.lifecycle import Lifecycle
from token_server.metrics import Metrics
from token_server.process import Server, listen
from token_server.settings import Settings
from uvicorn import Config

DEADLINE = 20.0  # seconds; a condition that has not come by then will not come
END_TOKEN = 256


class StandInEngine:
    """Not a model: says `answer`, one byte per token, then an end-of-sequence token.

    With `stepwise` it waits for `permits` before each token, so that a test decides what is under way. `calls` records
    what it was asked; `ended` is released when a generation has returned.
    """

    context_length = 100
    vocabulary_size = 257
    default_max_tokens: int | None = None

    def __init__(self, answer: str = "Grüße, 世界! 🙂 end", *, stepwise: bool = False) -> None:
        self.answer = answer
        self.stepwise = stepwise
        self.permits = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.calls: list[tuple[list[int], Sampling]] = []
        self.failure: Exception | None = None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        if messages[0].role == "assistant":
            raise PromptError("conversations begin with the user")
        return self.encode("".join(f"{message.role}:{message.content}\n" for message in messages))

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < END_TOKEN).decode("utf-8", "replace")

    def generate(self, prompt: Sequence[int], sampling: Sampling, on_token: OnToken) -> FinishReason:
        self.calls.append((list(prompt), sampling))
        self.began.release()
        try:
            for count, token in enumerate([*self.answer.encode(), END_TOKEN], start=1):
                if self.stepwise:
                    assert self.permits.acquire(timeout=DEADLINE)
                if self.failure:
                    raise self.failure
                if not on_token(token) or token == END_TOKEN:
                    return "stop"
                if count == sampling.max_tokens:
                    return "length"
            return "stop"
        finally:
            self.ended.release()


def make_service(settings: Settings, engine: StandInEngine | None) -> Service:
    service = Service(settings, Lifecycle(), Metrics())
    if engine is not None:
        assert service.serve(engine)
    return service


@pytest.fixture
def settings() -> Settings:
    return Settings(model_source="hf://org/tiny", model_name="tiny", max_concurrency=2, max_queue=1)


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine()


@pytest.fixture
def service(settings: Settings, engine: StandInEngine) -> Service:
    return make_service(settings, engine)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Straight into the ASGI application, without sockets."""
    transport = httpx.ASGITransport(app=make_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as found:
        yield found


@pytest.fixture
def live(service: Service, engine: StandInEngine) -> Iterator[str]:
    """The same application behind real sockets; the server's base URL."""
    listening = listen("127.0.0.1", 0)
    server = Server(Config(make_app(service), lifespan="off", log_config=None, access_log=False, proxy_headers=False))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    service.abort()
    engine.permits.release(1000)
    server.should_exit = True
    thread.join(DEADLINE)
    assert not thread.is_alive()


@pytest.fixture
def idle_metrics(client: httpx.AsyncClient) -> Callable[[], Awaitable[str]]:
    """What /metrics says when no answer is being generated: a generation is over a little after its answer."""

    async def read() -> str:
        async with asyncio.timeout(DEADLINE):
            while "token_server_generations_in_flight 0.0" not in (text := (await client.get("/metrics")).text):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return text

    return read


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Waits until a condition holds."""

    def wait(condition: Callable[[], object]) -> None:
        limit = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < limit, "the condition did not come"
            threading.Event().wait(0.01)

    return wait
