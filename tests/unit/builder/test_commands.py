from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenservice.builder.commands import add_commands
from tokenservice.builder.images import MODEL_FILE_ALONE, model_files, model_groups

from tests.unit.builder.standin_registry import StandinRegistry


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinRegistry]:
    monkeypatch.setenv("TOKENSERVICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with StandinRegistry().running() as running:
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model/sub").mkdir(parents=True)
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "blob").write_text("weights")
    (tmp_path / "model/sub/weights").symlink_to(tmp_path / "blob")
    (tmp_path / "model/.git").mkdir()
    (tmp_path / "model/.git/config").write_text("x")
    return tmp_path / "model"


def run(*argv: object) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    arguments = parser.parse_args([str(each) for each in ("image", "push", *argv)])
    return int(arguments.run(arguments))


def test_the_last_line_is_json_about_the_push(
    server: StandinRegistry, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("model", "--registry", f"{server.address}/team", "--tag", "v1", "--from", model, "--name", "tiny")
    assert run(*command) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    manifest = server.manifests["team/models/tiny"]["v1"]
    assert said["image"].startswith(f"{server.address}/team/models/tiny@sha256:")
    assert server.manifests["team/models/tiny"][said["image"].partition("@")[2]] == manifest
    assert set(said) == {"image", "tag", "layers", "bytes", "pushed_bytes", "seconds"}
    assert (said["tag"], said["layers"]) == ("v1", 1)
    assert said["pushed_bytes"] > 0
    assert run(*command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pushed_bytes"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("operator", "--tag", "a b"), "--tag a b"),
        (("operator", "--tag", "v1", "--name", "x"), "belong to `image push model`"),
        (("model", "--tag", "v1", "--name", "x"), "belong to `image push model`"),
        (("model", "--tag", "v1", "--name", "X", "--from", "/"), "'models/X' is no repository name"),
        (("model", "--tag", "v1", "--name", "x", "--from", "/none"), "--from /none: there is no such folder"),
        (("operator", "--tag", "v1", "--source", "/"), "/ is no source tree"),
    ],
)
def test_what_is_wrong_is_one_line(
    server: StandinRegistry, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run(*arguments, "--registry", server.address) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_models_files(model: Path) -> None:
    assert model_files(model) == [(Path("config.json"), 2), (Path("sub/weights"), 7)]


def test_a_models_large_files_lie_alone_and_below() -> None:
    files = [(Path("a"), 1), (Path("b"), MODEL_FILE_ALONE + 1), (Path("c"), MODEL_FILE_ALONE)]
    assert model_groups(files) == [("b", [Path("b")]), ("the other files", [Path("a"), Path("c")])]
    assert model_groups(files[1:2]) == [("b", [Path("b")])]


def test_a_changed_file_makes_another_image(
    server: StandinRegistry, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("model", "--registry", server.address, "--tag", "v1", "--from", model, "--name", "tiny")
    run(*command)
    before = server.manifests["models/tiny"]["v1"]
    (model / "config.json").write_text("[]")
    os.utime(model / "config.json", (1, 1))
    assert run(*command) == 0
    assert server.manifests["models/tiny"]["v1"] != before
