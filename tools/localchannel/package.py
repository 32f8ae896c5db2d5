"""Writes conda packages (`.conda` and `.tar.bz2`) and a channel's repodata.json, byte for byte the same each time.

The formats are conda's: https://docs.conda.io/projects/conda-build/en/stable/resources/package-spec.html and, for the
`.conda` container, https://docs.conda.io/projects/conda/en/stable/user-guide/concepts/packages.html.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

import zstandard

Noarch = Literal["python", "generic"]
SUBDIRS = ("linux-64", "noarch")
EPOCH_MS = 1_700_000_000_000
"""The timestamp (milliseconds since 1970) of packages that have no better one."""
_LEVEL = 3
_CHUNK = 1 << 20
_ZIP_TIME = (2000, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Member:
    """One path of a package.

    Attributes:
        path: below the prefix.
        content: the bytes, or the file on disk that holds them.
        mode: permissions.
        link: target of a symbolic link; the path is one if this is not empty.
        placeholder: the prefix that stands in the content and is replaced when the package is installed.
        binary: the placeholder stands in a binary: it is replaced by a path padded to the same length.

    """

    path: str
    content: bytes | Path = b""
    mode: int = 0o644
    link: str = ""
    placeholder: str = ""
    binary: bool = False

    @property
    def size(self) -> int:
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)

    def open(self) -> BinaryIO:
        return self.content.open("rb") if isinstance(self.content, Path) else io.BytesIO(self.content)

    def sha256(self) -> str:
        with self.open() as source:
            return hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]


@dataclass(frozen=True)
class Raw:
    """A tar member exactly as given, for archives that nobody should make.

    `listed` puts it into paths.json too, as a well-formed package would.
    """

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    linkname: str = ""
    mode: int = 0o644
    listed: bool = False


@dataclass(frozen=True)
class Package:
    """What a package is, besides its files. `index` holds further fields of index.json."""

    name: str
    version: str
    build: str = "0"
    subdir: str = "linux-64"
    depends: tuple[str, ...] = ()
    constrains: tuple[str, ...] = ()
    noarch: Noarch | None = None
    entry_points: tuple[str, ...] = ()
    timestamp: int = EPOCH_MS
    license: str = ""
    index: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return f"{self.name}-{self.version}-{self.build}"

    def index_json(self) -> dict[str, Any]:
        number = self.build.rsplit("_", 1)[-1]
        made: dict[str, Any] = {
            "arch": None if self.subdir == "noarch" else "x86_64",
            "build": self.build,
            "build_number": int(number) if number.isdecimal() else 0,
            "constrains": list(self.constrains),
            "depends": list(self.depends),
            "name": self.name,
            "platform": None if self.subdir == "noarch" else "linux",
            "subdir": self.subdir,
            "timestamp": self.timestamp,
            "version": self.version,
        }
        if self.license:
            made["license"] = self.license
        if self.noarch:
            made["noarch"] = self.noarch
        return {**made, **self.index}


def write(
    out: Path, package: Package, members: Iterable[Member], *, raw: Sequence[Raw] = (), about: Mapping[str, Any] = {}
) -> None:
    """Writes the package to `out`; its ending chooses the format."""
    files = sorted(members, key=lambda member: member.path)
    info = _info(package, files, raw, about)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".making-") as folder:
        part = Path(folder) / "part"
        if out.name.endswith(".tar.bz2"):
            with bz2.open(part, "wb") as packed:
                _tar(packed, [*info, *files], raw)
        else:
            _write_conda(part, package, info, files, raw)
        part.rename(out)


def _write_conda(
    out: Path, package: Package, info: Sequence[Member], files: Sequence[Member], raw: Sequence[Raw]
) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        _zip(archive, "metadata.json", io.BytesIO(_json({"conda_pkg_format_version": 2})))
        for part, members, others in (("pkg", files, raw), ("info", info, ())):
            with tempfile.TemporaryFile(dir=out.parent) as packed:
                # Without a thread of its own: other thread counts give other bytes.
                writer = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(packed, closefd=False)
                with writer as stream:
                    _tar(stream, members, others)
                packed.seek(0)
                _zip(archive, f"{part}-{package.stem}.tar.zst", packed)


def _zip(archive: zipfile.ZipFile, name: str, source: IO[bytes]) -> None:
    entry = zipfile.ZipInfo(name, date_time=_ZIP_TIME)
    entry.external_attr = 0o100644 << 16
    with archive.open(entry, "w", force_zip64=True) as target:
        shutil.copyfileobj(source, target, _CHUNK)


def _info(package: Package, files: Sequence[Member], raw: Sequence[Raw], about: Mapping[str, Any]) -> list[Member]:
    """The members of `info/`."""
    paths = [_path_entry(member) for member in files]
    paths += [
        {
            "_path": each.name,
            "path_type": "softlink" if each.kind == tarfile.SYMTYPE else "hardlink",
            "sha256": hashlib.sha256(each.content).hexdigest(),
            "size_in_bytes": len(each.content),
        }
        for each in raw
        if each.listed
    ]
    made = {
        "about.json": _json(dict(about)),
        "files": "".join(f"{each['_path']}\n" for each in paths).encode(),
        "index.json": _json(package.index_json()),
        "paths.json": _json({"paths": paths, "paths_version": 1}),
    }
    prefixes = "".join(
        f'"{member.placeholder}" {"binary" if member.binary else "text"} "{member.path}"\n'
        for member in files
        if member.placeholder
    )
    if prefixes:
        made["has_prefix"] = prefixes.encode()
    if package.noarch:
        noarch: dict[str, Any] = {"type": package.noarch}
        if package.noarch == "python":
            noarch["entry_points"] = list(package.entry_points)
        made["link.json"] = _json({"noarch": noarch, "package_metadata_version": 1})
    return [Member(f"info/{name}", content) for name, content in sorted(made.items())]


def _path_entry(member: Member) -> dict[str, Any]:
    if member.link:
        # conda-build hashes a link's target; nobody reads it of a link that is not there yet.
        empty = hashlib.sha256(b"").hexdigest()
        return {"_path": member.path, "path_type": "softlink", "sha256": empty, "size_in_bytes": 0}
    entry: dict[str, Any] = {"_path": member.path, "path_type": "hardlink"}
    if member.placeholder:
        entry |= {"file_mode": "binary" if member.binary else "text", "prefix_placeholder": member.placeholder}
    return {**entry, "sha256": member.sha256(), "size_in_bytes": member.size}


def _tar(target: Any, members: Iterable[Member], raw: Iterable[Raw]) -> None:
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK) as archive:
        for member in members:
            entry = _entry(member.path, member.mode)
            if member.link:
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, member.link, 0o777
                archive.addfile(entry)
                continue
            entry.size = member.size
            with member.open() as source:
                archive.addfile(entry, source)
        for each in raw:
            entry = _entry(each.name, each.mode)
            entry.type, entry.linkname, entry.size = each.kind, each.linkname, len(each.content)
            archive.addfile(entry, io.BytesIO(each.content))


def _entry(path: str, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.mode, entry.mtime, entry.uname, entry.gname = mode, EPOCH_MS // 1000, "root", "root"
    return entry


def _json(data: Any) -> bytes:
    return json.dumps(data, indent=2, sort_keys=True).encode() + b"\n"


def read_index(path: Path) -> dict[str, Any]:
    """The index.json of a package file."""
    if path.name.endswith(".tar.bz2"):
        with tarfile.open(path, "r:bz2") as archive:
            return _index_of(archive)
    with zipfile.ZipFile(path) as container:
        name = f"info-{path.name.removesuffix('.conda')}.tar.zst"
        plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(container.read(name)))
        with tarfile.open(fileobj=plain, mode="r|") as archive:
            return _index_of(archive)


def _index_of(archive: tarfile.TarFile) -> dict[str, Any]:
    for member in archive:
        if member.name == "info/index.json":
            content = archive.extractfile(member)
            assert content is not None
            found: dict[str, Any] = json.loads(content.read())
            return found
    raise ValueError("a package without index.json")


def index(channel: Path) -> None:
    """Writes repodata.json for each folder of packages in the channel; linux-64 and noarch are always there."""
    for subdir in {*SUBDIRS, *(path.name for path in channel.glob("*/") if not path.name.startswith("."))}:
        folder = channel / subdir
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, dict[str, Any]] = {"packages": {}, "packages.conda": {}}
        for path in sorted(folder.iterdir()):
            if path.name.endswith((".conda", ".tar.bz2")):
                kind = "packages.conda" if path.name.endswith(".conda") else "packages"
                found[kind][path.name] = {**read_index(path), **_sums(path)}
        data = {"info": {"subdir": subdir}, **found, "removed": [], "repodata_version": 1}
        part = folder / ".repodata.json"
        part.write_bytes(_json(data))
        part.rename(folder / "repodata.json")


def _sums(path: Path) -> dict[str, Any]:
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as source:
        while piece := source.read(_CHUNK):
            sha256.update(piece)
            md5.update(piece)
            size += len(piece)
    return {"md5": md5.hexdigest(), "sha256": sha256.hexdigest(), "size": size}
