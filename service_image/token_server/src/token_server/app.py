"""The HTTP layer: Starlette's routes, and around them one gate for keys, logs, metrics and draining."""

from __future__ import annotations

import asyncio
import time
import traceback
import uuid
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, Callable, Optional

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from token_server import __version__
from token_server.auth import ApiKeys
from token_server.engine import Engine, Message, PromptError
from token_server.errors import (
    ApiError,
    bad_value,
    internal,
    loading,
    stopping,
    too_many_characters,
    unknown_model,
    wrong_key,
)
from token_server.generation import End, Event, Generator, Piece, Turn
from token_server.lifecycle import Lifecycle, Phase
from token_server.limiter import Limiter
from token_server.log import log
from token_server.metrics import Metrics, route_label
from token_server.openai_api import Answer, Request, model_card, parse_chat, parse_completion, token_budget
from token_server.settings import Settings
from token_server.streaming import ClientGoneError, EventStream, Receive, Scope, Send, frame, read_json, while_connected
from token_server.verify import SingleFlight, verification

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
LOST = (
    *("device-side assert triggered", "an illegal memory access was encountered", "unspecified launch failure"),
    *("misaligned address", "an illegal instruction was encountered", "invalid program counter"),
    *("hardware stack error", "uncorrectable ECC error encountered"),
)
TELL_SECONDS = 0.5  # for the answers that say that something failed, before the process ends
MOST_CHARACTERS = 256  # of a token; the longest of known vocabularies are runs of 128 blanks
CLIENT_GONE = 499  # nginx's number for it; nobody reads it but the log
# A kubelet asks again a second after it asked: without the wait a pod would be Ready half a second late, on average.
# Less than a probe's default timeout of a second.
READYZ_WAIT_SECONDS = 0.9


