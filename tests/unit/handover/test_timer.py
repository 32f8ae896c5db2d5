"""Asking for a start's seconds: the pod's server first, and the API server only where there is something to ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest
from aiohttp import web
from tokenservice import protocol
from tokenservice.api.meta import Pod
from tokenservice.api.v1alpha1 import LastStart
from tokenservice.handover.timer import Timer
from tokenservice.kube.client import Client
from tokenservice.kube.errors import ApiError

from tests.unit.handover.test_starts import pod

STARTED = {"status": "ready", "start": {"stages": {"process": 0.5, "imports": 5.0, "total": 5.3}, "warm": False}}
PULLED = {"items": [{"message": 'Successfully pulled image "x" in 1.5s (1.5s including waiting).'}]}


class Api:
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[Mapping[str, str]] = []

    async def request(self, method: str, path: str, *, query: Mapping[str, str]) -> bytes:
        assert (method, path) == ("GET", "/api/v1/namespaces/team/events")
        self.asked.append(query)
        if isinstance(self.answer, Exception):
            raise self.answer
        return msgspec.json.encode(self.answer)


@asynccontextmanager
async def server(monkeypatch: pytest.MonkeyPatch, answer: Any, status: int = 200) -> AsyncIterator[None]:
    async def readyz(_: web.Request) -> web.Response:
        return web.json_response(answer, status=status)

    app = web.Application()
    app.router.add_get("/readyz", readyz)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setattr(protocol, "PORT", runner.addresses[0][1])
    try:
        yield
    finally:
        await runner.cleanup()


def there(**more: Any) -> Pod:
    found = pod(**more)
    metadata = msgspec.structs.replace(found.metadata, namespace="team", uid="uid of chat-1")
    status = msgspec.structs.replace(found.status, pod_ip="127.0.0.1")
    return msgspec.structs.replace(found, metadata=metadata, status=status)


async def timed(api: Api, of: Pod) -> LastStart | None:
    told: asyncio.Future[LastStart | None] = asyncio.get_running_loop().create_future()
    timer = Timer(cast("Client", api), on_timed=lambda _, start: told.set_result(start))
    timer.time(of)
    timer.time(of)
    async with asyncio.timeout(10):
        found = await told
    assert timer.timed == {of.metadata.uid: found}
    timer.time(of)  # which asks nobody again
    timer.forget(of.metadata.uid)
    assert timer.timed == {}
    await timer.close()
    return found


async def test_a_pod_whose_image_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(PULLED)
    async with server(monkeypatch, STARTED):
        found = await timed(api, there())
    assert found
    assert (found.path, found.stages.pull, found.stages.imports) == ("Cold", 1.5, 5.0)
    assert api.asked == [{"fieldSelector": "involvedObject.uid=uid of chat-1,reason=Pulled"}]


async def test_of_a_container_that_started_at_once_nobody_is_asked_about_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api(PULLED)
    async with server(monkeypatch, STARTED):
        found = await timed(api, there(started="12:00:01"))
    assert found
    assert (found.path, api.asked) == ("Prepulled", [])


async def test_events_that_cannot_be_read_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(monkeypatch, STARTED):
        found = await timed(Api(ApiError(403, "Forbidden")), there())
    assert found
    assert found.path == "Prepulled"


@pytest.mark.parametrize(("answer", "status"), [({"status": "ready"}, 200), (STARTED, 503), ("no", 404)])
async def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch, answer: Any, status: int) -> None:
    api = Api(PULLED)
    async with server(monkeypatch, answer, status):
        assert await timed(api, there()) is None
    assert api.asked == []


async def test_a_pod_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    monkeypatch.setattr(protocol, "PORT", unused_tcp_port)
    api = Api(PULLED)
    assert await timed(api, there()) is None
    assert api.asked == []
