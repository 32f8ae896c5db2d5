from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenservice.builder.conda import cmd_layers
from tokenservice.builder.conda.layer_plan import Item, plan
from tokenservice.builder.conda.lock import Locked, make_lock, write_lock
from tokenservice.builder.errors import BuildError

ROOT = Path(__file__).resolve().parents[4]


def env_layers(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tokenservice.cli", "env", "layers", str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
        capture_output=True,
        text=True,
        check=False,
    )


def printed(file: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    class Arguments:
        platform = "linux-64"

    arguments: Any = Arguments()
    arguments.file = file
    assert cmd_layers.run(arguments) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command(tmp_path: Path) -> None:
    listed = [{"name": f"p{number}", "sha256": f"{number:064x}", "size": 1000 * number} for number in range(1, 151)]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    done = env_layers(tmp_path / "list.json")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) <= 78
    assert sorted(name for line in lines for name in line["packages"]) == sorted(each["name"] for each in listed)
    assert sum(line["size"] for line in lines) == sum(each["size"] for each in listed)  # type: ignore[misc]
    (tmp_path / "list.json").write_text(json.dumps([{"name": "x"}]))
    done = env_layers(tmp_path / "list.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "entry 1 (x) has no sha256" in done.stderr


def test_a_lock_and_a_list_of_its_packages_have_the_same_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = [
        Locked(
            "conda",
            f"p{number}",
            "1.0",
            f"https://c.example/f/linux-64/p{number}-1.0-0.conda",
            f"{number:064x}",
            build="0",
            size=10 + 7**number % 100_000,
            subdir="linux-64",
            more={"build_number": 0, "name": f"p{number}", "version": "1.0", "build": "0", "subdir": "linux-64"},
        )
        for number in range(90)
    ]
    url = "https://pypi.example/big-1.0-py3-none-any.whl"
    packages.append(Locked("pypi", "big", "1.0", url, "b" * 64, size=5_000_000))
    (tmp_path / "pixi.lock").write_bytes(write_lock(make_lock("linux-64", ["https://c.example/f"], packages)))
    listed = [{"name": each.name, "sha256": each.sha256, "size": each.size} for each in packages]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    of_lock = printed(tmp_path / "pixi.lock", capsys)
    assert of_lock == printed(tmp_path / "list.json", capsys)
    assert of_lock[0] == {"packages": ["big"], "size": 5_000_000}


ENTRIES = st.fixed_dictionaries(
    {"name": st.sampled_from("abcdef"), "sha256": st.sampled_from(["1", "2"]), "size": st.integers(0, 10**10)}
)


@given(st.lists(ENTRIES, max_size=20, unique_by=lambda each: (each["name"], each["sha256"])))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_lines_are_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: list[dict[str, Any]]) -> None:
    (tmp_path / "list.json").write_text(json.dumps([*entries, *entries]))
    lines = printed(tmp_path / "list.json", capsys)
    groups = plan([Item(each["name"], each["sha256"], each["size"]) for each in entries])
    assert lines == [{"packages": [each.name for each in group.packages], "size": group.size} for group in groups]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "is no JSON"),
        ("{}", "neither a pixi.lock nor a JSON list"),
        ("[1]", "entry 1 is no object"),
        ('[{"sha256": "1", "size": 1}]', "entry 1 has no name"),
        ('[{"name": "x", "sha256": "1", "size": "1"}]', "its size is no number of bytes"),
        ('[{"name": "x", "sha256": "1", "size": true}]', "its size is no number of bytes"),
        ('[{"name": "x", "sha256": "1", "size": -1}]', "its size is no number of bytes"),
        ("version: 6\n", "lock"),
        ("", "lock"),
    ],
)
def test_what_is_no_list_of_packages(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(BuildError, match=words):
        cmd_layers.packages_in(tmp_path / "file", "linux-64")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cannot be read: No such file"):
        cmd_layers.packages_in(tmp_path / "file", "linux-64")
