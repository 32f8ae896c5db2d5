"""Chooses the conda packages of an environment."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tokenservice.api.jobs import VirtualPackages
from tokenservice.builder.errors import BuildError
from tokenservice.builder.settings import ChannelSettings
from tokenservice.environments import matchspec

from .channels import Channel, resolve
from .lock import Locked
from .solver import Answer, Question

GLIBC = "2.36"
"""Of the base image that this project makes (Debian 12)."""
LINUX = "5.10"
"""The oldest kernel of a Kubernetes node that is assumed; conda's own default for another machine."""
ARCHITECTURES = {"linux-64": "x86_64", "linux-aarch64": "aarch64"}
PYTHON = "python >=3.9"
"""What token_server runs on; added to an environment that names no python."""


@dataclass(frozen=True)
class Asked:
    """The conda part of an environment: its specs, and all channels in order, those that only a spec names last."""

    specs: tuple[str, ...]
    channels: tuple[Channel, ...]


def asked(dependencies: Sequence[object], channels: Sequence[str], settings: ChannelSettings) -> Asked:
    """What to solve for; channels in specs become URLs, so that their names mean what the owner says they mean.

    Raises:
        BuildError: ChannelNotAllowed.

    """
    texts = [item for item in dependencies if isinstance(item, str)]
    named = [found.channel for found in map(matchspec.parse, texts) if found.channel]
    known = resolve([*channels, *named], settings)
    specs = [_with_url(text, settings) for text in texts]
    if not any(matchspec.parse(text).name == "python" for text in texts):
        specs.append(PYTHON)
    return Asked(tuple(specs), tuple(known))


def _with_url(text: str, settings: ChannelSettings) -> str:
    before, separator, rest = text.partition("::")
    if not separator:
        return text
    found = matchspec.parse(text)
    url = resolve([found.channel or before], settings)[0].url
    return f"{url}/{found.subdir}::{rest}" if found.subdir else f"{url}::{rest}"


def virtual_packages(platform: str, given: VirtualPackages) -> list[tuple[str, str, str]]:
    """What the nodes and the base image offer, as (name, version, build).

    https://docs.conda.io/projects/conda/en/stable/user-guide/tasks/manage-virtual.html
    """
    found = [
        ("__unix", "0", "0"),
        ("__linux", LINUX, "0"),
        ("__glibc", given.glibc or GLIBC, "0"),
        ("__archspec", "1", ARCHITECTURES.get(platform, "x86_64")),
    ]
    return [*found, ("__cuda", given.cuda, "0")] if given.cuda else found


def solve(question: Question) -> list[Locked]:
    """The packages, by the solver in a process of its own.

    Raises:
        BuildError: UnknownPackage, Unsolvable with the solver's whole explanation, TimedOut, ChannelUnavailable for an
            index that cannot be read.

    """
    command = [sys.executable, "-m", "tokenservice.builder.conda.solver"]
    try:
        # The solver watches the time by itself; it is given a little longer to say so.
        done = subprocess.run(
            command,
            input=msgspec.json.encode(question),
            stdout=subprocess.PIPE,
            check=False,
            timeout=question.seconds + 30,
        )
    except subprocess.TimeoutExpired:
        raise _too_long(question) from None
    try:
        answer = msgspec.json.decode(done.stdout, type=Answer)
    except msgspec.DecodeError as error:
        raise BuildError(f"the solver ended without an answer (exit code {done.returncode})") from error
    for file, why in answer.broken.items():
        Path(file).unlink(missing_ok=True)  # else the server would say that it has not changed
        index = next(each for each in question.indexes if each.file == file)
        raise BuildError(
            f"the channel {index.channel} is not available: its index of {index.subdir} cannot be read: {why}",
            "ChannelUnavailable",
        )
    if answer.timed_out:
        raise _too_long(question)
    if answer.unknown:
        raise BuildError(_unknown(answer.unknown, question), "UnknownPackage")
    if answer.problem:
        raise BuildError(explained(answer.problem, question), "Unsolvable")
    return [msgspec.convert(package, Locked) for package in answer.packages]


def _too_long(question: Question) -> BuildError:
    return BuildError(
        f"no solution was found within {question.seconds:g} s: name versions more exactly, or let the owner raise "
        "solveTimeoutSeconds",
        "TimedOut",
    )


def _unknown(unknown: dict[str, list[str]], question: Question) -> str:
    channels = ", ".join(dict.fromkeys(index.channel for index in question.indexes))
    lines = []
    for name, near in unknown.items():
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        lines.append(f"no channel has a package named {name}{hint}")
    return "\n".join([*lines, f"channels: {channels}"])


def _alone(text: str) -> str:
    """Why one package cannot be had, in a line, if the whole explanation ends in one missing thing; else ""."""
    first, _, rest = text.partition("\n")
    missing = set(re.findall(r"─ (.+?),? for which no candidates were found", rest))
    if not first.endswith("because there are no viable options:") or len(missing) != 1:
        return ""
    name = first.split()[0]
    return f"{name} cannot be installed: it leads to {missing.pop()}, which no channel has"


def explained(problem: str, question: Question) -> str:
    """The solver's words, which begin with what cannot be, and what else to know."""
    text = re.sub(r"^Cannot solve the request because of:\s*", "", problem.strip())
    roots = sorted(set(re.findall(r"^[├└]─ (\S+)", text, re.MULTILINE)))
    lines = [text]
    if len(roots) > 1:
        lines = [f"{', '.join(roots[:-1])} and {roots[-1]} cannot be installed together", text.partition("\n")[2]]
    elif alone := _alone(text):
        lines = [alone, text]
    virtual = {name for name, _, _ in question.virtual}
    if "__cuda" in problem and "__cuda" not in virtual:
        lines.append(
            "hint: a package needs a GPU's driver (__cuda): set virtualPackages.cuda to the CUDA version that the "
            "oldest driver of the target nodes supports (nvidia-smi shows it)"
        )
    if "__glibc" in problem:
        lines.append("hint: the base image's glibc decides (__glibc): virtualPackages.glibc tells its version")
    if question.exclude_newer:
        lines.append(f"hint: packages uploaded after {question.exclude_newer} are left out (excludeNewer)")
    return "\n".join(lines)
