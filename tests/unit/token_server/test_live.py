"""Behind real sockets: streams, clients that go away, a full queue, OpenAI's own client."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from token_server.app import Service

ANSWER = "Grüße, 世界! 🙂 end"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
Eventually = Callable[[Callable[[], object]], None]


def in_flight(base: str) -> float:
    text = httpx.get(f"{base}/metrics").text
    return float(text.split("\ntoken_server_generations_in_flight ", 1)[1].split("\n", 1)[0])


def waiting(service: Service) -> int:
    return int(service.metrics.queue.collect()[0].samples[0].value)


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]


class Hold:
    """A streamed request in a thread of its own, open until the engine lets it end."""

    def __init__(self, base: str) -> None:
        self.status = 0
        self.text = ""
        self._thread = threading.Thread(target=self._run, args=(base,), daemon=True)
        self._thread.start()

    def _run(self, base: str) -> None:
        answer = httpx.post(f"{base}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=30)
        self.status, self.text = answer.status_code, answer.text

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_openais_client_works_as_it_is(live: str) -> None:
    client = openai.OpenAI(base_url=f"{live}/v1", api_key="any", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    messages: Any = CHAT["messages"]
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0.5, seed=1)
    assert answer.choices[0].message.content == ANSWER
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="tiny", messages=messages, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ANSWER.encode()) + 1
    completion = client.completions.create(model="tiny", prompt="Hello", max_tokens=3)
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == ("Gr", "length")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=messages)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=messages, n=2)
    assert refused.value.param == "n"


def test_openais_client_hears_of_an_error_within_a_stream(live: str, engine: Any) -> None:
    engine.failure = RuntimeError("broken")
    client = openai.OpenAI(base_url=f"{live}/v1", api_key="any", max_retries=0)
    with pytest.raises(openai.APIError, match="failed to answer"):
        list(client.chat.completions.create(model="tiny", messages=CHAT["messages"], stream=True))


def test_tokens_arrive_as_they_are_made(live: str, engine: Any) -> None:
    engine.stepwise = True
    with httpx.stream("POST", f"{live}/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        found = answer.iter_lines()

        def piece() -> str:
            line = next(line for line in found if line)
            return str(json.loads(line[6:])["choices"][0]["delta"]["content"])

        assert piece() == ""
        for letter in "Gr":
            engine.permits.release()
            assert piece() == letter
        engine.permits.release(2)
        assert piece() == "ü"
        engine.permits.release(100)
        assert list(found)[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_generation(
    live: str, engine: Any, service: Service, eventually: Eventually, stream: bool
) -> None:
    engine.stepwise = True
    host, port = live.removeprefix("http://").split(":")
    body = json.dumps({**CHAT, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + body)
        assert engine.began.acquire(timeout=20)
        engine.permits.release()
        if stream:
            assert b"200 OK" in connection.recv(4096)
        assert in_flight(live) == 1
    eventually(lambda: "token_server_cancelled_generations_total 1.0" in httpx.get(f"{live}/metrics").text)
    assert in_flight(live) == 1, "the place is taken until the thread has ended"
    engine.permits.release()
    assert engine.ended.acquire(timeout=20)
    eventually(lambda: in_flight(live) == 0)
    eventually(lambda: 'status="499"' in httpx.get(f"{live}/metrics").text)
    made = httpx.get(f"{live}/metrics").text.split("\ntoken_server_generated_tokens_total ", 1)[1].split("\n", 1)[0]
    assert float(made) == 2, "one token that was read, one after which it noticed"


def test_two_run_one_waits_the_next_is_told_to_come_again(
    live: str, engine: Any, service: Service, eventually: Eventually
) -> None:
    engine.stepwise = True
    held = [Hold(live), Hold(live)]
    eventually(lambda: in_flight(live) == 2)
    held.append(Hold(live))
    eventually(lambda: waiting(service) == 1)
    refused = httpx.post(f"{live}/v1/chat/completions", json=CHAT)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "queue_full"
    assert len(engine.calls) == 2
    engine.permits.release(1000)
    for each in held:
        each.join()
        assert each.status == 200
        assert each.text.endswith("data: [DONE]\n\n")
    assert in_flight(live) == 0


def test_who_leaves_the_queue_makes_room(live: str, engine: Any, service: Service, eventually: Eventually) -> None:
    engine.stepwise = True
    held = [Hold(live), Hold(live)]
    eventually(lambda: in_flight(live) == 2)
    with httpx.stream("POST", f"{live}/v1/chat/completions", json={**CHAT, "stream": True}):
        eventually(lambda: waiting(service) == 1)
    eventually(lambda: waiting(service) == 0)
    last = Hold(live)
    eventually(lambda: waiting(service) == 1)
    engine.permits.release(1000)
    for each in [*held, last]:
        each.join()
        assert each.status == 200
    assert len(engine.calls) == 3, "nothing was generated for the one that left"


def test_the_end_of_the_grace_period_is_told_to_open_streams(live: str, engine: Any, service: Service) -> None:
    engine.stepwise = True
    with httpx.stream("POST", f"{live}/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        assert engine.began.acquire(timeout=20)
        service.abort()
        engine.permits.release()
        found = lines(answer)
    assert found[-1]["error"]["code"] == "server_stopping"
