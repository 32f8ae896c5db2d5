"""Asking pods for a token: what their answers mean, and the asking of real servers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from tokenservice import protocol
from tokenservice.api.meta import Pod
from tokenservice.services import verify
from tokenservice.services.verify import LONG_PAUSE_SECONDS, PAUSE_SECONDS, TRIES, Answer, Asker, judge, restarts, url

from tests.unit.services.builders import NOW, answer, pod

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NO_TOKEN = {"error": {"message": "no token came: CUDA error: out of memory", "type": "server_error", "code": None}}


# -- what an answer means


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


JUDGED: dict[str, tuple[int, bytes, tuple[str, str]]] = {
    "a token": (200, b'{"token": " a"}', ("right", "")),
    "a token, told in another way": (200, b"ok", ("right", "")),
    "a token, told without a word": (200, b"", ("right", "")),
    "nothing to say": (204, b"", ("wrong", "HTTP 204")),
    "an error": (500, body(NO_TOKEN), ("wrong", "HTTP 500: no token came: CUDA error: out of memory")),
    "a server without it": (
        404,
        b"<html><body><h1>Not Found</h1></body></html>",
        ("wrong", "HTTP 404"),
    ),
    "elsewhere": (302, b"", ("wrong", "HTTP 302")),
    "a key is asked for": (401, body({"error": {"message": "no API key"}}), ("wrong", "HTTP 401: no API key")),
    "too many requests": (429, body({"error": {"message": "16 wait"}}), ("busy", "HTTP 429: 16 wait")),
    "too many requests, without a word": (429, b"", ("busy", "HTTP 429")),
    "not now": (503, body({"error": {"message": "shutting down"}}), ("busy", "HTTP 503: shutting down")),
    "not now, says a proxy": (503, b"upstream connect error", ("busy", "HTTP 503")),
    "half an error": (500, body(NO_TOKEN)[:40], ("wrong", "HTTP 500")),
    "no JSON": (500, b"Internal Server Error", ("wrong", "HTTP 500")),
    "a body of another shape": (500, b'{"detail": "x"}', ("wrong", "HTTP 500")),
    "a list": (500, b"[1, 2]", ("wrong", "HTTP 500")),
    "an error of another shape": (500, b'{"error": "text"}', ("wrong", "HTTP 500")),
    "no error": (500, b'{"error": null}', ("wrong", "HTTP 500")),
    "a message of another kind": (500, b'{"error": {"message": 1}}', ("wrong", "HTTP 500")),
    "an empty message": (500, b'{"error": {"message": ""}}', ("wrong", "HTTP 500")),
    "several lines": (
        500,
        body({"error": {"message": "CUDA error\n  at kernel.cu:1"}}),
        ("wrong", "HTTP 500: CUDA error"),
    ),
    "text that is no UTF-8": (500, b'{"error": {"message": "h\xe9"}}', ("wrong", "HTTP 500")),
    "a value that is no UTF-8": (500, b'"\xff"', ("wrong", "HTTP 500")),
    "without end": (500, b'{"a":' + b"[" * 4000, ("wrong", "HTTP 500")),
}


@pytest.mark.parametrize(("status", "text", "expected"), JUDGED.values(), ids=JUDGED)
def test_what_an_answer_means(status: int, text: bytes, expected: tuple[str, str]) -> None:
    assert judge(status, text) == expected


def test_a_long_message_is_cut() -> None:
    _, message = judge(500, body({"error": {"message": "é" * 2000}}))
    assert message.startswith("HTTP 500: é")
    assert message.endswith("…")
    assert len(message.encode()) <= 1024


@given(
    st.integers(100, 599),
    st.binary(max_size=60)
    | st.binary(max_size=20).map(lambda data: b'{"error": {"message": "' + data + b'"}}')
    | st.text().map(lambda text: body({"error": {"message": text}})),
)
def test_whatever_comes_is_judged(status: int, text: bytes) -> None:
    verdict, message = judge(status, text)
    assert verdict == ({200: "right", 429: "busy", 503: "busy", 403: "unreachable"}.get(status, "wrong"))
    assert message.startswith(f"HTTP {status}") or (status == 200 and message == "")
    assert "\n" not in message


# -- what it leads to


@dataclass(frozen=True)
class Leads:
    passed: bool = False
    refuted: bool = False
    stuck: bool = False
    again_after: float | None = PAUSE_SECONDS


LEADS: dict[tuple[str, int], Leads] = {
    ("right", 1): Leads(passed=True, again_after=None),
    ("right", TRIES): Leads(passed=True, again_after=None),
    ("wrong", 1): Leads(),
    ("wrong", TRIES - 1): Leads(),
    ("wrong", TRIES): Leads(refuted=True, again_after=LONG_PAUSE_SECONDS),
    ("wrong", 99): Leads(refuted=True, again_after=LONG_PAUSE_SECONDS),
    ("busy", 1): Leads(),
    ("busy", TRIES - 1): Leads(),
    ("busy", TRIES): Leads(stuck=True, again_after=LONG_PAUSE_SECONDS),
    ("busy", 99): Leads(stuck=True, again_after=LONG_PAUSE_SECONDS),
    ("unreachable", 1): Leads(),
    ("unreachable", TRIES - 1): Leads(),
    ("unreachable", TRIES): Leads(passed=True, again_after=None),
    ("unreachable", 99): Leads(passed=True, again_after=None),
}


@pytest.mark.parametrize(("said", "leads"), LEADS.items(), ids=[f"{verdict} {tries}" for verdict, tries in LEADS])
def test_what_an_answer_leads_to(said: tuple[str, int], leads: Leads) -> None:
    verdict, tries = said
    found = answer(verdict, tries=tries)
    later = NOW + timedelta(seconds=600)
    assert (found.passed, found.refuted, found.stuck(later, 600)) == (leads.passed, leads.refuted, leads.stuck)
    assert not found.stuck(later, 601)
    again = None if leads.again_after is None else NOW + timedelta(seconds=leads.again_after)
    assert found.due == again


RESTARTS: dict[str, tuple[str | None, str | None, int]] = {
    "never in a pool": (None, "11:59:00", 2),
    "in its pool": ("12:00:00.500", "11:59:59", 0),
    "not since anybody knows": ("12:00:00.500", None, 2),
    "since it serves": ("12:00:00.500", "12:00:01", 2),
    "in the second of its first request": ("12:00:00.500", "12:00:00", 2),
}


@pytest.mark.parametrize(("served", "ended", "expected"), RESTARTS.values(), ids=RESTARTS)
def test_restarts_before_it_had_a_model_are_no_news(served: str | None, ended: str | None, expected: int) -> None:
    last = {"terminated": {"exitCode": 137, "finishedAt": f"2026-03-01T{ended}Z"}} if ended else {}
    found = pod(containerStatuses=[{"name": "server", "restartCount": 2, "lastState": last}])
    if served:
        found.metadata.annotations["tokenservice.dev/served-at"] = f"2026-03-01T{served}Z"
    assert restarts(found) == expected
    assert restarts(pod()) == 0


ADDRESSES = {
    "10.0.0.7": "http://10.0.0.7:8000/verifyz",
    "fd00:10:244::7": "http://[fd00:10:244::7]:8000/verifyz",
    "::1": "http://[::1]:8000/verifyz",
}


@pytest.mark.parametrize(("address", "expected"), ADDRESSES.items())
def test_where_a_pod_is_asked(address: str, expected: str) -> None:
    assert url(pod(podIP=address)) == expected


# -- the asking


class Clock:
    """A clock that goes on by a second each time somebody looks."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> datetime:
        self.looks += 1
        return NOW + timedelta(seconds=self.looks)


