"""Locks an environment: what a lock Job does, and `tokenservice env lock`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name

from tokenservice.api.jobs import JobResult, LockAnswer, LockRequest, VirtualPackages
from tokenservice.builder.errors import BuildError
from tokenservice.builder.progress import say
from tokenservice.builder.settings import Settings
from tokenservice.builder.store import scratch_folder

from .channels import Indexes, resolve, sources
from .distributions import Contents, Distribution
from .lock import Lock, Locked, changes, lock_digest, make_lock, read_lock, write_lock
from .pip import SERVER_REQUIRES, Target, check_addresses, extras_of, wants_extras
from .pip import resolve as resolve_pip
from .solve import GLIBC, asked, solve, virtual_packages
from .solver import IndexFile, Question


@dataclass(frozen=True)
class Wish:
    """What to lock: the canonical environment, and for what.

    `previous`: the lock whose choices are preferred. `exclude_newer`: a day or time in ISO 8601, "" for none.
    """

    environment: dict[str, Any]
    platform: str
    virtual: VirtualPackages = field(default_factory=VirtualPackages)
    exclude_newer: str = ""
    previous: Lock | None = None


def run(request: LockRequest, settings: Settings) -> JobResult:
    """The Job. Raises BuildError with its reason."""
    from .artifacts import environments_repository, open_registry, pull_lock, push_lock

    registry, place = open_registry(settings)
    registry.connect()
    if request.lock:
        say(f"using the lock {request.lock}")
        found = read_lock(pull_lock(request.lock, settings), request.platform)
        check_lock(found, settings)
    else:
        previous = _previous(request, settings)
        found = lock(
            Wish(
                dict(request.environment),
                request.platform,
                request.virtual_packages,
                request.exclude_newer or "",
                previous,
            ),
            settings,
        )
        for line in changes(previous, found)[:200] if previous else ():
            say(line)
    digest = lock_digest(found)
    reference = push_lock(registry, environments_repository(place), write_lock(found), digest)
    say(f"locked {len(found.packages)} packages as {digest}")
    return JobResult(lock=LockAnswer(lock_digest=digest, reference=reference, packages=len(found.packages)))


def _previous(request: LockRequest, settings: Settings) -> Lock | None:
    """The previous lock, if it can still be had: it only makes a new one move less."""
    from .artifacts import pull_lock

    if not request.previous:
        return None
    try:
        return read_lock(pull_lock(request.previous, settings), request.platform)
    except BuildError as error:
        say(f"going on without the previous lock: {error}")
        return None


def check_lock(found: Lock, settings: Settings) -> None:
    """Whether a lock that somebody gave may be used here: its channels must be allowed, and it must have a Python.

    Raises BuildError: ChannelNotAllowed, LockUnusable.
    """
    if settings.channels.allow:
        resolve(found.channels, settings.channels)
        allowed = tuple(f"{channel.rstrip('/')}/" for channel in found.channels)
        for package in found.conda:
            if not package.url.startswith(allowed):
                raise BuildError(
                    f"{package.name} of the lock is from {package.url}, not from its channels", "LockUnusable"
                )
    python_version(found.packages)
    for wheel in found.pypi:
        if not urlsplit(wheel.url).path.endswith(".whl"):
            raise BuildError(
                f"{wheel.name} of the lock is no wheel: {wheel.url}; nothing is built here", "LockUnusable"
            )
    has = {str(canonicalize_name(package.name)) for package in found.packages}
    lacks = [name for line in SERVER_REQUIRES if (name := line.partition(">=")[0]) not in has]
    if lacks:
        advice = "`tokenservice env lock` adds what token_server needs"
        raise BuildError(f"the lock has no {', '.join(lacks)}: {advice}", "LockUnusable")


def python_version(packages: Sequence[Locked]) -> str:
    """`3.11`. Raises BuildError where there is no Python, or one that token_server does not run on."""
    python = next((package for package in packages if package.kind == "conda" and package.name == "python"), None)
    if python is None:
        raise BuildError("the lock has no python, which token_server needs", "LockUnusable")
    major, minor = [*python.version.split("."), "0"][:2]
    if (int(major), int(minor)) < (3, 9):
        raise BuildError(f"python {python.version} is too old: token_server needs 3.9 or newer", "Unsolvable")
    return f"{major}.{minor}"


def lock(wish: Wish, settings: Settings) -> Lock:
    """Solves for conda's packages, then for pip's beside them.

    Raises:
        BuildError: with the reason that the condition will have.

    """
    with scratch_folder(Path(tempfile.gettempdir()) / "tokenservice-lock") as scratch:
        cache = Path(settings.cache_folder) if settings.cache_folder else scratch / "cache"
        dependencies = wish.environment["dependencies"]
        lines: list[str] = next((item["pip"] for item in dependencies if isinstance(item, dict)), [])
        check_addresses(lines, settings.pip.allow)
        wanted = asked(dependencies, wish.environment["channels"], settings.channels)
        indexes = Indexes(cache / "indexes", settings).fetch(wanted.channels, wish.platform)
        say(f"solving for {', '.join(wanted.specs)}")
        conda = solve(
            Question(
                list(wanted.specs),
                [IndexFile(index.channel.url, index.subdir, str(index.file)) for index in indexes],
                virtual_packages(wish.platform, wish.virtual),
                wish.platform,
                float(settings.solve_timeout_seconds),
                wish.exclude_newer,
                _file_of(wish.previous, scratch),
            )
        )
        for package in conda:
            if not package.sha256:
                raise BuildError(f"the channel gives no sha256 for {package.name}: it cannot be locked", "LockUnusable")
        python = python_version(conda)
        contents = Contents(cache / "distributions", sources(settings))
        provided = {str(canonicalize_name(each.name)): each for each in contents.distributions(conda)}
        say(f"{len(conda)} conda packages; resolving pip's for Python {python}")
        pip = scratch / "pip"
        pip.mkdir()
        wheels = resolve_pip(
            lines,
            _with_extras(provided, lines, conda, contents),
            Target(wish.platform, python, wish.virtual.glibc or GLIBC),
            settings,
            pip,
            previous=wish.previous.pypi if wish.previous else (),
            exclude_newer=wish.exclude_newer,
        )
    return make_lock(wish.platform, [channel.url for channel in wanted.channels], [*conda, *wheels])


def _file_of(previous: Lock | None, scratch: Path) -> str:
    if previous is None:
        return ""
    file = scratch / "previous.lock"
    file.write_bytes(write_lock(previous))
    return str(file)


def _with_extras(
    provided: dict[str, Distribution], lines: Sequence[str], conda: Sequence[Locked], contents: Contents
) -> dict[str, tuple[str, Sequence[str]]]:
    """What conda provides, with the extras of those distributions of which a line wants one."""
    extras: dict[str, list[str]] = {}
    packages = {package.name: package for package in conda}
    for wanted in wants_extras(lines, provided):
        for text in contents.metadata(packages[wanted.package]):
            name = next((line[5:].strip() for line in text.splitlines() if line.startswith("Name:")), "")
            extras[str(canonicalize_name(name))] = extras_of(text)
    return {name: (each.version, extras.get(name, ())) for name, each in provided.items()}
