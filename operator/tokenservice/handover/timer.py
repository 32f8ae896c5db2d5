"""Times starts, in the background: asks the pod's server and the API server, each once a pod."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import aiohttp
import msgspec

from tokenservice import protocol
from tokenservice.api.meta import Pod, Struct
from tokenservice.api.v1alpha1 import LastStart
from tokenservice.handover import starts
from tokenservice.kube.client import Client, Resource, decode
from tokenservice.kube.errors import ApiError, Unreachable

EVENTS = Resource("", "v1", "events", "Event")

CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 3.0
_AT_ONCE = 16
_BODY_BYTES = 4096


class _Event(Struct, frozen=True, kw_only=True):
    message: str = ""


class _Page(Struct, frozen=True, kw_only=True):
    items: tuple[_Event, ...] = ()


class Timer:
    """Knows of starts where their seconds went.

    Args:
        client: to the API server, for the kubelet's events.
        on_timed: is told of the pod once that is known, and of its start, if there is something to tell.

    """

    def __init__(self, client: Client, *, on_timed: Callable[[Pod, LastStart | None], None]) -> None:
        self._client = client
        self._on_timed = on_timed
        self._session: aiohttp.ClientSession | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._timed: dict[str, LastStart | None] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    @property
    def timed(self) -> Mapping[str, LastStart | None]:
        """By the pod's uid; None where nothing could be told."""
        return self._timed

    def time(self, pod: Pod) -> None:
        """Begins to find out about a pod that is Ready, unless that is under way or known."""
        uid = pod.metadata.uid
        if uid not in self._tasks and uid not in self._timed:
            self._tasks[uid] = asyncio.create_task(self._find(pod), name=f"time-{uid}")

    def forget(self, uid: str) -> None:
        """What is known of a pod that is gone."""
        self._timed.pop(uid, None)
        if task := self._tasks.pop(uid, None):
            task.cancel()

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _find(self, pod: Pod) -> None:
        uid = pod.metadata.uid
        try:
            found = None
            async with self._at_once:
                # Without the server's word there is little to tell, and who cannot be reached has none.
                if told := await self._told(pod):
                    pulled = await self._pulled(pod) if starts.may_have_pulled(pod) else 0.0
                    found = starts.cold(pod, told, pulled)
            self._timed[uid] = found
        finally:
            if self._tasks.get(uid) is asyncio.current_task():
                del self._tasks[uid]
        self._on_timed(pod, found)

    async def _pulled(self, pod: Pod) -> float:
        selector = f"involvedObject.uid={pod.metadata.uid},reason=Pulled"
        try:
            query = {"fieldSelector": selector}
            body = await self._client.request("GET", EVENTS.path(pod.metadata.namespace), query=query)
        except (ApiError, Unreachable):
            return 0.0  # it is told as if the image had been there
        return starts.pull_seconds(event.message for event in decode(body, _Page).items)

    async def _told(self, pod: Pod) -> dict[str, float]:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=CONNECT_SECONDS)
            self._session = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        address = pod.status.pod_ip
        host = f"[{address}]" if ":" in address else address
        try:
            where = f"http://{host}:{protocol.PORT}{protocol.READYZ}"
            async with self._session.get(where, allow_redirects=False) as response:
                return starts.told(await response.content.read(_BODY_BYTES)) if response.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError):
            return {}
