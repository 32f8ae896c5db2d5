"""An unpacked conda package made into the files that it has in an environment.

What conda calls linking: prefixes written into files, noarch packages put where this environment's Python looks,
scripts for entry points, a record in conda-meta. Each package gets a folder of its own, whatever else is installed, so
that its layer depends on the package alone. Formats: CEP 34 (info/paths.json, info/link.json, info/has_prefix).
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenservice.builder.errors import BuildError
from tokenservice.builder.oci import sha256_of

from .archive import checked_path, unsafe
from .normalise import conda_meta, without_login
from .post_link import script_of

PREFIX = "opt/env"
LINK = "link "
FOLDER = "folder"
"""What links (with their target) and empty folders are known by, in place of a hash."""
_PLACEHOLDER = "/opt/anaconda1anaconda2anaconda3"
"""What has_prefix files of the first conda packages mean where they name none."""
_SCRIPT = """\
#!/{prefix}/bin/python{version}
# -*- coding: utf-8 -*-
import re
import sys

from {module} import {name}

if __name__ == '__main__':
\tsys.argv[0] = re.sub(r'(-script\\.pyw?|\\.exe)?$', '', sys.argv[0])
\tsys.exit({function}())
"""


@dataclass(frozen=True)
class Python:
    """The environment's Python: `version` as X.Y, `site` where packages lie, relative to the prefix."""

    version: str
    site: str


@dataclass(frozen=True)
class Origin:
    """Where a package came from, for its record: as the lock has it."""

    url: str
    sha256: str
    size: int


@dataclass(frozen=True)
class _Path:
    """An entry of paths.json: `path` in the archive, `placeholder` "" for none."""

    path: str
    kind: str
    sha256: str
    placeholder: str
    binary: bool


def link_conda(
    unpacked: Path, tree: Path, origin: Origin, python: Python | None, scripts: Collection[str] = ()
) -> dict[str, str]:
    """Moves the package's files into the folder `tree`, which stands for the prefix, and writes its record.

    `scripts`: names of packages that may have a post-link script; none is run here. Returns for every file (relative to
    the prefix) what its content is known by: equal for equal content. Raises BuildError for packages that cannot be
    installed so: PostLinkScript, UnsafeArchive.
    """
    index = _json(unpacked, "index.json")
    archive = without_login(origin.url).rpartition("/")[2]
    name = str(index.get("name", ""))
    noarch = index.get("noarch") == "python"
    if noarch and python is None:
        raise BuildError(f"{name} needs a Python to be installed for, and the lock has none", "LockUnusable")
    known: dict[str, str] = {}
    records: list[dict[str, Any]] = []
    folders, sources = _Folders(archive, tree), _Sources(archive, unpacked)
    for entry in _paths(unpacked):
        source = checked_path(archive, entry.path)
        target = _place(source, python) if noarch and python is not None else source
        _refuse_scripts(target, name, scripts)
        if entry.kind == "directory":
            folders.make(target)
            records.append({"_path": target, "path_type": "directory"})
            known[target] = FOLDER
            continue
        folders.make(target.rpartition("/")[0])
        found = sources.find(source)
        record: dict[str, Any] = {"_path": target, "path_type": "softlink" if found.is_symlink() else "hardlink"}
        if not found.is_symlink():
            content = _replaced(found, entry, archive)
            record |= {"sha256": entry.sha256 or sha256_of(found), "size_in_bytes": found.stat().st_size}
            if entry.placeholder:
                record |= {"file_mode": "binary" if entry.binary else "text", "prefix_placeholder": entry.placeholder}
            if content is not None:
                _write(found, content)
                record["sha256_in_prefix"] = hashlib.sha256(content).hexdigest()
            known[target] = record.get("sha256_in_prefix", record["sha256"])
        else:
            known[target] = LINK + os.readlink(found)  # noqa: PTH115
        found.rename(tree / target)
        records.append(record)
    if noarch and python is not None:
        for script, text in _entry_points(unpacked, python):
            target = checked_path(archive, f"bin/{script}")
            folders.make("bin")
            (tree / target).write_text(text)
            (tree / target).chmod(0o755)
            known[target] = hashlib.sha256(text.encode()).hexdigest()
            kind = "unix_python_entry_point"
            size = len(text.encode())
            records.append({"_path": target, "path_type": kind, "sha256": known[target], "size_in_bytes": size})
    folders.make("conda-meta")
    meta = f"conda-meta/{_stem(archive)}.json"
    data = conda_meta(index, origin, records)
    (tree / meta).write_bytes(data)
    known[meta] = hashlib.sha256(data).hexdigest()
    return known


def replace_text(content: bytes, placeholder: bytes, prefix: bytes) -> bytes:
    """The prefix in place of the placeholder, in a text."""
    return content.replace(placeholder, prefix)


def replace_binary(content: bytes, placeholder: bytes, prefix: bytes) -> bytes:
    """The same in a binary, where every C string keeps its length: it is filled up with zero bytes.

    Raises ValueError for a placeholder that is shorter than the prefix.
    """
    if len(prefix) > len(placeholder):
        raise ValueError("the placeholder is too short")
    made: list[bytes] = []
    done = 0
    while (start := content.find(placeholder, done)) >= 0:
        end = content.find(b"\0", start)
        end = len(content) if end < 0 else end
        replaced = content[start:end].replace(placeholder, prefix)
        made += [content[done:start], replaced, b"\0" * (end - start - len(replaced))]
        done = end
    return b"".join([*made, content[done:]])


