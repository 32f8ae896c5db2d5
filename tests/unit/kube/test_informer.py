"""The informer against a stand-in API server that misbehaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from tokenservice.api.meta import ManagedFieldsEntry, ObjectMeta, Struct
from tokenservice.kube.client import Client
from tokenservice.kube.connection import Connection
from tokenservice.kube.informer import Informer

from tests.unit.kube.conftest import Until
from tests.unit.kube.standin_api import WIDGET, StandinApi, error, status_body


class Spec(Struct):
    size: int = 0


class Widget(Struct):
    metadata: ObjectMeta
    spec: Spec = Spec()


class Follower:
    def __init__(
        self, api: StandinApi, informer: Informer[Widget], changes: list[tuple[str, str]], log: list[str]
    ) -> None:
        self.api, self.informer, self.changes, self.restarts = api, informer, changes, log

    def matches(self) -> bool:
        """Whether the cache holds exactly what the server holds."""
        held = {(w.metadata.namespace, w.metadata.name): w.metadata.resource_version for w in self.informer.all()}
        return held == {key: o["metadata"]["resourceVersion"] for key, o in self.api.objects.items()}

    def lists(self) -> int:
        return sum(method == "GET" and "continue" not in path for method, path in self.api.requests)


class Metrics:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def event(self, resource: str, kind: str) -> None:
        self.log.append(kind)

    def restarted(self, resource: str, cause: str) -> None:
        self.log.append(cause)


@asynccontextmanager
async def following(api: StandinApi, client: Client, **options: Any) -> AsyncIterator[Follower]:
    changes: list[tuple[str, str]] = []
    log: list[str] = []

    def change(old: Widget | None, new: Widget | None) -> None:
        what = "new" if old is None else "gone" if new is None else "changed"
        changes.append((what, (new or old).metadata.name))  # type: ignore[union-attr]

    informer = Informer(client, WIDGET, Widget, on_change=change, backoff=(0.01, 0.05), metrics=Metrics(log), **options)
    task = asyncio.create_task(informer.run())
    try:
        yield Follower(api, informer, changes, log)
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_lists_in_chunks_then_follows(
    api: StandinApi, client: Client, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenservice.kube.informer.CHUNK", 2)
    for number in range(5):
        await api.put(f"w{number}")
    async with following(api, client, label_selector="managed=yes", namespace="ns") as follower:
        await follower.informer.synced.wait()
        assert follower.matches()
        assert sum(method == "GET" for method, _ in api.requests) == 3
        await api.put("w1", spec={"size": 2})
        await api.put("new")
        await api.remove("w0")
        await until(follower.matches)
        assert follower.changes[5:] == [("changed", "w1"), ("new", "new"), ("gone", "w0")]
        found = follower.informer.get("ns", "w1")
        assert found is not None
        assert found.spec.size == 2
        await api.put("new", labels={})  # leaves the selection: gone for us
        await until(lambda: follower.informer.get("ns", "new") is None)
        assert follower.informer.last_event_age() < 5


async def test_history_forgotten_in_the_middle_of_a_list(
    api: StandinApi, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenservice.kube.informer.CHUNK", 2)
    for number in range(5):
        await api.put(f"w{number}")
    api.expire_continue = True
    async with following(api, client) as follower:
        await follower.informer.synced.wait()
        assert follower.matches()
        assert len(follower.changes) == 5


async def test_watch_expired_lists_again_and_tells_the_difference(
    api: StandinApi, client: Client, until: Until
) -> None:
    for name in ("kept", "gone", "changed"):
        await api.put(name)
    async with following(api, client) as follower:
        await follower.informer.synced.wait()
        follower.changes.clear()

        async def moved_on(request: web.Request) -> web.StreamResponse:
            await api.remove("gone")
            await api.put("changed")
            api.forget()
            return await api.list(request)

        api.answers.append(moved_on)
        await api.say("ERROR", status_body(410, "Expired", "too old resource version"))
        await until(lambda: follower.lists() == 2)
        await until(follower.matches)
        assert sorted(follower.changes) == [("changed", "changed"), ("gone", "gone")]
        await api.put("later")
        await until(follower.matches)


async def test_watch_refused_with_410(api: StandinApi, client: Client, until: Until) -> None:
    api.watch_answers.append(error(410, "Expired"))
    async with following(api, client) as follower:
        await until(lambda: follower.lists() == 2)
        await api.put("a")
        await until(follower.matches)


async def test_a_connection_that_breaks_inside_a_line_loses_nothing(
    api: StandinApi, client: Client, until: Until
) -> None:
    async with following(api, client) as follower:
        await follower.informer.synced.wait()
        await until(lambda: api.watches == 1)
        api.break_line_after = 40
        await api.put("a", spec={"size": 1})
        await until(follower.matches)
        assert follower.changes == [("new", "a")]
        assert follower.lists() == 1  # went on from where it was
        assert "unreachable" in follower.restarts


async def test_a_watch_that_the_server_ends_goes_on_without_a_list(
    api: StandinApi, client: Client, until: Until
) -> None:
    async def nothing(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    api.watch_answers += [nothing, nothing]
    async with following(api, client) as follower:
        await until(lambda: api.watches == 1)
        await api.put("a")
        await until(follower.matches)
        assert follower.lists() == 1
        assert follower.restarts.count("closed") == 2


async def test_a_silent_server_is_left(api: StandinApi, until: Until) -> None:
    async with Client(Connection(api.url), timeout=0.2) as client, following(api, client, inactivity=0.2) as follower:
        await until(lambda: api.watches == 1)
        api.hang.clear()
        await api.put("a")
        await until(lambda: sum(method == "WATCH" for method, _ in api.requests) >= 3)
        assert follower.informer.get("ns", "a") is None
        api.hang.set()
        await until(follower.matches)
        assert follower.changes == [("new", "a")]


async def test_bookmarks_spare_a_list(api: StandinApi, client: Client, until: Until) -> None:
    async with following(api, client) as follower:
        await until(lambda: api.watches == 1)
        await api.put("other", labels={})
        await api.bookmark()
        await until(lambda: "BOOKMARK" in follower.restarts)
        api.expired_before = api.version  # whatever is older than the bookmark is forgotten
        api.break_line_after = 10
        await api.put("a")
        await until(follower.matches)
        assert follower.lists() == 1


async def test_a_bookmark_from_the_past_means_a_restored_server(api: StandinApi, client: Client, until: Until) -> None:
    await api.put("a")
    await api.put("b")
    async with following(api, client) as follower:
        await until(lambda: api.watches == 1)

        async def restored(request: web.Request) -> web.StreamResponse:
            del api.objects["ns", "b"]
            api.objects["ns", "a"]["metadata"]["resourceVersion"] = "40"
            api.version = 60
            api.history.clear()
            return await api.list(request)

        api.answers.append(restored)
        await api.say("BOOKMARK", {"metadata": {"resourceVersion": "50"}})
        await until(lambda: follower.lists() == 2)
        await until(follower.matches)
        await api.put("c")
        await until(follower.matches)


async def test_huge_lines(api: StandinApi, client: Client, until: Until) -> None:
    async with following(api, client) as follower:
        await until(lambda: api.watches == 1)
        await api.put("huge", filler="x" * 3_000_000, spec={"size": 7})
        await api.put("small")
        await until(follower.matches)
        found = follower.informer.get("ns", "huge")
        assert found is not None
        assert found.spec.size == 7


async def test_an_object_of_a_wrong_shape_hides_no_other(api: StandinApi, client: Client, until: Until) -> None:
    await api.put("bad", spec={"size": "not a number"})
    await api.put("good", spec={"size": 1})
    async with following(api, client) as follower:
        await follower.informer.synced.wait()
        assert follower.changes == [("new", "good")]
        await api.put("good", spec={"size": "wrong, too"})
        await api.put("after")
        await until(lambda: follower.informer.get("ns", "after") is not None)
        kept = follower.informer.get("ns", "good")
        assert kept is not None
        assert kept.spec.size == 1
        await api.put("bad", spec={"size": 2})
        await until(lambda: follower.informer.get("ns", "bad") is not None)


async def test_refused_lists_are_tried_again(api: StandinApi, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    api.answers += [error(403, "Forbidden", "widgets is forbidden") for _ in range(3)]
    await api.put("a")
    async with following(api, client) as follower:
        assert follower.informer.last_event_age() == float("inf")
        await follower.informer.synced.wait()
        assert follower.matches()
    assert any("widgets is forbidden" in record.data["error"] for record in caplog.records if hasattr(record, "data"))


async def test_our_own_write_is_seen_before_its_event(api: StandinApi, client: Client, until: Until) -> None:
    async with following(api, client) as follower:
        await until(lambda: api.watches == 1)
        api.hang.clear()
        created = await api.put("a", spec={"size": 3})
        informer = follower.informer
        informer.observe(informer.decode(json.dumps(created).encode()))
        found = informer.get("ns", "a")
        assert found is not None
        assert found.spec.size == 3
        api.hang.set()
        await api.put("b")
        await until(lambda: follower.informer.get("ns", "b") is not None)
        assert follower.changes == [("new", "b")]  # the event of our own write was no news


async def test_only_our_managed_fields_are_kept_and_shared(api: StandinApi, client: Client) -> None:
    entries = [
        {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {}}},
        {"manager": "tokenservice-operator", "operation": "Apply", "fieldsV1": {"f:spec": {"f:size": {}}}},
        {"manager": "tokenservice-operator", "operation": "Update", "subresource": "status", "fieldsV1": {}},
    ]
    await api.put("a", managed_fields=entries)
    await api.put("b", managed_fields=entries)
    async with following(api, client) as follower:
        await follower.informer.synced.wait()
        (one,), (two,) = (widget.metadata.managed_fields for widget in follower.informer.all())
    assert isinstance(one, ManagedFieldsEntry)
    assert msgspec.json.decode(one.fields_v1) == {"f:spec": {"f:size": {}}}
    assert one is two


async def test_index(api: StandinApi, client: Client, until: Until) -> None:
    def owner(widget: Widget) -> str | None:
        return widget.metadata.labels.get("owner")

    async with following(api, client, index=owner) as follower:
        await api.put("a", labels={"owner": "x"})
        await api.put("b", labels={"owner": "x"})
        await api.put("c", labels={})
        await until(lambda: len(follower.informer.by_index("x")) == 2)
        await api.remove("a")
        await until(lambda: len(follower.informer.by_index("x")) == 1)


async def test_random_changes_with_breaking_connections(api: StandinApi, client: Client, until: Until) -> None:
    import random

    dice = random.Random(7)
    async with following(api, client) as follower:
        await follower.informer.synced.wait()
        for step in range(300):
            name = f"w{dice.randrange(20)}"
            if ("ns", name) in api.objects and dice.random() < 0.4:
                await api.remove(name)
            else:
                await api.put(name, spec={"size": step})
            if dice.random() < 0.05:
                api.break_line_after = dice.randrange(1, 120)
            if dice.random() < 0.03:
                api.forget()
            if dice.random() < 0.1:
                await until(follower.matches)
        await until(follower.matches)
        # What was told, replayed, is what is there.
        told: dict[str, bool] = {}
        for what, name in follower.changes:
            assert (what == "new") != told.get(name, False), (what, name)
            told[name] = what != "gone"
        assert {name for name, there in told.items() if there} == {name for _, name in api.objects}
