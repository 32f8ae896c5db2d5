"""Package archives unpacked with suspicion: nothing is written outside the folder, whatever a member's name says.

Conda's two formats, `.conda` (a zip of zstd-compressed tars, CEP 20) and `.tar.bz2`, and the names in a wheel.
"""

from __future__ import annotations

import bz2
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import zstandard

from tokenservice.builder.errors import BuildError

_CHUNK = 1 << 20


def unpack_conda(archive: Path, into: Path) -> None:
    """Unpacks a conda package, `info/` included, into the empty folder `into`.

    Modes of files are 0755 or 0644, whatever the umask; times are not kept. Raises BuildError: UnsafeArchive names a
    member that would leave the folder; Failed, an archive that cannot be read.
    """
    writer = _Writer(archive.name, into)
    with _readable(archive.name), ExitStack() as opened:
        for stream in _tars(archive, opened):
            with tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK) as members:
                for member in members:
                    writer.add(member, members)


def check_wheel(archive: Path) -> None:
    """Raises BuildError for a wheel with a member that would leave the environment."""
    with _readable(archive.name), zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            # The name as it stands in the archive: zipfile ends it at a NUL.
            checked_path(archive.name, info.orig_filename.rstrip("/"))
            if info.external_attr >> 28 == 0o12:
                raise unsafe(archive.name, info.orig_filename, "is a link, which wheels cannot have")


def checked_path(archive: str, path: str) -> str:
    """A member's path, relative and in its shortest form. Raises BuildError where it would leave the prefix."""
    if path.startswith("/"):
        raise unsafe(archive, path, "is absolute")
    parts = path.split("/")
    if ".." in parts:
        raise unsafe(archive, path, "leaves the prefix")
    found = "/".join(part for part in parts if part not in ("", "."))
    if not found or "\0" in found:
        raise unsafe(archive, path, "is no name of a file")
    return found


def checked_target(archive: str, path: str, target: str) -> str:
    """A symbolic link's target. Raises BuildError where it would lead out of the prefix."""
    if target.startswith("/"):
        raise unsafe(archive, path, f"is a link to the absolute path {target!r}")
    ends = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if not target or "\0" in target or ends.split("/")[0] == "..":
        raise unsafe(archive, path, f"is a link to {target!r}, which leaves the prefix")
    return target


def unsafe(archive: str, path: str, why: str) -> BuildError:
    """The error for an archive that nobody should unpack."""
    return BuildError(f"{archive} is refused: its member {path[:200]!r} {why}", "UnsafeArchive")


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zstandard.ZstdError, EOFError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault; bz2 has no error of its own for broken data
        raise BuildError(f"{name} cannot be read, though its checksum is right: {error}") from error


def _tars(archive: Path, opened: ExitStack) -> Iterator[IO[bytes]]:
    """The tar archives in a package, uncompressed as they are read."""
    if archive.name.endswith(".tar.bz2"):
        yield opened.enter_context(bz2.BZ2File(archive))
        return
    outer = opened.enter_context(zipfile.ZipFile(archive))
    names = [name for name in outer.namelist() if name.endswith(".tar.zst") and name.startswith(("info-", "pkg-"))]
    if len(names) != 2:
        raise BuildError(f"{archive.name} is no conda package: it has {len(names)} archives in place of info and pkg")
    # Neither part knows of the other: both go through the same checks.
    for name in sorted(names):
        member = opened.enter_context(outer.open(name))
        yield opened.enter_context(zstandard.ZstdDecompressor().stream_reader(member, read_size=_CHUNK))


class _Writer:
    """Writes members below a folder. Links are only ever written, never followed."""

    def __init__(self, archive: str, into: Path) -> None:
        self._archive, self._into = archive, str(into)
        self._folders: set[str] = {""}
        self._links: set[str] = set()
        self._files: set[str] = set()

    def add(self, member: tarfile.TarInfo, members: tarfile.TarFile) -> None:
        name = member.name.rstrip("/")
        if member.isdir() and name in ("", "."):
            return
        path = checked_path(self._archive, name)
        if member.isdir():
            self._folder(path)
            return
        self._folder(posixpath.dirname(path))
        self._clear(path)
        full = f"{self._into}/{path}"
        if member.issym():
            os.symlink(checked_target(self._archive, path, member.linkname), full)  # noqa: PTH211
            self._links.add(path)
        elif member.islnk():
            source = checked_path(self._archive, member.linkname)
            if source not in self._files:
                raise unsafe(self._archive, path, f"is a hard link to {member.linkname!r}, no file before it")
            with _create(full, _mode(f"{self._into}/{source}")) as out, Path(self._into, source).open("rb") as first:
                _copy(first, out)
            self._files.add(path)
        elif member.isfile():
            content = members.extractfile(member)
            with _create(full, 0o755 if member.mode & 0o100 else 0o644) as out:
                _copy(content, out)
            self._files.add(path)
        else:
            raise unsafe(self._archive, path, "is a device or a pipe")

    def _folder(self, path: str) -> None:
        if path in self._folders:
            return
        parent = posixpath.dirname(path)
        self._folder(parent)
        if path in self._links:
            raise unsafe(self._archive, path, "is a link, and another member goes through it")
        if path in self._files:
            raise unsafe(self._archive, path, "is a file and a folder")
        Path(self._into, path).mkdir(mode=0o755)
        self._folders.add(path)

    def _clear(self, path: str) -> None:
        """A member that comes twice: the later one holds."""
        if path in self._folders:
            raise unsafe(self._archive, path, "is a file and a folder")
        if path in self._files or path in self._links:
            Path(self._into, path).unlink()
            self._files.discard(path)
            self._links.discard(path)


def _create(path: str, mode: int) -> IO[bytes]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, mode)
    return open(descriptor, "wb", buffering=0)  # noqa: PTH123 - a descriptor, not a path


def _mode(path: str) -> int:
    return os.stat(path).st_mode & 0o777  # noqa: PTH116


def _copy(source: Any, out: IO[bytes]) -> None:
    while piece := source.read(_CHUNK):
        # Unbuffered: the system may take less than it is given.
        view = memoryview(piece)
        while view:
            view = view[out.write(view) :]
