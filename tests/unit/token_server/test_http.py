"""The API as a client sees it, straight into the application."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from token_server import app as app_module
from token_server.app import Service, make_app
from token_server.lifecycle import Lifecycle
from token_server.metrics import Metrics
from token_server.settings import Settings

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
PROMPT = {"model": "tiny", "prompt": "Hello"}
ANSWER = "Grüße, 世界! 🙂 end"
IdleMetrics = Callable[[], Awaitable[str]]


def asgi(service: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=make_app(service)), base_url="http://server")


def events(text: str) -> list[Any]:
    """The stream's events; checks the framing."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


async def test_probes_before_and_after_the_load(settings: Settings, engine: Any) -> None:
    service = Service(settings, Lifecycle(), Metrics())
    async with asgi(service) as client:
        assert (await client.get("/healthz")).status_code == 200
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"reason": "loading"})
        for answer in (await client.get("/v1/models"), await client.post("/v1/completions", json=PROMPT)):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "model_loading"
            assert answer.headers["retry-after"] == "1"
        service.serve(engine)
        assert (await client.get("/readyz")).status_code == 200
        service.lifecycle.drain()
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"reason": "draining"})
        answer = await client.post("/v1/completions", json=PROMPT)
        assert answer.status_code == 200, "new requests are accepted while endpoints lag"
        assert answer.headers["connection"] == "close"


async def test_readyz_tells_what_the_start_cost_while_the_model_serves(settings: Settings, engine: Any) -> None:
    service = Service(settings, Lifecycle(), Metrics())
    start = {"stages": {"process": 0.2, "weights": 0.1, "total": 0.15}, "warm": True}
    async with asgi(service) as client:
        service.lifecycle.warm()
        service.lifecycle.assign()
        assert (await client.get("/readyz")).json() == {"status": "assigned"}
        service.serve(engine, settings, start)
        for _ in range(2):
            answer = await client.get("/readyz")
            assert (answer.status_code, answer.json()) == (200, {"status": "ready", "start": start})
        service.lifecycle.drain()
        assert (await client.get("/readyz")).json() == {"reason": "draining"}


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ("warm", (200, {"status": "warm"})),
        ("serve", (200, {"status": "ready"})),
        ("drain", (503, {"reason": "draining"})),
    ],
)
async def test_readyz_waits_for_a_server_that_loads(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, change: str, answer: Any
) -> None:
    monkeypatch.setattr(app_module, "READYZ_WAIT_SECONDS", 3600.0)
    service = Service(settings, Lifecycle(), Metrics())
    async with asgi(service) as client:
        probes = [asyncio.create_task(client.get("/readyz")) for _ in range(3)]
        assert (await client.get("/healthz")).status_code == 200
        assert not any(probe.done() for probe in probes)
        await asyncio.to_thread(getattr(service.lifecycle, change))  # the model is loaded in a thread
        for probe in await asyncio.wait_for(asyncio.gather(*probes), 20):
            assert (probe.status_code, probe.json()) == answer


async def test_models(client: httpx.AsyncClient) -> None:
    found = (await client.get("/v1/models")).json()
    assert [model["id"] for model in found["data"]] == ["tiny"]
    assert (await client.get("/v1/models/tiny")).json() == found["data"][0]
    missing = await client.get("/v1/models/org/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_chat_answer(client: httpx.AsyncClient, engine: Any) -> None:
    answer = (await client.post("/v1/chat/completions", json=HELLO)).json()
    choice = answer["choices"][0]
    assert choice["message"]["content"] == ANSWER
    assert choice["finish_reason"] == "stop"
    tokens = len(ANSWER.encode()) + 1
    prompt = len(engine.calls[0][0])
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
    assert answer["object"] == "chat.completion"


async def test_a_completion_is_cut_at_max_tokens(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/completions", json={**PROMPT, "max_tokens": 5})).json()
    assert answer["choices"][0]["text"] == "Grü", "no half of a character"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5


async def test_openai_defaults(client: httpx.AsyncClient, engine: Any) -> None:
    await client.post("/v1/completions", json=PROMPT)
    await client.post("/v1/chat/completions", json=HELLO)
    limits = [sampling.max_tokens for _, sampling in engine.calls]
    assert limits == [16, 100 - len(engine.calls[1][0])]


@pytest.mark.parametrize("usage", [False, True])
async def test_a_chat_stream(client: httpx.AsyncClient, usage: bool) -> None:
    body = {**HELLO, "stream": True, **({"stream_options": {"include_usage": True}} if usage else {})}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.text)
    assert found.pop() == "[DONE]"
    if usage:
        last = found.pop()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == len(ANSWER.encode()) + 1
        assert all(chunk["usage"] is None for chunk in found)
    else:
        assert all("usage" not in chunk for chunk in found)
    assert len({chunk["id"] for chunk in found}) == 1
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    choices = [chunk["choices"][0] for chunk in found]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    pieces = [choice["delta"].get("content", "") for choice in choices]
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 10, "piece by piece, not at once"
    assert not any("�" in piece for piece in pieces)


async def test_a_completion_stream(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", json={**PROMPT, "stream": True, "max_tokens": 50})
    found = events(answer.text)
    assert found.pop() == "[DONE]"
    assert {chunk["object"] for chunk in found} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in found) == ANSWER


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_generation(client: httpx.AsyncClient, engine: Any, stream: bool) -> None:
    answer = await client.post("/v1/chat/completions", json={**HELLO, "stop": ["界!", "xyz"], "stream": stream})
    if stream:
        found = events(answer.text)[:-1]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found)
        reason = found[-1]["choices"][0]["finish_reason"]
    else:
        choice = answer.json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
        assert answer.json()["usage"]["completion_tokens"] == len("Grüße, 世界!".encode())
    assert (text, reason) == ("Grüße, 世", "stop")


