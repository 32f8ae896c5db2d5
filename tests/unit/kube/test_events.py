"""Events: posted in the background, said once, never in the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tokenservice.kube.client import Client
from tokenservice.kube.events import EventRecorder, ObjectRef

from tests.unit.kube.standin_api import StandinApi, error

CHAT = ObjectRef("tokenservice.dev/v1alpha1", "TokenService", "team", "chat", uid="u1")


class Recording:
    def __init__(self, client: Client, **options: Any) -> None:
        self.now = 0.0
        self.dropped: list[str] = []
        self.recorder = EventRecorder(
            client,
            instance="pod-1",
            on_dropped=self.dropped.append,
            clock=lambda: self.now,
            retry_seconds=0.01,
            **options,
        )


@pytest.fixture
async def recording(client: Client) -> AsyncIterator[Recording]:
    recording = Recording(client)
    task = asyncio.create_task(recording.recorder.run())
    yield recording
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def test_what_is_posted(api: StandinApi, recording: Recording) -> None:
    recording.recorder.event(CHAT, "RolledOut", "serves", action="Reconcile")
    assert await recording.recorder.flush()
    method, path = api.requests[0]
    assert (method, path.split("?")[0]) == ("POST", "/apis/events.k8s.io/v1/namespaces/team/events")
    body = json.loads(api.bodies[0])
    assert body["metadata"].pop("name").startswith("chat.")
    assert body.pop("eventTime").endswith("Z")
    assert body == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": "team"},
        "reportingController": "tokenservice-operator",
        "reportingInstance": "pod-1",
        "action": "Reconcile",
        "reason": "RolledOut",
        "type": "Normal",
        "note": "serves",
        "regarding": {
            "apiVersion": "tokenservice.dev/v1alpha1",
            "kind": "TokenService",
            "namespace": "team",
            "name": "chat",
            "uid": "u1",
        },
    }


async def test_the_same_is_said_again_after_ten_minutes_only(api: StandinApi, recording: Recording) -> None:
    for at in (0.0, 1.0, 599.0, 601.0):
        recording.now = at
        recording.recorder.event(CHAT, "Failed", "no image", action="Reconcile", type="Warning")
    recording.recorder.event(CHAT, "Failed", "other words", action="Reconcile", type="Warning")
    assert await recording.recorder.flush()
    assert len(api.requests) == 3
    assert recording.dropped == ["repeated", "repeated"]


async def test_a_full_queue_drops(client: Client, api: StandinApi) -> None:
    recording = Recording(client, size=2)
    for number in range(5):
        recording.recorder.event(CHAT, "X", f"note {number}", action="Reconcile")
    assert recording.dropped == ["full"] * 3
    recording.recorder.event(CHAT, "X", "note 4", action="Reconcile")  # was not said: not a repetition
    assert recording.dropped == ["full"] * 4
    assert not await recording.recorder.flush(0.01)


async def test_trouble_is_overcome_or_given_up(api: StandinApi, recording: Recording) -> None:
    api.answers += [error(500, "InternalError"), error(429, "TooManyRequests")]
    recording.recorder.event(CHAT, "A", "a", action="Reconcile")
    assert await recording.recorder.flush()
    assert len(api.objects) == 1
    api.answers += [error(403, "Forbidden", "namespace is being terminated")]
    recording.recorder.event(CHAT, "B", "b", action="Reconcile")
    assert await recording.recorder.flush()
    api.answers += [error(500, "InternalError") for _ in range(3)]
    recording.recorder.event(CHAT, "C", "c", action="Reconcile")
    recording.recorder.event(CHAT, "D", "d", action="Reconcile")
    assert await recording.recorder.flush()
    assert recording.dropped == ["refused", "refused"]
    assert [obj["reason"] for obj in api.objects.values()] == ["A", "D"]


async def test_an_event_that_was_posted_but_whose_answer_was_lost_is_posted_once(
    api: StandinApi, recording: Recording
) -> None:
    async def lose(request):  # type: ignore[no-untyped-def]
        await api.put(json.loads(api.bodies[-1])["metadata"]["name"], "team")
        request.transport.abort()
        raise ConnectionResetError

    api.answers.append(lose)
    recording.recorder.event(CHAT, "A", "a", action="Reconcile")
    assert await recording.recorder.flush()
    assert len(api.objects) == 1
    assert recording.dropped == []


async def test_a_long_note_is_cut_to_what_the_api_server_takes(api: StandinApi, recording: Recording) -> None:
    recording.recorder.event(CHAT, "A", "ä" * 1000, action="Reconcile")
    assert await recording.recorder.flush()
    assert json.loads(api.bodies[0])["note"] == "ä" * 510 + "…"
