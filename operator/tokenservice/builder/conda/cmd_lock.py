"""`tokenservice env lock FILE`: the lock of an environment.yml, beside it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tokenservice.api.jobs import VirtualPackages
from tokenservice.builder.errors import BuildError
from tokenservice.builder.settings import load
from tokenservice.environments.document import read
from tokenservice.environments.problems import InvalidEnvironment
from tokenservice.environments.spec import Canonical, canonical

from .lock import Lock, changes, lock_digest, read_lock, write_lock
from .lock_job import Wish, lock


def run(arguments: argparse.Namespace) -> int:
    """Writes the lock and prints what it changes; 1 with the explanation where there is none."""
    settings = load(os.environ, arguments.settings)
    environment = read_environment(arguments.file)
    output: Path = arguments.output or arguments.file.parent / "pixi.lock"
    there = _read(output, arguments.platform) if output.exists() else None
    previous = there
    if arguments.previous:
        previous = read_lock(_bytes(arguments.previous), arguments.platform)
    made = lock(
        Wish(
            environment.document,
            arguments.platform,
            VirtualPackages(cuda=arguments.cuda, glibc=arguments.glibc),
            arguments.exclude_newer or "",
            None if arguments.fresh else previous,
        ),
        settings,
    )
    tell(output, there, made)
    return 0


def read_environment(file: Path) -> Canonical:
    """The environment in a file. Raises BuildError: InvalidEnvironment, a line for each problem."""
    try:
        data, lines = read(_bytes(file).decode())
        return canonical(data, lines=lines)
    except UnicodeDecodeError as error:
        raise BuildError(f"{file} is not in UTF-8", "InvalidEnvironment") from error
    except InvalidEnvironment as error:
        text = "\n".join(f"{file}: {problem}" for problem in error.problems)
        raise BuildError(text, "InvalidEnvironment") from error


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BuildError(f"{file} cannot be read: {error.strerror}") from error


def _read(file: Path, platform: str) -> Lock | None:
    """A lock that stands where the new one goes; one that cannot be read is no reason to stop."""
    try:
        return read_lock(_bytes(file), platform)
    except BuildError as error:
        sys.stderr.write(f"the old {file} is not used: {error}\n")
        return None


def tell(output: Path, before: Lock | None, made: Lock) -> None:
    """Writes the lock if it is another one, and prints what changed."""
    moved = changes(before, made)
    if before is None or lock_digest(before) != lock_digest(made):
        part = output.with_name(f".{output.name}.part")
        part.write_bytes(write_lock(made))
        part.rename(output)
    for line in moved:
        sys.stdout.write(f"{line}\n")
    what = "nothing changed" if before is not None and not moved else f"{len(moved)} changed"
    sys.stdout.write(f"{output}: {len(made.packages)} packages, {what}, {lock_digest(made)}\n")
