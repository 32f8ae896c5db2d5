#!/usr/bin/env python3
"""A STAND-IN for token_server, for end-to-end cases that need no model: canned tokens, standard library alone.

It keeps token_server's contract (operator/tokenservice/protocol): the same port, paths, TOKEN_SERVER_* variables, API
keys, exit code, termination message and SIGTERM behaviour, a warm server's assignment included. It never loads a model;
what it answers are the words "token1 token2 ...". Faults that a test wants come as arguments, that is through
`spec.engine.args`, or as the last folder of the model's source; `--help` lists them. docs/token-server.md tells of the
real server. One file, since tests put it into ConfigMaps and environments by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

MIB = 1024 * 1024
DEFAULT_TOKENS = 16  # of an answer whose request names no max_tokens
TERMINATION_LOG = Path("/dev/termination-log")
ASSIGNMENTS = "/var/run/tokenservice/assignment"
MOST_BYTES = 64 * 1024  # of an assignment
SETTLED = ("port", "api_keys_dir", "grace", "drain_delay", "assign_port", "assign_token_sha256", "assignment_file")
MODEL_KEYS = {"source": str, "revision": str, "name": str, "trustRemoteCode": bool}
BROKEN, SLOW = "broken", "slow"  # last folders of sources that do not load, or take their time
SLOW_SECONDS = 5.0
TELL_SECONDS = 0.5  # for the answer to an assignment that failed, before the process ends
STARTED = time.monotonic()  # and the interpreter a little earlier


@dataclass(frozen=True)
class Options:
    """What the operator says in variables (first half) and a test in arguments (second half); times in seconds."""

    argv: tuple[str, ...]
    port: int
    source: str
    model: str
    api_keys_dir: str
    warm: bool
    assign_port: int
    assign_token_sha256: str
    assignment_file: Path
    grace: float
    drain_delay: float
    fail_after: float | None
    fail_message: str
    ready_after: float
    never_ready: bool
    allocate_mib: int
    token_interval: float
    version_text: str
    crash_on_start: bool
    require_hf_token: bool
    verify_status: int
    exit_when_ready: float | None


@dataclass
class State:
    """What the threads share: `phase` is as in token_server, or closed; `options` become those of the assignment."""

    options: Options
    phase: str = "loading"
    served: bool = False  # ever
    taken: dict[str, Any] | None = None  # the assignment
    failure: str = ""  # to load it
    stages: dict[str, float] = field(default_factory=dict)
    assigned: bool = False  # the model came by an assignment in this life of the process
    in_flight: int = 0
    requests: int = 0
    tokens: int = 0
    held: list[bytearray] = field(default_factory=list)  # the memory that --allocate-mib asked for
    changed: threading.Condition = field(default_factory=threading.Condition)

    def enter(self, phase: str, *sources: str) -> None:
        """From one of `sources` only, if any are named: a pod that drains already must not turn ready again."""
        with self.changed:
            if not sources or self.phase in sources:
                self.phase = phase
                self.served = self.served or phase == "serving"
                self.changed.notify_all()

    def took(self, stage: str, seconds: float) -> None:
        self.stages[stage] = round(seconds, 3)

    def count(self, *, in_flight: int = 0, requests: int = 0, tokens: int = 0) -> None:
        with self.changed:
            self.in_flight += in_flight
            self.requests += requests
            self.tokens += tokens
            self.changed.notify_all()


class Parser(argparse.ArgumentParser):
    """Tells of a mistake where argparse would end the process: an assignment's mistake costs no pod."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(argv: list[str], environ: dict[str, str], *, with_help: bool = True) -> Options:
    """Reads variables and arguments. Raises ValueError for an argument that is none."""
    parser = Parser(
        prog="token-server (stand-in)", description=__doc__.splitlines()[0], add_help=with_help, allow_abbrev=False
    )
    parser.add_argument("--fail-after", type=float, metavar="SECONDS", help="exit 1 with --fail-message after so long")
    parser.add_argument("--fail-message", default="the stand-in fails, as asked", metavar="TEXT")
    parser.add_argument("--ready-after", type=float, default=0.0, metavar="SECONDS", help="how long 'loading' takes")
    parser.add_argument("--never-ready", action="store_true", help="/readyz stays 503")
    parser.add_argument("--allocate-mib", type=int, default=0, metavar="N", help="touches N MiB while loading")
    parser.add_argument("--token-interval", type=float, default=0.0, metavar="SECONDS", help="pause before every token")
    parser.add_argument(
        "--version-text", default="stand-in", metavar="X", help="in every answer: system_fingerprint, X-Version-Text"
    )
    parser.add_argument("--crash-on-start", action="store_true", help="exit 1 with --fail-message before listening")
    parser.add_argument("--require-hf-token", action="store_true", help="exit 1 unless HF_TOKEN is given")
    parser.add_argument(
        "--verify-status", type=int, default=200, metavar="CODE", help="/verifyz and completions answer with this error"
    )
    parser.add_argument(
        "--exit-when-ready", type=float, metavar="SECONDS", help="exit 1 with --fail-message so long after ready"
    )
    given = parser.parse_args(argv)
    source = environ.get("TOKEN_SERVER_MODEL_SOURCE", "")
    warm = environ.get("TOKEN_SERVER_WARM", "").lower() in {"true", "1", "yes"}
    sha256 = environ.get("TOKEN_SERVER_ASSIGN_TOKEN_SHA256", "")
    if warm and source:
        raise ValueError("TOKEN_SERVER_WARM (or --warm): a warm server is given its model later; name none")
    if warm and not sha256:
        raise ValueError("no TOKEN_SERVER_ASSIGN_TOKEN_SHA256: a warm server must know whom to believe")
    return Options(
        argv=tuple(argv),
        port=int(environ.get("TOKEN_SERVER_PORT", "8000")),
        source=source,
        model=environ.get("TOKEN_SERVER_MODEL_NAME") or default_name(source),
        api_keys_dir=environ.get("TOKEN_SERVER_API_KEYS_DIR", ""),
        warm=warm,
        assign_port=int(environ.get("TOKEN_SERVER_ASSIGN_PORT") or "8001"),
        assign_token_sha256=sha256,
        assignment_file=Path(environ.get("TOKEN_SERVER_ASSIGNMENT_FILE") or f"{ASSIGNMENTS}/assignment.json"),
        grace=float(environ.get("TOKEN_SERVER_GRACE_SECONDS", "90")),
        drain_delay=float(environ.get("TOKEN_SERVER_DRAIN_DELAY_SECONDS", "5")),
        **vars(given),
    )


