"""Which Python distributions a conda package installs, without downloading the package.

A `.conda` file is a zip archive whose part `info` is small: a few ranges of it are read. Of an old `.tar.bz2` the
beginning is read, where conda-build puts the same. https://docs.conda.io/projects/conda-build/en/stable/resources/package-spec.html
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import urllib3
import zstandard

from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import RETRIED
from tokenservice.builder.registry_errors import plain_cause

from .lock import Locked
from .packages import Archives, Package, Sources

T = TypeVar("T")

_TAIL = 192 << 10
"""Bytes at the end of a `.conda` file that are asked for first: mostly all that is needed."""
_FOUND = re.compile(r"(?:^|/)site-packages/([A-Za-z0-9._]+)-([^/-]+?)(?:-py[0-9.]+)?\.(?:dist|egg)-info(?:/|$)")
_METADATA = re.compile(r"(?:^|/)site-packages/[^/]+\.(?:dist-info/METADATA|egg-info/PKG-INFO)$")


@dataclass(frozen=True)
class Distribution:
    """What pip knows a conda package's content as. `package`: the conda package that brings it."""

    name: str
    version: str
    package: str


def may_hold_python(package: Locked) -> bool:
    """Whether it depends on Python, so that a distribution may be in it."""
    return package.noarch == "python" or any(re.match(r"python(_abi)?(\s|$)", each) for each in package.depends)


class Contents:
    """Looks into packages of channels; what it found is kept below a folder, by the package's hash."""

    def __init__(self, root: Path, sources: Sources) -> None:
        self._root, self._sources = root, sources

    def distributions(self, packages: Iterable[Locked]) -> list[Distribution]:
        """What pip would see of these conda packages once they are installed, sorted by name.

        Raises:
            BuildError: ChannelUnavailable, naming the package.

        """
        wanted = [package for package in packages if package.kind == "conda" and may_hold_python(package)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(self._of, wanted))
        return sorted((each for some in found for each in some), key=lambda each: each.name)

    def metadata(self, package: Locked) -> list[str]:
        """The METADATA files in a package, for which all of it is downloaded.

        Raises:
            BuildError: ChannelUnavailable, ChecksumMismatch; names the package.

        """

        def read(file: IO[bytes]) -> list[str]:
            members = _members(file, package.url, "pkg-")
            return [content().decode("utf-8", "replace") for path, content in members if _METADATA.search(path)]

        return self._read_whole(package, read)

    def _of(self, package: Locked) -> list[Distribution]:
        note = self._root / f"{package.sha256}.json"
        if note.exists():
            paths = json.loads(note.read_text())
        else:
            paths = self._paths(package)
            self._root.mkdir(parents=True, exist_ok=True)
            part = note.with_suffix(".part")
            part.write_text(json.dumps(paths))
            part.rename(note)
        return [Distribution(name, version, package.name) for name, version in sorted(map(tuple, paths))]

    def _paths(self, package: Locked) -> list[tuple[str, str]]:
        """Name and version of each distribution, by the names of the folders that pip keeps its notes in."""

        def read(file: IO[bytes]) -> list[tuple[str, str]]:
            entries: list[str] = []
            for member, content in _members(file, package.url, "info-"):
                if member == "info/paths.json":
                    entries = [entry["_path"] for entry in json.loads(content())["paths"]]
                    break
                if member == "info/files":
                    entries = content().decode().splitlines()
            return sorted({(match[1], match[2]) for match in map(_FOUND.search, entries) if match})

        return self._read(package, read)

    def _read(self, package: Locked, read: Callable[[IO[bytes]], T]) -> T:
        """What `read` makes of the package's file, from the first address that has it."""
        cause = "it has no address"
        unreadable = False
        for url in self._sources.mirrors(package.url):
            file: Any
            try:
                file = _Remote(self._sources, url, package.size)
                return read(file)
            except (urllib3.exceptions.HTTPError, _Answer) as error:
                cause = plain_cause(error) if isinstance(error, urllib3.exceptions.HTTPError) else str(error)
            except (zipfile.BadZipFile, tarfile.TarError, zstandard.ZstdError, KeyError, ValueError, OSError, EOFError):
                unreadable = True
        if unreadable:  # then its hash tells whether it came as another than the index says
            return self._read_whole(package, read)
        raise BuildError(f"{_file_of(package)} cannot be looked into: {cause}", "ChannelUnavailable")

    def _read_whole(self, package: Locked, read: Callable[[IO[bytes]], T]) -> T:
        """What `read` makes of the package's file, downloaded and checked."""
        archives = Archives(self._root / "archives", self._sources, keep=False)
        whole = Package("conda", package.name, package.version, package.url, package.sha256, package.size)
        try:
            with archives.fetch([whole])[0].open("rb") as file:
                return read(file)
        except (zipfile.BadZipFile, tarfile.TarError, zstandard.ZstdError, KeyError, ValueError, EOFError) as error:
            raise BuildError(f"{_file_of(package)} is no conda package: {error}", "ChannelUnavailable") from error
        finally:
            archives.forget([whole])


