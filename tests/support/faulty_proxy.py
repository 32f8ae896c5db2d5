"""A stand-in for a bad network: an HTTP proxy between operator and real API server that causes faults on demand.

The operator speaks plain HTTP to it; it speaks TLS to the API server and passes the operator's token on. It notes
every request, reads included, which the audit log leaves out.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
from aiohttp import web
from yarl import URL

Kind = Literal["status", "hang", "cut", "lost", "torn", "event"]

_PATH = re.compile(
    r"^(?:/api/v1|/apis/(?P<group>[^/]+)/[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[^/?]+)(?:/(?P<name>[^/?]+))?(?:/(?P<sub>[^/?]+))?(?:\?|$)"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Asked:
    """A request as roles see it; resource is empty for what is no resource, such as /openapi."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    path: str


def asked(method: str, path: str) -> Asked:
    """What a request is about."""
    found = _PATH.match(path)
    if found is None:
        return Asked(method.lower(), "", "", "", "", path)
    part = {key: value or "" for key, value in found.groupdict().items()}
    resource = f"{part['resource']}/{part['sub']}" if part["sub"] else part["resource"]
    verb = _VERBS.get(method) or ("get" if part["name"] else "watch" if "watch=true" in path else "list")
    return Asked(verb, part["group"], resource, part["namespace"], part["name"], path)


@dataclass
class Fault:
    """What happens to requests with this verb and resource (regular expressions, matched whole), `times` in all, once
    `after` of them have passed.

    status: they are answered this without reaching the server. hang: no byte of an answer ever comes. cut: the
    connection breaks before the server hears of it. lost: the server does what is asked, then it breaks. torn: it
    breaks in the middle of the answer. event: a watch gets an ERROR event with this code, and its stream ends.
    """

    kind: Kind
    verb: str = ".*"
    resource: str = ".*"
    times: int = 1
    code: int = 500
    reason: str = "InternalError"
    retry_after: int | None = None
    after: int = 0
    and_then: Callable[[], None] = lambda: None
    """Called when the connection is about to break (cut, lost): in the proxy's thread, which it holds up."""
    hits: int = 0
    passed: int = 0

    def takes(self, request: Asked) -> bool:
        """Whether it strikes this request; one that it lets pass is counted."""
        if self.hits >= self.times:
            return False
        if not (re.fullmatch(self.verb, request.verb) and re.fullmatch(self.resource, request.resource)):
            return False
        if self.passed < self.after:
            self.passed += 1
            return False
        return True


class FaultyProxy:
    """The proxy, in a thread of its own. `url` is what to use as the server."""

    def __init__(self, server: str, ca: str) -> None:
        self._server = server
        self._tls = ssl.create_default_context(cadata=ca)
        self._faults: list[Fault] = []
        self._streams: dict[int, tuple[Asked, web.BaseRequest]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-proxy", daemon=True)
        self.requests: list[Asked] = []
        self.url = ""

    def start(self) -> None:
        self._thread.start()
        self._call(self._start())

    def stop(self) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def inject(self, fault: Fault) -> Fault:
        """From now on; the one injected first wins. `hits` tells how often it struck."""
        self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """No faults from now on; requests that hang are cut off."""
        self._faults.clear()
        self._loop.call_soon_threadsafe(self._thaw)

    def freeze(self) -> None:
        """Nobody gets another byte, and connections stay open: a firewall that forgot them."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def watched(self) -> set[str]:
        """The resources of which a watch has an answer, and would be cut by `cut_watches`."""
        return {what.resource for what, _ in tuple(self._streams.values()) if what.verb == "watch"}

    def cut_watches(self) -> None:
        """Breaks every stream that is open now; one that has no answer yet goes on."""
        self._call(self._cut())

    @property
    def writes(self) -> list[Asked]:
        """The requests that change something; Leases excluded."""
        return self.since(0, lambda request: request.verb in _VERBS.values() and request.resource != "leases")

    def since(self, count: int, keep: Callable[[Asked], bool] = lambda _: True) -> list[Asked]:
        """The requests after the first `count`."""
        return [request for request in self.requests[count:] if keep(request)]

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._released = asyncio.Event()
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        limits = aiohttp.ClientTimeout(total=None, sock_connect=5)
        self._session = aiohttp.ClientSession(connector=connector, timeout=limits, auto_decompress=False)
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        self._thaw()
        await self._cut()
        await self._runner.cleanup()
        await self._session.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _thaw(self) -> None:
        self._flowing.set()
        released, self._released = self._released, asyncio.Event()
        released.set()

    async def _cut(self) -> None:
        streams, self._streams = self._streams, {}
        for _, request in streams.values():
            _abort(request)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        what = asked(request.method, request.raw_path)
        self.requests.append(what)
        body = await request.read()
        await self._flowing.wait()
        fault = next((fault for fault in self._faults if fault.takes(what)), None)
        if fault is not None:
            fault.hits += 1
            if fault.kind == "status":
                return _answer(fault)
            if fault.kind == "event":
                return await _error_event(request, fault)
            if fault.kind == "hang":
                await self._released.wait()
                _abort(request)
            if fault.kind == "cut":
                fault.and_then()
                _abort(request)
                return web.Response(status=502)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in {"host", "content-length", "transfer-encoding", "connection"}
        }
        url = URL(self._server + request.raw_path, encoded=True)
        try:
            async with self._session.request(
                request.method, url, data=body or None, headers=headers, allow_redirects=False
            ) as answer:
                return await self._pass_on(what, request, answer, fault)
        except aiohttp.ClientError:  # the API server is gone, or broke the connection: so does the proxy
            _abort(request)
            return web.Response(status=502)

    async def _pass_on(
        self, what: Asked, request: web.BaseRequest, answer: aiohttp.ClientResponse, fault: Fault | None
    ) -> web.StreamResponse:
        if fault is not None and fault.kind == "lost":
            await answer.read()
            fault.and_then()
            _abort(request)
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}
        }
        response = web.StreamResponse(status=answer.status, headers=kept)
        if fault is not None and fault.kind == "torn":
            data = await answer.read()
            response.content_length = len(data)
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            _abort(request)
            return response
        try:
            await response.prepare(request)
            self._streams[id(request)] = what, request
            async for chunk in answer.content.iter_any():
                await self._flowing.wait()
                await response.write(chunk)
            await response.write_eof()
        except ConnectionError:
            pass  # the operator went away, or its connection was cut here
        finally:
            self._streams.pop(id(request), None)
        return response


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _status(fault: Fault) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": f"injected {fault.code}",
        "reason": fault.reason,
        "code": fault.code,
    }


def _answer(fault: Fault) -> web.Response:
    headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after is not None else {}
    text = json.dumps(_status(fault))
    return web.Response(status=fault.code, text=text, content_type="application/json", headers=headers)


async def _error_event(request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(json.dumps({"type": "ERROR", "object": _status(fault)}).encode() + b"\n")
    await response.write_eof()
    return response