def default_name(source: str) -> str:
    """`org/name` of hf://org/name, the last folder of file:///path, as token_server has it."""
    scheme, _, path = source.rstrip("/").partition("://")
    return (path if scheme == "hf" else path.rsplit("/", 1)[-1]) or "stand-in"


def last_folder(source: str) -> str:
    return source.rstrip("/").rsplit("/", 1)[-1]


def load_error(options: Options, environ: dict[str, str]) -> str | None:
    """The line token_server would end with for this source, or None: only existence and token are checked."""
    scheme, _, path = options.source.partition("://")
    if not options.source:
        return "no model: set TOKEN_SERVER_MODEL_SOURCE (or --model-source) to hf://org/name or file:///path"
    if scheme not in {"hf", "file"}:
        return f"TOKEN_SERVER_MODEL_SOURCE: {options.source!r} is neither hf://org/name nor file:///path"
    if scheme == "file" and not Path(path).exists():
        return f"cannot load model {options.source}: not found: there is no folder {path} in this container"
    if options.require_hf_token and not environ.get("HF_TOKEN"):
        cause = "not authorised: the repository is gated; give a token in model.authSecretRef"
        return f"cannot load model {options.source}: {cause}"
    if last_folder(options.source) == BROKEN:
        cause = "a weights file is damaged or does not fit its configuration: the source asks the stand-in for it"
        return f"cannot load model {options.source}: {cause}"
    return None