def _replaced(file: Path, entry: _Path, archive: str) -> bytes | None:
    """The file's content with the prefix in it; None for a file that holds none."""
    if not entry.placeholder:
        return None
    content, placeholder, prefix = file.read_bytes(), entry.placeholder.encode(), b"/" + PREFIX.encode()
    if not entry.binary:
        return replace_text(content, placeholder, prefix)
    try:
        return replace_binary(content, placeholder, prefix)
    except ValueError as error:
        raise BuildError(f"{archive}: {entry.path} has no room for /{PREFIX}: {error}") from error


def _write(file: Path, content: bytes) -> None:
    mode = file.stat().st_mode & 0o777
    file.unlink()
    file.write_bytes(content)
    file.chmod(mode)


def _place(path: str, python: Python) -> str:
    """Where a file of a noarch Python package lies in this environment."""
    if path.startswith("site-packages/"):
        return f"{python.site}/{path.removeprefix('site-packages/')}"
    if path.startswith("python-scripts/"):
        return f"bin/{path.removeprefix('python-scripts/')}"
    return path


def _refuse_scripts(path: str, name: str, allowed: Collection[str]) -> None:
    if path == f"bin/.{name}-pre-link.sh" or (path == script_of(name) and name not in allowed):
        raise BuildError(
            f"{name} wants to run a script when it is installed ({path}), which the cluster's owner does not allow "
            "(postLinkScripts): ask for a build of it without, or put what the script does into the base image",
            "PostLinkScript",
        )


def _paths(unpacked: Path) -> list[_Path]:
    listed = unpacked / "info/paths.json"
    if listed.is_file():
        return [
            _Path(
                str(each["_path"]),
                str(each.get("path_type", "hardlink")),
                str(each.get("sha256") or ""),
                str(each.get("prefix_placeholder") or ""),
                each.get("file_mode") == "binary",
            )
            for each in _json(unpacked, "paths.json").get("paths", [])
        ]
    # Packages from before 2017.
    prefixes = _has_prefix(unpacked)
    try:
        names = (unpacked / "info/files").read_text().splitlines()
    except OSError as error:
        raise BuildError("a package has neither info/paths.json nor info/files: it is no conda package") from error
    return [_Path(name, "hardlink", "", *prefixes.get(name, ("", False))) for name in names if name.strip()]


def _has_prefix(unpacked: Path) -> dict[str, tuple[str, bool]]:
    found: dict[str, tuple[str, bool]] = {}
    try:
        lines = (unpacked / "info/has_prefix").read_text().splitlines()
    except FileNotFoundError:
        return found
    for line in filter(str.strip, lines):
        parts = shlex.split(line, posix=False)
        if len(parts) == 3:
            placeholder, mode, path = (part.strip("\"'") for part in parts)
            found[path] = placeholder, mode == "binary"
        else:
            found[line.strip().strip("\"'")] = _PLACEHOLDER, False
    return found


def _entry_points(unpacked: Path, python: Python) -> Iterator[tuple[str, str]]:
    if not (unpacked / "info/link.json").is_file():
        return
    noarch = _json(unpacked, "link.json").get("noarch") or {}
    for line in sorted(noarch.get("entry_points") or []):
        script, _, target = (part.strip() for part in str(line).partition("="))
        module, _, function = (part.strip() for part in target.partition(":"))
        parts = [*module.split("."), *function.split(".")]
        if not script or "/" in script or not all(part.isidentifier() for part in parts):
            raise BuildError(f"an entry point is no `name = module:function`: {str(line)[:200]!r}", "UnsafeArchive")
        first = function.split(".")[0]
        text = _SCRIPT.format(prefix=PREFIX, version=python.version, module=module, name=first, function=function)
        yield script, text


def _json(unpacked: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((unpacked / "info" / name).read_bytes())
    except (OSError, ValueError) as error:
        raise BuildError(f"a package's info/{name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise BuildError(f"a package's info/{name} holds no object")
    return found


def _stem(archive: str) -> str:
    return archive.removesuffix(".conda").removesuffix(".tar.bz2")


class _Folders:
    """Makes folders below a tree, each once. A folder is never a link: a package's links are followed by nobody."""

    def __init__(self, archive: str, tree: Path) -> None:
        self._archive, self._tree, self._made = archive, tree, {""}

    def make(self, path: str) -> None:
        if path in self._made:
            return
        self.make(path.rpartition("/")[0])
        try:
            (self._tree / path).mkdir(mode=0o755)
        except FileExistsError as error:
            raise unsafe(self._archive, path, "is a link or a file, and another path goes through it") from error
        self._made.add(path)


class _Sources:
    """Finds files of an unpacked package, none of them through a link."""

    def __init__(self, archive: str, unpacked: Path) -> None:
        self._archive, self._unpacked, self._plain = archive, unpacked, {""}

    def find(self, path: str) -> Path:
        self._check(path.rpartition("/")[0])
        found = self._unpacked / path
        if not os.path.lexists(found):
            raise BuildError(f"{self._archive} has no {path}, which its own list names")
        return found

    def _check(self, folder: str) -> None:
        if folder in self._plain:
            return
        self._check(folder.rpartition("/")[0])
        if (self._unpacked / folder).is_symlink():
            raise unsafe(self._archive, folder, "is a link, and another path goes through it")
        self._plain.add(folder)
