"""Server-sent events, request bodies and clients that go away."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Callable, MutableMapping, Optional, TypeVar

from starlette.responses import Response

from token_server.errors import ApiError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Result = TypeVar("Result")

# The longest context is some megabytes of text; a larger body is a mistake or an attack.
MOST_BODY_BYTES = 32 * 1024 * 1024
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # in pairs it is a character, such as an emoji
DONE = b"data: [DONE]\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would otherwise collect the tokens
)


class ClientGoneError(Exception):
    """Nobody reads the answer any more."""


def frame(data: Any) -> bytes:
    """One event of a stream; JSON on one line, so one data line holds it."""
    # Characters beyond ASCII stay readable; a lone surrogate could not be encoded and is written as an escape.
    try:
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        text = json.dumps(data, separators=(",", ":")).encode()
    return b"data: " + text + b"\n\n"


async def read_json(receive: Receive, most_bytes: Optional[int] = None) -> Any:
    """The request's body as JSON. Raises ApiError (400, 413) and ClientGoneError."""
    most_bytes = most_bytes or MOST_BODY_BYTES
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most_bytes:
            raise ApiError(413, f"The body is larger than {most_bytes // 1024} KiB.", code="request_too_large")
        if not message.get("more_body", False):
            break
    body = b"".join(parts)
    try:
        found = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON, in UTF-8.", code="invalid_json") from None
    if _SURROGATE.search(body) and not _encodes(found):
        problem = "The body has half of a character (a lone surrogate, such as \\ud83d): send whole characters."
        raise ApiError(400, problem, code="invalid_value")
    return found


def _encodes(data: Any) -> bool:
    """Whether all text in it is whole characters."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of `work`; if the client goes away first, cancels it and raises ClientGoneError."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(Response):
    """An ASGI answer of server-sent events, ended by [DONE].

    `events` is closed in every case, so that a client's going away ends what feeds it, and then `on_end` is called,
    also if `events` never began. An ApiError raised by `events` becomes an event of its own, since the status is sent
    already; such a stream has no [DONE], and OpenAI's clients raise the error.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], on_end: Callable[[], None]) -> None:
        super().__init__()
        self._events = events
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events while the client reads them."""
        try:
            await while_connected(receive, self._send(send))
        except (ClientGoneError, OSError):  # some servers raise OSError from send when the client has gone
            scope["token_server"]["client_gone"] = True
        finally:
            await self._events.aclose()
            self._on_end()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            last = DONE
        except ApiError as error:
            last = frame(error.body())
        await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
