"""`tokenservice env lock` and `tokenservice job`, as programs."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from tokenservice.api.jobs import (
    EXIT_DONE,
    EXIT_PASSING,
    EXIT_TERMINAL,
    JobResult,
    LockRequest,
    Problem,
    decode_result,
    encode_request,
    encode_result,
)
from tokenservice.builder.conda import cmd_job
from tokenservice.builder.conda.pip import SERVER_REQUIRES

from tests.support.cluster import ROOT
from tests.support.conda_channel import ChannelServer


def program(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "tokenservice.cli", *arguments)
    return subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=False)


@pytest.fixture
def settings(tmp_path: Path) -> str:
    file = tmp_path / "settings.yaml"
    file.write_text("{registry: {url: '127.0.0.1:9/none', plainHTTP: true}, retries: 0, timeoutSeconds: 2}")
    return str(file)


def test_env_lock_writes_the_lock_and_says_what_changed(tmp_path: Path) -> None:
    with ChannelServer(tmp_path / "served") as server:
        channel = server.channel("main")
        channel.add_python("3.11.7")
        channel.index()
        for requirement in SERVER_REQUIRES:
            server.wheel(requirement.partition(">=")[0], "9.0")
        owner = tmp_path / "settings.yaml"
        owner.write_text(f"{{channels: {{alias: '{server.url()}'}}, pip: {{indexUrl: '{server.simple}'}}, retries: 0}}")
        file = tmp_path / "environment.yml"
        file.write_text("channels: [main]\ndependencies: [python=3.11]\n")
        first = program("env", "lock", str(file), "--settings", str(owner))
        assert first.returncode == 0, first.stderr
        assert "+ python 3.11.7" in first.stdout
        lock = tmp_path / "pixi.lock"
        written = lock.stat().st_mtime_ns
        second = program("env", "lock", str(file), "--settings", str(owner))
        assert "nothing changed" in second.stdout
        assert lock.stat().st_mtime_ns == written

        file.write_text("channels: [main]\ndependencies:\n  - python=2.7\n")
        third = program("env", "lock", str(file), "--settings", str(owner))
        assert third.returncode == 1
        assert "python" in third.stderr
        assert "2.7" in third.stderr
        assert lock.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dependencies:\n  - python=3.11\n  - pip:\n    - fastapi=0.95\n", "line 4: dependencies[1].pip[0]"),
        (
            "chanels: []\ndependencies: [python]\n",
            "line 1: chanels is no key of an environment; did you mean 'channels'",
        ),
        ("dependencies: [python]\ndependencies: []\n", "line 2: dependencies is there twice"),
        ("{", "is no YAML"),
    ],
)
def test_env_lock_points_at_the_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "environment.yml"
    file.write_text(text)
    done = program("env", "lock", str(file))
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_tells_its_result_in_both_places(tmp_path: Path, settings: str) -> None:
    note = tmp_path / "note"
    request = LockRequest(environment={"channels": [], "dependencies": [], "variables": {}, "name": "x"})
    done = program(
        "job",
        TOKENSERVICE_REQUEST=encode_request(request),
        TOKENSERVICE_SETTINGS=settings,
        TOKENSERVICE_TERMINATION_LOG=str(note),
    )
    assert done.returncode == EXIT_PASSING
    told = decode_result(note.read_bytes())
    assert told
    assert told.problem
    assert told.problem.reason == "RegistryUnavailable"
    assert decode_result(done.stdout.splitlines()[-1]) == told
    assert "RegistryUnavailable: " in done.stdout
    assert not done.stderr, "one stream keeps the order"


def test_a_job_without_a_request_says_so(tmp_path: Path) -> None:
    result = cmd_job.work({})
    assert result.problem
    assert "TOKENSERVICE_REQUEST" in result.problem.message


def test_a_full_disk_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> JobResult:
        raise OSError(28, "No space left on device", "/tmp/part")

    monkeypatch.setattr(cmd_job, "_carry_out", full)
    result = cmd_job.work({"TOKENSERVICE_REQUEST": encode_request(LockRequest(environment={}))})
    assert result.problem
    assert result.problem.reason == "DiskFull"
    assert "/tmp/part" in result.problem.message


def test_what_nobody_foresaw_is_told_without_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> JobResult:
        raise KeyError("surprise")

    monkeypatch.setattr(cmd_job, "_carry_out", broken)
    result = cmd_job.work({"TOKENSERVICE_REQUEST": encode_request(LockRequest(environment={}))})
    assert result.problem == Problem(reason="Failed", message="KeyError: 'surprise'")
    assert "Traceback" in capfd.readouterr().err


def test_a_long_explanation_is_cut_where_it_must_be(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    long = "├─ datasets \N{SNOWMAN}\n" * 5000
    note = tmp_path / "note"
    code = cmd_job.tell(JobResult(problem=Problem(reason="Unsolvable", message=long)), note)
    assert code == EXIT_TERMINAL
    assert len(note.read_bytes()) <= 4096
    cut = decode_result(note.read_bytes())
    assert cut
    assert cut.problem
    assert cut.problem.truncated
    assert long.startswith(cut.problem.message)
    assert len(note.read_bytes()) > 4000
    full = decode_result(capfd.readouterr().out.splitlines()[-1])
    assert full
    assert full.problem
    assert full.problem.message == long


def test_a_result_without_a_problem_ends_well(tmp_path: Path) -> None:
    result = msgspec.convert({"collect": {"deleted": 0, "kept": 1}}, JobResult)
    assert cmd_job.tell(result, tmp_path / "note") == EXIT_DONE
    assert encode_result(result, 10) == encode_result(result)
    assert decode_result(b"not json") is None
    assert decode_result(b"{}") is None


def test_token_servers_requirements_are_those_of_its_project() -> None:
    project = tomllib.loads((ROOT / "service_image/token_server/pyproject.toml").read_text())["project"]
    assert list(SERVER_REQUIRES) == project["dependencies"]