async def test_a_stop_string_that_does_not_complete_is_sent_at_the_end(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/chat/completions", json={**HELLO, "stop": "end of it"})
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/chat/completions", {**HELLO, "model": "gpt"}, 404, "model_not_found", "model"),
        ("/v1/chat/completions", {**HELLO, "max_tokens": 99}, 400, "context_length_exceeded", "messages"),
        ("/v1/completions", {**PROMPT, "prompt": "x" * 100}, 400, "context_length_exceeded", "prompt"),
        ("/v1/completions", {**PROMPT, "prompt": [1, 999]}, 400, "invalid_value", "prompt"),
        ("/v1/completions", {**PROMPT, "prompt": ""}, 400, "invalid_value", "prompt"),
        ("/v1/chat/completions", {**HELLO, "n": 3, "stream": True}, 400, "unsupported_value", "n"),
        (
            "/v1/chat/completions",
            {**HELLO, "messages": [{"role": "assistant", "content": "x"}]},
            400,
            "invalid_value",
            "messages",
        ),
        ("/v1/embeddings", {}, 404, "not_found", None),
    ],
)
async def test_errors_have_openais_form(
    client: httpx.AsyncClient, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
async def test_a_broken_body(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/v1/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


async def test_a_body_that_is_too_large(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_server.streaming.MOST_BODY_BYTES", 1000)
    answer = await client.post("/v1/completions", content=b"x" * 1001)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_the_wrong_method(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/completions")
    assert (answer.status_code, answer.json()["error"]["type"]) == (405, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_fails(
    client: httpx.AsyncClient, engine: Any, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.failure = RuntimeError("CUDA error while reading 'Hello'")
    answer = await client.post("/v1/chat/completions", json={**HELLO, "stream": stream})
    error = (events(answer.text)[-1] if stream else answer.json())["error"]
    assert error["code"] == "internal_error"
    assert answer.status_code == (200 if stream else 500)
    logged = capsys.readouterr().out
    assert "RuntimeError at conftest.py" in logged
    assert "Hello" not in logged, "an exception's text may quote the prompt"
    engine.failure = None
    assert (await client.post("/v1/chat/completions", json=HELLO)).status_code == 200


@pytest.mark.parametrize(
    ("failure", "lost"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("expected scalar type Half"), False),
        (ValueError("device-side assert triggered"), False),
    ],
)
async def test_a_gpu_that_is_lost_is_told(
    service: Service,
    client: httpx.AsyncClient,
    engine: Any,
    failure: Exception,
    lost: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app_module, "TELL_SECONDS", 0.01)
    told: list[str] = []
    heard = asyncio.Event()
    service.on_lost = lambda words: (told.append(words), heard.set())[1]
    engine.failure = failure
    assert (await client.post("/v1/completions", json=PROMPT)).status_code == 500
    await asyncio.sleep(0.05)
    assert told == [], "it never worked: to start again would be of no use"
    engine.failure = None
    assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200
    engine.failure = failure
    assert (await client.post("/v1/completions", json=PROMPT)).status_code == 500
    assert told == [], "the answer goes out first"
    if lost:
        await asyncio.wait_for(heard.wait(), 10)
    await asyncio.sleep(0.05)
    assert [each.startswith("the GPU is lost to this process: RuntimeError at ") for each in told] == [True] * lost


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {**PROMPT, "prompt": "x" * 25601}, "prompt"),
        ("/v1/chat/completions", {**HELLO, "messages": [{"role": "user", "content": "x" * 12801}] * 2}, "messages"),
    ],
)
async def test_what_cannot_fit_is_not_tokenized(
    client: httpx.AsyncClient, engine: Any, path: str, body: dict[str, Any], param: str
) -> None:
    engine.encode = None
    answer = await client.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", param)
    assert "characters" in error["message"]


async def test_a_token_that_the_model_has_no_place_for(client: httpx.AsyncClient, engine: Any) -> None:
    engine.encode = lambda _: [1, 257]
    answer = await client.post("/v1/completions", json=PROMPT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert "token 257 is outside the vocabulary of 257" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_bytes_that_are_no_utf_8(client: httpx.AsyncClient, path: str) -> None:
    for body in (b'{"model": "tiny", "prompt": "abc \xed\xa0\xbd"}', json.dumps(PROMPT).encode("utf-16")):
        answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


async def test_a_prompt_of_a_token_that_the_tokenizer_does_not_know(client: httpx.AsyncClient, engine: Any) -> None:
    decode = engine.decode

    def strict(tokens: list[int]) -> str:
        if 256 in tokens[:-1]:
            raise IndexError("piece id is out of range.")
        return str(decode(tokens))

    engine.decode = strict
    answer = await client.post("/v1/completions", json={**PROMPT, "prompt": [72, 256, 105], "max_tokens": 50})
    assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, ANSWER)


@pytest.mark.parametrize("where", ["prompt", "model", "unknown"])
async def test_half_a_character(client: httpx.AsyncClient, where: str) -> None:
    text = json.dumps({**PROMPT, where: "abc HALF"})
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/v1/completions", content=text.replace("HALF", r"\ud83d"), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    whole = await client.post("/v1/completions", content=text.replace("HALF", r"\ud83d\ude42"), headers=headers)
    assert whole.status_code == {"prompt": 200, "model": 404, "unknown": 400}[where]
    assert "half of a character" not in whole.text


async def test_keys(settings: Settings, engine: Any, tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("key-1\n")
    service = Service(dataclasses.replace(settings, api_keys_dir=str(tmp_path)), Lifecycle(), Metrics())
    service.serve(engine)
    async with asgi(service) as client:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200
        for path in ("/v1", "/v1/models", "/v1/nothing", "/v1/chat/completions"):
            refused = await client.post(path, json=HELLO)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert refused.headers["www-authenticate"] == "Bearer"
        headers = {"Authorization": "Bearer key-1"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        (tmp_path / "alice").write_text("key-22")
        assert (await client.get("/v1/models", headers=headers)).status_code == 401
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer key-22"})).status_code == 200


async def test_one_log_line_per_request_without_secrets(
    client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = {"Authorization": "Bearer sk-secret-key-123"}
    await client.post("/v1/chat/completions", json=HELLO, headers=headers)
    await client.post("/v1/chat/completions", json={**HELLO, "stream": True}, headers=headers)
    await client.get("/v1/models/a-secret-name?key=other")
    await client.get("/healthz")
    await client.get("/readyz")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["message"] for line in lines] == ["request"] * 3
    assert [line["status"] for line in lines] == [200, 200, 404]
    assert lines[1]["stream"] is True
    assert lines[0]["completion_tokens"] == len(ANSWER.encode()) + 1
    text = json.dumps(lines)
    for secret in ("Hello", "Grü", "sk-secret", "a-secret-name", "other"):
        assert secret not in text


async def test_a_failing_route_is_answered(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("prompt text")

    monkeypatch.setattr(app_module, "token_budget", broken)
    answer = await client.post("/v1/completions", json=PROMPT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    logged = capsys.readouterr()
    assert "KeyError at" in logged.out
    assert "prompt text" not in logged.out + logged.err
    monkeypatch.undo()
    assert "token_server_generations_in_flight 0.0" in (await client.get("/metrics")).text, "the place is given back"


async def test_metrics(client: httpx.AsyncClient, service: Service, idle_metrics: IdleMetrics) -> None:
    fresh = (await client.get("/metrics")).text
    for series in (
        'token_server_requests_total{route="/v1/chat/completions",status="200"} 0.0',
        "token_server_generated_tokens_total 0.0",
        "token_server_time_to_first_token_seconds_count 0.0",
        "token_server_queue_length 0.0",
        "token_server_generations_in_flight 0.0",
        'token_server_start_stage_seconds{stage="imports"} 0.0',
        'token_server_start_stage_seconds{stage="weights"} 0.0',
        "token_server_ready 1.0",
    ):
        assert series in fresh
    await client.post("/v1/chat/completions", json=HELLO)
    await client.get("/some/other/path")
    await client.post("/v1/chat/completions", json={**HELLO, "model": "x"})
    text = await idle_metrics()
    tokens = float(len(ANSWER.encode()) + 1)
    for series in (
        'token_server_requests_total{route="/v1/chat/completions",status="200"} 1.0',
        'token_server_requests_total{route="/v1/chat/completions",status="404"} 1.0',
        'token_server_requests_total{route="other",status="404"} 1.0',
        f"token_server_generated_tokens_total {tokens}",
        "token_server_time_to_first_token_seconds_count 1.0",
    ):
        assert series in text
    service.metrics.describe_environment()
    assert "token_server_environment_packages " in (await client.get("/metrics")).text
