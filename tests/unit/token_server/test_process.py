"""The process as the kubelet sees it: probes, signals, exit codes; and the stand-in server keeps the same contract."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from tokenservice import protocol

from tools.ports import free_port

HERE = Path(__file__).resolve().parent
REAL = [str(HERE / "serve_standin_engine.py")]
STAND_IN = [str(HERE.parents[1] / "e2e/standin_server/standin.py"), "--token-interval", "0.05"]
TOKEN = "the-token-of-this-pod"
SCHEMA = json.loads((importlib.resources.files(protocol) / "readyz.schema.json").read_text())
BODY: dict[str, Any] = {"model": "tiny", "prompt": "one two", "stream": True, "max_tokens": 30}
Start = Callable[..., "Process"]
both = pytest.mark.parametrize("program", [REAL, STAND_IN], ids=["token_server", "stand-in"])


class Process:
    def __init__(self, program: list[str], **variables: str) -> None:
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TOKEN_SERVER_", "HF_"))},
            "TOKEN_SERVER_PORT": str(self.port),
            "TOKEN_SERVER_MODEL_SOURCE": "hf://org/tiny",
            "TOKEN_SERVER_MODEL_NAME": "tiny",
            "TOKEN_SERVER_GRACE_SECONDS": "12",
            "TOKEN_SERVER_DRAIN_DELAY_SECONDS": "1",
            **variables,
        }
        self.popen = subprocess.Popen(
            [sys.executable, *program], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def get(self, path: str) -> httpx.Response | None:
        try:
            return httpx.get(self.base + path, timeout=5)
        except httpx.TransportError:
            return None

    def wait_until(self, condition: Callable[[], object]) -> None:
        limit = time.monotonic() + 20
        while not condition():
            assert self.popen.poll() is None, self.popen.communicate()
            assert time.monotonic() < limit
            threading.Event().wait(0.02)

    def ready(self) -> None:
        self.wait_until(lambda: (found := self.get("/readyz")) and found.status_code == 200)

    def start(self) -> dict[str, Any]:
        """What a server that serves tells of its start."""
        answer = self.get("/readyz")
        assert answer is not None
        assert answer.status_code == 200
        body = answer.json()
        jsonschema.validate(body, SCHEMA)
        return dict(body["start"])

    def listening(self) -> None:
        self.wait_until(lambda: self.get("/healthz"))

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, str, str]:
        out, err = self.popen.communicate(timeout=20)
        return self.popen.returncode, out, err


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Process] = []

    def begin(program: list[str], **variables: str) -> Process:
        started.append(Process(program, **variables))
        return started[-1]

    yield begin
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.communicate()


@both
def test_a_drain_finishes_what_runs(start: Start, program: list[str]) -> None:
    process = start(program, TOKEN_SERVER_DRAIN_DELAY_SECONDS="3")  # room for the looks below on a busy machine
    process.ready()
    with httpx.stream("POST", f"{process.base}/v1/completions", json=BODY, timeout=20) as answer:
        found = answer.iter_lines()
        next(found)
        process.terminate()
        process.wait_until(lambda: (seen := process.get("/readyz")) and seen.status_code == 503)
        refused = process.get("/readyz")
        assert refused is not None
        assert refused.json() == {"reason": "draining"}
        late = process.get("/v1/models")
        assert late is not None
        assert late.status_code == 200, "requests are accepted while endpoints lag"
        rest = [line for line in found if line]
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in rest[:-1]]
    assert rest[-1] == "data: [DONE]"
    assert "".join(texts).strip().endswith("token30"), "the whole answer, although SIGTERM came early"
    code, _, err = process.end()
    assert (code, "Traceback" in err) == (0, False)
    assert process.get("/healthz") is None


@both
def test_the_grace_period_bounds_the_drain(start: Start, program: list[str]) -> None:
    process = start(program, TOKEN_SERVER_GRACE_SECONDS="3", TOKEN_SERVER_DRAIN_DELAY_SECONDS="0")
    process.ready()
    with httpx.stream("POST", f"{process.base}/v1/completions", json={**BODY, "max_tokens": 900}, timeout=20) as answer:
        next(answer.iter_lines())
        began = time.monotonic()
        process.terminate()
        code, _, _ = process.end()
    assert code == 0
    assert time.monotonic() - began < 3


@both
def test_the_second_signal_ends_at_once(start: Start, program: list[str]) -> None:
    process = start(program, TOKEN_SERVER_DRAIN_DELAY_SECONDS="10")
    process.ready()
    process.terminate()
    process.wait_until(lambda: (seen := process.get("/readyz")) and seen.status_code == 503)
    process.terminate()
    code, _, _ = process.end()
    assert code == 128 + signal.SIGTERM


@both
def test_a_pod_that_never_was_ready_ends_at_once(start: Start, program: list[str]) -> None:
    loading = [*program, "--never-ready"] if program is STAND_IN else program
    process = start(loading, TOKEN_SERVER_MODEL_SOURCE="hf://never/loads", TOKEN_SERVER_DRAIN_DELAY_SECONDS="10")
    process.listening()
    answer = process.get("/readyz")
    assert answer is not None
    assert (answer.status_code, answer.json()) == (503, {"reason": "loading"})
    began = time.monotonic()
    process.terminate()
    code, _, _ = process.end()
    assert (code, time.monotonic() - began < 8) == (0, True)


def test_a_pod_that_has_only_just_started_ends_at_once(start: Start, tmp_path: Path) -> None:
    """Amid the imports; as PID 1 of a container a process without a handler would outlive the signal."""
    (tmp_path / "uvicorn.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)")
    process = start(["-m", protocol.MODULE], PYTHONPATH=str(tmp_path))
    assert process.popen.stdout
    assert process.popen.stdout.readline() == "importing\n"
    process.terminate()
    assert process.end()[0] == 0


@both
def test_what_a_start_cost(start: Start, program: list[str]) -> None:
    process = start(program)
    process.ready()
    told = process.start()
    assert told["warm"] is False
    assert set(told["stages"]) == set(protocol.START_STAGES) - {"prepare"}
    assert process.start() == told, "it stays what it was"


def test_the_seconds_are_those_that_passed(start: Start) -> None:
    began = time.monotonic()
    process = start(REAL)
    process.ready()
    stages = process.start()["stages"]
    passed = time.monotonic() - began
    assert stages["warmup"] >= 0.05, "a token takes so long"
    assert stages["total"] >= stages["warmup"]
    assert 0 < stages["process"] <= passed
    assert stages["process"] + stages["total"] <= passed + 0.02, "the kernel counts starts in hundredths of a second"
    metrics = process.get("/metrics")
    assert metrics is not None
    assert f'token_server_start_stage_seconds{{stage="process"}} {stages["process"]}'[:-1] in metrics.text


@both
def test_verifyz(start: Start, program: list[str], tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("key-1\n")
    process = start(program, TOKEN_SERVER_API_KEYS_DIR=str(tmp_path), TOKEN_SERVER_DRAIN_DELAY_SECONDS="3")
    process.ready()
    answer = process.get("/verifyz")
    assert answer is not None
    body = answer.json()
    assert body.pop("seconds") >= 0.05, "a token takes so long"
    assert (answer.status_code, body) == (200, {"status": "ok", "model": "tiny", "tokens": 1})
    process.terminate()
    process.wait_until(lambda: (seen := process.get("/readyz")) and seen.status_code == 503)
    late = process.get("/verifyz")
    assert late is not None
    assert (late.status_code, late.json()["error"]["code"]) == (503, "server_stopping")


def test_the_threads_are_told(start: Start) -> None:
    process = start([*REAL, "--threads", "3"])
    process.ready()
    process.terminate()
    _, out, _ = process.end()
    assert next(line for line in map(json.loads, out.splitlines()) if line["message"] == "listening")["threads"] == "3"


@both
def test_a_model_that_is_not_there(start: Start, program: list[str]) -> None:
    process = start(program, TOKEN_SERVER_MODEL_SOURCE="file:///no/such/model")
    code, _, err = process.end()
    wanted = "cannot load model file:///no/such/model: not found: there is no folder /no/such/model in this container"
    assert (code, err.splitlines()[-1]) == (1, wanted)


@both
@pytest.mark.parametrize("source", ["", "s3://bucket/model"])
def test_a_source_that_is_none(start: Start, program: list[str], source: str) -> None:
    process = start(program, TOKEN_SERVER_MODEL_SOURCE=source)
    code, _, err = process.end()
    assert code != 0
    assert "TOKEN_SERVER_MODEL_SOURCE" in err.splitlines()[-1]


@both
def test_keys_are_asked_for(start: Start, program: list[str], tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("key-1\n")
    process = start(program, TOKEN_SERVER_API_KEYS_DIR=str(tmp_path))
    process.ready()
    statuses = [
        httpx.get(f"{process.base}/v1/models", headers=headers).status_code
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer key-1"})
    ]
    assert statuses == [401, 401, 200]


@both
def test_no_key_at_all(start: Start, program: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    code, _, err = start(program, TOKEN_SERVER_API_KEYS_DIR=str(tmp_path)).end()
    last = f"no API key in {tmp_path}: the Secret of spec.api.keySecretRef does not exist or is empty"
    assert (code, err.splitlines()[-1]) == (1, last)


@both
def test_a_port_in_use(start: Start, program: list[str]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        process = start(program, TOKEN_SERVER_PORT=str(taken.getsockname()[1]))
        code, _, err = process.end()
    assert code == 1
    assert "TOKEN_SERVER_PORT" in err.splitlines()[-1]


class Warm:
    """A warm server's process; `again` is its container's next start, with the same emptyDir."""

    def __init__(self, start: Start, program: list[str], folder: Path, **variables: str) -> None:
        self._start = start
        self._program = program
        self.file = folder / "kept/assignment.json"
        self.again(**variables)

    def again(self, **variables: str) -> Process:
        self.assign_port = free_port()
        self.process = self._start(
            self._program,
            TOKEN_SERVER_WARM="true",
            TOKEN_SERVER_MODEL_SOURCE="",
            TOKEN_SERVER_MODEL_NAME="",
            TOKEN_SERVER_ASSIGN_TOKEN_SHA256=hashlib.sha256(TOKEN.encode()).hexdigest(),
            TOKEN_SERVER_ASSIGN_PORT=str(self.assign_port),
            TOKEN_SERVER_ASSIGNMENT_FILE=str(self.file),
            **variables,
        )
        return self.process

    def killed(self) -> None:
        self.process.popen.kill()
        self.process.end()

    def put(self, source: str, **options: Any) -> httpx.Response:
        return self.send({"service": "team/chat", "model": {"source": source, "name": "tiny"}, **options})

    def send(self, document: Any, token: str = TOKEN) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.put(f"http://127.0.0.1:{self.assign_port}/assignment", json=document, headers=headers, timeout=20)

    def phase(self) -> str:
        answer = self.process.get("/healthz")
        return str(answer.json()["phase"]) if answer else ""

    def tokens(self) -> httpx.Response:
        return httpx.post(f"{self.process.base}/v1/completions", json={**BODY, "stream": False, "max_tokens": 2})


@pytest.fixture
def warm(start: Start, program: list[str], tmp_path: Path) -> Warm:
    return Warm(start, program, tmp_path)


def refusal(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"], error["param"]


@both
def test_a_warm_server_serves_what_it_is_given(warm: Warm) -> None:
    process = warm.process
    process.ready()
    answer = process.get("/readyz")
    assert answer is not None
    assert answer.json() == {"status": "warm"}
    assert warm.phase() == "warm"
    for refused in (warm.tokens(), process.get("/verifyz"), process.get("/v1/models")):
        assert refused is not None
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
    answer = warm.put("hf://org/tiny")
    report = answer.json()
    stages = report.pop("stages")
    assert (answer.status_code, report) == (200, {"status": "serving", "model": "tiny"})
    assert set(stages) == set(protocol.START_STAGES)
    assert process.start() == {"stages": stages, "warm": True}
    assert warm.tokens().json()["choices"][0]["text"].strip() == "token1 token2"
    same = {"model": {"name": "tiny", "source": "hf://org/tiny"}, "args": [], "service": "team/chat"}
    assert warm.send(same).json() == {**report, "stages": stages}, "who lost the answer may ask again"
    assert refusal(warm.put("hf://org/other")) == (409, "already_assigned", None)
    process.terminate()
    code, out, err = process.end()
    assert code == 0
    assert TOKEN not in out + err


@both
def test_the_port_of_assignments_serves_nothing_else(warm: Warm) -> None:
    warm.process.ready()
    assert httpx.get(f"http://127.0.0.1:{warm.assign_port}/v1/models").status_code in (404, 501)
    refused = httpx.put(f"{warm.process.base}/assignment", json={})
    assert refused.status_code in (404, 405, 501)
    assert warm.phase() == "warm"


@both
def test_what_is_refused_costs_no_pod(warm: Warm) -> None:
    """The token first, then the document, field by field."""
    warm.process.ready()
    tiny = {"service": "team/chat", "model": {"source": "hf://org/tiny"}}
    wrong = warm.send(tiny, "wrong")
    assert refusal(wrong) == (401, "invalid_token", None)
    assert wrong.headers["www-authenticate"] == "Bearer"
    assert refusal(warm.send([], "wrong"))[0] == 401
    for document, code, field in (
        ([], "invalid_type", None),
        ({**tiny, "replicas": 2}, "unknown_parameter", "replicas"),
        ({"model": tiny["model"]}, "invalid_type", "service"),
        ({"service": "a/b"}, "invalid_type", "model"),
        ({**tiny, "model": {}}, "invalid_type", "model.source"),
        ({**tiny, "model": {"source": "s3://bucket"}}, "invalid_value", "model.source"),
        ({**tiny, "model": {"source": "hf://a/b", "name": 1}}, "invalid_type", "model.name"),
        ({**tiny, "model": {"source": "hf://a/b", "token": "x"}}, "unknown_parameter", "model.token"),
        ({**tiny, "args": "--x"}, "invalid_type", "args"),
        ({**tiny, "args": ["--no-such-flag"]}, "invalid_value", "args"),
        ({**tiny, "args": ["--help"]}, "invalid_value", "args"),
    ):
        assert refusal(warm.send(document)) == (400, code, field), document
    assert refusal(warm.send("x" * 70_000)) == (413, "request_too_large", None)
    assert not warm.file.exists()
    assert warm.phase() == "warm"
    assert warm.send(tiny).json()["model"] == "org/tiny", "named by its source"


def test_the_arguments_of_an_assignment_count(start: Start, tmp_path: Path) -> None:
    warm = Warm(start, REAL, tmp_path)
    warm.process.ready()
    assert warm.put("hf://org/tiny", args=["--max-queue=0", "--max-concurrency=1"]).status_code == 200
    with httpx.stream("POST", f"{warm.process.base}/v1/completions", json=BODY, timeout=20) as running:
        lines = running.iter_lines()  # kept: without it the stream would be closed
        next(lines)
        assert warm.tokens().status_code == 429


def test_the_arguments_of_a_stand_ins_assignment_count(start: Start, tmp_path: Path) -> None:
    warm = Warm(start, STAND_IN, tmp_path)
    warm.process.ready()
    assert warm.put("hf://org/tiny", args=["--version-text", "v2"]).status_code == 200
    assert warm.tokens().json()["system_fingerprint"] == "v2"
    warm.killed()
    warm.again().ready()
    assert warm.tokens().json()["system_fingerprint"] == "v2", "kept with the model"


@both
def test_a_container_that_restarts_serves_again_by_itself(warm: Warm) -> None:
    warm.process.ready()
    assert warm.put("hf://org/tiny").status_code == 200
    assert json.loads(warm.file.read_text())["service"] == "team/chat"
    warm.killed()
    warm.again().listening()
    readiness = [warm.process.get("/readyz")]
    while readiness[-1] is None or readiness[-1].status_code != 200:
        readiness.append(warm.process.get("/readyz"))
    assert {answer.json().get("reason") for answer in readiness[:-1] if answer} <= {"loading"}
    told = warm.process.start()
    assert told["warm"] is False, "it was a start as long as any"
    assert set(told["stages"]) == set(protocol.START_STAGES) - {"prepare"}
    assert warm.tokens().status_code == 200
    assert warm.put("hf://org/tiny").status_code == 200, "the operator may ask again"
    assert warm.put("hf://org/other").status_code == 409


@both
@pytest.mark.parametrize("source", ["file:///no/such", "hf://org/broken"])
def test_a_model_that_cannot_be_loaded_is_told_and_ends_the_process(warm: Warm, source: str) -> None:
    warm.process.ready()
    answer = warm.put(source)
    line = answer.json()["error"]["message"]
    assert refusal(answer) == (500, "load_failed", None)
    assert line.startswith(f"cannot load model {source}: ")
    code, _, err = warm.process.end()
    assert (code, err.splitlines()[-1]) == (1, line)
    code, _, err = warm.again().end()
    assert (code, err.splitlines()[-1]) == (1, line), "like any other pod with such a model"


@both
def test_a_signal_while_the_model_loads(warm: Warm) -> None:
    warm.process.ready()
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(warm.put, "hf://org/slow")
        warm.process.wait_until(lambda: warm.phase() == "assigned")
        ready = warm.process.get("/readyz")
        assert ready is not None
        assert (ready.status_code, ready.json()) == (200, {"status": "assigned"})
        assert warm.tokens().status_code == 503
        assert warm.put("hf://org/other").status_code == 409
        warm.process.terminate()
        assert asking.result().json()["error"]["code"] == "server_stopping"
    code, _, _ = warm.process.end()
    assert code == 0


def test_a_slow_model_of_the_stand_in(start: Start, tmp_path: Path) -> None:
    warm = Warm(start, STAND_IN, tmp_path)
    warm.process.ready()
    began = time.monotonic()
    answer = warm.put("hf://org/slow")
    assert time.monotonic() - began >= 5
    assert answer.json()["stages"]["total"] >= 5
    assert warm.tokens().status_code == 200


@both
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TOKEN_SERVER_ASSIGN_TOKEN_SHA256": ""}, "TOKEN_SERVER_ASSIGN_TOKEN_SHA256"),
        ({"TOKEN_SERVER_MODEL_SOURCE": "hf://org/tiny"}, "TOKEN_SERVER_WARM"),
    ],
)
def test_a_warm_server_with_wrong_settings(
    start: Start, program: list[str], variables: dict[str, str], words: str
) -> None:
    settings = {"TOKEN_SERVER_WARM": "true", "TOKEN_SERVER_MODEL_SOURCE": "", "TOKEN_SERVER_MODEL_NAME": ""}
    settings["TOKEN_SERVER_ASSIGN_TOKEN_SHA256"] = "0" * 64
    code, _, err = start(program, **{**settings, **variables}).end()
    assert code == 2
    assert words in err.splitlines()[-1]


def test_a_server_that_cannot_become_warm(start: Start, tmp_path: Path) -> None:
    code, _, err = Warm(start, REAL, tmp_path, TOKEN_SERVER_PRELOAD="NoSuchModel").process.end()
    assert (code, err.splitlines()[-1]) == (1, "TOKEN_SERVER_PRELOAD: no such architecture")


def test_not_ready_until_it_is_warm(start: Start, tmp_path: Path) -> None:
    warm = Warm(start, REAL, tmp_path, TOKEN_SERVER_PRELOAD="NeverWarm")
    warm.process.listening()
    answer = warm.process.get("/readyz")
    assert answer is not None
    assert (answer.status_code, answer.json()) == (503, {"reason": "loading"})
    assert warm.put("hf://org/tiny").json()["error"]["code"] == "not_warm"


@both
def test_an_assignment_that_cannot_be_read(start: Start, program: list[str], tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/assignment.json").write_text("{")
    code, _, err = Warm(start, program, tmp_path).process.end()
    assert code == 1
    assert "delete the pod" in err.splitlines()[-1]


def test_a_loader_that_breaks_ends_the_process(start: Start) -> None:
    process = start(REAL, TOKEN_SERVER_MODEL_SOURCE="hf://broken/loader")
    code, _, err = process.end()
    assert (code, err.splitlines()[-1]) == (1, "cannot load model hf://broken/loader: ZeroDivisionError")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--fail-after", "0", "--fail-message", "no  weights"], "no weights"),
        (["--crash-on-start"], "the stand-in fails, as asked"),
        (["--exit-when-ready", "0.1", "--fail-message", "no  more"], "no more"),
        (["--require-hf-token"], "give a token in model.authSecretRef"),
    ],
)
def test_the_stand_in_fails_as_asked(start: Start, arguments: list[str], line: str) -> None:
    code, _, err = start([*STAND_IN, *arguments]).end()
    assert code == 1
    assert err.splitlines()[-1].endswith(line)


def test_the_stand_in_is_ready_and_answers_nothing(start: Start) -> None:
    process = start([*STAND_IN, "--verify-status", "500", "--fail-message", "nonsense"])
    process.ready()
    verified = process.get("/verifyz")
    completed = httpx.post(f"{process.base}/v1/completions", json=BODY)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    for answer in (verified, completed, httpx.post(f"{process.base}/v1/chat/completions", json=chat)):
        assert answer is not None
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, "nonsense")


def test_the_termination_message(tmp_path: Path) -> None:
    """The kubelet's file is written if it is there, and not made if it is not."""
    code = "import pathlib, sys; from token_server import process; process.TERMINATION_LOG = pathlib.Path(sys.argv[1])"
    mounted, missing = tmp_path / "mounted", tmp_path / "missing"
    mounted.write_text("an older and longer message than the new one")
    for path in (mounted, missing):
        done = subprocess.run([sys.executable, "-c", f"{code}; process.fail('two  words')", path], check=False)
        assert done.returncode == 1
    assert mounted.read_text() == "two words\n"
    assert not missing.exists()
