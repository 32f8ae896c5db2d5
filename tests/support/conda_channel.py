"""Toy conda channels and a toy package index, served over HTTP with faults on demand.

server = ChannelServer(tmp_path).start()
channel = server.channel("conda-forge")
channel.add_python()
channel.add("numpy", "1.26.4", depends=["python >=3.11"], files={"lib/libnumpy.so": b"..."})
channel.index()                                # writes repodata.json
server.url("conda-forge")                      # http://127.0.0.1:PORT/conda-forge
server.wheel("click", "8.1.0", requires=["colorama"])
server.simple                                  # http://127.0.0.1:PORT/simple/
server.fault(r"/repodata.json", status=500)    # until server.heal()
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.localchannel.package import EPOCH_MS, Member, Noarch, Package, Raw, index, write

from .package_server import Fault, PackageServer, Request
from .toy_wheel import toy_wheel

__all__ = [
    "Built", "Channel", "ChannelServer", "Fault", "Link", "Member", "Placeholder", "Raw", "Request", "toy_wheel",
]  # fmt: skip

PLACEHOLDER = "/placehold_" + "placehold_" * 24
"""The prefix that conda-build would have built in: 251 characters."""


@dataclass(frozen=True)
class Link:
    """A symbolic link in a package's `files`."""

    target: str


@dataclass(frozen=True)
class Placeholder:
    """A file whose content holds the prefix: `{prefix}` in `text` stands for it."""

    text: str
    binary: bool = False
    mode: int = 0o644

    def member(self, path: str) -> Member:
        content = self.text.replace("{prefix}", PLACEHOLDER).encode()
        return Member(path, content, self.mode, placeholder=PLACEHOLDER, binary=self.binary)


Content = bytes | str | Link | Placeholder
"""A file of a package; paths below bin/ become executable."""


@dataclass(frozen=True)
class Built:
    """A package that was written: its file, and what a lock says about it."""

    path: Path
    name: str
    version: str
    build: str
    subdir: str
    sha256: str
    size: int


class Channel:
    """A channel's folder. Packages added after `index()` are seen after the next one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self,
        name: str,
        version: str,
        build: str = "0",
        *,
        depends: Iterable[str] = (),
        constrains: Iterable[str] = (),
        noarch: Noarch | None = None,
        subdir: str = "",
        files: Mapping[str, Content] | None = None,
        entry_points: Iterable[str] = (),
        post_link: str | None = None,
        raw: Iterable[Raw] = (),
        timestamp: int = EPOCH_MS,
        padding: int = 0,
        extension: str = ".conda",
        extra_index: Mapping[str, Any] | None = None,
    ) -> Built:
        """Writes a package.

        `files`: path below the prefix (noarch python: `site-packages/...`) -> content. `entry_points`: as in
        link.json, `name = module:function`. `post_link`: the text of a post-link script. `raw`: tar members as they
        stand, for unsafe archives. `timestamp` in milliseconds. `padding`: bytes of a further file that hardly
        compress, to make packages larger. `extra_index`: further fields of index.json.
        """
        place = subdir or ("noarch" if noarch else "linux-64")
        package = Package(
            name, version, build, place, tuple(depends), tuple(constrains), noarch, tuple(entry_points), timestamp,
            index=dict(extra_index or {}),
        )  # fmt: skip
        contents: dict[str, Content] = dict(files or {})
        if post_link is not None:
            contents[f"bin/.{name}-post-link.sh"] = post_link
        if padding:
            contents[f"share/{name}/padding"] = _noise(f"{name} {version} {build}", padding)
        if not contents:
            contents[f"share/{name}/version"] = f"{version}\n"
        out = self.root / place / f"{package.stem}{extension}"
        write(out, package, [_member(path, content) for path, content in contents.items()], raw=tuple(raw))
        data = out.read_bytes()
        return Built(out, name, version, build, place, hashlib.sha256(data).hexdigest(), len(data))

    def add_python(self, version: str = "", *, interpreter: str = sys.executable, **more: Any) -> Built:
        """A package `python` that runs the test's own interpreter; of its version unless another is given.

        It is a script in place of CPython: prefixes made with it have no standard library of their own.
        """
        version = version or ".".join(map(str, sys.version_info[:3]))
        short = ".".join(version.split(".")[:2])
        script = f'#!/bin/sh\nexec "{interpreter}" "$@"\n'
        files: dict[str, Content] = {
            f"bin/python{short}": script,
            "bin/python3": Link(f"python{short}"),
            "bin/python": Link(f"python{short}"),
            f"lib/python{short}/os.py": "# where the standard library would be\n",
        }
        site = {"python_site_packages_path": f"lib/python{short}/site-packages"}
        return self.add(
            "python", version, more.pop("build", f"0_cpython{short}"), files=files, extra_index=site, **more
        )

    def add_distribution(
        self,
        name: str,
        version: str,
        *,
        requires: Iterable[str] = (),
        depends: Iterable[str] = ("python >=3.9",),
        modules: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Built:
        """A noarch Python package with METADATA, as conda packages of Python projects have it.

        `requires`: Requires-Dist lines (pip's names). `modules`: path below site-packages -> text.
        """
        module = name.replace("-", "_")
        info = f"site-packages/{module}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
        found = modules if modules is not None else {f"{module}/__init__.py": f"__version__ = {version!r}\n"}
        files: dict[str, Content] = {f"site-packages/{path}": text for path, text in found.items()}
        files |= {f"{info}/METADATA": metadata, f"{info}/INSTALLER": "conda\n"}
        rows = [f"{path.removeprefix('site-packages/')},," for path in (*files, f"{info}/RECORD")]
        files[f"{info}/RECORD"] = "\n".join(rows) + "\n"
        return self.add(
            name, version, more.pop("build", "pyh_0"), depends=depends, noarch="python", files=files, **more
        )

    def index(self) -> None:
        """Writes repodata.json of every subdir."""
        index(self.root)


class ChannelServer(PackageServer):
    """Serves the channels and wheels below `root`; see the module's example."""

    def channel(self, name: str) -> Channel:
        """The channel of this name, made with empty indexes if it is not there."""
        channel = Channel(self.root / name)
        if not (channel.root / "noarch/repodata.json").exists():
            channel.index()
        return channel

    def wheel(self, name: str, version: str, **more: Any) -> Path:
        """A wheel in the package index; see `toy_wheel`."""
        return toy_wheel(self.root / "simple" / name.lower().replace("_", "-"), name, version, **more)


def _member(path: str, content: Content) -> Member:
    if isinstance(content, Placeholder):
        return content.member(path)
    if isinstance(content, Link):
        return Member(path, link=content.target)
    mode = 0o755 if path.startswith(("bin/", "python-scripts/")) else 0o644
    return Member(path, content.encode() if isinstance(content, str) else content, mode)


def _noise(seed: str, count: int) -> bytes:
    """Bytes that do not compress and are the same each time."""
    return hashlib.shake_128(seed.encode()).digest(count)
