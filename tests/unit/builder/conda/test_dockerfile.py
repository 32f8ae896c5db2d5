from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.builder.conda import cmd_dockerfile
from tokenservice.builder.conda.dockerfile import Inputs, quoted, render
from tokenservice.builder.conda.pip import SERVER_REQUIRES
from tokenservice.builder.errors import BuildError
from tokenservice.builder.oci import MANIFEST, canonical_json, digest_of
from tokenservice.builder.settings import ChannelSettings, PipSettings, Settings

from tests.unit.builder.standin_registry import StandinRegistry

ROOT = Path(__file__).parents[4]
DIGEST = digest_of(b"x")
INSTRUCTIONS = {"FROM", "RUN", "COPY", "LABEL", "ENV", "USER", "EXPOSE", "ENTRYPOINT"}


def instructions(text: str) -> list[tuple[str, str]]:
    """A Dockerfile as Docker reads it: comment lines are dropped, lines that end in a backslash go on in the next."""
    lines = [line for line in text.split("\n") if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = []
    for line in joined.split("\n"):
        if line.strip():
            name, _, rest = line.partition(" ")
            assert name in INSTRUCTIONS, line
            found.append((name, rest.strip()))
    return found


def unquoted(text: str) -> dict[str, str]:
    """`A="x" B="y"` of an ENV, as Docker reads it: in double quotes the backslash escapes itself, quotes and $."""
    pairs = re.findall(r'([\w.]+)="((?:[^"\\]|\\.)*)"', text)
    assert " ".join(f'{name}="{value}"' for name, value in pairs) == text
    for _, value in pairs:
        assert not re.search(r"(?<!\\)(?:\\\\)*\$", value), "a variable that Docker would replace"
    return {name: re.sub(r'\\([\\"$])', r"\1", value) for name, value in pairs}


def shell_words(run: str) -> list[str]:
    return shlex.split(run)


def test_the_order_is_that_of_change() -> None:
    found = instructions(render(Inputs("environment.yml", "mine", base=f"r.io/m@{DIGEST}"), Settings()))
    stages = [rest for name, rest in found if name == "FROM"]
    assert stages == [f"r.io/m@{DIGEST} AS build", "build AS code", "docker.io/library/debian:12-slim"]
    copies = [rest for name, rest in found if name == "COPY"]
    assert copies == [
        '["environment.yml", "/build/environment.yml"]',
        '["token_server", "/build/token_server"]',
        "--from=build /opt/env /opt/env",
        "--from=code /opt/token-server /opt/token-server",
    ]
    last = [name for name, _ in found].index("FROM", 8)
    assert [name for name, _ in found[last:]] == [
        "FROM", "LABEL", "COPY", "ENV", "RUN", "COPY", "USER", "EXPOSE", "ENTRYPOINT",
    ]  # fmt: skip
    final = dict(found[last:])
    assert final["USER"] == "65532:65532"
    assert final["EXPOSE"] == "8000"
    assert json.loads(final["ENTRYPOINT"]) == ["token-server"]
    env = unquoted(final["ENV"])
    assert env["PATH"].startswith("/opt/token-server/bin:/opt/env/bin:")
    assert (env["CONDA_PREFIX"], env["CONDA_DEFAULT_ENV"]) == ("/opt/env", "mine")
    assert env["PYTHONDONTWRITEBYTECODE"] == "1"


def test_byte_code_is_made_and_the_cache_is_not_kept() -> None:
    runs = [rest for name, rest in instructions(render(Inputs("environment.yml", "mine"), Settings())) if name == "RUN"]
    create = next(run for run in runs if "conda env create" in run)
    assert "conda clean --all --yes" in create, "in the same layer"
    assert sum("compileall" in run for run in runs) == 2
    assert not any("-delete" in run or "rm " in run for run in runs)
    pip = next(run for run in runs if "starlette" in run)
    assert set(SERVER_REQUIRES) <= set(shell_words(pip))


VALUES = st.text(st.characters(blacklist_categories=["Cc", "Cs"]), max_size=30)


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True), VALUES, max_size=4), VALUES)
def test_every_value_comes_through(variables: dict[str, str], name: str) -> None:
    text = render(Inputs("environment.yml", name, variables=variables), Settings())
    found = instructions(text)
    label = next(rest for kind, rest in found if kind == "LABEL")
    assert unquoted(label) == {"org.opencontainers.image.title": name}
    envs = [unquoted(rest) for kind, rest in found if kind == "ENV"]
    assert envs[0]["CONDA_DEFAULT_ENV"] == name
    assert envs[1:] == ([variables] if variables else [])


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=60))
def test_no_warning_leaves_its_comment(text: str) -> None:
    plain = instructions(render(Inputs("environment.yml", "x"), Settings()))
    assert instructions(render(Inputs("environment.yml", "x", server=text or "x", warnings=[text]), Settings())) == [
        ("COPY", "--from=token_server . /build/token_server")
        if "token_server" in rest and kind == "COPY"
        else (kind, rest)
        for kind, rest in plain
    ]


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "\x00", "\x1b[0m"])
def test_what_no_dockerfile_can_hold(value: str) -> None:
    with pytest.raises(BuildError, match="control character"):
        quoted(value)


@pytest.mark.parametrize("name", ["environment-*.yml", "$HOME.yml", "a[1].yml", 'x".yml'])
def test_file_names_that_docker_reads_as_patterns(name: str) -> None:
    with pytest.raises(BuildError, match=r"call it environment\.yml"):
        render(Inputs(name, "x"), Settings())