class Service:
    """What the routes need; the engine comes when it is loaded."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self.settings = settings
        self.lifecycle = lifecycle
        self.metrics = metrics
        self.keys = ApiKeys(settings.api_keys_dir) if settings.api_keys_dir else None
        self.created = int(time.time())
        self.on_lost: Callable[[str], None] = lambda _: None
        """Is told, in words, that no request can be answered any more."""
        self._worked = False
        self._limiter = Limiter(settings.max_concurrency, settings.max_queue)
        self._loaded: Optional[tuple[Engine, Generator]] = None
        self._start: dict[str, Any] = {}
        self._verified = SingleFlight(self._one_token)
        metrics.watch_queue(lambda: self._limiter.waiting, lambda: self._limiter.running)
        metrics.ready.set_function(lambda: float(lifecycle.readiness()[0] == 200))

    def serve(
        self, engine: Engine, settings: Optional[Settings] = None, start: Optional[dict[str, Any]] = None
    ) -> bool:
        """From now on requests are answered; False if the server is ending already.

        `settings` are those of a model that came later than the server; `start` is what /readyz tells of the start.
        """
        if start is not None:
            self._start = {"start": start}
        if settings is not None:
            self.settings = settings
            self._limiter = Limiter(settings.max_concurrency, settings.max_queue)
        self._loaded = (engine, Generator(engine, self._limiter, self.metrics, self.settings.max_concurrency))
        return self.lifecycle.serve()

    async def readiness(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /readyz; while the model serves with what the start cost, which is settled by then.

        While the server loads the answer waits, so that it comes when it changes.
        """
        await self.lifecycle.loaded(READYZ_WAIT_SECONDS)
        status, body = self.lifecycle.readiness()
        return status, {**body, **self._start} if body.get("status") == "ready" else body

    def abort(self) -> None:
        """The grace period is over: every answer under way ends with an error."""
        if self._loaded:
            self._loaded[1].abort()

    def loaded(self) -> tuple[Engine, Generator]:
        """Raises ApiError (503) while the model loads."""
        if self._loaded is None:
            raise loading()
        return self._loaded

    async def answer(self, http: HttpRequest, parse: Callable[[Any], Request]) -> Any:
        """The answer to a POST: JSON, or a stream of events. Raises ApiError and ClientGoneError."""
        context = http.scope["token_server"]
        body = await read_json(http.receive)
        _, generator = self.loaded()
        request = parse(body)
        context["stream"] = request.stream
        if request.model != self.settings.model_name:
            raise unknown_model(request.model, self.settings.model_name)
        turn = generator.admit()
        streaming = False
        try:
            events = await self._begin(turn, request, context, encode)
            if request.stream:
                streaming = True
                return EventStream(self._frames(request, events, context), lambda: generator.withdraw(turn))
            return JSONResponse(await while_connected(http.receive, self._whole(request, events, context)))
        finally:
            if not streaming:
                generator.withdraw(turn)

    async def verify(self, http: HttpRequest) -> Response:
        """The answer to /verifyz. Raises ApiError and ClientGoneError."""
        if self.lifecycle.phase is Phase.DRAINING:
            raise stopping()
        # A context of its own: the generation may outlast the request that began it.
        context = {name: http.scope["token_server"][name] for name in ("id", "arrived")}
        return JSONResponse(await while_connected(http.receive, self._verified.result(context)))

    async def _one_token(self, context: dict[str, Any]) -> dict[str, Any]:
        """What a completion does, for a request of the server's own. Raises ApiError, and what `_begin` raises."""
        began = time.perf_counter()
        _, generator = self.loaded()
        request = verification(self.settings.model_name)
        turn = generator.admit()
        try:
            events = await self._begin(turn, request, context, encode_any)
            answer = await self._whole(request, events, context)
        finally:
            generator.withdraw(turn)
        tokens = answer["usage"]["completion_tokens"]
        if not tokens:
            log("generation failed", level="error", request_id=context["id"], error="no token came")
            raise internal()
        seconds = round(time.perf_counter() - began, 4)
        return {"status": "ok", "model": self.settings.model_name, "tokens": tokens, "seconds": seconds}

    async def _begin(
        self,
        turn: Turn,
        request: Request,
        context: dict[str, Any],
        encoding: Callable[[Engine, Request], list[int]],
    ) -> AsyncGenerator[Event, None]:
        """The events of a request that is in line. Raises ApiError (400), and what the tokenizer raises."""
        engine, generator = self.loaded()
        prompt = await asyncio.get_running_loop().run_in_executor(None, encoding, engine, request)
        budget = token_budget(request, len(prompt), engine.context_length, engine.default_max_tokens)
        context.update(prompt_tokens=len(prompt), max_tokens=budget)
        source = generator.run(
            turn, prompt, request.sampling(budget), request.stop, context["arrived"], goes_on=not request.chat
        )
        return self._events(source, context)

    async def _events(
        self, source: AsyncGenerator[Event, None], context: dict[str, Any]
    ) -> AsyncGenerator[Event, None]:
        """The generation's events; what the engine raises is logged and becomes an ApiError (500)."""
        try:
            async for event in source:
                if isinstance(event, End):
                    context.update(completion_tokens=event.completion_tokens, finish_reason=event.reason)
                    self._worked = True
                yield event
        except ApiError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the engine raises, the client gets an answer
            log("generation failed", level="error", request_id=context["id"], error=describe(error))
            # One that never worked would not the next time, either; /verifyz is to say so.
            if self._worked and lost_device(error):
                said = f"the GPU is lost to this process: {describe(error)}"
                asyncio.get_running_loop().call_later(TELL_SECONDS, self.on_lost, said)
            raise internal() from None
        finally:
            await source.aclose()

    def _answer(self, request: Request, context: dict[str, Any]) -> Answer:
        prefix = "chatcmpl" if request.chat else "cmpl"
        identity = f"{prefix}-{context['id']}"
        return Answer(request.chat, identity, int(time.time()), request.model, f"token-server-{__version__}")

    async def _whole(
        self, request: Request, events: AsyncGenerator[Event, None], context: dict[str, Any]
    ) -> dict[str, Any]:
        answer, text, end = self._answer(request, context), [], None
        try:
            async for event in events:
                if isinstance(event, Piece):
                    text.append(event.text)
                else:
                    end = event
        finally:
            await events.aclose()
        if end is None:
            raise internal()
        return answer.whole("".join(text), end.reason, context["prompt_tokens"], end.completion_tokens)

    async def _frames(
        self, request: Request, events: AsyncGenerator[Event, None], context: dict[str, Any]
    ) -> AsyncGenerator[bytes, None]:
        answer, with_usage = self._answer(request, context), request.include_usage
        try:
            first = answer.first(with_usage=with_usage)
            if first is not None:
                yield frame(first)
            async for event in events:
                if isinstance(event, Piece):
                    yield frame(answer.piece(event.text, with_usage=with_usage))
                else:
                    yield frame(answer.end(event.reason, with_usage=with_usage))
                    if with_usage:
                        yield frame(answer.usage(context["prompt_tokens"], event.completion_tokens))
        finally:
            await events.aclose()


