"""Asking the pods of a new revision for one token each: what an answer means, and the asking itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import aiohttp
import msgspec

from tokenservice import protocol
from tokenservice.api.conditions import first_line
from tokenservice.api.meta import Pod
from tokenservice.handover.claim import ended_at, served_at
from tokenservice.pods import calls
from tokenservice.pods.calls import Calls, beginning

TRIES = 3
"""Answers of one kind in a row that settle it: a first request may meet a server that is still warming up."""
PAUSE_SECONDS = 1.0
LONG_PAUSE_SECONDS = 10.0
"""Between two tries; after the first few."""
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 30.0

_BUSY = frozenset({429, 503})
_KEPT_OUT = 403
"""token_server never says so; a mesh's proxy in front of it does."""
_BODY_BYTES = 4096
_AT_ONCE = 32

Verdict = Literal["right", "wrong", "busy", "unreachable"]


@dataclass(frozen=True)
class Answer:
    """What a pod answered when asked last.

    Attributes:
        verdict: right: one token came. wrong: anything else did. busy: it has too much to do, or nothing came in time.
            unreachable: no connection, which may be a NetworkPolicy's or a mesh's doing and says nothing about the pod.
        message: what came instead.
        tries: how often in a row the verdict was this one. A server that was started again begins a row of its own: it
            may be the request that ends it.
        at: when.
        since: when it was this one first, of those in a row; None for `at`.
        restarts: how often the server had been started again by then.

    """

    verdict: Verdict
    message: str
    tries: int
    at: datetime
    since: datetime | None = None
    restarts: int = 0

    @property
    def passed(self) -> bool:
        """Whether the pod counts as verified: where it cannot be reached, being Ready is all that can be asked for."""
        return self.verdict == "right" or (self.verdict == "unreachable" and self.tries >= TRIES)

    @property
    def refuted(self) -> bool:
        return self.verdict == "wrong" and self.tries >= TRIES

    def stuck(self, now: datetime, seconds: float) -> bool:
        """Whether there has been no answer to judge by for so long."""
        waiting = self.verdict in ("busy", "unreachable") and not self.passed
        return waiting and self.tries >= TRIES and (now - self.began).total_seconds() >= seconds

    @property
    def began(self) -> datetime:
        """When the verdict was this one first, of those in a row."""
        return self.since or self.at

    @property
    def due(self) -> datetime | None:
        """When to ask again; None for never."""
        if self.passed:
            return None
        return self.at + timedelta(seconds=PAUSE_SECONDS if self.tries < TRIES else LONG_PAUSE_SECONDS)


class Asker:
    """Asks pods in the background. on_answer(pod): called for each answer, from the event loop."""

    def __init__(self, *, on_answer: Callable[[Pod], None], now: Callable[[], datetime]) -> None:
        self._on_answer = on_answer
        self._now = now
        self._answers: dict[str, Answer] = {}
        self._asking: dict[str, datetime] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._calls = Calls("verify")

    @property
    def answers(self) -> Mapping[str, Answer]:
        """By the pod's uid."""
        return self._answers

    @property
    def asking(self) -> Mapping[str, datetime]:
        """Since when pods are being asked, by uid."""
        return self._asking

    def ask(self, pod: Pod) -> None:
        """Asks a pod unless that is under way."""
        uid = pod.metadata.uid
        if uid not in self._calls:
            self._asking[uid] = self._now()
            self._calls.begin(uid, lambda: self._ask(pod), lambda: self._on_answer(pod))

    def forget(self, uid: str) -> None:
        """For a pod that is gone."""
        self._answers.pop(uid, None)
        self._asking.pop(uid, None)
        self._calls.forget(uid)

    async def close(self) -> None:
        """Ends what is under way."""
        await self._calls.close()

    async def _ask(self, pod: Pod) -> None:
        uid = pod.metadata.uid
        try:
            async with self._at_once:
                verdict, message = await self._answer(url(pod))
            before = self._answers.get(uid)
            now = self._now()
            if before is None or before.verdict != verdict or before.restarts != restarts(pod):
                before = Answer(verdict, message, 0, now, now)
            self._answers[uid] = Answer(verdict, message, before.tries + 1, now, before.began, restarts(pod))
        finally:
            if self._calls.current(uid):
                self._asking.pop(uid, None)

    async def _answer(self, address: str) -> tuple[Verdict, str]:
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=CONNECT_SECONDS)
        try:
            async with self._calls.session.get(address, timeout=timeout, allow_redirects=False) as response:
                return judge(response.status, await beginning(response, _BODY_BYTES))
        except (aiohttp.ClientConnectionError, aiohttp.ConnectionTimeoutError) as error:
            if isinstance(error, aiohttp.SocketTimeoutError):
                return "busy", f"no answer within {ANSWER_SECONDS:g} s"
            # Also a connection that ends without a word of HTTP: a mesh that wants TLS does that.
            return "unreachable", first_line(str(error)) or type(error).__name__
        except TimeoutError:
            return "busy", f"no answer within {ANSWER_SECONDS:g} s"
        except aiohttp.ClientError as error:
            return "wrong", first_line(str(error)) or type(error).__name__


def restarts(pod: Pod) -> int:
    """How often the container that serves has been started again; in a pool, before it had a model, does not count."""
    if pod.server is None:
        return 0
    served, ended = served_at(pod), ended_at(pod)
    # Ends are told to the second. One that ended within that of its first request is no stranger to it.
    warm = served is not None and ended is not None and ended < served.replace(microsecond=0)
    return 0 if warm else pod.server.restart_count


def url(pod: Pod) -> str:
    """Where a pod is asked for a token."""
    return calls.url(pod, protocol.PORT, protocol.VERIFYZ)


class _Error(msgspec.Struct):
    message: str = ""


class _Body(msgspec.Struct):
    error: _Error | None = None


def judge(status: int, body: bytes) -> tuple[Verdict, str]:
    """The verdict on an answer, and in words what was wrong with it."""
    if status == 200:
        return "right", ""
    try:
        error = msgspec.json.decode(body, type=_Body).error
        words = error.message if error else ""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        words = ""
    verdict: Verdict = "busy" if status in _BUSY else "unreachable" if status == _KEPT_OUT else "wrong"
    return verdict, first_line(f"HTTP {status}: {words}" if words else f"HTTP {status}")