class RefusedError(Exception):
    """An answer that is an error in OpenAI's form."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def understood(document: Any) -> dict[str, Any]:
    """The assignment, whole; two that are equal are the same one. Raises RefusedError (400), which names the field."""
    if not isinstance(document, dict):
        raise RefusedError(400, "invalid_type", "The body must be a JSON object.")
    found = {"args": [], **document}
    service, model, args = found.get("service"), found.get("model"), found["args"]
    given = model if isinstance(model, dict) else {}
    unknown = [key for key in found if key not in ("service", "model", "args")]
    unknown += [f"model.{key}" for key in given if key not in MODEL_KEYS]
    if unknown:
        raise RefusedError(400, "unknown_parameter", f"Unknown field '{unknown[0]}'.", unknown[0])
    fits = {
        "service": isinstance(service, str) and service,
        "model": isinstance(model, dict),
        **{f"model.{key}": isinstance(value, MODEL_KEYS[key]) for key, value in given.items()},
        "args": isinstance(args, list) and all(isinstance(each, str) for each in args),
    }
    if not given.get("source"):
        fits["model.source"] = False
    for name, fit in fits.items():
        if not fit:
            raise RefusedError(400, "invalid_type", f"Invalid type for '{name}'.", name)
    return found


def assigned(base: Options, document: dict[str, Any]) -> Options:
    """The options of a warm server with this assignment. Raises RefusedError (400) for what cannot be used."""
    source = document["model"]["source"].rstrip("/")
    if not source.startswith(("hf://", "file:///")):
        text = f"Invalid value for 'model.source': it: {source!r} is neither hf://org/name nor file:///path"
        raise RefusedError(400, "invalid_value", text, "model.source")
    try:
        options = parse([*base.argv, *document["args"]], {}, with_help=False)
    except ValueError as error:
        raise RefusedError(400, "invalid_value", f"Invalid value for 'args': {error}.", "args") from None
    kept = {name: getattr(base, name) for name in SETTLED}
    name = document["model"].get("name") or default_name(source)
    return dataclasses.replace(options, **kept, source=source, model=name, warm=False)


def stored(options: Options) -> dict[str, Any] | None:
    """What an earlier start of this container was given. Ends the process if that cannot be known."""
    try:
        found = understood(json.loads(options.assignment_file.read_text()))
        assigned(options, found)
    except FileNotFoundError:
        return None
    except RefusedError as error:
        die(f"{options.assignment_file}: {error} Delete the pod")
    except (OSError, ValueError) as error:
        die(f"{options.assignment_file}: {type(error).__name__}: the assignment cannot be read; delete the pod")
    return found


def die(message: str, code: int = 1) -> NoReturn:
    """Ends the process as token_server does: one line on stderr and in the termination log."""
    line = " ".join(message.split())
    with contextlib.suppress(OSError), TERMINATION_LOG.open("r+") as termination:  # makes no file outside a pod
        termination.write(line + "\n")
        termination.truncate()
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
    os._exit(code)


def accepted_keys(folder: str) -> list[str]:
    """Every visible file's content in the mounted Secret; read at each request, so a changed Secret counts at once."""
    keys = []
    with contextlib.suppress(OSError):
        for file in sorted(Path(folder).iterdir()):
            if not file.name.startswith(".") and file.is_file():
                keys.append(file.read_text().strip())
    return [key for key in keys if key]


class Answers(BaseHTTPRequestHandler):
    """What both ports have in common."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: State

    @property
    def options(self) -> Options:
        return self.state.options

    def refuse(self, status: int, kind: str, code: str, message: str) -> None:
        self.answer(status, {"error": {"message": message, "type": kind, "param": None, "code": code}})

    def answer(self, status: int, body: dict[str, Any] | str) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        kind = "text/plain; version=0.0.4" if isinstance(body, str) else "application/json"
        extra = {"Content-Length": str(len(data))}
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            extra["Retry-After"] = "1"
        if status == HTTPStatus.UNAUTHORIZED:
            extra["WWW-Authenticate"] = "Bearer"
        self.start(status, kind, extra)
        self.wfile.write(data)

    def start(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("X-Version-Text", self.options.version_text)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.state.phase in {"draining", "closed"}:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Logs requests but not the probes, which come every second."""
        path = getattr(self, "path", "").split("?", 1)[0]
        if path in {"/healthz", "/readyz", "/metrics"}:
            return
        record = {"message": "request", "path": path, "status": str(args[1]) if len(args) > 1 else ""}
        sys.stderr.write(json.dumps(record) + "\n")


