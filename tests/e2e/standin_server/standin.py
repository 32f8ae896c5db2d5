#!/usr/bin/env python3
"""A STAND-IN for token_server, for end-to-end cases that need no model: canned tokens, standard library alone.

It keeps token_server's contract (operator/tokenservice/protocol): the same port, paths, TOKEN_SERVER_* variables, API
keys, exit code, termination message and SIGTERM behaviour. It never loads a model; what it answers are the words
"token1 token2 ...". Faults that a test wants come as arguments, that is through `spec.engine.args`; `--help` lists
them. docs/token-server.md tells of the real server.
"""

from __future__ import annotations

import argparse
import contextlib
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
from typing import Any

MIB = 1024 * 1024
DEFAULT_TOKENS = 16  # of an answer whose request names no max_tokens
TERMINATION_LOG = Path("/dev/termination-log")


@dataclass(frozen=True)
class Options:
    """What the operator says in variables (first half) and a test in arguments (second half); times in seconds."""

    port: int
    source: str
    model: str
    api_keys_dir: str
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
    """What the threads share: `phase` is loading, serving, draining or closed, as in token_server."""

    phase: str = "loading"
    in_flight: int = 0
    requests: int = 0
    tokens: int = 0
    held: list[bytearray] = field(default_factory=list)  # the memory that --allocate-mib asked for
    changed: threading.Condition = field(default_factory=threading.Condition)

    def enter(self, phase: str) -> None:
        with self.changed:
            # A load that ends while the pod drains must not turn it ready again.
            if phase != "serving" or self.phase == "loading":
                self.phase = phase
            self.changed.notify_all()

    def count(self, *, in_flight: int = 0, requests: int = 0, tokens: int = 0) -> None:
        with self.changed:
            self.in_flight += in_flight
            self.requests += requests
            self.tokens += tokens
            self.changed.notify_all()


def parse(argv: list[str], environ: dict[str, str]) -> Options:
    """Reads variables and arguments; an unknown argument ends the process with code 2, as in token_server."""
    parser = argparse.ArgumentParser(prog="token-server (stand-in)", description=__doc__.splitlines()[0])
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
    return Options(
        port=int(environ.get("TOKEN_SERVER_PORT", "8000")),
        source=source,
        model=environ.get("TOKEN_SERVER_MODEL_NAME") or default_name(source),
        api_keys_dir=environ.get("TOKEN_SERVER_API_KEYS_DIR", ""),
        grace=float(environ.get("TOKEN_SERVER_GRACE_SECONDS", "90")),
        drain_delay=float(environ.get("TOKEN_SERVER_DRAIN_DELAY_SECONDS", "5")),
        **vars(given),
    )


def default_name(source: str) -> str:
    """`org/name` of hf://org/name, the last folder of file:///path, as token_server has it."""
    scheme, _, path = source.rstrip("/").partition("://")
    return (path if scheme == "hf" else path.rsplit("/", 1)[-1]) or "stand-in"


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
    return None


def die(message: str) -> None:
    """Ends the process as token_server does: one line on stderr and in the termination log, code 1."""
    line = " ".join(message.split())
    with contextlib.suppress(OSError), TERMINATION_LOG.open("r+") as termination:  # makes no file outside a pod
        termination.write(line + "\n")
        termination.truncate()
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
    os._exit(1)


def accepted_keys(folder: str) -> list[str]:
    """Every visible file's content in the mounted Secret; read at each request, so a changed Secret counts at once."""
    keys = []
    with contextlib.suppress(OSError):
        for file in sorted(Path(folder).iterdir()):
            if not file.name.startswith(".") and file.is_file():
                keys.append(file.read_text().strip())
    return [key for key in keys if key]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    options: Options
    state: State

    def do_GET(self) -> None:
        phase = self.state.phase
        path = self.path.split("?", 1)[0].rstrip("/")
        if path == "/healthz":
            self.answer(200, {"status": "ok", "phase": phase})
        elif path == "/readyz":
            self.answer(*((200, {"status": "ready"}) if phase == "serving" else (503, {"reason": phase})))
        elif path == "/verifyz":
            self.verify(phase)
        elif path == "/metrics":
            counters = {"requests": self.state.requests, "generated_tokens": self.state.tokens}
            self.answer(200, "".join(f"token_server_{name}_total {value}\n" for name, value in counters.items()))
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            card = {"id": self.options.model, "object": "model", "created": 0, "owned_by": "token-server-stand-in"}
            if not self.may_serve(phase):
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
            if not self.may_serve(self.state.phase):
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

    def may_serve(self, phase: str) -> bool:
        """Answers 401 or 503 and returns False where token_server would."""
        if self.options.api_keys_dir:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip().encode()
            matches = [hmac.compare_digest(given, key.encode()) for key in accepted_keys(self.options.api_keys_dir)]
            if not any(matches):
                self.refuse(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided.")
                return False
        if phase == "loading":
            self.refuse(503, "server_error", "model_loading", "the model is still loading")
            return False
        return True

    def verify(self, phase: str) -> None:
        """One token, as token_server makes for itself; no key is asked for."""
        if phase != "serving":
            code = "model_loading" if phase == "loading" else "server_stopping"
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

    def refuse(self, status: int, kind: str, code: str, message: str) -> None:
        self.answer(status, {"error": {"message": message, "type": kind, "param": None, "code": code}})

    def answer(self, status: int, body: dict[str, Any] | str) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        kind = "text/plain; version=0.0.4" if isinstance(body, str) else "application/json"
        extra = {"Content-Length": str(len(data))}
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            extra["Retry-After"] = "1"
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


def _choice(part: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, **part, "logprobs": None, "finish_reason": reason}


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False


def load(options: Options, state: State) -> None:
    """What stands for loading a model: checks, memory, the wait; then serving."""
    problem = load_error(options, dict(os.environ))
    if problem:
        die(problem)
    for _ in range(options.allocate_mib):
        state.held.append(bytearray(b"\x01" * MIB))  # written, so that the pages count against the container's limit
    with state.changed:
        if options.never_ready or state.changed.wait_for(lambda: state.phase != "loading", timeout=options.ready_after):
            return
    state.enter("serving")
    if options.exit_when_ready is not None:
        with state.changed:
            if state.changed.wait_for(lambda: state.phase != "serving", timeout=options.exit_when_ready):
                return  # it ends anyway
        die(options.fail_message)


def main(argv: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if argv is None else argv, dict(os.environ))
    if options.crash_on_start:
        die(options.fail_message)
    if options.api_keys_dir and not accepted_keys(options.api_keys_dir):
        die(f"no API key in {options.api_keys_dir}: the Secret of spec.api.keySecretRef does not exist or is empty")
    state = State()
    handler = type("BoundHandler", (Handler,), {"options": options, "state": state})
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
    try:
        server = Server(("0.0.0.0", options.port), handler)
    except OSError as error:
        die(f"cannot listen on port {options.port} (TOKEN_SERVER_PORT): {error.strerror}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    threading.Thread(target=load, args=(options, state), daemon=True).start()
    if options.fail_after is not None and not terminate.wait(options.fail_after):
        die(options.fail_message)
    terminate.wait()
    # The protocol: not ready at once, open for the delay (endpoints lag), then finish what runs.
    # A pod that never was ready had no traffic: it does not wait.
    deadline = time.monotonic() + max(0.0, options.grace - 2)
    delay = 0.0 if state.phase == "loading" else min(options.drain_delay, max(0.0, options.grace - 2))
    state.enter("draining")
    threading.Event().wait(delay)
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
