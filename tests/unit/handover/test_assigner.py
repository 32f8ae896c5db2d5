"""Giving pods their models: what answers mean, and what is done until there is one."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from token_server.assignment import believed
from tokenservice.api import conditions
from tokenservice.api.meta import Pod
from tokenservice.handover import assigner, tokens
from tokenservice.handover.assigner import CONNECT_SECONDS, REACH_SECONDS, Assigner, Outcome, judge, url
from tokenservice.runtime.metrics import MISSES

from tests.unit.handover.builders import as_pod, claimed_raw
from tests.unit.handover.test_assignment import MODELS, given
from tests.unit.services.builders import service
from tools.ports import free_port

KEY = b"k" * 32
DOCUMENT = given(service(model=MODELS["of the hub"][0]))
REFUSED, UNREACHABLE, LOAD = conditions.ASSIGNMENT_REFUSED, conditions.UNREACHABLE, conditions.LOAD_FAILED


def error(code: str, message: str = "because") -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "type": "x", "param": None}}).encode()


JUDGED: list[tuple[int, bytes, Outcome | None]] = [
    (200, b'{"stages": {"weights": 0.5, "warmup": 1}}', Outcome("serves", stages={"weights": 0.5, "warmup": 1.0})),
    (200, b"", Outcome("serves")),
    (200, b'{"stages": "none"}', Outcome("serves")),
    (400, error("invalid_value", "args: --port"), Outcome("refused", REFUSED, "HTTP 400: args: --port")),
    (413, error("too_large"), Outcome("refused", REFUSED, "HTTP 413: because")),
    (401, error("invalid_token"), Outcome("refused", REFUSED, "HTTP 401: because")),
    (409, error("already_assigned"), Outcome("unfit", REFUSED, "HTTP 409: because")),
    (500, error("load_failed", "no config.json\nTraceback"), Outcome("refused", LOAD, "no config.json")),
    (500, error("not_kept"), Outcome("unfit", REFUSED, "HTTP 500: because")),
    (500, b"<html>", Outcome("refused", REFUSED, "HTTP 500")),
    (500, b"\xff\xfe", Outcome("refused", REFUSED, "HTTP 500")),
    (500, b"[" * 10000, Outcome("refused", REFUSED, "HTTP 500")),
    (302, b"", Outcome("refused", REFUSED, "HTTP 302")),
    (404, b"", Outcome("refused", REFUSED, "HTTP 404")),
    (503, error("not_warm"), None),
    (503, b"upstream connect error", None),
    (429, b"", None),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "expected"), JUDGED)
def test_what_an_answer_means(status: int, body: bytes, expected: Outcome | None) -> None:
    assert judge(status, body) == expected


def test_every_reason_for_no_warm_pod_has_its_series() -> None:
    found = {made.reason for _, _, made in JUDGED if made and made.kind == "refused"}
    assert {*found, UNREACHABLE, conditions.PROGRESS_DEADLINE_EXCEEDED} <= {*MISSES}


@pytest.mark.parametrize(
    ("address", "expected"),
    [("10.0.0.7", "http://10.0.0.7:8001/assignment"), ("fd00::7", "http://[fd00::7]:8001/assignment")],
)
def test_where_a_pod_takes_it(address: str, expected: str) -> None:
    raw = claimed_raw()
    raw["status"]["podIP"] = address
    assert url(as_pod(raw)) == expected


@dataclass
class Server:
    """The pod: answers as a test tells it to, with the last of the answers from then on."""

    answers: list[tuple[int, bytes] | str]
    asked: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    on_ask: Callable[[], None] = lambda: None

    async def put(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(request.headers["Authorization"])
        self.asked.append(await request.json())
        self.on_ask()
        said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if said == "hang":
            await self.gate.wait()
        if isinstance(said, str):
            assert request.transport
            request.transport.abort()
            return web.Response()
        if said[0] == 302:
            raise web.HTTPFound("http://127.0.0.1:1/elsewhere")
        return web.Response(status=said[0], body=said[1])


@asynccontextmanager
async def listening(server: Server, port: int) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_put("/assignment", server.put)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        server.gate.set()
        await runner.cleanup()


class World:
    """One pod, and who gives it its model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.port = free_port()
        self.pod: Pod = as_pod(claimed_raw())
        self.told: list[Pod] = []
        self.now = 0.0
        self.news = asyncio.Event()
        self.assigner = Assigner(KEY, on_outcome=self._on_outcome, clock=lambda: self.now)
        monkeypatch.setattr(assigner, "url", lambda _: f"http://127.0.0.1:{self.port}/assignment")
        monkeypatch.setattr(assigner, "PAUSES", (0.001, 0.002))

    def _on_outcome(self, pod: Pod) -> None:
        self.told.append(pod)
        self.news.set()

    def assign(self, seconds: float = 20.0) -> None:
        self.assigner.assign(self.pod, "nonce-1", DOCUMENT, seconds)

    async def outcome(self) -> Outcome:
        async with asyncio.timeout(20):
            await self.news.wait()
        return self.assigner.outcomes[self.pod.metadata.uid]

    @property
    def tasks(self) -> int:
        return sum(1 for task in asyncio.all_tasks() if task.get_name() == f"assign-{self.pod.metadata.uid}")


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    made = World(monkeypatch)
    yield made
    await made.assigner.close()


