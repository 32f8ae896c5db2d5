"""How many answers are generated at once, and how many may wait for that."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Deque


class QueueFullError(Exception):
    """As many requests wait as may."""


class Limiter:
    """First come, first served. Used from one event loop only.

    `enter` says at once whether there is room; a slot that was given is returned with `release`.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._most_running = running
        self._most_waiting = waiting
        self._queue: Deque[asyncio.Future[None]] = deque()
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def enter(self) -> asyncio.Future[None]:
        """Done when the caller may run; give it to `leave` if it is not used. Raises QueueFullError."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.running < self._most_running:
            self.running += 1
            turn.set_result(None)
        elif len(self._queue) < self._most_waiting:
            self._queue.append(turn)
        else:
            raise QueueFullError
        return turn

    def leave(self, turn: asyncio.Future[None]) -> None:
        """Gives up a turn, whether it came already or not."""
        if turn in self._queue:
            self._queue.remove(turn)
            turn.cancel()
        elif turn.done() and not turn.cancelled():
            self.release()

    def release(self) -> None:
        """A generation ended: the next one in line runs."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
