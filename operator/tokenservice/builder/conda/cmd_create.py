"""`tokenservice env create FILE --prefix DIR`: the locked environment in a folder of this machine."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

from tokenservice.builder import settings as owner
from tokenservice.builder.errors import BuildError
from tokenservice.builder.store import cache_folder

from . import cmd_lock
from .channels import sources
from .cmd_lock import read_environment
from .create import create
from .lock import read_lock

MACHINES = {"x86_64": "linux-64", "aarch64": "linux-aarch64", "arm64": "linux-aarch64"}


def run(arguments: argparse.Namespace) -> int:
    """Locks an environment.yml (a lock is taken as it is), makes or updates the folder. Raises BuildError."""
    file: Path = arguments.file
    settings = owner.load(os.environ, arguments.settings)
    wanted = arguments.platform or this_platform()
    lock_file, variables = file, None
    if file.suffix != ".lock":
        variables = read_environment(file).variables
        lock_file = file.with_name("pixi.lock")
        code = _lock(arguments, wanted)
        if code:
            return code
    try:
        lock = read_lock(lock_file.read_bytes(), wanted)
    except OSError as error:
        raise BuildError(f"{lock_file} cannot be read: {error.strerror}") from error
    cache = Path(settings.cache_folder) if settings.cache_folder else cache_folder(os.environ) / "create"
    done = create(lock, arguments.prefix, cache, sources(settings), variables)
    if not done.installed and not done.removed:
        sys.stdout.write(f"{arguments.prefix}: nothing to do, {len(lock.packages)} packages as locked\n")
    else:
        counts = f"{done.installed} installed, {done.removed} removed"
        sys.stdout.write(f"{arguments.prefix}: {counts}, {len(lock.packages)} packages as locked\n")
    return 0


def this_platform() -> str:
    """conda's name of this machine. Raises BuildError for one that no lock is for."""
    found = MACHINES.get(platform.machine()) if sys.platform == "linux" else None
    if found is None:
        here = f"{sys.platform} on {platform.machine()}"
        raise BuildError(f"environments are for Linux on x86-64 or arm64, and this is {here}: use a container")
    return found


def _lock(arguments: argparse.Namespace, wanted: str) -> int:
    """The same as `tokenservice env lock FILE`."""
    return cmd_lock.run(
        argparse.Namespace(
            file=arguments.file,
            output=None,
            previous=None,
            fresh=False,
            platform=wanted,
            cuda=None,
            glibc=None,
            exclude_newer=None,
            settings=arguments.settings,
        )
    )
