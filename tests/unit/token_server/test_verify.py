"""/verifyz: a token really generated, one generation for all who ask, no key."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from token_server import verify
from token_server.app import Service, make_app
from token_server.lifecycle import Lifecycle
from token_server.metrics import Metrics
from token_server.settings import Settings

Eventually = Callable[[Callable[[], object]], None]
IdleMetrics = Callable[[], Awaitable[str]]


def asgi(service: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=make_app(service)), base_url="http://server")


def code(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


async def test_one_token_is_generated(
    client: httpx.AsyncClient, engine: Any, capsys: pytest.CaptureFixture[str], idle_metrics: IdleMetrics
) -> None:
    answer = await client.get("/verifyz?prompt=mine")
    body = answer.json()
    seconds = body.pop("seconds")
    assert (answer.status_code, body) == (200, {"status": "ok", "model": "tiny", "tokens": 1})
    assert isinstance(seconds, float)
    assert 0 <= seconds == round(seconds, 4)
    ((prompt, sampling),) = engine.calls
    assert (bytes(prompt), sampling.max_tokens, sampling.temperature) == (b"Hello", 1, 0.0)
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (line["message"], line["route"], line["status"]) == ("request", "/verifyz", 200)
    text = await idle_metrics()
    assert 'token_server_requests_total{route="/verifyz",status="200"} 1.0' in text
    assert "token_server_generated_tokens_total 1.0" in text


async def test_no_key_is_needed(settings: Settings, engine: Any, tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("key-1\n")
    service = Service(dataclasses.replace(settings, api_keys_dir=str(tmp_path)), Lifecycle(), Metrics())
    service.serve(engine)
    async with asgi(service) as client:
        assert (await client.get("/verifyz")).status_code == 200
        assert (await client.post("/v1/completions", json={})).status_code == 401


async def test_before_and_after_serving(settings: Settings, engine: Any) -> None:
    service = Service(settings, Lifecycle(), Metrics())
    async with asgi(service) as client:
        answer = await client.get("/verifyz")
        assert code(answer) == (503, "model_loading")
        assert answer.headers["retry-after"] == "1"
        service.serve(engine)
        assert (await client.get("/verifyz")).status_code == 200, "a failure is not told again"
        service.lifecycle.drain()
        assert code(await client.get("/verifyz")) == (503, "server_stopping"), "nor a good result"
    assert len(engine.calls) == 1


async def test_an_engine_that_fails(client: httpx.AsyncClient, engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine.failure = RuntimeError("CUDA error")
    assert code(await client.get("/verifyz")) == (500, "internal_error")
    failed, request = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (failed["message"], failed["level"]) == ("generation failed", "error")
    assert "RuntimeError at conftest.py" in failed["error"]
    assert (request["status"], request["request_id"]) == (500, failed["request_id"])
    engine.failure = None
    assert (await client.get("/verifyz")).status_code == 200


async def test_a_tokenizer_that_fails(
    client: httpx.AsyncClient, engine: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: str) -> list[int]:
        raise KeyError("Hello")

    monkeypatch.setattr(engine, "encode", broken)
    assert code(await client.get("/verifyz")) == (500, "internal_error")
    assert "KeyError at test_verify.py" in capsys.readouterr().out
    assert "token_server_generations_in_flight 0.0" in (await client.get("/metrics")).text, "the place is given back"


async def test_no_token_comes(
    client: httpx.AsyncClient, engine: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "generate", lambda *_: "stop")
    assert code(await client.get("/verifyz")) == (500, "internal_error")
    assert "no token came" in capsys.readouterr().out


async def test_a_tokenizer_without_tokens_for_the_prompt(
    client: httpx.AsyncClient, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "encode", lambda _: [])
    assert (await client.get("/verifyz")).status_code == 200
    assert engine.calls[0][0] == [0]


async def test_an_end_token_counts(client: httpx.AsyncClient, engine: Any) -> None:
    engine.answer = ""
    assert (await client.get("/verifyz")).json()["tokens"] == 1


async def test_a_good_result_is_told_again_for_a_second(client: httpx.AsyncClient, engine: Any) -> None:
    first = await client.get("/verifyz")
    assert (await client.get("/verifyz")).json() == first.json()
    assert len(engine.calls) == 1
    await asyncio.sleep(verify.REUSE_SECONDS)
    assert (await client.get("/verifyz")).status_code == 200
    assert len(engine.calls) == 2


async def test_the_queue_is_full(settings: Settings, engine: Any) -> None:
    service = Service(dataclasses.replace(settings, max_concurrency=1, max_queue=0), Lifecycle(), Metrics())
    service.serve(engine)
    engine.stepwise = True
    async with asgi(service) as client:
        held = asyncio.ensure_future(client.post("/v1/completions", json={"model": "tiny", "prompt": "x"}))
        assert await asyncio.to_thread(engine.began.acquire, timeout=20)
        answer = await client.get("/verifyz")
        assert code(answer) == (429, "queue_full")
        assert answer.headers["retry-after"] == "1"
        engine.permits.release(100)
        assert (await held).status_code == 200


async def test_two_who_ask_at_once_share_a_generation(client: httpx.AsyncClient, engine: Any) -> None:
    engine.stepwise = True
    asked = [asyncio.ensure_future(client.get("/verifyz")) for _ in range(2)]
    assert await asyncio.to_thread(engine.began.acquire, timeout=20)
    engine.permits.release(100)
    answers = [answer.json() for answer in await asyncio.gather(*asked)]
    assert answers[0] == answers[1]
    assert answers[0]["status"] == "ok"
    assert len(engine.calls) == 1


def test_who_goes_away_takes_nothing_from_the_others(
    live: str, engine: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "REUSE_SECONDS", 60.0)  # the other may come late on a busy machine
    engine.stepwise = True
    with pytest.raises(httpx.ReadTimeout):  # the connection is closed while the generation waits
        httpx.get(f"{live}/verifyz", timeout=httpx.Timeout(20, read=0.3))
    eventually(lambda: 'route="/verifyz",status="499"} 1.0' in httpx.get(f"{live}/metrics").text)
    found: list[httpx.Response] = []
    other = threading.Thread(target=lambda: found.append(httpx.get(f"{live}/verifyz", timeout=20)), daemon=True)
    other.start()
    engine.permits.release(100)
    other.join(20)
    assert found[0].status_code == 200
    assert len(engine.calls) == 1
    assert "token_server_cancelled_generations_total 0.0" in httpx.get(f"{live}/metrics").text


async def test_the_flight() -> None:
    """Errors reach all who wait and are not kept; a good result is kept until the second is over."""
    now, landed = 10.0, asyncio.Event()
    begun: list[str] = []

    async def work(name: str) -> dict[str, Any]:
        begun.append(name)
        await landed.wait()
        if name == "bad":
            raise ValueError(name)
        return {"name": name}

    flight = verify.SingleFlight(work, lambda: now)
    asked = [asyncio.ensure_future(flight.result(name)) for name in ("bad", "second", "third")]
    await asyncio.sleep(0)
    asked.pop(0).cancel()
    landed.set()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(error) for error in told] == ["bad", "bad"]
    assert await flight.result("good") == {"name": "good"}
    now += verify.REUSE_SECONDS - 0.1
    assert await flight.result("soon") == {"name": "good"}
    now += 0.1
    assert await flight.result("late") == {"name": "late"}
    assert begun == ["bad", "good", "late"]
