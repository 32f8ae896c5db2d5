"""What the benchmark's clients run in their pod, with the standard library alone: they stream, and note how it went.

    rollout_client.py URL MODEL

Half of the clients keep their connection, the others open one for each request; no request is sent twice. A client
that keeps its connection looks at it before it uses it again, as HTTP libraries with a pool do (urllib3, httpx, Go's):
if the server has closed it meanwhile, nothing was sent on it, and another is opened. From the first byte that is sent
on, a connection that ends is a failure of that request.

Port 8080 answers GET /records?from=N with the requests from the Nth on, and GET /stop, after which clients end the
request that they are at.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PORT = 8080
SECONDS = 30.0
"""Without a byte after which a request counts as lost."""
END = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Record:
    """One request.

    Attributes:
        client: its number.
        keeps: whether this client keeps its connection.
        reused: whether the connection had carried a request before.
        start: before the connection is opened; this and the others by the monotonic clock of the machine, in seconds.
        first: when the body's first bytes came.
        end: when the answer was over, or the error there.
        status: HTTP's; 0 if no answer came.
        done: whether the body ended with `data: [DONE]`.
        version: what the server says of itself in X-Version-Text.
        error: what broke the connection.

    """

    client: int
    keeps: bool
    reused: bool
    start: float
    first: float | None
    end: float
    status: int
    done: bool
    version: str
    error: str


class Client:
    """One user, who asks for one stream after the other."""

    def __init__(self, number: int, url: str, body: str, *, keeps: bool) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._path = f"{parts.path.rstrip('/')}/completions"
        self._number = number
        self._body = body
        self._keeps = keeps
        self._connection: HTTPConnection | None = None

    def ask(self) -> Record:
        """One request; whatever happens to it is in the record."""
        start = time.monotonic()
        if self._connection and unusable(self._connection):
            self.close()
        reused = self._connection is not None
        connection = self._connection or HTTPConnection(self._host, self._port, timeout=SECONDS)
        self._connection = connection
        first, status, version, error, body, last = None, 0, "", "", b"", True
        try:
            connection.request("POST", self._path, self._body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            status, version, last = answer.status, answer.headers.get("X-Version-Text", ""), answer.will_close
            while part := answer.read1(65536):
                first = first or time.monotonic()
                body += part
            body += answer.read()  # nothing; read1 does not end an answer that is not chunked
        except (OSError, HTTPException) as problem:
            error = f"{type(problem).__name__}: {problem}"
        end = time.monotonic()
        if error or last or not self._keeps:
            self.close()
        return Record(self._number, self._keeps, reused, start, first, end, status, body.endswith(END), version, error)

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


def unusable(connection: HTTPConnection) -> bool:
    """Whether the server has closed a connection on which nothing is under way: only then can it be read from."""
    return connection.sock is None or bool(select.select([connection.sock], [], [], 0)[0])


class Crowd:
    """All clients, each in a thread. pause: mean seconds between an answer and the same client's next request."""

    def __init__(self, clients: Sequence[Client], pause: float) -> None:
        self._clients = clients
        self._pause = pause
        self._stop = threading.Event()
        self._records: list[Record] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._threads = [
            threading.Thread(target=self._run, args=(number, client), daemon=True)
            for number, client in enumerate(self._clients)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Returns at once."""
        self._stop.set()

    def told(self, start: int) -> bytes:
        """How many clients still run, and the records from that place on; JSON."""
        # Counted first: what a client that has ended was at, is then among the records.
        running = sum(thread.is_alive() for thread in self._threads)
        records = self._records[start:]  # appending is atomic
        return json.dumps({"running": running, "records": [astuple(record) for record in records]}).encode()

    def _run(self, number: int, client: Client) -> None:
        # Each at its own pace, or they would all ask at the same time.
        dice = random.Random(number)
        while not self._stop.wait(dice.uniform(0, 2 * self._pause)):
            self._records.append(client.ask())
        client.close()


def serve(crowd: Crowd, port: int) -> ThreadingHTTPServer:
    """The server of the records, listening; `serve_forever` is yours to call."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/stop":
                crowd.stop()
            start = int(parse_qs(parts.query).get("from", ["0"])[0])
            data = crowd.told(start) if parts.path == "/records" else b"{}"
            self.send_response(200 if parts.path in ("/records", "/stop") else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: it would be the only log."""

    return ThreadingHTTPServer(("", port), Handler)


def crowd_of(url: str, model: str, *, clients: int, tokens: int, pause: float) -> Crowd:
    """So many clients, every other one of which keeps its connection."""
    body = json.dumps({"model": model, "prompt": "Once", "max_tokens": tokens, "stream": True})
    return Crowd([Client(number, url, body, keeps=number % 2 == 0) for number in range(clients)], pause)


def main() -> None:
    parser = argparse.ArgumentParser(description="Clients that stream, and note how it went.")
    parser.add_argument("url", help="base URL of the service, as OpenAI clients take it")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=8, help="of a stream")
    parser.add_argument("--pause", type=float, default=0.05, help="mean seconds between two requests of a client")
    given = parser.parse_args()
    crowd = crowd_of(given.url, given.model, clients=given.clients, tokens=given.tokens, pause=given.pause)
    crowd.start()
    serve(crowd, PORT).serve_forever()


if __name__ == "__main__":
    main()
