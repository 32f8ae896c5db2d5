"""A small asynchronous client of the Kubernetes API: bytes in, bytes out.

Objects are decoded by the caller into msgspec structs (`decode`), so that fields nobody reads are never built. One
aiohttp session with a bounded number of requests in flight; watches and leader election do not count against the bound.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec
from yarl import URL

from tokenservice import __version__
from tokenservice.api.names import OPERATOR
from tokenservice.kube.connection import ConfigError, Connection
from tokenservice.kube.errors import ApiError, Unreachable

T = TypeVar("T")
Body = bytes | Mapping[str, Any] | msgspec.Struct
Batch = list[bytes]

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"

_TRIES = 3
_MAX_RETRY_AFTER = (
    10.0  # seconds; a server that asks for more gets its answer back to the caller, who can wait without a slot
)
_TOKEN_SECONDS = 60.0

_encoder = msgspec.json.Encoder()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def decode(data: bytes | memoryview | msgspec.Raw, type_: type[T]) -> T:
    """Decodes an answer. Raises msgspec.ValidationError if it has another shape."""
    decoder = _decoders.get(type_)
    if decoder is None:
        decoder = _decoders[type_] = msgspec.json.Decoder(type_)
    result: T = decoder.decode(data)
    return result


@dataclass(frozen=True)
class Resource:
    """A kind of object in the API."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection (of all namespaces without `namespace`), of one object, or of its
        subresource.
        """
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if self.namespaced and namespace:
            parts.append(f"namespaces/{quote(namespace, safe='')}")
        elif self.namespaced and name:
            raise ValueError(f"{self.kind} {name!r} needs a namespace")
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


class _Call(NamedTuple):
    method: str
    path: str
    url: URL
    data: bytes | None
    content_type: str | None
    limits: aiohttp.ClientTimeout


class _ListMeta(msgspec.Struct):
    continue_: str = msgspec.field(name="continue", default="")


class _ListHead(msgspec.Struct):
    metadata: _ListMeta


class Client:
    """One session with an API server. Every method raises ApiError for an error answer and Unreachable for none.

    on_request is told method, host and status of every answer ("<error>" for none), for metrics.
    Times are seconds: connect_timeout for the connection, timeout for a whole request.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        field_manager: str = OPERATOR,
        max_in_flight: int = 64,
        connect_timeout: float = 5.0,
        timeout: float = 30.0,
        on_request: Callable[[str, str, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.connection = connection
        self.field_manager = field_manager
        self._base = connection.server.rstrip("/")
        self._host = urlsplit(self._base).netloc
        self._connect_timeout = connect_timeout
        self._limits = aiohttp.ClientTimeout(total=timeout, sock_connect=connect_timeout)
        self._slots = asyncio.Semaphore(max_in_flight)
        self._on_request = on_request
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._authorization: str | None = None
        self._authorized_at = float("-inf")
        self._authorizing = asyncio.Lock()
        self._apply_query = {"fieldManager": field_manager}

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the session; watches that still run end with Unreachable."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- one object

    async def get(self, resource: Resource, namespace: str | None, name: str) -> bytes:
        """Reads one object."""
        return await self.request("GET", resource.path(namespace, name))

    async def apply(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Body,
        *,
        force: bool = True,
        subresource: str | None = None,
    ) -> bytes:
        """Server-side apply under our field manager. Answers the object as it is now."""
        return await self.request(
            "PATCH",
            resource.path(namespace, name, subresource),
            query={**self._apply_query, "force": "true"} if force else self._apply_query,
            body=body,
            content_type=APPLY,
            idempotent=True,
        )

    async def patch_status(
        self, resource: Resource, namespace: str | None, name: str, body: Body, *, resource_version: str | None = None
    ) -> bytes:
        """Merge patch of /status; `body` is the whole patch, `{"status": {...}}`.

        With resource_version (`body` must then hold no metadata) the server refuses with a conflict if the object has
        moved on.
        """
        data = body if isinstance(body, bytes) else _encoder.encode(body)
        if resource_version is not None:
            precondition = b'{"metadata":' + _encoder.encode({"resourceVersion": resource_version})
            rest = data[1:]
            data = precondition + (b"," if rest.strip() != b"}" else b"") + rest
        return await self.patch(resource, namespace, name, data, content_type=MERGE, subresource="status")

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Body,
        *,
        content_type: str = MERGE,
        subresource: str | None = None,
    ) -> bytes:
        """A merge patch, or what `content_type` says."""
        return await self.request(
            "PATCH",
            resource.path(namespace, name, subresource),
            query=self._apply_query,
            body=body,
            content_type=content_type,
            idempotent=content_type in {MERGE, STRATEGIC, APPLY},
        )

    async def create(self, resource: Resource, namespace: str | None, body: Body) -> bytes:
        """Creates an object. Never sent twice: a lost answer surfaces as Unreachable."""
        return await self.request(
            "POST", resource.path(namespace), query=self._apply_query, body=body, idempotent=False
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str = "Background",
    ) -> bytes:
        """Deletes one object; with uid or resource_version only that very one (a conflict otherwise)."""
        preconditions = {key: value for key, value in (("uid", uid), ("resourceVersion", resource_version)) if value}
        body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if preconditions:
            body["preconditions"] = preconditions
        return await self.request("DELETE", resource.path(namespace, name), body=body)

    # -- many objects

    async def list_page(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        limit: int = 0,
        continue_token: str = "",
    ) -> bytes:
        """One page of a list; limit 0 means everything."""
        query = {"limit": str(limit)} if limit else {}
        if label_selector:
            query["labelSelector"] = label_selector
        if continue_token:
            query["continue"] = continue_token
        return await self.request("GET", resource.path(namespace), query=query)

    async def list(
        self, resource: Resource, *, namespace: str | None = None, label_selector: str | None = None, chunk: int = 500
    ) -> AsyncGenerator[bytes, None]:
        """The pages of a list. Raises ApiError with is_expired if it takes so long that the server forgets where it
        was.
        """
        token = ""
        while True:
            page = await self.list_page(
                resource, namespace=namespace, label_selector=label_selector, limit=chunk, continue_token=token
            )
            yield page
            token = decode(page, _ListHead).metadata.continue_
            if not token:
                return

    async def watch(
        self,
        resource: Resource,
        *,
        resource_version: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        seconds: int = 300,
        inactivity: float = 120.0,
    ) -> AsyncGenerator[Batch, None]:
        """Events from resource_version on, as batches of lines of JSON, until the server ends the stream after
        `seconds`.

        Raises Unreachable if the stream breaks, or stays silent for `inactivity` seconds: the server sends a bookmark
        every minute, so silence means that nobody is there. Lines may be of any length: they are cut here, since
        aiohttp's own readline refuses long ones.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        }
        if label_selector:
            query["labelSelector"] = label_selector
        path = resource.path(namespace)
        limits = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout, sock_read=inactivity)
        call = _Call("GET", path, self._url(path, query), None, None, limits)
        pending: list[bytes] = []
        try:
            async with await self._send(call) as answer:
                self._count("WATCH", str(answer.status))
                if answer.status != 200:
                    raise ApiError.from_answer(answer.status, await answer.read(), answer.headers.get("Retry-After"))
                async for chunk in answer.content.iter_any():
                    lines = chunk.split(b"\n")
                    if len(lines) == 1:
                        pending.append(chunk)
                        continue
                    lines[0] = b"".join([*pending, lines[0]])
                    last = lines.pop()
                    pending = [last] if last else []
                    yield [line for line in lines if line]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"watch of {resource.plural}: {_words(error)}") from error

    # -- anything

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
        idempotent: bool | None = None,
        seconds: float | None = None,
        queue: bool = True,
    ) -> bytes:
        """Sends a request and reads the answer.

        idempotent: whether it may be sent again after 429, 503 with Retry-After, or a broken connection; default by
        method. seconds: time limit of one try, instead of the client's. queue: False passes by the limit of requests in
        flight.
        """
        data = body if body is None or isinstance(body, bytes) else _encoder.encode(body)
        limits = self._limits if seconds is None else aiohttp.ClientTimeout(total=seconds, sock_connect=seconds)
        call = _Call(method, path, self._url(path, query), data, content_type if data is not None else None, limits)
        tries = _TRIES if (idempotent if idempotent is not None else method in {"GET", "PUT", "DELETE"}) else 1
        while True:
            tries -= 1
            wait = 0.0
            try:
                if not queue:
                    return await self._once(call)
                async with self._slots:
                    return await self._once(call)
            except ApiError as error:
                if tries <= 0 or error.retry_after is None or error.status not in {429, 503}:
                    raise
                wait = error.retry_after
                if wait > _MAX_RETRY_AFTER:
                    raise
            except _Broken:
                if tries <= 0:
                    raise
            await asyncio.sleep(wait)

    async def _once(self, call: _Call) -> bytes:
        try:
            async with await self._send(call) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._count(call.method, "<error>")
            broke = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionResetError)
            kind = _Broken if broke and not isinstance(error, aiohttp.ClientConnectorError) else Unreachable
            raise kind(f"{call.method} {call.path}: {_words(error)}") from error
        self._count(call.method, str(answer.status))
        if answer.status >= 300:
            raise ApiError.from_answer(answer.status, body, answer.headers.get("Retry-After"))
        return body

    async def _send(self, call: _Call) -> aiohttp.ClientResponse:
        session = self._open()
        retried = False
        while True:
            header, fresh = await self._authorize()
            headers = {} if call.content_type is None else {"Content-Type": call.content_type}
            if header is not None:
                headers["Authorization"] = header
            answer = await session.request(
                call.method,
                call.url,
                data=call.data,
                headers=headers,
                timeout=call.limits,
                allow_redirects=False,
                proxy=self.connection.proxy,
                server_hostname=self.connection.server_name,
            )
            if answer.status != 401 or fresh or retried or not self.connection.rotates:
                return answer
            retried = True
            # The token may just have been replaced. A refused request was not carried out: any method may go again.
            await answer.read()
            self._authorized_at = float("-inf")

    def _url(self, path: str, query: Mapping[str, str] | None) -> URL:
        return URL(f"{self._base}{path}?{urlencode(query)}" if query else self._base + path, encoded=True)

    async def _authorize(self) -> tuple[str | None, bool]:
        """The Authorization header, and whether it was read just now."""
        if self._clock() - self._authorized_at < _TOKEN_SECONDS:
            return self._authorization, False
        async with self._authorizing:
            if self._clock() - self._authorized_at < _TOKEN_SECONDS:
                return self._authorization, False
            try:
                self._authorization = await asyncio.to_thread(self.connection.authorization)
            except ConfigError as error:  # a token file can be missing for a moment while it is replaced
                raise Unreachable(f"no credentials: {error}") from error
            self._authorized_at = self._clock() if self.connection.rotates else float("inf")
        return self._authorization, True

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            tls = self.connection.ssl_context() if self._base.startswith("https:") else True
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=tls, keepalive_timeout=60),
                # Compressing costs both sides more CPU than the network of a cluster costs time.
                headers={
                    "User-Agent": f"{OPERATOR}/{__version__}",
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                },
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=2**20,
            )
        return self._session

    def _count(self, method: str, code: str) -> None:
        if self._on_request is not None:
            self._on_request(method, self._host, code)


class _Broken(Unreachable):
    """The connection broke while the request was under way: it may or may not have been carried out."""


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
