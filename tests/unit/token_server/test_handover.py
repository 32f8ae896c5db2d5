"""One assignment, taken once, however often and by whomever it is brought."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from token_server.handover import PATH, Handover, make_app
from token_server.lifecycle import Lifecycle, Phase
from token_server.settings import Settings

TOKEN = "the-token-of-this-pod"
SHA256 = hashlib.sha256(TOKEN.encode()).hexdigest()
TINY: dict[str, Any] = {"service": "team/chat", "model": {"source": "file:///models/tiny", "name": "tiny"}, "args": []}
OTHER = {**TINY, "service": "team/other"}
REPORT = {"status": "serving", "model": "tiny", "stages": {"weights": 0.1}}


class Pod:
    """A warm server's second port, and what it began to load."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            warm=True, assign_token_sha256=SHA256, assignment_file=str(folder / "kept/assignment.json")
        )
        self.file = Path(self.settings.assignment_file)
        self.lifecycle = Lifecycle()
        self.began: list[Settings] = []
        self.handover = Handover(self.settings, self.lifecycle, self._begin)
        transport = httpx.ASGITransport(app=make_app(self.handover, SHA256))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://pod:8001")

    def _begin(self, settings: Settings) -> None:
        assert json.loads(self.file.read_text())["service"], "kept before it is loaded"
        assert self.lifecycle.phase is Phase.ASSIGNED
        self.began.append(settings)

    async def put(self, document: Any, token: str = TOKEN) -> httpx.Response:
        return await self.client.put(PATH, json=document, headers={"Authorization": f"Bearer {token}"})

    async def begun(self, document: Any) -> asyncio.Task[httpx.Response]:
        """An assignment under way, as far as it gets before the model is loaded."""
        task = asyncio.create_task(self.put(document))
        async with asyncio.timeout(5):
            while not self.began:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        return task


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    made = Pod(tmp_path)
    made.lifecycle.warm()
    yield made
    await made.client.aclose()


def code(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


async def test_it_is_answered_when_the_model_serves(pod: Pod) -> None:
    asking = await pod.begun(TINY)
    (settings,) = pod.began
    assert (settings.model_source, settings.model_name, settings.warm) == ("file:///models/tiny", "tiny", False)
    assert not asking.done()
    assert pod.lifecycle.readiness() == (200, {"status": "assigned"}), "no probe stands on the path of a claim"
    pod.handover.done(REPORT)
    assert ((await asking).status_code, (await asking).json()) == (200, REPORT)


async def test_the_same_again_gets_the_same_answer(pod: Pod) -> None:
    """So an operator that lost the answer, or its life, asks again."""
    first = await pod.begun(TINY)
    second = asyncio.create_task(pod.put(TINY))
    first.cancel()  # who asked goes away
    await asyncio.wait([first])
    pod.handover.done(REPORT)
    assert (await second).json() == REPORT
    assert (await pod.put(dict(reversed(TINY.items())))).json() == REPORT
    assert len(pod.began) == 1


async def test_no_second_model(pod: Pod) -> None:
    asking = await pod.begun(TINY)
    changed = {**TINY, "model": {**TINY["model"], "source": "file:///models/other"}}
    for document in (OTHER, changed, {**TINY, "args": ["--max-queue=1"]}):
        assert code(await pod.put(document)) == (409, "already_assigned")
    pod.handover.done(REPORT)
    await asking
    assert code(await pod.put(OTHER)) == (409, "already_assigned")
    assert len(pod.began) == 1
    assert json.loads(pod.file.read_text()) == TINY


async def test_of_two_at_once_one_wins(pod: Pod) -> None:
    asking = [asyncio.create_task(pod.put(document)) for document in (TINY, OTHER)]
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    pod.handover.done(REPORT)
    assert sorted([(await each).status_code for each in asking]) == [200, 409]
    assert len(pod.began) == 1


@pytest.mark.parametrize("token", ["", "wrong", SHA256])
async def test_a_wrong_token_does_nothing(pod: Pod, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = await pod.put(TINY, token)
    assert code(answer) == (401, "invalid_token")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (pod.began, pod.file.exists(), pod.lifecycle.phase) == ([], False, Phase.WARM)
    assert TOKEN not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "status", "wanted"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"service": "a/b"}', 400, "invalid_type"),
        (b'"' + b"x" * 70_000 + b'"', 413, "request_too_large"),
    ],
)
async def test_a_body_that_cannot_be_used(pod: Pod, body: bytes, status: int, wanted: str) -> None:
    answer = await pod.client.put(PATH, content=body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert code(answer) == (status, wanted)
    assert (pod.began, pod.lifecycle.phase) == ([], Phase.WARM)
    asking = await pod.begun(TINY)
    pod.handover.done(REPORT)
    assert (await asking).status_code == 200, "a mistake costs no pod"


async def test_before_it_is_warm_and_after_it_drains(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    answer = await pod.put(TINY)
    assert code(answer) == (503, "not_warm")
    assert answer.headers["retry-after"] == "1"
    pod.lifecycle.warm()
    pod.lifecycle.drain()
    assert code(await pod.put(TINY)) == (503, "server_stopping")
    assert (pod.began, pod.file.exists()) == ([], False), "a container that starts again is warm again"


async def test_a_drain_while_the_model_loads(pod: Pod) -> None:
    asking = await pod.begun(TINY)
    pod.lifecycle.drain()
    pod.handover.stop()
    assert code(await asking) == (503, "server_stopping")


async def test_a_model_that_does_not_load(pod: Pod) -> None:
    asking = await pod.begun(TINY)
    pod.handover.failed("cannot load model file:///models/tiny: missing file: it has no config.json")
    answer = await asking
    assert code(answer) == (500, "load_failed")
    assert "has no config.json" in answer.json()["error"]["message"]


async def test_a_disk_that_is_full(pod: Pod) -> None:
    pod.file.parent.mkdir()
    pod.file.with_suffix(".new").mkdir()  # nothing can be written there, whoever the user is
    assert code(await pod.put(TINY)) == (500, "not_kept")
    assert (pod.began, pod.lifecycle.phase) == ([], Phase.WARM)


async def test_a_restart_goes_on_with_what_was_given(pod: Pod, tmp_path: Path) -> None:
    asking = await pod.begun(TINY)
    asking.cancel()
    await asyncio.wait([asking])
    again = Pod(tmp_path)
    assert again.handover.resume() == pod.began[0]
    assert again.lifecycle.readiness()[0] == 503, "not ready until it serves"
    assert code(await again.put(OTHER)) == (409, "already_assigned")
    asked = asyncio.create_task(again.put(TINY))
    await asyncio.sleep(0)
    again.handover.done(REPORT)
    assert (await asked).json() == REPORT
    assert again.began == [], "the start itself loads it"


async def test_a_restart_without_anything_is_warm(pod: Pod) -> None:
    assert pod.handover.resume() is None


async def test_a_restart_with_other_settings(pod: Pod, tmp_path: Path) -> None:
    """A flag that the server knew then and refuses now: it must not turn ready as if it had no model."""
    pod.file.parent.mkdir()
    pod.file.write_text(json.dumps({**TINY, "args": ["--port", "1"]}))
    with pytest.raises(ValueError, match="--port is settled"):
        Pod(tmp_path).handover.resume()
