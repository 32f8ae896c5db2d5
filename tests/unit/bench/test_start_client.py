"""The client of the benchmark of starts, against sockets and by itself."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bench import start_client
from bench.start_client import Answer, Order, Try, attempt, lacks, serve, until_token

WHOLE = json.dumps({"choices": [{"text": " of"}], "usage": {"completion_tokens": 1}}).encode()


class Server(ThreadingHTTPServer):
    """Answers a request after the other with what is in `answers`; the last one stays."""

    answers: list[tuple[int, bytes]]
    requests: list[dict[str, Any]]


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        server: Server

        def do_POST(self) -> None:
            self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = self.server.answers[0] if len(self.server.answers) == 1 else self.server.answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    made = Server(("127.0.0.1", 0), Handler)
    made.answers, made.requests = [(200, WHOLE)], []
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def order(port: int, seconds: float = 5.0) -> Order:
    return Order("127.0.0.1", port, "tiny", seconds)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, WHOLE, ""),
        (503, b"{}", "HTTP 503"),
        (200, b'{"usage": {"completion_tokens": 0}}', "no token in the answer"),
        (200, b"{}", "an answer that is none of a completion"),
        (200, b"hello", "an answer that is none of a completion"),
        (200, b"[]", "an answer that is none of a completion"),
    ],
)
def test_what_counts_as_a_token(status: int, body: bytes, expected: str) -> None:
    assert lacks(status, body) == expected


def test_a_try_that_brings_a_token(server: Server) -> None:
    found = attempt(order(server.server_address[1]))
    assert found.problem == ""
    assert found.connected
    assert found.token
    assert found.start <= found.connected <= found.token
    assert server.requests == [{"model": "tiny", "prompt": "Hello", "max_tokens": 1}]


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        found = attempt(order(taken.getsockname()[1]))
    assert (found.connected, found.token) == (None, None)
    assert "refused" in found.problem


def test_it_asks_until_there_is_a_token() -> None:
    tries = iter([Try(1.0, None, None, "refused"), Try(1.1, 1.11, None, "HTTP 503"), Try(1.2, 1.21, 1.25, "")])
    begun: list[bool] = []
    answer = until_token(order(80), lambda _: next(tries), lambda: begun.append(True))
    assert answer == Answer(1.0, 2, 1.21, 1.25, "")
    assert begun == [True]


def test_it_gives_up_in_the_end() -> None:
    tries = iter([Try(float(second), None, None, "refused") for second in range(10)])
    assert until_token(order(80, 3.5), lambda _: next(tries), lambda: None) == Answer(0.0, 5, None, None, "refused")


def test_orders_and_answers_a_line_each(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_client, "PAUSE", 0.001)
    server.answers = [(503, b"{}"), (503, b"{}"), (200, WHOLE)]
    one = json.dumps({"host": "127.0.0.1", "port": server.server_address[1], "model": "tiny", "seconds": 5.0})
    answers = io.StringIO()
    serve(io.StringIO(f"{one}\n{one}\n"), answers)
    first, second, third = (json.loads(line) for line in answers.getvalue().splitlines())
    assert first == {"asking": True}
    assert (second["asking"], second["refused"], second["problem"]) == (False, 2, "")
    assert second["start"] < second["connected"] < second["token"]
    # That one found an answer at once: whoever gave the order learns that nothing was to be waited for.
    assert (third["asking"], third["refused"]) == (False, 0)
