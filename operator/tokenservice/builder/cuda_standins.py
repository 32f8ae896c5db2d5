"""Stand-ins for CUDA libraries, so that PyTorch's CUDA build runs on the CPU of a machine without a GPU.

PyTorch's wheel for Linux is linked against CUDA libraries of more than 2 GB and cannot be imported without them. This
makes tiny libraries with the same sonames, symbols and symbol versions, from what the wheel's own libraries ask for.
**Every function in them ends the process with a message**: they are no CUDA, and an image with them is named for it.
cudart and cupti are called when PyTorch is imported and stay the real ones; the driver (libcuda) is in no image anyway.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .base import last_line, require_tools
from .errors import BuildError
from .layers import Entry, link, text_file
from .oci import Layer
from .progress import say
from .store import LayerStore, layer_key, scratch_folder
from .unpack import unpack_layer
from .wheels import Wheel

# Counted up when the same PyTorch would give other stand-ins.
FORMAT = 1
_REAL_PACKAGES = frozenset({"nvidia-cuda-runtime", "nvidia-cuda-cupti"})
_OTHER_REPLACED = frozenset({"triton", "cuda-bindings", "cuda-pathfinder", "cuda-toolkit"})
NOTICE = "CPU-STAND-INS.txt"
_CUDA_LIBRARY = re.compile(r"lib(cu|nv|nccl)[\w.-]*\.so")
_REAL_LIBRARY = re.compile(r"lib(cuda|cudart|cupti)\.so")
TOOLS = {"gcc": "gcc", "nm": "binutils", "readelf": "binutils"}
SUFFIX = ".cpu-stand-in"
"""The end of every stand-in's file name; links with the libraries' own names lead there."""


def split(wheels: Sequence[Wheel]) -> tuple[list[Wheel], list[Wheel]]:
    """(wheels that go into the image, wheels that are replaced and never downloaded)."""

    def replaced(name: str) -> bool:
        return name in _OTHER_REPLACED or (name.startswith("nvidia-") and name not in _REAL_PACKAGES)

    return [each for each in wheels if not replaced(each.name)], [each for each in wheels if replaced(each.name)]


@dataclass(frozen=True)
class Needs:
    """What one shared library asks of others: sonames, folders it searches (relative to its own), symbols.

    `symbols` are (name, version or ""); `versions` tells which soname a version belongs to.
    """

    sonames: tuple[str, ...]
    folders: tuple[str, ...]
    symbols: tuple[tuple[str, str], ...]
    versions: Mapping[str, str] = field(default_factory=dict)


def parse_needs(dynamic: str, versions: str, undefined: str) -> Needs:
    """Reads the output of `readelf -dW`, `readelf -VW` and `nm -D --undefined-only`."""
    sonames = tuple(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    path = re.search(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic)
    folders = tuple(each.removeprefix("$ORIGIN").strip("/") for each in (path[1].split(":") if path else []))
    file, owners = "", {}
    for line in versions.splitlines():
        if found := re.search(r"\bFile: (\S+)", line):
            file = found[1]
        elif file and (found := re.search(r"\bName: (\S+)\s+Flags:", line)):
            owners[found[1]] = file
    symbols = []
    for line in undefined.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] in ("U", "w"):
            name, _, version = words[1].partition("@")
            symbols.append((name, version.lstrip("@")))
    return Needs(sonames, folders, tuple(symbols), owners)


def plan(needs: Iterable[Needs], defined: frozenset[str]) -> dict[str, dict[str, str]]:
    """soname of each stand-in -> its functions -> their version ("" for none).

    A versioned symbol says whose it is. One without a version, which nothing in `defined` (what the other libraries
    have) satisfies, goes to the library whose name it begins with, else to the first that its user is linked to.
    """
    made: dict[str, dict[str, str]] = {}
    for need in needs:
        ours = [name for name in need.sonames if _CUDA_LIBRARY.match(name) and not _REAL_LIBRARY.match(name)]
        for soname in ours:
            made.setdefault(soname, {})
        for symbol, version in need.symbols:
            if version:
                owner = need.versions.get(version, "")
            elif ours and symbol not in defined and re.fullmatch(r"[A-Za-z]\w*", symbol):
                owner = _by_name(symbol, ours)
            else:
                continue
            if owner in ours:
                made[owner].setdefault(symbol, version)
    return made


def _by_name(symbol: str, sonames: Sequence[str]) -> str:
    """`ncclSend` -> libnccl.so.2; of several the longest: `cusparseLtInit` -> libcusparseLt.so.0."""
    stems = {name: re.sub(r"^lib|(_host)?\.so.*$", "", name).lower() for name in sonames}
    fitting = [name for name in sonames if symbol.lower().startswith(stems[name])]
    return max(fitting, key=lambda name: len(stems[name])) if fitting else sonames[0]


def c_source(soname: str, symbols: Iterable[str]) -> str:
    """The stand-in's program text."""
    lines = [
        "#include <stdlib.h>",
        "#include <string.h>",
        "#include <unistd.h>",
        "static void say(const char *text) { if (write(2, text, strlen(text)) < 0) abort(); }",
        "static void stop(const char *name) {",
        f'  say("{soname} is a stand-in without CUDA, for machines without a GPU: ");',
        '  say(name); say(" was called\\n"); abort();',
        "}",
        *(f'void {symbol}(void) {{ stop("{symbol}"); }}' for symbol in sorted(symbols)),
    ]
    return "\n".join(lines) + "\n"