@dataclass
class Asked:
    """An Asker, and the pods whose answers it told of."""

    told: list[Pod] = field(default_factory=list)
    asker: Asker = field(init=False)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.asker = Asker(on_answer=self._on_answer, now=Clock())

    def _on_answer(self, found: Pod) -> None:
        self.told.append(found)
        self._news.set()

    async def answers(self, found: Pod) -> Answer:
        """What a pod answers when asked now."""
        self.asker.ask(found)
        await self.news(len(self.told) + 1)
        return self.asker.answers[found.metadata.uid]

    async def news(self, count: int) -> None:
        """Waits until so many answers were told of."""
        async with asyncio.timeout(20):
            while len(self.told) < count:
                self._news.clear()
                await self._news.wait()


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    found = Asked()
    yield found
    await found.asker.close()


@asynccontextmanager
async def serving(monkeypatch: pytest.MonkeyPatch, handler: Handler) -> AsyncIterator[Pod]:
    """A pod that answers in this way."""
    app = web.Application()
    app.router.add_get(protocol.VERIFYZ, handler)
    async with TestServer(app, host="127.0.0.1") as server:
        monkeypatch.setattr(protocol, "PORT", server.port)
        yield pod(podIP="127.0.0.1")


async def right(request: web.Request) -> web.StreamResponse:
    return web.json_response({"token": " a"})


async def wrong(request: web.Request) -> web.StreamResponse:
    return web.json_response(NO_TOKEN, status=500)


