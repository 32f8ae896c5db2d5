"""The clients of the benchmark of rollouts against servers that end streams and connections in every way."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from bench.rollout_client import Client, Crowd, Record, crowd_of, serve
from bench.rollout_requests import verdict

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Version-Text: old\r\n"
TOKEN = b'data: {"choices": [{"text": "token1"}]}\n\n'
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


STREAM = chunk(TOKEN) + chunk(TOKEN) + chunk(DONE)
WHOLE = HEAD + b"\r\n" + STREAM + LAST


class Server(socketserver.ThreadingTCPServer):
    """Answers the nth request with the nth answer, and closes the connection after those that end with None."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[bytes | None, ...]] = []
        self.requests: list[tuple[int, str]] = []
        """Which connection, and the first line."""
        self.connections = 0
        self.closed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            self.converse()

    def converse(self) -> None:
        self.server.connections += 1
        number = self.server.connections
        while line := self.rfile.readline():
            length = 0
            while (header := self.rfile.readline().strip().lower()) != b"":
                if header.startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            json.loads(self.rfile.read(length))
            self.server.requests.append((number, line.decode().strip()))
            for part in self.server.answers.pop(0):
                if part is None:
                    self.request.shutdown(socket.SHUT_RDWR)
                    self.server.closed.set()
                    return
                self.wfile.write(part)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.shutdown()


Ask = Callable[..., list[Record]]


@pytest.fixture
def ask(server: Server) -> Ask:
    """Answers, one a request -> the records of one client."""

    def run(*answers: tuple[bytes | None, ...], keeps: bool = True) -> list[Record]:
        server.answers = [*answers]
        client = Client(3, server.url, "{}", keeps=keeps)
        try:
            return [client.ask() for _ in answers]
        finally:
            client.close()

    return run


def test_a_stream_that_ends_well(server: Server, ask: Ask) -> None:
    [record] = ask((WHOLE,))
    assert server.requests == [(1, "POST /v1/completions HTTP/1.1")]
    assert (record.client, record.status, record.done, record.version, record.error) == (3, 200, True, "old", "")
    assert record.first is not None
    assert record.start <= record.first <= record.end
    assert verdict(record) == "ok"


def test_events_may_come_in_pieces(ask: Ask) -> None:
    whole = HEAD + b"\r\n" + chunk(b"data: [DO") + chunk(b"NE]\n") + chunk(b"\n") + LAST
    records = ask(tuple(bytes([byte]) for byte in whole), (WHOLE,))
    assert [(record.done, verdict(record)) for record in records] == [(True, "ok")] * 2
    assert records[1].reused


def test_a_kept_connection_is_used_again(server: Server, ask: Ask) -> None:
    records = ask((WHOLE,), (WHOLE,), (WHOLE,))
    assert [number for number, _ in server.requests] == [1, 1, 1]
    assert [record.reused for record in records] == [False, True, True]
    assert all(record.keeps for record in records)


def test_others_open_one_for_each_request(server: Server, ask: Ask) -> None:
    records = ask((WHOLE,), (WHOLE,), keeps=False)
    assert [number for number, _ in server.requests] == [1, 2]
    assert not any(record.reused or record.keeps for record in records)


def test_a_server_may_say_that_it_closes(server: Server, ask: Ask) -> None:
    closing = HEAD + b"Connection: close\r\n\r\n" + STREAM + LAST
    records = ask((closing, None), (WHOLE,))
    assert [number for number, _ in server.requests] == [1, 2]
    assert [verdict(record) for record in records] == ["ok", "ok"]
    assert not records[1].reused


def test_a_connection_that_was_closed_between_requests_is_not_used(server: Server) -> None:
    server.answers = [(WHOLE, None), (WHOLE,)]
    client = Client(0, server.url, "{}", keeps=True)
    first = client.ask()
    assert server.closed.wait(5)
    time.sleep(0.05)  # until its end has come over the loopback
    second = client.ask()
    client.close()
    assert [verdict(first), verdict(second)] == ["ok", "ok"]
    assert not second.reused
    assert server.connections == 2


def test_a_kept_connection_that_ends_under_a_request_is_a_failure(server: Server, ask: Ask) -> None:
    records = ask((WHOLE,), (None,), (WHOLE,))
    assert [verdict(record) for record in records] == ["ok", "failed", "ok"]
    assert records[1].reused
    assert records[1].error
    assert [number for number, _ in server.requests] == [1, 1, 2], "nothing was sent twice"


@pytest.mark.parametrize(
    "answer",
    [
        (HEAD + b"\r\n" + chunk(TOKEN), None),
        (HEAD + b"\r\n" + chunk(TOKEN) + b"20\r\ndata: [DO", None),
        (HEAD + b"\r\n" + chunk(TOKEN) + LAST,),
        (HEAD + b"\r\n", None),
        (HEAD + b"\r\n" + chunk(DONE), None),
        (HEAD + b"\r\n" + chunk(DONE) + chunk(TOKEN) + LAST,),
    ],
    ids=["between events", "within one", "ends without [DONE]", "before the first", "before its end", "goes on"],
)
def test_a_stream_that_is_cut(ask: Ask, answer: tuple[bytes | None, ...]) -> None:
    records = ask(answer, (WHOLE,))
    assert [verdict(record) for record in records] == ["cut", "ok"]


def test_another_status_is_a_failure_and_the_connection_is_kept(server: Server, ask: Ask) -> None:
    busy = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"
    records = ask((busy,), (WHOLE,))
    assert [(record.status, verdict(record)) for record in records] == [(503, "failed"), (200, "ok")]
    assert server.connections == 1


def test_what_is_no_http_is_a_failure(ask: Ask) -> None:
    [record] = ask((b"220 mail.example.com\r\n", None))
    assert verdict(record) == "failed"
    assert record.error.startswith("BadStatusLine")


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        record = Client(0, f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "{}", keeps=True).ask()
    assert (record.status, record.first, verdict(record)) == (0, None, "failed")
    assert "refused" in record.error


def told(port: int, path: str) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


class TestCrowd:
    def test_records_are_fetched_as_they_come(self, server: Server) -> None:
        server.answers = [(WHOLE,)] * 10_000
        crowd = crowd_of(server.url, "standin", clients=4, tokens=2, pause=0.002)
        crowd.start()
        with serve(crowd, 0) as board:
            threading.Thread(target=board.serve_forever, args=(0.01,), daemon=True).start()
            port = int(board.server_address[1])
            fetched: list[Any] = []
            while {record[0] for record in fetched} != {0, 1, 2, 3}:
                status, answer = told(port, f"/records?from={len(fetched)}")
                assert (status, answer["running"]) == (200, 4)
                fetched += answer["records"]
            assert told(port, "/stop") == (200, {})
            while answer["running"]:
                _, answer = told(port, f"/records?from={len(fetched)}")
                fetched += answer["records"]
            assert told(port, "/else")[0] == 404
            board.shutdown()
        records = [Record(*each) for each in fetched]
        assert len(records) == len(server.requests)
        assert all(verdict(record) == "ok" for record in records)
        assert {record.client for record in records if record.keeps} == {0, 2}
        assert server.connections == 2 + sum(not record.keeps for record in records)

    def test_without_clients_nothing_runs(self) -> None:
        assert json.loads(Crowd([], 0.1).told(0)) == {"running": 0, "records": []}
