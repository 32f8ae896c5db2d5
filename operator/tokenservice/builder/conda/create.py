"""A locked environment in a folder of this machine: made, or brought up to date; what the lock no longer has, goes.

Conda packages are linked by rattler, wheels by `installer`. Every step begins with what the folder holds, so that a run
after an interrupted one completes it. No script of a package runs.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tokenservice.builder.errors import BuildError
from tokenservice.builder.progress import say
from tokenservice.builder.store import locked, scratch_folder

from . import create_wheels
from .archive import unpack_conda
from .lock import Lock, Locked
from .packages import Archives, Package, Sources, python_of


@dataclass(frozen=True)
class Done:
    """How many packages came and went; both 0 where nothing was to do."""

    installed: int
    removed: int


@dataclass(frozen=True)
class Linked:
    """A conda package in the folder, by its record in conda-meta. `whole`: all its files are there."""

    name: str
    version: str
    sha256: str
    files: tuple[str, ...]
    record: Path
    whole: bool


class _Record(msgspec.Struct):
    """The part of a conda-meta record that is asked for here."""

    name: str
    version: str
    sha256: str = ""
    files: tuple[str, ...] = ()


def create(lock: Lock, prefix: Path, cache: Path, sources: Sources, variables: Mapping[str, str] | None = None) -> Done:
    """Makes the folder `prefix` hold what the lock says, and nothing else that a lock brought there.

    `variables` are set when the environment is activated; None leaves them as they are. Packages are downloaded below
    `cache` and checked against the lock before anything is changed. Raises BuildError.
    """
    prefix = prefix.absolute()
    _check_folder(prefix)
    (prefix / "conda-meta").mkdir(parents=True, exist_ok=True)
    with locked(prefix / "conda-meta/.tokenservice.lock"), scratch_folder(cache / "scratch") as scratch:
        archives = Archives(cache / "archives", sources, keep=False)
        conda = [_package(each) for each in lock.conda]
        wheels = [_package(each) for each in lock.pypi]
        there = linked(prefix)
        coming = [conda[number] for number in to_link(lock.conda, there)]
        fetched = {package.sha256: path for package, path in zip(coming, archives.fetch(coming), strict=True)}
        for package in coming:
            _check(package, fetched[package.sha256], scratch)
        gone = {each.name for each in there} - {each.name for each in lock.conda}
        if coming or gone:
            broken = {each.name for each in there if not each.whole} & {each.name for each in coming}
            asyncio.run(_link(lock.conda, fetched, prefix, cache, broken))
            _name_origins(prefix, lock.conda)
        files = frozenset(path for each in linked(prefix) for path in each.files)
        removed, added = create_wheels.update(prefix, python_of(conda), wheels, files, archives.fetch)
        archives.forget([*coming, *wheels])
        history = prefix / "conda-meta/history"  # by this file conda knows an environment
        if not history.exists():
            history.touch()
        if variables is not None:
            _set_variables(prefix, variables)
    return Done(len(coming) + added, len(gone) + removed)


def linked(prefix: Path) -> list[Linked]:
    """The conda packages in the folder. Raises BuildError for a record that cannot be read."""
    found = []
    for file in sorted((prefix / "conda-meta").glob("*.json")):
        try:
            record = msgspec.json.decode(file.read_bytes(), type=_Record)
        except msgspec.DecodeError as error:
            raise BuildError(f"{file} is no record of a package ({error}): delete {prefix} and begin anew") from error
        whole = all(os.path.lexists(prefix / path) for path in record.files)
        found.append(Linked(record.name, record.version, record.sha256, record.files, file, whole))
    return found


def to_link(wanted: Iterable[Locked], there: Iterable[Linked]) -> list[int]:
    """Positions of the packages that have to be linked: new, changed, damaged, or with their place changed.

    Pure-Python packages lie below lib/pythonX.Y: another Python moves them all.
    """
    wanted = list(wanted)
    held = {each.name: each for each in there}
    new = next((package.version for package in wanted if package.name == "python"), "")
    moved = "python" in held and _short(held["python"].version) != _short(new)
    return [
        number
        for number, package in enumerate(wanted)
        if package.name not in held
        or held[package.name].sha256 != package.sha256
        or not held[package.name].whole
        or (moved and package.noarch == "python")
    ]


def _short(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _check_folder(prefix: Path) -> None:
    if prefix.is_dir() and any(prefix.iterdir()) and not (prefix / "conda-meta").is_dir():
        raise BuildError(f"--prefix {prefix}: there is something in this folder that is no conda environment")
    if prefix.exists() and not prefix.is_dir():
        raise BuildError(f"--prefix {prefix} is no folder")


def _check(package: Package, archive: Path, scratch: Path) -> None:
    """Unpacks an archive with suspicion, once; refuses what would leave the folder, says what will not run."""
    with scratch_folder(scratch) as unpacked:
        unpack_conda(archive, unpacked)
        scripts = [*unpacked.glob("bin/.*-post-link.sh"), *unpacked.glob("bin/.*-pre-link.sh")]
        if scripts:
            say(f"warning: {package.name} brings {scripts[0].name}, which is not run")


def _package(each: Locked) -> Package:
    return Package(
        each.kind, each.name, each.version, each.url, each.sha256, each.size, each.noarch, each.depends, each.site
    )


async def _link(
    wanted: Iterable[Locked], fetched: Mapping[str, Path], prefix: Path, cache: Path, broken: set[str]
) -> None:
    import rattler

    records = [_record(each, fetched.get(each.sha256)) for each in wanted]
    try:
        await rattler.install(
            records,
            target_prefix=prefix,
            cache_dir=cache / "unpacked",
            reinstall_packages=broken,
            execute_link_scripts=False,
            show_progress=False,
        )
    except Exception as error:  # rattler has many kinds, and no common one
        raise BuildError(f"{prefix} could not be brought up to date: {error}; run it again to go on") from error


def _record(each: Locked, archive: Path | None) -> Any:
    """What rattler is told of a package: the archive is ours, downloaded and checked."""
    import rattler

    more = dict(each.more or {})
    channel, _, name = each.url.rpartition("/")
    package = rattler.PackageRecord(
        each.name,
        each.version,
        rattler.BuildString(each.build),
        int(more.get("build_number", 0)),
        each.subdir,
        noarch=each.noarch or None,
        depends=list(each.depends),
        constrains=list(each.constrains),
        sha256=bytes.fromhex(each.sha256),
        size=each.size or None,
        license=more.get("license"),
        python_site_packages_path=each.site or None,
    )
    return rattler.RepoDataRecord(package, name, archive.as_uri() if archive else each.url, channel.rpartition("/")[0])


def _name_origins(prefix: Path, wanted: Iterable[Locked]) -> None:
    """Packages were linked from our own downloads; their records name where they came from."""
    urls = {each.sha256: each.url for each in wanted}
    for file in (prefix / "conda-meta").glob("*.json"):
        content = json.loads(file.read_bytes())
        url = urls.get(content.get("sha256", ""))
        if url and content.get("url") != url:
            part = file.with_suffix(".part")
            part.write_text(json.dumps({**content, "url": url}, indent=2))
            part.replace(file)


def _set_variables(prefix: Path, variables: Mapping[str, str]) -> None:
    """Where `conda env config vars` keeps what is set on activation; its other content stays."""
    file = prefix / "conda-meta/state"
    try:
        state = json.loads(file.read_bytes())
    except (OSError, ValueError):
        state = {}
    if state.get("env_vars", {}) != dict(variables):
        file.write_text(json.dumps({**state, "env_vars": dict(variables)}))
