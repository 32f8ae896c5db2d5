"""What the server is told: one frozen value, from flags and TOKEN_SERVER_* variables (flag > variable > default)."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, NoReturn, Optional

PREFIX = "TOKEN_SERVER_"
SCHEMES = ("hf", "file")
DTYPES = ("auto", "float32", "float16", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")


class SettingsError(ValueError):
    """A setting is missing or wrong; the text is one line and names the variable or flag."""


@dataclass(frozen=True)
class Settings:
    """Times in seconds. Field NAME is flag --name and variable TOKEN_SERVER_NAME."""

    model_source: str = ""  # hf://org/name or file:///path; empty for a warm server that has none yet
    model_revision: Optional[str] = None  # branch, tag or commit on the hub
    model_name: str = ""  # what /v1/models says and requests name
    trust_remote_code: bool = False
    host: str = ""  # empty: every address, IPv4 and IPv6
    port: int = 8000
    api_keys_dir: Optional[str] = None  # a mounted Secret: every file's content is a key
    grace_seconds: float = 90.0
    drain_delay_seconds: float = 5.0
    max_concurrency: int = 4  # generations at once
    max_queue: int = 64  # requests that wait for one of them; more get 429
    max_context: Optional[int] = None  # tokens; default: what the model's configuration says
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 0  # of torch on the CPU; 0: what the container's CPU limit pays for
    warm: bool = False  # started without a model, to be given one at `assign_port`
    preload: tuple[str, ...] = ()  # architectures, as config.json names them, whose classes a warm server imports
    assign_port: int = 8001
    assign_token_sha256: str = ""  # of the token that a warm server's assignment must come with; hexadecimal
    assignment_file: str = "/var/run/tokenservice/assignment/assignment.json"

    @property
    def scheme(self) -> str:
        return self.model_source.split("://", 1)[0]

    @property
    def model_path(self) -> str:
        """`org/name` for hf://, the absolute path for file://."""
        return self.model_source.split("://", 1)[1]


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise SettingsError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise SettingsError(f"{value} is outside {low} to {high}")
        return value

    return read


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(f"{text!r} is not a number of seconds") from None
    if not 0 <= value <= 86400:  # also false for nan
        raise SettingsError(f"{text} is outside 0 to 86400 seconds")
    return value


