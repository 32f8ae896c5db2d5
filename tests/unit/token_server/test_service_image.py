"""The files for building by hand: what the Dockerfile promises, and that conda and pip can read the environment."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

FOLDER = Path(__file__).resolve().parents[3] / "service_image"
# conda's MatchSpec, as far as the file uses it: [channel::]name[=version[=build]]
CONDA_SPEC = re.compile(r"(?:[a-z0-9-]+::)?([a-z0-9_.-]+)(?:=([0-9][0-9.]*\*?))?")


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of the Dockerfile, continued lines joined, comments gone."""
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def environment() -> dict[str, Any]:
    loaded = yaml.safe_load((FOLDER / "environment.yml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def conda_section() -> list[str]:
    return [entry for entry in environment()["dependencies"] if isinstance(entry, str)]


def pip_section() -> list[str]:
    return next(entry["pip"] for entry in environment()["dependencies"] if isinstance(entry, dict))


def test_environment_first_code_last() -> None:
    places = {rest: index for index, (_, rest) in enumerate(instructions())}
    create = next(index for rest, index in places.items() if "conda env create" in rest)
    code = next(index for rest, index in places.items() if rest.startswith("token_server"))
    assert places["environment.yml /build/environment.yml"] < create < code
    final = [rest for name, rest in instructions() if name == "COPY" and rest.startswith("--from=")]
    assert [rest.split()[1] for rest in final] == ["/opt/env", "/opt/token-server"]


def test_every_base_has_a_version() -> None:
    arguments = [rest.split("=", 1) for name, rest in instructions() if name == "ARG"]
    bases = {key: value for key, value in arguments if key in {"BASE", "RUNTIME"}}
    assert set(bases) == {"BASE", "RUNTIME"}
    for image in bases.values():
        tag = image.rsplit("/", 1)[-1].partition(":")[2]
        assert tag
        assert tag != "latest"


def test_not_root_and_the_server_itself_is_started() -> None:
    last = [(name, rest) for name, rest in instructions() if name in {"USER", "ENTRYPOINT", "CMD"}]
    assert last == [("USER", "65532:65532"), ("ENTRYPOINT", '["token-server"]')]


def test_the_environment_is_active_without_conda_run() -> None:
    text = " ".join(rest for _, rest in instructions())
    assert "conda run" not in text
    variables = next(rest for name, rest in instructions() if name == "ENV")
    assert "CONDA_PREFIX=/opt/env" in variables
    assert "/opt/env/bin" in variables.split("PATH=", 1)[1].split()[0]


def test_bytecode_is_made_and_kept() -> None:
    text = " ".join(rest for _, rest in instructions())
    assert text.count("compileall") == 2
    assert ".pyc" not in text


def test_no_secret_is_baked_in() -> None:
    for name, rest in instructions():
        if name in {"ARG", "ENV", "RUN"}:
            assert not re.search(r"TOKEN\b|SECRET|PASSWORD", rest)


def test_conda_can_read_the_environment() -> None:
    assert set(environment()) == {"name", "channels", "dependencies"}
    names = []
    for spec in conda_section():
        match = CONDA_SPEC.fullmatch(spec)
        assert match, spec
        names.append(match.group(1))
        assert match.group(2) or spec == "pip", f"{spec} has no version"
    assert {"python", "pytorch", "transformers", "tokenizers", "safetensors", "pip"} <= set(names)


def test_pip_can_read_its_section() -> None:
    for line in pip_section():
        assert Requirement(line).specifier, f"{line} has no version"


def test_the_environment_holds_what_the_server_needs() -> None:
    project = (FOLDER / "token_server/pyproject.toml").read_text()
    needed = {Requirement(text).name for text in re.findall(r'"([a-z][a-z-]+>=[0-9.]+)"', project.split("scripts")[0])}
    pinned = {Requirement(line).name for line in pip_section()}
    conda = {str(CONDA_SPEC.fullmatch(spec).group(1)) for spec in conda_section()}  # type: ignore[union-attr]
    assert needed - pinned - conda - {"hatchling"} == {"torch"}, "torch is called pytorch in conda"


FAKE_CONDA = """#!/bin/sh
# A stand-in for conda: writes down what it is asked for.
echo "$@" >> "$CALLS"
if [ "$1 $2" = "env list" ]; then echo "$ENVIRONMENTS"; fi
"""


@pytest.mark.parametrize(
    ("existing", "call"),
    [
        ("base /opt/conda", "env create --name token_service --file environment.yml"),
        ("token_service * /x", "env update --name token_service --file environment.yml --prune"),
        ("token_service_old /x", "env create --name token_service --file environment.yml"),
    ],
)
def test_the_developers_environment_is_made_or_brought_up_to_date(tmp_path: Path, existing: str, call: str) -> None:
    conda = tmp_path / "conda"
    conda.write_text(FAKE_CONDA)
    conda.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "ENVIRONMENTS": existing}
    done = subprocess.run([FOLDER / "setup_dev_env.sh"], env=environ, capture_output=True, text=True, check=True)
    assert call in (tmp_path / "calls").read_text().splitlines()
    assert "conda activate token_service" in done.stdout


def test_the_developers_script_says_when_conda_is_missing() -> None:
    done = subprocess.run(
        ["/bin/bash", FOLDER / "setup_dev_env.sh"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "install Miniconda" in done.stderr) == (1, True)