class Handler(Answers):
    def do_GET(self) -> None:
        phase = self.state.phase
        path = self.path.split("?", 1)[0].rstrip("/")
        if path == "/healthz":
            self.answer(200, {"status": "ok", "phase": phase})
        elif path == "/readyz":
            self.answer(*self.readiness(phase))
        elif path == "/verifyz":
            self.verify(phase)
        elif path == "/metrics":
            counters = {"requests": self.state.requests, "generated_tokens": self.state.tokens}
            self.answer(200, "".join(f"token_server_{name}_total {value}\n" for name, value in counters.items()))
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            card = {"id": self.options.model, "object": "model", "created": 0, "owned_by": "token-server-stand-in"}
            if not self.may_serve():
                return
            if path == "/v1/models":
                self.answer(200, {"object": "list", "data": [card]})
            elif path == f"/v1/models/{self.options.model}":
                self.answer(200, card)
            else:
                self.no_such_model(path.removeprefix("/v1/models/"))
        else:
            self.refuse(404, "invalid_request_error", "not_found", f"no such path: {path}")

    def do_POST(self) -> None:
        self.state.count(in_flight=1, requests=1)
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?", 1)[0].rstrip("/")
            if path not in {"/v1/completions", "/v1/chat/completions"}:
                self.refuse(404, "invalid_request_error", "not_found", f"no such path: {path}")
                return
            if not self.may_serve():
                return
            try:
                request = json.loads(body)
            except ValueError:
                self.refuse(400, "invalid_request_error", "invalid_json", "the body is not JSON")
                return
            if request.get("model") != self.options.model:
                self.no_such_model(str(request.get("model")))
                return
            if self.options.verify_status != HTTPStatus.OK:
                self.fail()
                return
            self.generate(request, chat=path == "/v1/chat/completions")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.state.count(in_flight=-1)

    def readiness(self, phase: str) -> tuple[int, dict[str, Any]]:
        if phase == "serving":
            start = {"stages": self.state.stages, "warm": self.state.assigned}
            return 200, {"status": "ready", "start": start}
        return (200, {"status": phase}) if phase in {"warm", "assigned"} else (503, {"reason": phase})

    def may_serve(self) -> bool:
        """Answers 401 or 503 and returns False where token_server would."""
        if self.options.api_keys_dir:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip().encode()
            matches = [hmac.compare_digest(given, key.encode()) for key in accepted_keys(self.options.api_keys_dir)]
            if not any(matches):
                self.refuse(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided.")
                return False
        if not self.state.served:
            self.refuse(503, "server_error", "model_loading", "the model is still loading")
            return False
        return True

    def verify(self, phase: str) -> None:
        """One token, as token_server makes for itself; no key is asked for."""
        if phase != "serving":
            code = "server_stopping" if phase in {"draining", "closed"} else "model_loading"
            self.refuse(503, "server_error", code, f"the stand-in is {phase}")
        elif self.options.verify_status != HTTPStatus.OK:
            self.fail()
        else:
            began = time.monotonic()
            tokens = len(list(self.tokens(1)))
            seconds = round(time.monotonic() - began, 4)
            self.answer(200, {"status": "ok", "model": self.options.model, "tokens": tokens, "seconds": seconds})

    def fail(self) -> None:
        """What --verify-status asks for: ready, and yet no request is answered."""
        self.refuse(self.options.verify_status, "server_error", "internal_error", self.options.fail_message)

    def generate(self, request: dict[str, Any], *, chat: bool) -> None:
        asked = request.get("max_completion_tokens") or request.get("max_tokens")
        count = int(asked) if asked else DEFAULT_TOKENS
        common = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{time.monotonic_ns():x}",
            "created": int(time.time()),
            "model": self.options.model,
            "system_fingerprint": self.options.version_text,
        }
        prompt = json.dumps(request.get("messages")) if chat else str(request.get("prompt"))
        read = len(prompt.split())
        usage = {"prompt_tokens": read, "completion_tokens": count, "total_tokens": read + count}
        reason = "length" if asked else "stop"
        if not request.get("stream"):
            words = " ".join(self.tokens(count))
            part = {"message": {"role": "assistant", "content": words}} if chat else {"text": words}
            choice = {"index": 0, **part, "logprobs": None, "finish_reason": reason}
            kind = "chat.completion" if chat else "text_completion"
            self.answer(200, {**common, "object": kind, "choices": [choice], "usage": usage})
            return
        kind = "chat.completion.chunk" if chat else "text_completion"
        self.start(200, "text/event-stream", {"Transfer-Encoding": "chunked", "Cache-Control": "no-cache"})
        common["object"] = kind
        if chat:
            self.event({**common, "choices": [_choice({"delta": {"role": "assistant", "content": ""}})]})
        for index, word in enumerate(self.tokens(count)):
            text = word if index == 0 else " " + word
            self.event({**common, "choices": [_choice({"delta": {"content": text}} if chat else {"text": text})]})
        self.event({**common, "choices": [_choice({"delta": {}} if chat else {"text": ""}, reason)]})
        if (request.get("stream_options") or {}).get("include_usage"):
            self.event({**common, "choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def tokens(self, count: int) -> Iterator[str]:
        for index in range(1, count + 1):
            if self.options.token_interval:
                time.sleep(self.options.token_interval)
            self.state.count(tokens=1)
            yield f"token{index}"

    def event(self, data: dict[str, Any]) -> None:
        self.chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def no_such_model(self, name: str) -> None:
        text = f"The model `{name}` does not exist; this server has `{self.options.model}`."
        self.refuse(404, "invalid_request_error", "model_not_found", text)


class Assigning(Answers):
    """The second port of a warm server: PUT /assignment, answered when the model serves."""

    def do_PUT(self) -> None:
        self.state.count(in_flight=1)  # a drain waits for the answer, which it brings about
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path != "/assignment":
                raise RefusedError(404, "not_found", f"no such path: {self.path}")
            self.answer(200, self.take(self.checked(body)))
        except RefusedError as error:
            self.answer(error.status, error.body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.state.count(in_flight=-1)

    def checked(self, body: bytes) -> dict[str, Any]:
        """The assignment, from whom it may come. Raises RefusedError."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self.options.assign_token_sha256):
            raise RefusedError(401, "invalid_token", "Wrong or missing token: send 'Authorization: Bearer TOKEN'.")
        if len(body) > MOST_BYTES:
            raise RefusedError(413, "request_too_large", f"The body is larger than {MOST_BYTES} bytes.")
        try:
            document = json.loads(body)
        except ValueError:
            raise RefusedError(400, "invalid_json", "The body is not JSON.") from None
        return understood(document)

    def take(self, document: dict[str, Any]) -> dict[str, Any]:
        """The first is taken and loaded; who brings it again waits for the same outcome. Raises RefusedError."""
        state = self.state
        with state.changed:
            if state.taken is None:
                self.accept(document)
            elif state.taken != document:
                raise RefusedError(409, "already_assigned", "This server has been given another model already.")
            state.changed.wait_for(lambda: state.failure or state.phase in {"serving", "draining", "closed"})
            if state.failure:
                raise RefusedError(500, "load_failed", state.failure)
            if not state.served:
                raise RefusedError(503, "server_stopping", "The server stopped before the answer was complete.")
            return {"status": "serving", "model": self.options.model, "stages": state.stages}

    def accept(self, document: dict[str, Any]) -> None:
        """With the lock held. Raises RefusedError: the server stays as it is."""
        options, file = assigned(self.options, document), self.options.assignment_file
        if self.state.phase == "loading":
            raise RefusedError(503, "not_warm", "The server is not warm yet.")
        if self.state.phase != "warm":
            raise RefusedError(503, "server_stopping", "The server stopped before the answer was complete.")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.with_suffix(".new").write_text(json.dumps(document))
            file.with_suffix(".new").replace(file)
        except OSError as error:
            text = f"The assignment cannot be written to {file}: {error.strerror}."
            raise RefusedError(500, "not_kept", text) from None
        self.state.taken, self.state.options, self.state.assigned = document, options, True
        self.state.enter("assigned")
        threading.Thread(target=load, args=(self.state,), daemon=True).start()


def _choice(part: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, **part, "logprobs": None, "finish_reason": reason}


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False


def listen(port: int, variable: str, handler: type[Answers], state: State) -> Server:
    try:
        return Server(("0.0.0.0", port), type("Bound", (handler,), {"state": state}))
    except OSError as error:
        die(f"cannot listen on port {port} ({variable}): {error.strerror}")


def imported(state: State) -> bool:
    """What stands for imports: a wait, once. False if it is over before that."""
    began, seconds = time.monotonic(), float(os.environ.get("STANDIN_IMPORT_SECONDS") or "0")
    with state.changed:
        if state.changed.wait_for(lambda: state.phase != "loading", timeout=seconds):
            return False
        state.took("imports", time.monotonic() - began)
    return True


def load(state: State) -> None:
    """What stands for loading a model: checks, memory, the wait; then serving."""
    if state.phase == "loading" and not imported(state):
        return
    began, options, phase = time.monotonic(), state.options, "assigned" if state.assigned else "loading"
    if options.fail_after is not None:
        threading.Thread(target=fail_later, args=(options, state), daemon=True).start()
    problem = load_error(options, dict(os.environ))
    if problem:
        with state.changed:
            state.failure = problem
            state.changed.notify_all()
        if options.assign_token_sha256:
            threading.Event().wait(TELL_SECONDS)
        die(problem)
    for _ in range(options.allocate_mib):
        state.held.append(bytearray(b"\x01" * MIB))  # written, so that the pages count against the container's limit
    seconds = options.ready_after + (SLOW_SECONDS if last_folder(options.source) == SLOW else 0.0)
    with state.changed:
        if options.never_ready or state.changed.wait_for(lambda: state.phase != phase, timeout=seconds):
            return
        state.took("weights", time.monotonic() - began)
        state.took("warmup", 0.0)
        state.took("total", time.monotonic() - began)
        state.enter("serving", phase)
    if options.exit_when_ready is not None:
        with state.changed:
            if state.changed.wait_for(lambda: state.phase != "serving", timeout=options.exit_when_ready):
                return  # it ends anyway
        die(options.fail_message)


def prepare(state: State) -> None:
    """What stands for a warm server's imports and its rehearsal."""
    if not imported(state):
        return
    state.took("prepare", 0.0)
    state.enter("warm", "loading")


def fail_later(options: Options, state: State) -> None:
    with state.changed:
        if not state.changed.wait_for(lambda: state.phase in {"draining", "closed"}, timeout=options.fail_after):
            die(options.fail_message)


def main(argv: list[str] | None = None) -> int:
    try:
        options = parse(sys.argv[1:] if argv is None else argv, dict(os.environ))
    except ValueError as error:
        die(f"token-server: {error}", 2)
    if options.crash_on_start:
        die(options.fail_message)
    if options.api_keys_dir and not accepted_keys(options.api_keys_dir):
        die(f"no API key in {options.api_keys_dir}: the Secret of spec.api.keySecretRef does not exist or is empty")
    state = State(options)
    # Taken by a thread that waits for them: a handler would run only once the main thread wakes, and the kernel may
    # hand the signal to another one.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    terminate = threading.Event()

    def take_signals() -> None:
        signal.sigwait(signals)
        terminate.set()
        os._exit(128 + signal.sigwait(signals))  # asked twice: at once

    threading.Thread(target=take_signals, daemon=True).start()
    servers = [listen(options.port, "TOKEN_SERVER_PORT", Handler, state)]
    begin = load
    if options.warm:
        servers.append(listen(options.assign_port, "TOKEN_SERVER_ASSIGN_PORT", Assigning, state))
        state.taken = stored(options)
        if state.taken:
            state.options = assigned(options, state.taken)
        else:
            begin = prepare
    state.took("process", time.monotonic() - STARTED)
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    threading.Thread(target=begin, args=(state,), daemon=True).start()
    terminate.wait()
    # The protocol: not ready at once, open for the delay (endpoints lag), then finish what runs.
    # A pod that never served had no traffic: it does not wait.
    deadline = time.monotonic() + max(0.0, options.grace - 2)
    delay = min(options.drain_delay, max(0.0, options.grace - 2)) if state.phase == "serving" else 0.0
    state.enter("draining")
    threading.Event().wait(delay)
    for server in servers:
        server.shutdown()
        server.server_close()
    state.enter("closed")
    with state.changed:
        state.changed.wait_for(lambda: state.in_flight <= 0, timeout=max(0.0, deadline - time.monotonic()))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
