"""Requests to pods, in the background: one at a time of each pod, over one session for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from tokenservice.api.meta import Pod


class Calls:
    """What is under way, by the pod's uid.

    Args:
        name: of the tasks, before the pod's uid.
        connections: at most so many at once; 0 for as many as there are requests.

    """

    def __init__(self, name: str, *, connections: int = 100) -> None:
        self._name = name
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def session(self) -> aiohttp.ClientSession:
        """Pods are reached directly, whatever proxy the process has for the API server."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False)
        return self._session

    def __contains__(self, uid: str) -> bool:
        return uid in self._tasks

    def begin(self, uid: str, work: Callable[[], Awaitable[object]], then: Callable[[], None]) -> None:
        """Does the work, unless some for that pod is under way; `then` is called once it is not any more."""
        if uid not in self._tasks:
            self._tasks[uid] = asyncio.create_task(self._run(uid, work, then), name=f"{self._name}-{uid}")

    async def _run(self, uid: str, work: Callable[[], Awaitable[object]], then: Callable[[], None]) -> None:
        try:
            await work()
        finally:
            if self.current(uid):
                del self._tasks[uid]
        then()

    def current(self, uid: str) -> bool:
        """Whether the caller runs in what is under way for that pod: after `forget` that may be something newer."""
        return self._tasks.get(uid) is asyncio.current_task()

    def forget(self, uid: str) -> None:
        """Ends what is under way for a pod."""
        if task := self._tasks.pop(uid, None):
            task.cancel()

    async def close(self) -> None:
        """Ends everything."""
        for uid in tuple(self._tasks):
            self.forget(uid)
        if self._session is not None:
            await self._session.close()
            self._session = None


def url(pod: Pod, port: int, path: str) -> str:
    """Where a pod is asked."""
    address = pod.status.pod_ip
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}{path}"


async def beginning(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, or so many bytes of it; it may come in pieces."""
    body = b""
    while len(body) < most and (piece := await response.content.read(most - len(body))):
        body += piece
    return body