def version_script(symbols: Mapping[str, str]) -> str:
    """The linker's version script, or "" where no symbol has a version."""
    versions = sorted({version for version in symbols.values() if version})
    if not versions:
        return ""
    nodes = []
    for version in versions:
        # A reference without a version is satisfied by any default version.
        names = sorted(name for name, own in symbols.items() if own == version or (not own and version == versions[0]))
        nodes.append(f"{version} {{ global: {'; '.join(names)}; local: {'*;' if version == versions[-1] else ''} }};")
    return "\n".join(node.replace(" local:  ", " ") for node in nodes) + "\n"


def layer(store: LayerStore, torch: Layer, replaced: Sequence[str], site: str) -> Layer:
    """The layer with the stand-ins for this PyTorch (its layer in `store`); `site`: where packages lie in the image."""
    key = layer_key("cuda-standins", [FORMAT, site, torch.file.diff_id])

    @contextmanager
    def staged() -> Iterator[list[Entry]]:
        say("making stand-ins for the CUDA libraries")
        with scratch_folder(store.root / "scratch") as scratch:
            folder = f"{site}/torch/lib/"
            unpack_layer(store.blob(torch.file.digest), scratch, lambda path: path.startswith(folder))
            libraries = sorted(path for path in (scratch / folder).iterdir() if ".so" in path.name)
            made = make(libraries, scratch)
            target = f"{site}/{made.folder}"
            entries = [text_file(f"{target}/{NOTICE}", notice(replaced))]
            for soname, built in sorted(made.libraries.items()):
                entries.append(Entry(f"{target}/{soname}{SUFFIX}", 0o644, source=built))
                entries.append(link(f"{target}/{soname}", f"{soname}{SUFFIX}"))
            yield entries

    return Layer(store.make(key, staged), "stand-ins for CUDA libraries (CPU only)")


@dataclass(frozen=True)
class Made:
    """Stand-ins: the folder below site-packages where they belong, and soname -> file."""

    folder: str
    libraries: Mapping[str, Path]


def make(libraries: Sequence[Path], scratch: Path) -> Made:
    """Builds the stand-ins that PyTorch's shared libraries need, below `scratch`."""
    require_tools(TOOLS)
    needs = [_needs(path) for path in libraries]
    defined = frozenset(name for path in libraries for name in _defined(path))
    folder = library_folder(needs)
    return Made(folder, {soname: _build(scratch, soname, made) for soname, made in plan(needs, defined).items()})


def library_folder(needs: Iterable[Needs]) -> str:
    """The folder (below site-packages) where PyTorch's libraries look for NVIDIA's: the last one that they name.

    Raises BuildError for a wheel that is not linked to CUDA in this way.
    """
    for need in needs:
        for path in reversed(need.folders):
            if match := re.fullmatch(r"\.\./\.\./(nvidia/\w+/lib)", path):
                return match[1]
    raise BuildError("this torch wheel looks for no CUDA libraries: use the image `serving`")


def notice(replaced: Sequence[str]) -> str:
    """The text that lies beside the stand-ins."""
    names = "\n".join(f"  {name}" for name in sorted(replaced))
    return f"The libraries *{SUFFIX} here are stand-ins without any function. They replace, or go without:\n{names}\n"


def _needs(path: Path) -> Needs:
    dynamic, versions = _run("readelf", "-dW", str(path)), _run("readelf", "-VW", str(path))
    return parse_needs(dynamic, versions, _run("nm", "-D", "--undefined-only", str(path)))


def _defined(path: Path) -> Iterator[str]:
    for line in _run("nm", "-D", "--defined-only", str(path)).splitlines():
        yield line.rsplit(" ", 1)[-1].partition("@")[0]


def _build(scratch: Path, soname: str, symbols: Mapping[str, str]) -> Path:
    script, out = scratch / f"{soname}.map", scratch / f"{soname}.out"
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        "-O1",
        "-w",
        "-fno-builtin",
        "-fno-asynchronous-unwind-tables",
        "-fno-ident",
        "-s",
    ]
    # Without a build id and the path of the source: the same stand-ins wherever they are made with the same gcc.
    command += ["-Wl,--build-id=none", f"-Wl,-soname,{soname}", "-x", "c", "-", "-o", str(out)]
    if text := version_script(symbols):
        script.write_text(text)
        command.append(f"-Wl,--version-script={script}")
    _run(*command, given=c_source(soname, symbols))
    return out


def _run(*command: str, given: str = "") -> str:
    environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    done = subprocess.run(list(command), input=given, capture_output=True, text=True, env=environ, check=False)
    if done.returncode != 0:
        raise BuildError(f"{command[0]} failed: {last_line(done.stderr)}")
    return done.stdout
