"""Builds the programs that are missing from the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import golang
from .components import COMPONENTS, TEST_ASSETS, Component, Program, location, needed, program_name
from .errors import LocalClusterError, UnsupportedError
from .locks import folder_lock
from .progress import Step, duration, say

FIRST_BUILD_BYTES = 9 << 30
"""What Kubernetes alone takes. Go's caches grow to 12 GB while everything is built, where there is room."""
LOW_BYTES = 5 << 30
"""With less than this free between two programs, Go's caches are emptied early: slower, but it fits."""
TAIL = 15


class Programs:
    """The programs of local clusters: where each one is."""

    def __init__(self, cache: Path, assets: Path | None) -> None:
        self.cache = cache
        self.assets = assets

    def path(self, name: str) -> Path:
        """The program with this file name; from KUBEBUILDER_ASSETS if that has it."""
        if self.assets and name in TEST_ASSETS and os.access(self.assets / name, os.X_OK):
            return self.assets / name
        [(component, program)] = [(c, p) for c, p in needed([name]) if program_name(c, p) == name]
        return location(self.cache, component, program)

    def kwok_stages(self) -> Path:
        kwok = next(component for component in COMPONENTS if component.name == "kwok")
        return self.cache / "bin" / kwok.folder / "stage"

    def missing(self, names: Iterable[str]) -> list[tuple[Component, Program]]:
        return [(c, p) for c, p in needed(names) if not os.access(self.path(program_name(c, p)), os.X_OK)]


def programs(cache: Path) -> Programs:
    """The programs in this cache; raises UnsupportedError if KUBEBUILDER_ASSETS names no folder."""
    chosen = os.environ.get("KUBEBUILDER_ASSETS")
    if chosen and not Path(chosen).is_dir():
        raise UnsupportedError(
            f"KUBEBUILDER_ASSETS is {chosen}, which is no folder: unset it, or name one with {', '.join(TEST_ASSETS)}."
        )
    return Programs(cache, Path(chosen).absolute() if chosen else None)


def check_disk(folder: Path, wanted: int, purpose: str) -> None:
    """Raises UnsupportedError if there are less than `wanted` bytes free where `folder` is, or will be."""
    existing = next(path for path in [folder, *folder.parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted:
        have, want = free / (1 << 30), wanted / (1 << 30)
        raise UnsupportedError(
            f"{folder} has {have:.1f} GB free and {purpose} needs {want:.0f} GB: free some, or choose another folder."
        )


def check_room(built: Programs, names: Iterable[str]) -> None:
    """Raises UnsupportedError if what is missing cannot be built for want of disk space."""
    missing = built.missing(names)
    if missing and not (built.cache / "build").exists():  # else an interrupted build, which has taken most of it
        wanted = FIRST_BUILD_BYTES if any(component.name == "kubernetes" for component, _ in missing) else LOW_BYTES
        check_disk(built.cache, wanted, "building what is missing")


def ensure(built: Programs, names: Iterable[str]) -> None:
    """Builds what of `names` (programs or components) is missing, one process at a time."""
    names = list(names)
    if not built.missing(names):
        return
    with folder_lock(built.cache / "bin", "another build of the local cluster's programs"):
        missing = built.missing(names)
        if not missing:
            return
        check_room(built, names)
        work = built.cache / "build"
        (work / "tmp").mkdir(parents=True, exist_ok=True)
        go = golang.find(golang.required(component for component, _ in missing), work / "go")
        tools = Toolchain(go, go_environment(work))
        began = time.monotonic()
        about = "; from nothing 15 to 20 minutes on 2 cores" if len(missing) > 8 else ""
        say(f"building {len(missing)} programs with {go}{about}")
        for number, (component, program) in enumerate(missing, 1):
            if shutil.disk_usage(work).free < LOW_BYTES:
                for cache in ("cache", "path"):
                    shutil.rmtree(work / cache, ignore_errors=True)
            so_far = duration(time.monotonic() - began)
            build(built, tools, component, program, f"{number} of {len(missing)}, {so_far} so far")
        _remove(work)
        say(f"built {len(missing)} programs in {duration(time.monotonic() - began)}")


def go_environment(work: Path) -> dict[str, str]:
    """The user's own settings (GOPROXY, proxies, certificates) and caches that are removed afterwards."""
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-buildvcs=false -trimpath -modcacherw",
        "GOWORK": "off",
        "GOPATH": str(work / "path"),
        "GOMODCACHE": str(work / "path/pkg/mod"),
        "GOCACHE": str(work / "cache"),
        "GOTMPDIR": str(work / "tmp"),
    }


@dataclass(frozen=True)
class Toolchain:
    """The Go that builds, and its settings."""

    go: Path
    environment: dict[str, str]


def build(built: Programs, tools: Toolchain, component: Component, program: Program, count: str) -> None:
    """Builds one program, asks it for its version, and only then puts it in its place."""
    target = location(built.cache, component, program)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    name = f"{target.name} {component.version}"
    command = [str(tools.go), "build", "-v", "-ldflags", component.linker_flags(), "-o", str(part), program.package]
    compiled: list[str] = []
    say(f"building {name} ({count})")
    with subprocess.Popen(
        command,
        cwd=component.go_mod,
        env=tools.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        reader = threading.Thread(
            target=lambda: compiled.extend(line.rstrip() for line in process.stderr or ()), daemon=True
        )
        with Step(f"building {name} ({count})", lambda: activity(compiled)):
            reader.start()
            try:
                status = process.wait()
            except BaseException:
                process.terminate()
                raise
            reader.join()
    if status != 0:
        part.unlink(missing_ok=True)
        words = [line for line in compiled if " " in line and not line.startswith("go: downloading")][-TAIL:]
        raise LocalClusterError(f"{name} could not be built; Go said: {' | '.join(words) or f'exit status {status}'}")
    copy_assets(built, tools, component)
    verify(part, component, program)
    part.replace(target)


def activity(lines: list[str]) -> str:
    """What Go is doing, from what `go build -v` has printed: a line for every download and every package to compile."""
    packages = sum(" " not in line for line in lines)
    if packages:
        return f"{packages} packages compiled"
    downloads = sum(line.startswith("go: downloading") for line in lines)
    return f"{downloads} modules downloaded" if downloads else "linking"


def verify(part: Path, component: Component, program: Program) -> None:
    """Raises LocalClusterError unless the program runs and says the version that it was pinned to."""
    if not program.version_args:
        return
    done = subprocess.run([part, *program.version_args], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0 or component.version not in done.stdout + done.stderr:
        part.unlink()
        said = (done.stdout + done.stderr).strip()[:200]
        raise LocalClusterError(f"{program.name} was built but does not say that it is {component.version}: {said}")


def copy_assets(built: Programs, tools: Toolchain, component: Component) -> None:
    """Files of the module that its program needs, such as KWOK's stages."""
    if not component.assets:
        return
    command = [str(tools.go), "list", "-m", "-f", "{{.Dir}}", component.module]
    done = subprocess.run(
        command, cwd=component.go_mod, env=tools.environment, capture_output=True, text=True, check=True
    )
    for source, target in component.assets.items():
        folder = built.cache / "bin" / component.folder / target
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(Path(done.stdout.strip()) / source, folder)


def _remove(work: Path) -> None:
    with Step("removing Go's caches"):
        shutil.rmtree(work, ignore_errors=True)