def encode(engine: Engine, request: Request) -> list[int]:
    """The prompt's tokens. Raises ApiError (400) for token ids or messages that the model does not know."""
    prompt = request.prompt
    if isinstance(prompt, str):
        _check_length(engine, request, len(prompt))
        tokens = engine.encode(prompt)
    elif request.chat:
        turns = [part for part in prompt if isinstance(part, Message)]
        _check_length(engine, request, sum(len(turn.content) for turn in turns))
        try:
            tokens = engine.encode_chat(turns)
        except PromptError as error:
            raise bad_value("messages", str(error)) from None
    else:
        tokens = [part for part in prompt if isinstance(part, int)]
    # A tokenizer may know tokens that the model has no place for; on a GPU such a one would break all that follows.
    unknown = [token for token in tokens if token >= engine.vocabulary_size]
    if unknown:
        said = f"token {unknown[0]} is outside the vocabulary of {engine.vocabulary_size}."
        raise bad_value(request.prompt_field, said)
    if not tokens:
        raise bad_value(request.prompt_field, "it has no tokens.")
    return tokens


def _check_length(engine: Engine, request: Request, characters: int) -> None:
    """Refuses what cannot fit before it is tokenized, which takes seconds for megabytes. Raises ApiError (400)."""
    if characters > engine.context_length * MOST_CHARACTERS:
        raise too_many_characters(request.prompt_field, engine.context_length, characters)


def encode_any(engine: Engine, request: Request) -> list[int]:
    """The same where any prompt will do: the first token stands in for text that a tokenizer has no tokens for."""
    try:
        return encode(engine, request)
    except ApiError:
        return [0]


