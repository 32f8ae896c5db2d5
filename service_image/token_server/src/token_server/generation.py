"""One answer: waits for its turn, generates in a thread, and gives text to the event loop piece by piece."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable, Union

from token_server.engine import Engine, Sampling
from token_server.errors import busy, stopping
from token_server.limiter import Limiter, QueueFullError
from token_server.metrics import Metrics
from token_server.text import Detokenizer, StopMatcher

RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True)
class Piece:
    text: str


@dataclass(frozen=True)
class End:
    reason: str  # stop or length
    completion_tokens: int


Event = Union[Piece, End]


@dataclass
class Turn:
    """A place in the line. Once `taken` by a run, the run gives it back."""

    ready: asyncio.Future[None]
    taken: bool = False


class TokenSink:
    """Takes tokens in the generation's thread; says when to stop and passes text on.

    `stopped` tells that a stop string ended the answer; `count` counts tokens, the end-of-sequence token included.
    `before`: the tokens of a prompt whose text the answer goes on.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        emit: Callable[[Piece], None],
        cancelled: threading.Event,
        before: Sequence[int] = (),
    ) -> None:
        self._text = Detokenizer(decode, before)
        self._stop = StopMatcher(stops)
        self._emit = emit
        self._cancelled = cancelled
        self.count = 0

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    def add(self, token: int) -> bool:
        """True while generation is to go on."""
        if self._cancelled.is_set():
            return False
        self.count += 1
        self._send(self._stop.add(self._text.add(token)))
        return not self._stop.stopped

    def finish(self) -> None:
        self._send(self._stop.add(self._text.flush()))
        self._send(self._stop.flush())

    def _send(self, text: str) -> None:
        if text:
            self._emit(Piece(text))


class Generator:
    """Runs at most `limiter`'s number of generations, each in a thread of its own."""

    def __init__(self, engine: Engine, limiter: Limiter, metrics: Metrics, threads: int) -> None:
        self._engine = engine
        self._limiter = limiter
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="generate")
        self._running: set[threading.Event] = set()
        self._aborted = False

    def abort(self) -> None:
        """Ends every answer under way with an error: the grace period is over."""
        self._aborted = True
        for cancelled in self._running:
            cancelled.set()

    def admit(self) -> Turn:
        """A place in the line, to be given to `run` or `withdraw`. Raises ApiError: 429 when too many wait already."""
        try:
            return Turn(self._limiter.enter())
        except QueueFullError:
            raise busy(RETRY_AFTER_SECONDS) from None

    def withdraw(self, turn: Turn) -> None:
        """Gives up a place, if no run has taken it."""
        if not turn.taken:
            turn.taken = True
            self._limiter.leave(turn.ready)

    async def run(
        self,
        turn: Turn,
        prompt: Sequence[int],
        sampling: Sampling,
        stops: Sequence[str],
        arrived: float,
        *,
        goes_on: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """Pieces of text, then one End. Closing the iterator stops the generation; the slot is free once it has.

        `goes_on`: whether the answer goes on the prompt's text, as a completion does; a chat's is a text of its own.
        `arrived` is time.perf_counter() at the request's arrival. Raises ApiError (503) after `abort`, and whatever
        the engine raises.
        """
        loop = asyncio.get_running_loop()
        turn.taken = True
        try:
            await turn.ready
            if self._aborted:
                raise stopping()
        except BaseException:
            self._limiter.leave(turn.ready)
            raise
        events: asyncio.Queue[Union[Event, BaseException]] = asyncio.Queue()
        cancelled = threading.Event()

        def post(event: Union[Event, BaseException]) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            def on_token(token: int) -> bool:
                if sink.count == 0:
                    self._metrics.first_token.observe(time.perf_counter() - arrived)
                self._metrics.generated_tokens.inc()
                return sink.add(token)

            try:
                sink = TokenSink(self._engine.decode, stops, post, cancelled, prompt if goes_on else ())
                reason = self._engine.generate(prompt, sampling, on_token)
                if cancelled.is_set():
                    post(stopping())
                    return
                sink.finish()
                post(End("stop" if sink.stopped else reason, sink.count))
            except BaseException as error:  # noqa: BLE001 - whatever it is, the request must hear of it
                post(error)

        self._running.add(cancelled)
        job = loop.run_in_executor(self._threads, work)
        # The slot is free when the thread has ended, not when the client has gone.
        job.add_done_callback(lambda _: self._limiter.release())
        finished = False
        try:
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, End):
                    self._metrics.prompt_tokens.inc(len(prompt))
                    finished = True
                yield event
                if finished:
                    return
        finally:
            self._running.discard(cancelled)
            if not finished:
                cancelled.set()
                self._metrics.cancelled.inc()