def _file_of(package: Locked) -> str:
    return package.url.rsplit("/", 1)[-1]


class _Answer(Exception):  # noqa: N818 - an answer that is none
    """What a server says in place of the content."""


def _members(file: IO[bytes], url: str, part: str) -> Iterator[tuple[str, Any]]:
    """Names of an archive's files with a function that reads each, of a `.conda`'s part `info-` or `pkg-`."""
    if url.endswith(".conda"):
        with zipfile.ZipFile(file) as outer:
            name = next((each for each in outer.namelist() if each.startswith(part)), None)
            if name is None:
                raise ValueError(f"no {part} in it")
            with outer.open(name) as packed:
                # The part `info-` is small: read to its end, so that its checksum is looked at before it is used.
                source = io.BytesIO(packed.read()) if part == "info-" else packed
                with zstandard.ZstdDecompressor().stream_reader(source) as plain:
                    yield from _tar(plain, "r|")
    else:
        yield from _tar(file, "r|bz2")


def _tar(file: Any, mode: Any) -> Iterator[tuple[str, Any]]:
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for member in archive:
            if member.isfile():
                content = archive.extractfile(member)
                assert content is not None  # noqa: S101 - a file has one
                yield member.name, content.read


class _Remote(io.RawIOBase):
    """A file on a server that is read in ranges, or whole where the server knows no ranges."""

    def __init__(self, sources: Sources, url: str, size: int) -> None:
        super().__init__()
        self._sources, self._url, self._size, self._at = sources, url, size, 0
        self._known: list[tuple[int, bytes]] = []
        if not url.endswith(".conda") or not size:
            self._size = size or self._length()
        if url.endswith(".conda"):
            self._read_range(max(0, self._size - _TAIL), self._size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._at + size)
        if end <= self._at:
            return b""
        data = self._cached(self._at, end)
        if data is None:
            self._read_range(self._at, min(self._size, max(end, self._at + (1 << 20))))
            data = self._cached(self._at, end)
        if data is None:
            raise zipfile.BadZipFile("it is shorter than the index says")
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _cached(self, start: int, end: int) -> bytes | None:
        for offset, data in self._known:
            if offset <= start and end <= offset + len(data):
                return data[start - offset : end - offset]
        return None

    def _length(self) -> int:
        with self._get({}, "HEAD") as answer:
            return int(answer.headers.get("Content-Length") or 0)

    def _read_range(self, start: int, end: int) -> None:
        with self._get({"Range": f"bytes={start}-{end - 1}"}, "GET") as answer:
            data = answer.read()
            if answer.status == 200:  # it knows no ranges
                self._known = [(0, data)]
                self._size = len(data)
            else:
                # Two pieces are enough for a zip archive: its end, and what is being read.
                self._known = [*self._known[:1], (start, data)]

    def _get(self, headers: dict[str, str], method: str) -> urllib3.BaseHTTPResponse:
        retries = self._sources.retries
        for attempt in range(retries.attempts):
            last = attempt == retries.attempts - 1
            try:
                answer = self._sources.open(method, self._url, headers)
            except urllib3.exceptions.HTTPError:
                if last:
                    raise
                retries.pause(attempt)
                continue
            if answer.status in (200, 206):
                return answer
            answer.drain_conn()
            if answer.status == 416:
                raise zipfile.BadZipFile("it is shorter than the index says")
            if answer.status not in RETRIED or last:
                raise _Answer(f"the server answers {answer.status}")
            retries.pause(attempt)
        raise AssertionError("the last attempt returns or raises")
