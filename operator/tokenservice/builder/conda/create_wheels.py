"""A lock's wheels in an environment's folder: installed, replaced and removed, each by its own RECORD.

What was installed here is known by a file of its own in the .dist-info folder, with the wheel's sha256. It names the
wheel only while that is whole: it is emptied before a removal begins, and RECORD, written last, is removed last.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from tokenservice.builder.errors import BuildError

from .archive import check_wheel
from .link import Python
from .packages import Package

NOTE = "tokenservice.json"


@dataclass(frozen=True)
class Installed:
    """A distribution that conda did not install. `sha256`: of its wheel, "" where it is not ours or not whole."""

    name: str
    info: Path
    sha256: str
    ours: bool


def installed(prefix: Path, conda_files: frozenset[str]) -> list[Installed]:
    """The distributions in every site-packages of the prefix, but those of conda packages."""
    found = []
    for info in sorted(prefix.glob("lib/python3*/site-packages/*.dist-info")):
        if f"{info.relative_to(prefix)}/METADATA" in conda_files or f"{info.relative_to(prefix)}/RECORD" in conda_files:
            continue
        note = info / NOTE
        name = canonicalize_name(importlib.metadata.PathDistribution(info).metadata["Name"] or info.name.split("-")[0])
        found.append(Installed(name, info, _noted(note) if (info / "RECORD").is_file() else "", note.is_file()))
    return found


def _noted(note: Path) -> str:
    try:
        return str(json.loads(note.read_bytes()).get("sha256", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def superfluous(there: Iterable[Installed], wanted: Sequence[Package], site: Path | None) -> list[Installed]:
    """What has to go: ours that the lock does not have, and anything in the place of a wheel that it has."""
    by_name: dict[str, str] = {canonicalize_name(package.name): package.sha256 for package in wanted}
    return [
        each
        for each in there
        if (each.ours and each.name not in by_name)
        or (each.name in by_name and (each.sha256 != by_name[each.name] or each.info.parent != site))
    ]


def missing(there: Iterable[Installed], wanted: Sequence[Package], site: Path | None) -> list[Package]:
    """The wheels that are not there as the lock has them."""
    whole = {each.name: each.sha256 for each in there if each.info.parent == site}
    return [package for package in wanted if whole.get(canonicalize_name(package.name)) != package.sha256]


def remove(prefix: Path, distribution: Installed) -> None:
    """Removes a distribution's files, byte code included, and folders that are empty then."""
    info, site = distribution.info, distribution.info.parent
    if distribution.ours:
        (info / NOTE).write_text("{}")
    rows: list[str] = []
    if (info / "RECORD").is_file():
        rows = [row[0] for row in csv.reader((info / "RECORD").read_text().splitlines()) if row]
    last = [info / NOTE, info / "RECORD"]
    folders = {info}
    root = prefix.resolve()
    for row in rows:
        file = Path(os.path.normpath(site / row))
        if file in last or not file.parent.resolve().is_relative_to(root):
            continue  # a RECORD that points out of the environment is not followed
        for each in (file, *_byte_code(file)):
            each.unlink(missing_ok=True)
            folders.add(each.parent)
    for left in sorted(info.rglob("*"), reverse=True):
        if left not in last:
            left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)
    for file in reversed(last):
        file.unlink(missing_ok=True)
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        _remove_empty(folder, site)


def _byte_code(source: Path) -> list[Path]:
    return list(source.parent.glob(f"__pycache__/{source.stem}.cpython-*.pyc")) if source.suffix == ".py" else []


def _remove_empty(folder: Path, stop: Path) -> None:
    while folder != stop and folder.is_relative_to(stop):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def install(prefix: Path, python: Python, wheel: Path, package: Package) -> None:
    """Installs a wheel that was checked, with scripts for the environment's Python. Raises BuildError."""
    from installer import install as install_wheel
    from installer.destinations import SchemeDictionaryDestination
    from installer.sources import WheelFile

    site = str(prefix / python.site)
    with WheelFile.open(wheel) as source:
        scheme = {
            "purelib": site,
            "platlib": site,
            "scripts": str(prefix / "bin"),
            "data": str(prefix),
            "headers": str(prefix / f"include/site/python{python.version}" / source.distribution),
        }
        destination = SchemeDictionaryDestination(
            scheme,
            interpreter=str(prefix / f"bin/python{python.version}"),
            script_kind="posix",
            overwrite_existing=True,
        )
        note = json.dumps({"sha256": package.sha256, "url": package.url}).encode()
        try:
            install_wheel(source, destination, additional_metadata={"INSTALLER": b"tokenservice\n", NOTE: note})
        except (AssertionError, ValueError, KeyError) as error:
            raise BuildError(f"{wheel.name} cannot be installed: {error}", "LockUnusable") from error


def update(
    prefix: Path,
    python: Python | None,
    wanted: Sequence[Package],
    conda_files: frozenset[str],
    fetch: Callable[[Sequence[Package]], Sequence[Path]],
) -> tuple[int, int]:
    """Makes the wheels in the prefix those of the lock; how many were removed and installed.

    Everything is downloaded and checked before anything is removed. `conda_files`: paths that conda packages own.
    """
    if wanted and python is None:
        raise BuildError("the lock has wheels and no Python", "LockUnusable")
    site = prefix / python.site if python else None
    there = installed(prefix, conda_files)
    going, coming = superfluous(there, wanted, site), missing(there, wanted, site)
    files = fetch(coming)
    for file in files:
        check_wheel(file)
    for each in going:
        remove(prefix, each)
    for package, file in zip(coming, files, strict=True):
        assert python is not None  # noqa: S101 - checked above
        install(prefix, python, file, package)
    return len(going), len(coming)
