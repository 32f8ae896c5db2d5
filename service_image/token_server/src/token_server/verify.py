"""What /verifyz asks of the model, and how all who ask share one answer.

The path needs no key: the operator asks every new pod, and reads no keys. So nothing of a caller's reaches the model,
and however many ask, one token at a time is generated for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, Callable, Optional

from token_server.openai_api import Request, parse_completion

PROMPT = "Hello"
REUSE_SECONDS = 1.0  # how long a good result is told again
Result = dict[str, Any]


def verification(model: str) -> Request:
    """One token, greedy; checked as a caller's request is."""
    return parse_completion({"model": model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0})


class SingleFlight:
    """Work that is done once for all who ask meanwhile and, if it went well, a second after. For one event loop."""

    def __init__(self, work: Callable[[Any], Awaitable[Result]], clock: Callable[[], float] = time.monotonic) -> None:
        self._work = work
        self._clock = clock
        self._task: Optional[asyncio.Task[Result]] = None
        self._good_until = clock()

    async def result(self, argument: Any) -> Result:
        """What the work with `argument`, or the one under way already, gives or raises."""
        if self._task is None or (self._task.done() and self._clock() >= self._good_until):
            self._task = asyncio.ensure_future(self._run(argument))
            self._task.add_done_callback(_seen)
        return await asyncio.shield(self._task)  # who goes away cancels nothing but the own waiting

    async def _run(self, argument: Any) -> Result:
        result = await self._work(argument)
        self._good_until = self._clock() + REUSE_SECONDS
        return result


def _seen(task: asyncio.Task[Result]) -> None:
    """An error counts as told, also where everybody who asked has gone; asyncio would print it otherwise."""
    if not task.cancelled():
        task.exception()
