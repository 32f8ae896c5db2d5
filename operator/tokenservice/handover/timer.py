"""Times starts, in the background: asks the pod's server and the API server, each once a pod."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import aiohttp

from tokenservice import protocol
from tokenservice.api.meta import Pod, Struct
from tokenservice.api.v1alpha1 import LastStart
from tokenservice.handover import starts
from tokenservice.kube.client import Client, decode
from tokenservice.kube.errors import ApiError, Unreachable
from tokenservice.kube.resources import CORE_EVENTS
from tokenservice.pods import calls
from tokenservice.pods.calls import Calls, beginning

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
        self._calls = Calls("time")
        self._timed: dict[str, LastStart | None] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    @property
    def timed(self) -> Mapping[str, LastStart | None]:
        """By the pod's uid; None where nothing could be told."""
        return self._timed

    def time(self, pod: Pod) -> None:
        """Begins to find out about a pod that is Ready, unless that is under way or known."""
        uid = pod.metadata.uid
        if uid not in self._timed:
            self._calls.begin(uid, lambda: self._find(pod), lambda: self._on_timed(pod, self._timed.get(uid)))

    def forget(self, uid: str) -> None:
        """What is known of a pod that is gone."""
        self._timed.pop(uid, None)
        self._calls.forget(uid)

    async def close(self) -> None:
        """Ends what is under way."""
        await self._calls.close()

    async def _find(self, pod: Pod) -> None:
        found = None
        async with self._at_once:
            # Without the server's word there is little to tell, and who cannot be reached has none.
            if told := await self._told(pod):
                pulled = await self._pulled(pod) if starts.may_have_pulled(pod) else 0.0
                found = starts.cold(pod, told, pulled)
        self._timed[pod.metadata.uid] = found

    async def _pulled(self, pod: Pod) -> float:
        selector = f"involvedObject.uid={pod.metadata.uid},reason=Pulled"
        try:
            query = {"fieldSelector": selector}
            body = await self._client.request("GET", CORE_EVENTS.path(pod.metadata.namespace), query=query)
        except (ApiError, Unreachable):
            return 0.0  # it is told as if the image had been there
        return starts.pull_seconds(event.message for event in decode(body, _Page).items)

    async def _told(self, pod: Pod) -> dict[str, float]:
        where = calls.url(pod, protocol.PORT, protocol.READYZ)
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=CONNECT_SECONDS)
        try:
            async with self._calls.session.get(where, timeout=timeout, allow_redirects=False) as response:
                return starts.told(await beginning(response, _BODY_BYTES)) if response.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError):
            return {}
