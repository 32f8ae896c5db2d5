"""A stand-in for the Kubernetes API server: lists, watches and writes of JSON objects in memory, with faults on demand.

It is not an API server: no admission, no defaulting, no field ownership. It keeps what an informer and a client
depend on: one counter of resourceVersions, lists in chunks, watches from a version on, bookmarks, 410 when history is
gone, and the shape of errors. Faults are switched on by the test: see the attributes of `StandinApi`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from tokenservice.kube.client import Resource

WIDGET = Resource("tests.example", "v1", "widgets", "Widget")
OTHER = Resource("tests.example", "v1", "others", "Other")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def status_body(code: int, reason: str, message: str, **details: Any) -> dict[str, Any]:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**status, "code": code, "reason": reason, "message": message, "details": details}


def error(
    code: int, reason: str, message: str = "as the test wants it", retry_after: int | None = None, **details: Any
) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return web.json_response(status_body(code, reason, message, **details), status=code, headers=headers)


Events = list[tuple[int, str, dict[str, Any]]]


class StandinApi:
    """answers: responses (or handlers) to give instead, first come first served, to requests that are no watch.
    watch_answers: the same for watches. break_line_after: cut the connection after so many bytes of the next event.
    hang: watches and requests say nothing more until it is cleared. page_hook: called before every page of a list.
    expired_before: versions below are forgotten: watches from there end in 410. tokens: accepted bearer tokens, None
    for all."""

    def __init__(self) -> None:
        self.version = 100
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.history: Events = []
        self.news = asyncio.Condition()
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[web.Response | Handler] = []
        self.watch_answers: list[web.Response | Handler] = []
        self.page_hook: Callable[[int], Awaitable[None]] | None = None
        self.break_line_after: int | None = None
        self.hang = asyncio.Event()
        self.hang.set()
        self.expired_before = 0
        self.expire_continue = False
        self.tokens: set[str] | None = None
        self.watches = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.url = ""

    # -- what the test does to the state

    async def put(self, name: str, namespace: str = "ns", **fields: Any) -> dict[str, Any]:
        async with self.news:
            self.version += 1
            key = (namespace, name)
            kind = "MODIFIED" if key in self.objects else "ADDED"
            uid = self.objects[key]["metadata"]["uid"] if key in self.objects else f"uid-{self.version}"
            labels = fields.pop("labels", {"managed": "yes"})
            meta = {"name": name, "namespace": namespace, "uid": uid, "labels": labels}
            meta["resourceVersion"] = str(self.version)
            if "managed_fields" in fields:
                meta["managedFields"] = fields.pop("managed_fields")
            obj = {"apiVersion": "tests.example/v1", "kind": "Widget", "metadata": meta, **fields}
            self.objects[key] = obj
            self.history.append((self.version, kind, obj))
            self.news.notify_all()
            return obj

    async def remove(self, name: str, namespace: str = "ns") -> None:
        async with self.news:
            self.version += 1
            obj = json.loads(json.dumps(self.objects.pop((namespace, name))))
            obj["metadata"]["resourceVersion"] = str(self.version)
            self.history.append((self.version, "DELETED", obj))
            self.news.notify_all()

    async def bookmark(self) -> None:
        async with self.news:
            self.version += 1
            self.history.append((self.version, "BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}}))
            self.news.notify_all()

    async def say(self, kind: str, obj: dict[str, Any]) -> None:
        """Sends an event as it stands to all watches."""
        async with self.news:
            self.version += 1
            self.history.append((self.version, kind, obj))
            self.news.notify_all()

    def forget(self) -> None:
        """As after compaction: no watch can begin before now; those that are under way get what is due to them."""
        self.expired_before = self.version

    # -- the server

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[StandinApi]:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self.hang.set()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        watch = request.query.get("watch") == "true"
        self.requests.append(("WATCH" if watch else request.method, request.path_qs))
        self.bodies.append(await request.read())
        self.headers.append(dict(request.headers))
        if watch:
            return await self._answer(request, watch=True)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request, watch=False)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, *, watch: bool) -> web.StreamResponse:
        await self.hang.wait()
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens is not None and token not in self.tokens:
            return error(401, "Unauthorized")
        script = self.watch_answers if watch else self.answers
        if script:
            answer = script.pop(0)
            return answer if isinstance(answer, web.Response) else await answer(request)
        if watch:
            return await self._watch(request)
        parts = request.path.split("/")  # /apis/GROUP/VERSION/namespaces/NAMESPACE/PLURAL/NAME/SUBRESOURCE
        if request.method == "GET" and len(parts) in {5, 7}:
            return await self.list(request)
        return await self._one(request, parts[5], parts[7] if len(parts) > 7 else "")

    async def _one(self, request: web.Request, namespace: str, name: str) -> web.Response:
        held = self.objects.get((namespace, name))
        if request.method == "GET" or (name and held is None and request.method in {"PUT", "DELETE"}):
            return web.json_response(held) if held else error(404, "NotFound", f'"{name}" not found')
        body = json.loads(self.bodies[-1] or b"{}")
        fields = {k: v for k, v in body.items() if k not in {"metadata", "apiVersion", "kind"}}
        wanted = body.get("metadata", {}).get("resourceVersion")
        if held and wanted and held["metadata"]["resourceVersion"] != wanted:
            return error(409, "Conflict", "the object has been modified")
        if request.method == "POST":
            name = body["metadata"]["name"]
            if (namespace, name) in self.objects:
                return error(409, "AlreadyExists", f'"{name}" already exists')
            return web.json_response(await self.put(name, namespace, **fields), status=201)
        if request.method in {"PATCH", "PUT"}:
            kept = {k: v for k, v in (held or {}).items() if k not in {"metadata", "apiVersion", "kind"}}
            return web.json_response(await self.put(name, namespace, **{**kept, **fields}))
        await self.remove(name, namespace)
        return web.json_response({"kind": "Status", "status": "Success"})

    def _selects(self, request: web.Request) -> Callable[[dict[str, Any]], bool]:
        selector = request.query.get("labelSelector")
        if not selector:
            return lambda _: True
        key, _, value = selector.partition("=")
        return lambda obj: obj["metadata"].get("labels", {}).get(key) == value

    async def list(self, request: web.Request) -> web.Response:
        token = request.query.get("continue", "")
        limit = int(request.query.get("limit", "0"))
        if token and self.expire_continue:
            return error(410, "Expired", "The provided continue parameter is too old")
        selects = self._selects(request)
        if token:
            version, start = (int(part) for part in token.split("-"))
            items = self._snapshots[version]
        else:
            version, start = self.version, 0
            items = [obj for _, obj in sorted(self.objects.items()) if selects(obj)]
            self._snapshots[version] = items
        if self.page_hook is not None:
            await self.page_hook(start)
        end = start + limit if limit else len(items)
        meta: dict[str, Any] = {"resourceVersion": str(version)}
        if end < len(items):
            meta["continue"] = f"{version}-{end}"
        return web.json_response(
            {"kind": "WidgetList", "apiVersion": "tests.example/v1", "metadata": meta, "items": items[start:end]}
        )

    @property
    def _snapshots(self) -> dict[int, list[dict[str, Any]]]:
        return self.__dict__.setdefault("snapshots", {})

    def _due(self, since: int) -> Events:
        return [event for event in self.history if event[0] > since]

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])

        def due_or_gone() -> bool:
            return bool(self._due(since)) or request.transport is None

        if since < self.expired_before:
            return error(410, "Expired", f"too old resource version: {since}")
        selects = self._selects(request)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self.watches += 1
        while True:
            async with self.news:
                await self.news.wait_for(due_or_gone)
                if request.transport is None:
                    return response
                due = self._due(since)
            for version, kind, obj in due:
                since = version
                await self.hang.wait()
                if kind not in {"BOOKMARK", "ERROR"} and not selects(obj):
                    kind = "DELETED"
                line = json.dumps({"type": kind, "object": obj}, separators=(",", ":")).encode() + b"\n"
                if self.break_line_after is not None:
                    line, self.break_line_after = line[: self.break_line_after], None
                    await response.write(line)
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await response.write(line)
                if kind == "ERROR":
                    return response
