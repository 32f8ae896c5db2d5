"""A Python environment at /opt/env as layers: each large package alone, the others together, our own code on top.

Wheels are unpacked by the PyPA's `installer` into a copy of the base image's file system and compiled there by its own
Python, so that scripts and byte code name the paths they have in the image.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile

from .base import Base
from .compile import PYTHON_PATH, compile_in_root
from .errors import BuildError
from .layers import Entry, entries_below, folder, link, text_file
from .oci import Layer
from .progress import say
from .project import ProjectWheel
from .store import LayerStore, layer_key, scratch_folder
from .wheels import PYTHON_VERSION, Wheel, WheelCache

PREFIX = "opt/env"
SITE = f"{PREFIX}/lib/python{PYTHON_VERSION}/site-packages"
# Counted up when the same wheels would give other layers.
FORMAT = 1
# A wheel from this size on (bytes) has a layer of its own: some 20 MB when it is unpacked and compiled.
ALONE = 8_000_000


@dataclass(frozen=True)
class Group:
    """Wheels that share a layer."""

    comment: str
    wheels: tuple[Wheel, ...]

    @property
    def key(self) -> str:
        """By content: where the wheels came from does not matter."""
        return layer_key(
            "env", [FORMAT, PREFIX, PYTHON_VERSION, sorted([each.name, each.sha256] for each in self.wheels)]
        )


def grouped(wheels: Sequence[Wheel]) -> list[Group]:
    """Which wheels share a layer, lowest layer first.

    Large packages change rarely and cost most: they lie at the bottom, by size class (powers of two), then name, which
    a new version seldom changes. All small ones are one layer above them.
    """
    alone = [wheel for wheel in wheels if wheel.size >= ALONE]
    rest = sorted((wheel for wheel in wheels if wheel.size < ALONE), key=lambda wheel: wheel.name)
    alone.sort(key=lambda wheel: (-wheel.size.bit_length(), wheel.name))
    groups = [Group(f"{wheel.name} {wheel.version}", (wheel,)) for wheel in alone]
    if rest:
        groups.append(Group(f"{len(rest)} Python packages", tuple(rest)))
    return groups


def scaffold() -> list[Entry]:
    """What makes /opt/env a virtual environment of the base's Python."""
    lines = ["home = /usr/bin", "include-system-site-packages = false", f"version = {PYTHON_VERSION}"]
    config = "\n".join([*lines, f"executable = {PYTHON_PATH}", ""])
    return [
        folder(f"{PREFIX}/bin"),
        folder(SITE),
        link(f"{PREFIX}/bin/python", PYTHON_PATH),
        link(f"{PREFIX}/bin/python3", "python"),
        link(f"{PREFIX}/bin/python{PYTHON_VERSION}", "python"),
        text_file(f"{PREFIX}/pyvenv.cfg", config),
    ]


@dataclass
class Environments:
    """Makes the layers of environments, and remembers them in the store."""

    store: LayerStore
    base: Base
    cache: WheelCache
    _opened: ExitStack = field(default_factory=ExitStack, init=False)
    _stage: Path | None = field(default=None, init=False)

    def scaffold_layer(self) -> Layer:
        """The environment without any package."""
        made = self.store.make(layer_key("scaffold", [FORMAT, PREFIX, PYTHON_VERSION]), lambda: nullcontext(scaffold()))
        return Layer(made, f"/{PREFIX}")

    def package_layers(self, wheels: Sequence[Wheel]) -> list[Layer]:
        """The layers of these wheels. A wheel with a layer of its own is deleted once that is there."""
        groups = grouped(wheels)
        missing = [group for group in groups if self.store.get(group.key) is None]
        # Wheels are downloaded when their layer's turn comes: less disk at the peak.
        for number, group in enumerate(missing, 1):
            say(f"layer {number} of {len(missing)} to make: {group.comment}")
            self.store.make(group.key, partial(self._packages, group))
        return [Layer(self.store.make(group.key, partial(self._packages, group)), group.comment) for group in groups]

    def project_layer(self, wheel: ProjectWheel) -> Layer:
        """The layer of a package from the source tree."""
        key = layer_key("project", [FORMAT, PREFIX, PYTHON_VERSION, wheel.name, wheel.sha256])

        @contextmanager
        def staged() -> Iterator[Iterable[Entry]]:
            with scratch_folder(self.store.root / "scratch") as scratch:
                path = scratch / wheel.filename
                path.write_bytes(wheel.content)
                with self._installed([path]) as entries:
                    yield entries

        return Layer(self.store.make(key, staged), f"{wheel.name} {wheel.version}")

    def close(self) -> None:
        """Removes the unpacked base."""
        self._opened.close()
        self._stage = None

    @contextmanager
    def _packages(self, group: Group) -> Iterator[Iterable[Entry]]:
        with self._installed(self.cache.fetch(group.wheels)) as entries:
            yield entries
        if len(group.wheels) == 1 and group.wheels[0].size >= ALONE:
            self.cache.forget(group.wheels)

    def _root(self) -> Path:
        """The unpacked base, once for all layers."""
        if self._stage is None:
            scratch = self._opened.enter_context(scratch_folder(self.store.root / "scratch"))
            self.base.unpack(scratch / "root")
            self._stage = scratch / "root"
        return self._stage

    @contextmanager
    def _installed(self, wheels: Sequence[Path]) -> Iterator[Iterable[Entry]]:
        """The files of these wheels, installed and compiled; they are there while the context is open."""
        root = self._root()
        with _emptied(root / PREFIX) as env:
            for wheel in wheels:
                install_wheel(wheel, env)
            compile_in_root(root, [path for path in env.rglob("*.py") if path.is_file()])
            yield entries_below(env, PREFIX)


@contextmanager
def _emptied(path: Path) -> Iterator[Path]:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def install_wheel(wheel: Path, env: Path) -> None:
    """Unpacks a wheel into the environment staged at `env`, with scripts for /opt/env/bin/python.

    Raises BuildError when it would change a file that another wheel has put there.
    """
    site = env / f"lib/python{PYTHON_VERSION}/site-packages"
    scheme = {"purelib": site, "platlib": site, "scripts": env / "bin", "data": env}
    with WheelFile.open(wheel) as source:
        _refuse_clash(wheel, site)
        scheme["headers"] = env / f"include/site/python{PYTHON_VERSION}" / source.distribution
        destination = SchemeDictionaryDestination(
            {name: str(path) for name, path in scheme.items()},
            interpreter=f"/{PREFIX}/bin/python",
            script_kind="posix",
            overwrite_existing=True,
        )
        install(source, destination, additional_metadata={"INSTALLER": b"tokenservice\n"})


def _refuse_clash(wheel: Path, site: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            there = site / name
            if not name.endswith("/") and there.is_file() and there.read_bytes() != archive.read(name):
                raise BuildError(f"{wheel.name} and another wheel want different files at {name}")