def describe(error: BaseException) -> str:
    """Type and place of an error, without its text, which may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(
        f"{place.filename.rsplit('/', 1)[-1]}:{place.lineno} {place.name}" for place in reversed(frames)
    )
    return f"{type(error).__name__} at {places}"


def lost_device(error: BaseException) -> bool:
    """Whether it is one of the errors of CUDA that every later call of the process gets, too.

    (CUDA Runtime API, cudaError: those after which "the process must be terminated and relaunched".)
    """
    return isinstance(error, RuntimeError) and any(text in str(error) for text in LOST)


def make_app(service: Service) -> Callable[[Scope, Receive, Send], Any]:
    """The ASGI application."""

    async def healthz(_: HttpRequest) -> JSONResponse:
        return JSONResponse({"status": "ok", "phase": service.lifecycle.phase.value})

    async def readyz(_: HttpRequest) -> JSONResponse:
        status, body = await service.readiness()
        return JSONResponse(body, status)

    async def metrics(_: HttpRequest) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(_: HttpRequest) -> JSONResponse:
        service.loaded()
        return JSONResponse({"object": "list", "data": [model_card(service.settings.model_name, service.created)]})

    async def model(http: HttpRequest) -> JSONResponse:
        service.loaded()
        name = http.path_params["name"]
        if name != service.settings.model_name:
            raise unknown_model(name, service.settings.model_name)
        return JSONResponse(model_card(name, service.created))

    async def chat_completions(http: HttpRequest) -> Any:
        return await service.answer(http, parse_chat)

    async def completions(http: HttpRequest) -> Any:
        return await service.answer(http, parse_completion)

    return Gate(
        Starlette(
            routes=[
                Route("/healthz", healthz),
                Route("/readyz", readyz),
                Route("/verifyz", service.verify),
                Route("/metrics", metrics),
                Route("/v1/models", models),
                Route("/v1/models/{name:path}", model),
                Route("/v1/chat/completions", chat_completions, methods=["POST"]),
                Route("/v1/completions", completions, methods=["POST"]),
            ],
            exception_handlers={
                ApiError: refused,
                HTTPException: not_a_route,
                ClientGoneError: gone,
                Exception: failed,
            },
        ),
        service,
    )


async def refused(_: HttpRequest, error: Any) -> JSONResponse:
    """The answer that the error asks for."""
    return JSONResponse(error.body(), error.status, error.headers())


async def not_a_route(http: HttpRequest, error: Any) -> JSONResponse:
    """A path or a method that is none of ours, in OpenAI's form."""
    text = f"{error.detail}: {http.method} {http.url.path}"
    code = "not_found" if error.status_code == 404 else "bad_request"
    return JSONResponse(ApiError(error.status_code, text, code=code).body(), error.status_code)


async def gone(http: HttpRequest, _: Exception) -> Response:
    """For the log: nobody reads it."""
    http.scope["token_server"]["client_gone"] = True
    return Response(status_code=CLIENT_GONE)


async def failed(_: HttpRequest, __: Exception) -> JSONResponse:
    """What nobody foresaw."""
    return JSONResponse(internal().body(), 500)


class Gate:
    """ASGI middleware: keys for /v1, one log line and one count per request, connections closed while draining.

    Written against ASGI itself: middleware that wraps responses would hide a client's going away.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Any], service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context: dict[str, Any] = {"id": uuid.uuid4().hex, "arrived": time.perf_counter(), "status": 0}
        scope["token_server"] = context

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                context["status"] = message["status"]
                extra = [(b"x-request-id", context["id"].encode())]
                if self._service.lifecycle.phase is Phase.DRAINING:
                    extra.append((b"connection", b"close"))  # the client's next request finds another pod
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        try:
            if self._allowed(scope):
                await self._app(scope, receive, sending)
            else:
                error = wrong_key()
                await JSONResponse(error.body(), error.status, error.headers())(scope, receive, sending)
        except Exception as error:  # noqa: BLE001 - answered by now, and told in the log without the request's text
            log("request failed", level="error", request_id=context["id"], error=describe(error))
        finally:
            with suppress(OSError, ValueError):  # a closed standard output must not end requests
                self._record(scope, context)

    def _allowed(self, scope: Scope) -> bool:
        keys = self._service.keys
        if keys is None or not (scope["path"] + "/").startswith("/v1/"):
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and keys.accepts(given[0].decode("utf-8", "surrogateescape"))

    def _record(self, scope: Scope, context: dict[str, Any]) -> None:
        path = scope["path"]
        if path in PROBES:
            return
        seconds = time.perf_counter() - context.pop("arrived")
        gone = context.get("client_gone", False)
        status = CLIENT_GONE if gone else context["status"]
        route = route_label(path)
        self._service.metrics.requests.labels(route, str(status)).inc()
        self._service.metrics.duration.labels(route).observe(seconds)
        context["status"] = status
        request_id = context.pop("id")
        # The route, not the path: what follows it is the caller's text.
        log(
            "request",
            request_id=request_id,
            method=scope["method"],
            route=route,
            duration_s=round(seconds, 4),
            **context,
        )
