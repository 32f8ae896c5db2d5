"""The client of the benchmark of starts: asks a Service until it answers, with the standard library alone.

    start_client.py < orders > answers

Runs beside the cluster's node, where a ClusterIP leads to pods, and takes orders from its standard input, a JSON object
a line; each is answered by a line. An order names host, port and model, and asks for one token every few
milliseconds, each time on a new connection, until the token is there. The first line of an answer, `{"asking": true}`,
comes once the Service has refused; only then is the edit to be made. So nothing but the edit can have led to the token.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from typing import TextIO

PAUSE = 0.005
"""Seconds between a try that failed and the next one."""
CONNECT_SECONDS, ANSWER_SECONDS = 1.0, 30.0


@dataclass(frozen=True)
class Order:
    """What to ask for. seconds: after which to give up."""

    host: str
    port: int
    model: str
    seconds: float


@dataclass(frozen=True)
class Try:
    """One connection. Times are of the machine's monotonic clock, in seconds; None where it did not come so far.

    Attributes:
        start: before it was opened.
        connected: when it was.
        token: when the answer with the token was there.
        problem: why there is none.

    """

    start: float
    connected: float | None
    token: float | None
    problem: str


@dataclass(frozen=True)
class Answer:
    """What an order came to.

    Attributes:
        start: of the first try.
        refused: tries before the one with the token.
        connected, token: of the try with the token; None if there was none.
        problem: of the last try, if no token came.

    """

    start: float
    refused: int
    connected: float | None
    token: float | None
    problem: str


def attempt(order: Order) -> Try:
    """Asks once."""
    start, connected = time.monotonic(), None
    connection = HTTPConnection(order.host, order.port, timeout=CONNECT_SECONDS)
    try:
        connection.connect()
        connected = time.monotonic()
        connection.sock.settimeout(ANSWER_SECONDS)
        body = json.dumps({"model": order.model, "prompt": "Hello", "max_tokens": 1})
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        problem = lacks(answer.status, answer.read())
        return Try(start, connected, None if problem else time.monotonic(), problem)
    except (OSError, HTTPException) as error:
        return Try(start, connected, None, f"{type(error).__name__}: {error}")
    finally:
        connection.close()


def lacks(status: int, body: bytes) -> str:
    """Why an answer has no token; "" if it has."""
    if status != 200:
        return f"HTTP {status}"
    try:
        tokens = json.loads(body)["usage"]["completion_tokens"]
    except (ValueError, KeyError, TypeError):
        return "an answer that is none of a completion"
    return "" if tokens else "no token in the answer"


def until_token(order: Order, once: Callable[[Order], Try], begun: Callable[[], None]) -> Answer:
    """Asks until there is a token. begun: is called after the first try, if that brought none."""
    first = last = once(order)
    count = 0
    if first.token is None:
        begun()
    while last.token is None:
        count += 1
        if last.start - first.start > order.seconds:
            return Answer(first.start, count, None, None, last.problem)
        time.sleep(PAUSE)
        last = once(order)
    return Answer(first.start, count, last.connected, last.token, "")


def serve(orders: TextIO, answers: TextIO) -> None:
    """Answers orders until there are no more."""

    def tell(what: dict[str, object]) -> None:
        answers.write(f"{json.dumps(what)}\n")
        answers.flush()

    for line in orders:
        answer = until_token(Order(**json.loads(line)), attempt, lambda: tell({"asking": True}))
        tell({"asking": False, **asdict(answer)})


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
