"""What the tests' client runs in its pod, with the standard library alone: asks a service as any client in a cluster.

ask URL                  one request, its body and headers as JSON on standard input; answers JSON
stream URL               the same, and says "answering" when the first piece of the answer has come
steadily URL MODEL N     N clients of each habit ask without a pause until standard input ends; answers JSON
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import urlsplit

SECONDS = 30  # for one answer
PAUSE = 0.05  # between two requests of one client, seconds


def connect(url: str) -> tuple[HTTPConnection, str]:
    parts = urlsplit(url)
    return HTTPConnection(parts.hostname or "", parts.port or 80, timeout=SECONDS), parts.path


def ask(url: str, *, tell: bool = False) -> dict[str, object]:
    given = json.load(sys.stdin)
    connection, path = connect(url)
    body = None if given["body"] is None else json.dumps(given["body"])
    method = given.get("method") or ("GET" if body is None else "POST")
    connection.request(method, path, body, given["headers"])
    answer = connection.getresponse()
    first = b""
    if tell:
        first = answer.read1()
        print("answering", flush=True)
    return {"status": answer.status, "headers": dict(answer.getheaders()), "text": (first + answer.read()).decode()}


class Steady:
    """Clients of three habits, so many of each: a new connection each time, one connection kept, streams."""

    def __init__(self, url: str, model: str, each: int) -> None:
        self.url, self.model, self.each = url, model, each
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.answers = {"fresh": 0, "kept": 0, "stream": 0}
        self.versions: dict[str, int] = {}
        self.failures: list[str] = []

    def request(self, connection: HTTPConnection, path: str, **more: object) -> HTTPResponse:
        body = json.dumps({"model": self.model, "prompt": "Once", "max_tokens": 3, **more})
        connection.request("POST", f"{path}/completions", body, {"Content-Type": "application/json"})
        return connection.getresponse()

    def fresh(self) -> None:
        connection, path = connect(self.url)
        try:
            self.check(self.request(connection, path), "token3")
        finally:
            connection.close()

    def stream(self) -> None:
        connection, path = connect(self.url)
        try:
            self.check(self.request(connection, path, max_tokens=30, stream=True), "data: [DONE]")
        finally:
            connection.close()

    def check(self, answer: HTTPResponse, end: str) -> None:
        text = answer.read().decode()
        if answer.status != 200 or end not in text[-400:]:
            raise ValueError(f"HTTP {answer.status}, ends with {text[-200:]!r}")
        version = answer.headers.get("X-Version-Text", "")
        with self.lock:
            self.versions[version] = self.versions.get(version, 0) + 1

    def client(self, habit: str) -> None:
        connection, path = connect(self.url)
        while not self.stop.wait(PAUSE):
            began = time.time()
            try:
                if habit == "fresh":
                    self.fresh()
                elif habit == "stream":
                    self.stream()
                else:
                    # http.client connects anew by itself when the server has said that it closes the connection.
                    self.check(self.request(connection, path), "token3")
            except (OSError, ValueError, ConnectionError) as error:
                connection.close()
                with self.lock:
                    self.failures.append(f"{habit} at {began:.2f}, after {time.time() - began:.2f} s: {error!r}")
            else:
                with self.lock:
                    self.answers[habit] += 1

    def run(self) -> dict[str, object]:
        clients = [threading.Thread(target=self.client, args=(habit,)) for habit in [*self.answers] * self.each]
        for client in clients:
            client.start()
        while not all(self.answers.values()) and not self.failures:
            self.stop.wait(PAUSE)
        print("asking", flush=True)
        sys.stdin.read()
        self.stop.set()
        for client in clients:
            client.join()
        return {"answers": self.answers, "versions": self.versions, "failures": self.failures}


def main(words: list[str]) -> None:
    match words:
        case ["ask", url]:
            told = ask(url)
        case ["stream", url]:
            told = ask(url, tell=True)
        case ["steadily", url, model, each]:
            told = Steady(url, model, int(each)).run()
        case _:
            sys.exit(__doc__)
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