def _truth(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.strip().lower() not in known:
        raise SettingsError(f"{text!r} is neither true nor false")
    return known[text.strip().lower()]


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise SettingsError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return read


def _source(text: str) -> str:
    scheme, separator, path = text.partition("://")
    if not separator or scheme not in SCHEMES or not path.strip("/"):
        raise SettingsError(f"{text!r} is neither hf://org/name nor file:///path")
    if scheme == "file" and not path.startswith("/"):
        raise SettingsError(f"{text!r} is not an absolute path: write file:///path")
    return f"{scheme}://{path.rstrip('/')}"


def _architectures(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if not name.isidentifier():
            raise SettingsError(f"{name!r} is not the name of an architecture, such as LlamaForCausalLM")
    return names


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise SettingsError("is not a SHA-256 in hexadecimal digits")
    return text


READERS: Mapping[str, Callable[[str], Any]] = {
    "model_source": _source,
    "trust_remote_code": _truth,
    "port": _whole(1, 65535),
    "grace_seconds": _seconds,
    "drain_delay_seconds": _seconds,
    "max_concurrency": _whole(1, 1024),
    "max_queue": _whole(0, 1_000_000),
    "max_context": _whole(1, 100_000_000),
    "dtype": _one_of(DTYPES),
    "device": _one_of(DEVICES),
    "threads": _whole(0, 1024),
    "warm": _truth,
    "preload": _architectures,
    "assign_port": _whole(1, 65535),
    "assign_token_sha256": _sha256,
}
HELP: Mapping[str, str] = {
    "model_source": "hf://org/name or file:///path",
    "model_revision": "branch, tag or commit on the hub",
    "model_name": "the name that clients use (default: from the source)",
    "trust_remote_code": "true lets the model's repository run its own Python code (default: false)",
    "host": "address to listen on (default: all)",
    "port": "TCP port (default: 8000)",
    "api_keys_dir": "folder whose files hold the accepted API keys (default: no key needed)",
    "grace_seconds": "time from SIGTERM to SIGKILL (default: 90)",
    "drain_delay_seconds": "how long requests are still accepted after SIGTERM (default: 5)",
    "max_concurrency": "generations at once (default: 4)",
    "max_queue": "requests that may wait for a generation; more get 429 (default: 64)",
    "max_context": "tokens of prompt and answer together (default: the model's)",
    "dtype": f"{', '.join(DTYPES)} (default: auto, as saved)",
    "device": f"{', '.join(DEVICES)} (default: auto, cuda where there is one)",
    "threads": "threads that torch computes with on the CPU (default: 0, by the container's CPU limit)",
    "warm": "true starts without a model and waits for an assignment (default: false)",
    "preload": "architectures whose classes a warm server imports, as in LlamaForCausalLM,MistralForCausalLM",
    "assign_port": "TCP port at which a warm server takes its assignment (default: 8001)",
    "assign_token_sha256": "SHA-256 of the token that an assignment must come with",
    "assignment_file": "where a warm server keeps its assignment, for when its container restarts",
}
SWITCHES = ("trust_remote_code", "warm")
# What a warm server has settled when it starts, and no assignment can change.
SETTLED = (
    "host",
    "port",
    "api_keys_dir",
    "grace_seconds",
    "drain_delay_seconds",
    "warm",
    "preload",
    "assign_port",
    "assign_token_sha256",
    "assignment_file",
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; `token-server --help` lists the flags")


def parser(*, with_help: bool = True) -> argparse.ArgumentParser:
    """The flags, one for each field of Settings; all optional, all read as text first."""
    made = _Parser(
        prog="token-server",
        description="Serves one causal language model with OpenAI's API. Every flag has a variable TOKEN_SERVER_NAME.",
        allow_abbrev=False,
        add_help=with_help,
    )
    for field in dataclasses.fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        if field.name in SWITCHES:
            made.add_argument(flag, nargs="?", const="true", help=HELP[field.name], metavar="BOOL")
        else:
            made.add_argument(flag, help=HELP[field.name], metavar="X")
    return made


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Flags over variables over defaults; an empty value counts as not given. Raises SettingsError."""
    values = read_flags(argv)
    for field in dataclasses.fields(Settings):
        variable = PREFIX + field.name.upper()
        if field.name not in values and environ.get(variable):
            values[field.name] = read(field.name, environ[variable], variable)
    if values.get("warm"):
        if "model_source" in values:
            raise SettingsError("TOKEN_SERVER_WARM (or --warm): a warm server is given its model later; name none")
        if "assign_token_sha256" not in values:
            raise SettingsError("no TOKEN_SERVER_ASSIGN_TOKEN_SHA256: a warm server must know whom to believe")
        return Settings(**values)
    if "model_source" not in values:
        raise SettingsError(
            "no model: set TOKEN_SERVER_MODEL_SOURCE (or --model-source) to hf://org/name or file:///path"
        )
    values.setdefault("model_name", default_name(values["model_source"]))
    return Settings(**values)


def read_flags(argv: Sequence[str], *, with_help: bool = True) -> dict[str, Any]:
    """The settings that flags give, by field. Raises SettingsError; `--help`, if it is one, ends the process."""
    flags = vars(parser(with_help=with_help).parse_args(list(argv)))
    return {name: read(name, text, "--" + name.replace("_", "-")) for name, text in flags.items() if text}


def read(field: str, text: str, place: str) -> Any:
    """The value of a field. Raises SettingsError, which begins with `place`: the flag, variable or key it stands in."""
    try:
        return READERS.get(field, str)(text)
    except SettingsError as error:
        raise SettingsError(f"{place}: {error}") from None


def default_name(source: str) -> str:
    """`org/name` of hf://org/name, the last folder of file:///path."""
    scheme, _, path = source.partition("://")
    return path if scheme == "hf" else path.rsplit("/", 1)[-1]