async def cut_off(request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.abort()
    return web.Response()


async def elsewhere(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/healthz")


async def in_two_parts(request: web.Request) -> web.StreamResponse:
    """As it comes where the first packet holds not all of it."""
    text = body(NO_TOKEN)
    response = web.StreamResponse(status=500)
    await response.prepare(request)
    await response.write(text[:30])
    await asyncio.sleep(0.1)
    await response.write(text[30:])
    return response


async def without_end(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(status=500)
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65536)


ANSWERS: dict[str, tuple[Handler, tuple[str, str]]] = {
    "a token": (right, ("right", "")),
    "an error": (wrong, ("wrong", "HTTP 500: no token came: CUDA error: out of memory")),
    "an error in two parts": (in_two_parts, ("wrong", "HTTP 500: no token came: CUDA error: out of memory")),
    "an error without end": (without_end, ("wrong", "HTTP 500")),
    "elsewhere": (elsewhere, ("wrong", "HTTP 302")),
    "cut off, as by a mesh that wants TLS": (cut_off, ("unreachable", "Server disconnected")),
}


@pytest.mark.parametrize(("handler", "expected"), ANSWERS.values(), ids=ANSWERS)
async def test_what_a_pod_answers(
    handler: Handler, expected: tuple[str, str], asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(monkeypatch, handler) as found:
        said = await asked.answers(found)
    assert (said.verdict, said.message) == expected
    assert (said.tries, said.at) == (1, NOW + timedelta(seconds=2))
    assert asked.told == [found]


async def test_a_pod_is_asked_by_its_address_whatever_proxy_there_is(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with serving(monkeypatch, right) as found:
        assert (await asked.answers(found)).verdict == "right"


@dataclass
class Hanging:
    """A pod that takes requests and does not answer until it is let go."""

    pod: Pod = field(default_factory=pod)
    requests: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def count(self) -> None:
        self.requests += 1
        self._news.set()

    async def asked(self, count: int) -> None:
        """Waits until so many requests have come."""
        async with asyncio.timeout(20):
            while self.requests < count:
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def hanging(monkeypatch: pytest.MonkeyPatch, *, after_status: bool = False) -> AsyncIterator[Hanging]:
    state = Hanging()

    async def hang(request: web.Request) -> web.StreamResponse:
        state.count()
        response = web.StreamResponse()
        if after_status:
            await response.prepare(request)
        await state.go.wait()
        return response

    async with serving(monkeypatch, hang) as found:
        state.pod = found
        try:
            yield state
        finally:
            state.go.set()


def another(found: Pod, number: int) -> Pod:
    """Another pod that answers as this one does."""
    return msgspec.structs.replace(found, metadata=pod(f"demo-{number}").metadata)


def begun(asker: Asker, found: Pod) -> asyncio.Task[Any]:
    """The task that asks a pod."""
    before = asyncio.all_tasks()
    asker.ask(found)
    [task] = asyncio.all_tasks() - before
    return task


@pytest.mark.parametrize("after_status", [False, True], ids=["at once", "after the status"])
async def test_a_pod_that_takes_too_long_is_busy(
    after_status: bool, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "ANSWER_SECONDS", 0.2)
    async with hanging(monkeypatch, after_status=after_status) as state:
        found = await asked.answers(state.pod)
    assert (found.verdict, found.message) == ("busy", "no answer within 0.2 s")


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port that is taken, and at which nobody listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(protocol, "PORT", taken.getsockname()[1])
        yield protocol.PORT


async def test_a_pod_that_refuses_connections_is_unreachable(asked: Asked, closed_port: int) -> None:
    for tries in range(1, TRIES + 1):
        found = await asked.answers(pod(podIP="127.0.0.1"))
        assert (found.verdict, found.tries) == ("unreachable", tries)
        assert f"127.0.0.1:{closed_port}" in found.message
        assert found.passed is (tries == TRIES)


async def test_a_pod_whose_packets_are_dropped_is_unreachable(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "CONNECT_SECONDS", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full:
        address = full.getsockname()
        monkeypatch.setattr(protocol, "PORT", address[1])
        waiting = [socket.socket() for _ in range(4)]  # those that there is no room for are kept out in silence
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(address)
        found = await asked.answers(pod(podIP="127.0.0.1"))
        for client in waiting:
            client.close()
    assert found.verdict == "unreachable"
    assert found.message


async def test_answers_of_one_kind_are_counted_in_a_row(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = iter([500, 503, 429, 503, 500, 404, 500, 503, 200])

    async def next_one(request: web.Request) -> web.StreamResponse:
        return web.Response(status=next(statuses))

    async with serving(monkeypatch, next_one) as found:
        seen = [await asked.answers(found) for _ in range(9)]
    assert [(item.verdict, item.tries) for item in seen] == [
        ("wrong", 1),
        ("busy", 1),
        ("busy", 2),
        ("busy", 3),
        ("wrong", 1),
        ("wrong", 2),
        ("wrong", 3),
        ("busy", 1),
        ("right", 1),
    ]
    assert [item.message for item in seen[4:6]] == ["HTTP 500", "HTTP 404"]
    assert [item.at for item in seen] == [NOW + timedelta(seconds=second) for second in range(2, 20, 2)]
    assert asked.told == [found] * 9


async def test_a_server_that_was_started_again_begins_a_row_of_its_own(asked: Asked, closed_port: int) -> None:
    def after(count: int) -> Pod:
        return pod(podIP="127.0.0.1", containerStatuses=[{"name": "server", "restartCount": count}])

    seen = [await asked.answers(after(count)) for count in (0, 0, 1, 1, 1, 2)]
    assert [(item.tries, item.restarts, item.passed) for item in seen] == [
        (1, 0, False),
        (2, 0, False),
        (1, 1, False),
        (2, 1, False),
        (3, 1, True),
        (1, 2, False),
    ]


async def test_a_pod_is_not_asked_twice_at_once(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hanging(monkeypatch) as state:
        asked.asker.ask(state.pod)
        asked.asker.ask(state.pod)
        await state.asked(1)
        asked.asker.ask(state.pod)
        state.go.set()
        await asked.news(1)
        assert (state.requests, len(asked.told)) == (1, 1)
        assert (await asked.answers(state.pod)).tries == 2
        assert state.requests == 2


async def test_several_pods_are_asked_at_the_same_time(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hanging(monkeypatch) as state:
        pods = [another(state.pod, i) for i in range(5)]
        for item in pods:
            asked.asker.ask(item)
        await state.asked(5)
        state.go.set()
        await asked.news(5)
        assert set(asked.asker.answers) == {item.metadata.uid for item in pods}


async def test_no_more_pods_are_asked_at_once_than_there_is_room_for(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = verify._AT_ONCE + 8
    async with hanging(monkeypatch) as state:
        for number in range(count):
            asked.asker.ask(another(state.pod, number))
        await state.asked(verify._AT_ONCE)
        await asyncio.sleep(0.05)
        assert state.requests == verify._AT_ONCE
        state.go.set()
        await asked.news(count)
        assert {item.verdict for item in asked.asker.answers.values()} == {"right"}


async def test_the_answer_is_there_when_it_is_told_of_and_the_pod_can_be_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    over = asyncio.Event()

    def on_answer(found: Pod) -> None:
        seen.append(asker.answers[found.metadata.uid].tries)
        if len(seen) < 3:
            asker.ask(found)
        else:
            over.set()

    asker = Asker(on_answer=on_answer, now=lambda: NOW)
    async with serving(monkeypatch, wrong) as found:
        asker.ask(found)
        async with asyncio.timeout(20):
            await over.wait()
        await asker.close()
    assert seen == [1, 2, 3]


async def test_what_was_answered_is_forgotten_with_the_pod(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, wrong) as found:
        await asked.answers(found)
        asked.asker.forget(found.metadata.uid)
        asked.asker.forget("of a pod that was never asked")
        assert asked.asker.answers == {}
        assert (await asked.answers(found)).tries == 1


async def test_what_a_pod_answers_once_it_is_gone_is_forgotten_too(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hanging(monkeypatch) as state:
        asking = begun(asked.asker, state.pod)
        await state.asked(1)
        asked.asker.forget(state.pod.metadata.uid)
        state.go.set()
        await asyncio.wait([asking])
        assert asked.asker.answers == {}


@pytest.mark.parametrize("asks", [True, False], ids=["asking", "about to ask"])
async def test_closing_ends_what_is_under_way(asks: bool, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hanging(monkeypatch) as state:
        tasks = [begun(asked.asker, another(state.pod, number)) for number in range(verify._AT_ONCE + 1)]
        if asks:
            await state.asked(verify._AT_ONCE)
        await asked.asker.close()
        await asyncio.sleep(0)
        assert all(task.cancelled() for task in tasks)
    assert asked.told == []
    assert asked.asker.answers == {}


async def test_one_that_has_asked_nobody_can_be_closed(asked: Asked) -> None:
    await asked.asker.close()
    await asked.asker.close()


async def test_one_that_has_not_begun_to_ask_can_be_closed(asked: Asked) -> None:
    asked.asker.ask(pod(podIP="127.0.0.1"))
    await asked.asker.close()
    await asyncio.sleep(0)
    assert asked.told == []
