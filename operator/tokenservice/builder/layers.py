"""Deterministic layers: the same files give the same bytes, on any machine, at any time, under any umask.

A layer is a tar archive (POSIX pax) with sorted entries, owner 0:0, modes 0755 or 0644, one fixed modification time,
hard links written as files and no extended attributes, compressed by zstd or gzip.
Format: https://github.com/opencontainers/image-spec/blob/v1.1.0/layer.md
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import zstandard

from .errors import BuildError

Compression = Literal["zstd", "gzip"]

# Counted up when the same files would give other bytes: it is part of every layer's cache key.
LAYER_FORMAT = 1
ZSTD_LEVEL = 3
# One worker thread: zstd's output is the same for every number of workers >= 1, and another without any.
ZSTD_THREADS = 1
GZIP_LEVEL = 6
# Fixed, and not 0: some archivers and zip refuse times before 1980. 2000-01-01T00:00:00Z.
MTIME = 946684800
MEDIA_TYPES: Mapping[Compression, str] = {
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One member of a layer.

    `path` is relative to the image's root, with forward slashes. A folder has neither `source` nor `target` nor
    `content`; a symbolic link has `target`; a file has `source` (read when the layer is written) or `content`.
    """

    path: str
    mode: int
    source: Path | None = None
    target: str | None = None
    content: bytes | None = None

    @property
    def is_folder(self) -> bool:
        return self.source is None and self.target is None and self.content is None


@dataclass(frozen=True)
class LayerFile:
    """A finished layer: `digest` and `size` (bytes) of the compressed file, `diff_id` of the tar archive in it."""

    digest: str
    diff_id: str
    size: int
    media_type: str


def plain_mode(mode: int) -> int:
    """The mode of an entry that is not told another: 0755 for what its owner may execute, else 0644. No setuid."""
    return 0o755 if mode & stat.S_IXUSR else 0o644


def folder(path: str, mode: int = 0o755) -> Entry:
    """A folder's entry."""
    return Entry(path, mode)


def link(path: str, target: str) -> Entry:
    """A symbolic link's entry."""
    return Entry(path, 0o777, target=target)


def text_file(path: str, text: str, mode: int = 0o644) -> Entry:
    """The entry of a file with this text."""
    return Entry(path, mode, content=text.encode())


def entries_below(root: Path, prefix: str = "", modes: Mapping[str, int] | None = None) -> Iterator[Entry]:
    """Everything below the folder `root`, placed at `prefix` in the image. Does not follow symbolic links.

    `modes` names the paths in the image that get another mode than `plain_mode` gives. Sockets, pipes and devices
    have no place in a layer and are left out. The order is the file system's: `write_layer` sorts.
    """
    modes = modes or {}
    stack = [(root, PurePosixPath(prefix))]
    while stack:
        here, there = stack.pop()
        with os.scandir(here) as found:
            for item in found:
                path = str(there / item.name)
                if item.is_symlink():
                    yield link(path, os.readlink(item.path))  # noqa: PTH115 - a Path would drop a trailing slash
                elif item.is_dir(follow_symlinks=False):
                    yield folder(path, modes.get(path, 0o755))
                    stack.append((Path(item.path), there / item.name))
                elif item.is_file(follow_symlinks=False):
                    mode = item.stat(follow_symlinks=False).st_mode
                    yield Entry(path, modes.get(path, plain_mode(mode)), source=Path(item.path))


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """The entries in the order a layer has them, with a folder's entry for every parent that has none.

    Raises BuildError when two entries have the same path, unless both are folders of the same mode.
    """
    by_path: dict[str, Entry] = {}
    for entry in entries:
        path = entry.path.strip("/")
        if not path or ".." in path.split("/"):
            raise BuildError(f"{entry.path!r} is no path of a file in an image")
        known = by_path.get(path)
        if known is not None and not (known.is_folder and entry.is_folder and known.mode == entry.mode):
            raise BuildError(f"two files want the place /{path} in one layer")
        by_path[path] = entry
    for path in list(by_path):
        parent = path.rpartition("/")[0]
        while parent and parent not in by_path:
            by_path[parent] = folder(parent)
            parent = parent.rpartition("/")[0]
    # By parts, so that a folder stands before its content and "a.b" does not come between "a" and "a/x".
    return [by_path[path] for path in sorted(by_path, key=lambda path: path.split("/"))]


def write_layer(
    entries: Iterable[Entry], out: Path, compression: Compression = "zstd", *, durable: bool = True
) -> LayerFile:
    """Writes the layer to `out`, hashing while it streams. Files are read once and never held in memory whole.

    `durable`: it is on the disk when this returns; a layer that is only passed on need not wait for that.
    """
    with out.open("wb") as raw:
        compressed = _Hashing(raw)
        with _compressor(compressed, compression) as packer:
            plain = _Hashing(packer)
            settings = {"format": tarfile.PAX_FORMAT, "copybufsize": _CHUNK}
            with tarfile.open(fileobj=plain, mode="w", **settings) as archive:  # type: ignore[call-overload]
                for entry in with_parents(entries):
                    _add(archive, entry)
        if durable:
            raw.flush()
            os.fsync(raw.fileno())
    return LayerFile(compressed.digest(), plain.digest(), compressed.size, MEDIA_TYPES[compression])


def _add(archive: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.path.strip("/"))
    info.mode, info.mtime = entry.mode, MTIME
    info.uid = info.gid = 0
    if entry.is_folder:
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    elif entry.target is not None:
        info.type, info.linkname = tarfile.SYMTYPE, entry.target
        archive.addfile(info)
    elif entry.source is not None:
        with entry.source.open("rb") as source:
            info.size = os.fstat(source.fileno()).st_size
            archive.addfile(info, source)
    else:
        content = entry.content or b""
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class _Hashing:
    """Counts and hashes what is written through it."""

    def __init__(self, below: _Sink) -> None:
        self._below, self._hash, self.size = below, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        self._below.write(data)
        return len(data)

    def flush(self) -> None:
        """Asked for by compressors; what lies below is flushed at the end."""

    def tell(self) -> int:
        return self.size

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _compressor(below: Any, compression: Compression) -> Any:
    if compression == "gzip":
        # No file name and no time in the header.
        return gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=below, mtime=0)
    # Without a checksum and a content size: containerd checks the digest, and the size is not known beforehand.
    made = zstandard.ZstdCompressor(
        level=ZSTD_LEVEL, threads=ZSTD_THREADS, write_checksum=False, write_content_size=False
    )
    return made.stream_writer(below, write_size=_CHUNK, closefd=False)