def test_logins_are_mounted_and_never_written() -> None:
    settings = Settings(
        channels=ChannelSettings(alias="https://conda.example.com/a b"),
        pip=PipSettings(index_url="https://me:planted@pypi.example.com/simple"),
        ca_bundle="/etc/company.pem",
        timeout_seconds=7,
        retries=5,
    )
    text = render(Inputs("environment.yml", "x", channels=["conda-forge"]), settings)
    assert "planted" not in text
    assert "ARG" not in {name for name, _ in instructions(text)}
    runs = [rest for name, rest in instructions(text) if name == "RUN"]
    asking = [run for run in runs if "conda env create" in run or " pip " in run]
    assert len(asking) == 3
    for run in asking:
        assert run.startswith("--mount=type=secret,id=netrc,target=/root/.netrc --mount=type=secret,id=ca,")
        assert "PIP_INDEX_URL=https://pypi.example.com/simple" in shell_words(run)
        assert "PIP_CERT=/run/secrets/ca.pem" in shell_words(run)
    config = shell_words(next(run for run in runs if "conda config" in run))
    assert [config[config.index(name) + 1] for name in ("remote_connect_timeout_secs", "remote_max_retries")] == [
        "7",
        "5",
    ]
    assert config[config.index("channel_alias") + 1] == "https://conda.example.com/a b"
    assert "--secret id=netrc,src=NETRC --secret id=ca,src=/etc/company.pem" in text


@pytest.mark.parametrize(
    ("channels", "settings", "secret"),
    [
        (["conda-forge", "pytorch"], Settings(), False),
        (["defaults"], Settings(), False),
        (["https://conda.anaconda.org/conda-forge"], Settings(), False),
        (["https://conda.example.com/ours"], Settings(), True),
        (["conda-forge"], Settings(credentials={"conda.anaconda.org": "/login"}), True),
        (["conda-forge"], Settings(pip=PipSettings(extra_index_urls=("https://pypi.example.com/simple",))), True),
    ],
)
def test_only_what_may_ask_for_a_login_gets_one(channels: list[str], settings: Settings, secret: bool) -> None:
    assert ("type=secret" in render(Inputs("environment.yml", "x", channels=channels), settings)) == secret


# The command

ENVIRONMENT = """
name: mine
channels: [conda-forge, nodefaults]
dependencies: [python=3.11, {pip: [starlette]}]
variables: {GREETING: 'say "hi" for $5'}
"""


@pytest.fixture
def hub() -> Iterator[StandinRegistry]:
    manifest = canonical_json({"mediaType": MANIFEST, "x": 1})
    held = {digest_of(manifest): manifest, "25": manifest}
    with StandinRegistry(manifests={"continuumio/miniconda3": held}).running() as running:
        yield running


def printed(
    capsys: pytest.CaptureFixture[str], file: Path, base: str, settings: str = "{retries: 0}"
) -> tuple[str, str]:
    (file.parent / "settings.yaml").write_text(settings)
    arguments = argparse.Namespace(file=file, base_image=base, settings=file.parent / "settings.yaml")
    assert cmd_dockerfile.run(arguments) == 0
    out, errors = capsys.readouterr()
    return out, errors


@pytest.fixture(autouse=True)
def no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmd_dockerfile, "RUNTIME", f"127.0.0.1:1/debian@{DIGEST}")


def test_the_bases_digest_is_found_out(
    hub: StandinRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "environment.yml").write_text(ENVIRONMENT)
    text, errors = printed(capsys, tmp_path / "environment.yml", f"{hub.address}/continuumio/miniconda3:25")
    digest = digest_of(hub.manifests["continuumio/miniconda3"]["25"])
    found = instructions(text)
    assert found[0] == ("FROM", f"{hub.address}/continuumio/miniconda3:25@{digest} AS build")
    assert "WARNING" not in text
    assert "warning" not in errors
    assert text.endswith('ENTRYPOINT ["token-server"]\n')
    assert {"GREETING": 'say "hi" for $5'} in [unquoted(rest) for name, rest in found if name == "ENV"]
    assert ("COPY", "--from=token_server . /build/token_server") in found
    (tmp_path / "token_server").mkdir()
    (tmp_path / "token_server/pyproject.toml").touch()
    text, _ = printed(capsys, tmp_path / "environment.yml", f"{hub.address}/continuumio/miniconda3:25")
    assert ("COPY", '["token_server", "/build/token_server"]') in instructions(text)


def test_a_registry_that_does_not_answer_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "environment.yml").write_text(ENVIRONMENT)
    text, errors = printed(capsys, tmp_path / "environment.yml", "127.0.0.1:1/miniconda3:25")
    assert instructions(text)[0] == ("FROM", "127.0.0.1:1/miniconda3:25 AS build")
    assert "# WARNING: 127.0.0.1:1/miniconda3:25 is not pinned by digest" in text
    assert "warning: 127.0.0.1:1/miniconda3:25 is not pinned by digest" in errors


def test_a_mistake_in_the_file_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "environment.yml").write_text(ENVIRONMENT + "chanels: []\n")
    with pytest.raises(BuildError, match=r"environment\.yml: line 6: chanels .*'channels'") as raised:
        printed(capsys, tmp_path / "environment.yml", f"127.0.0.1:1/x@{DIGEST}")
    assert raised.value.reason == "InvalidEnvironment"
    with pytest.raises(BuildError, match="cannot be read: No such file"):
        printed(capsys, tmp_path / "none.yml", f"127.0.0.1:1/x@{DIGEST}")


def test_the_articles_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "environment.yml").write_text((ROOT / "service_image/environment.yml").read_text())
    text, _ = printed(capsys, tmp_path / "environment.yml", f"127.0.0.1:1/x@{DIGEST}")
    assert unquoted(dict(instructions(text))["ENV"])["CONDA_DEFAULT_ENV"] == "token_service"