SERVES = (200, b'{"stages": {"total": 0.5}}')


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not there():  # noqa: ASYNC110 - of what happens in another task nothing tells
            await asyncio.sleep(0.001)


async def test_a_pod_is_given_its_model(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = Server([SERVES])
    async with listening(server, world.port):
        world.assign()
        assert await world.outcome() == Outcome("serves", stages={"total": 0.5})
    assert server.asked == [DOCUMENT]
    token = tokens.token(KEY, "team", "nlp-1", "nonce-1")
    assert believed(server.tokens[0], tokens.digest(token)), "the pod knows its digest alone"
    assert world.told == [world.pod]
    assert token not in caplog.text + repr(world.assigner.outcomes)


async def test_it_is_not_brought_again_once_there_is_an_outcome(world: World) -> None:
    server = Server([SERVES])
    async with listening(server, world.port):
        for _ in range(3):
            world.assign()
        await world.outcome()
        world.assign()
        assert world.tasks == 0
    assert len(server.asked) == 1


async def test_it_is_brought_again_until_it_is_taken(world: World) -> None:
    server = Server([(503, error("not_warm")), (429, b""), "break", SERVES])
    async with listening(server, world.port):
        world.assign()
        assert (await world.outcome()).kind == "serves"
    assert server.asked == [DOCUMENT] * 4, "the same each time"


async def test_a_pod_that_does_not_listen_yet(world: World) -> None:
    world.assign()
    await until(lambda: world.tasks == 1)
    await asyncio.sleep(0.01)
    async with listening(Server([SERVES]), world.port):
        assert (await world.outcome()).kind == "serves"


async def test_a_pod_that_cannot_be_reached(world: World) -> None:
    world.assign()
    await asyncio.sleep(0.01)
    assert world.assigner.outcomes == {}
    world.now = REACH_SECONDS + 1
    found = await world.outcome()
    assert (found.kind, found.reason) == ("refused", UNREACHABLE)
    assert found.message.startswith("port 8001 does not answer: ")
    assert "\n" not in found.message


async def test_a_pod_whose_packets_are_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try takes as long as connecting may."""

    async def dropped(*_: object) -> tuple[int, bytes]:
        world.now += CONNECT_SECONDS + 0.1
        raise aiohttp.ConnectionTimeoutError

    monkeypatch.setattr(world.assigner, "_put", dropped)
    world.assign()
    assert (await world.outcome()).reason == UNREACHABLE


async def test_a_pod_that_cannot_be_reached_within_the_services_deadline(world: World) -> None:
    world.assign(seconds=0.2)
    assert (await world.outcome()).reason == UNREACHABLE, "and not that its model does not load"


async def test_a_model_that_does_not_load_in_time_in_a_pod_that_had_to_be_reached_first(world: World) -> None:
    server = Server(["break", "break", "hang"])
    server.on_ask = lambda: setattr(world, "now", world.now + 5)
    async with listening(server, world.port):
        world.assign(seconds=0.5)
        assert (await world.outcome()).reason == conditions.PROGRESS_DEADLINE_EXCEEDED


async def test_a_connection_that_lasted_for_long_and_broke_is_made_again(world: World) -> None:
    """A mesh that cuts what is silent for a minute, or a container that started again: models may load for longer."""
    server = Server(["break", "break", SERVES])  # the client itself tries twice
    server.on_ask = lambda: setattr(world, "now", world.now + 100)
    async with listening(server, world.port):
        world.assign()
        assert (await world.outcome()).kind == "serves"


async def test_one_that_answers_now_and_then_is_reached(world: World) -> None:
    server = Server([(503, b""), "break", "break", (503, b""), "break", "break", SERVES])
    server.on_ask = lambda: setattr(world, "now", world.now + REACH_SECONDS / 2)
    async with listening(server, world.port):
        world.assign()
        assert (await world.outcome()).kind == "serves"


async def test_connections_that_are_cut_once_a_minute_are_connections(world: World) -> None:
    server = Server([*["break"] * 12, SERVES])
    server.on_ask = lambda: setattr(world, "now", world.now + 30)
    async with listening(server, world.port):
        world.assign()
        assert (await world.outcome()).kind == "serves"


async def test_one_that_breaks_at_once_every_time_is_given_up(world: World) -> None:
    server = Server(["break"])
    server.on_ask = lambda: setattr(world, "now", world.now + 0.9)
    async with listening(server, world.port):
        world.assign()
        assert (await world.outcome()).reason == UNREACHABLE


async def test_a_model_that_does_not_load_in_time(world: World) -> None:
    async with listening(Server(["hang"]), world.port):
        world.assign(seconds=0.05)
        found = await world.outcome()
    assert found == Outcome("refused", "ProgressDeadlineExceeded", "its model did not load within 0.05 s")


async def test_a_redirect_is_not_followed(world: World) -> None:
    async with listening(Server([(302, b"")]), world.port):
        world.assign()
        assert (await world.outcome()).kind == "refused"


async def test_an_answer_without_end_is_not_read_to_it(world: World) -> None:
    async with listening(Server([(500, b"x" * 2**20)]), world.port):
        world.assign()
        assert (await world.outcome()).message == "HTTP 500"


async def test_a_pod_that_is_gone_is_forgotten(world: World) -> None:
    server = Server(["hang"])
    async with listening(server, world.port):
        world.assign()
        await until(lambda: len(server.asked) == 1)
        world.assigner.forget(world.pod.metadata.uid)
        await until(lambda: world.tasks == 0)
        assert (world.assigner.outcomes, world.told) == ({}, [])
        server.answers = [SERVES]
        world.assign()
        await world.outcome()
        world.assigner.forget(world.pod.metadata.uid)
        assert world.assigner.outcomes == {}
        world.assigner.forget("never seen")


async def test_a_pod_that_is_forgotten_and_given_it_anew_has_one_task(world: World) -> None:
    server = Server(["hang"])
    async with listening(server, world.port):
        world.assign()
        await until(lambda: len(server.asked) == 1)
        world.assigner.forget(world.pod.metadata.uid)
        world.assign()
        await until(lambda: len(server.asked) == 2)
        assert world.tasks == 1
        world.assign()
        await asyncio.sleep(0)
        assert world.tasks == 1


async def test_at_the_end_all_of_them_end(world: World) -> None:
    server = Server(["hang"])
    async with listening(server, world.port):
        world.assign()
        await until(lambda: len(server.asked) == 1)
        await world.assigner.close()
        await until(lambda: world.tasks == 0)
        assert world.told == []
        await world.assigner.close()


def test_keys_are_told_apart() -> None:
    keys = {Assigner(key, on_outcome=lambda _: None, clock=lambda: 0.0).key_id for key in (KEY, b"another" * 6)}
    assert len(keys) == 2
    assert tokens.key_id(KEY) in keys
