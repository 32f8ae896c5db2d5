"""Post-link scripts of the packages that the cluster's owner has named: run once, when the package's layer is made.

The script sees the package and what it depends on in a scratch folder, as the user that the Job runs as, with an
environment of its own; it reaches that folder, an empty home and the base's programs, see sandbox. What it writes below
the prefix becomes part of the package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tokenservice.builder.errors import BuildError
from tokenservice.builder.progress import say

from . import sandbox

TIMEOUT_SECONDS = 300
_MESSAGES = ".messages.txt"
"""Where a script writes what conda shows after installing."""


def script_of(name: str) -> str:
    """Where conda looks for a package's script."""
    return f"bin/.{name}-post-link.sh"


def run_script(prefix: Path, name: str, version: str, final: str) -> list[str]:
    """Runs the script of a package that is installed in the folder `prefix`; the paths that are new or changed.

    `final`: where the prefix will lie; it takes the folder's place in text that the script has written. Raises
    BuildError, PostLinkScript, with the script's last words.
    """
    before = _state(prefix)
    home = prefix.with_name(f"home-of-{prefix.name}")
    home.mkdir()
    environ = {
        "PREFIX": str(prefix),
        "CONDA_PREFIX": str(prefix),
        "PKG_NAME": name,
        "PKG_VERSION": version,
        "PATH": f"{prefix}/bin:/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "LC_ALL": "C.UTF-8",
    }
    say(f"running the post-link script of {name}, as the owner allows")
    try:
        done = sandbox.run(
            ["/bin/sh", str(prefix / script_of(name))],
            sandbox.Reach(run=(*sandbox.TOOLS, str(prefix)), write=(str(prefix), str(home))),
            environ=environ,
            cwd=prefix,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        text = f"the post-link script of {name} did not end within {TIMEOUT_SECONDS} s"
        raise BuildError(text, "PostLinkScript") from error
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        text = f"the post-link script of {name} failed ({done.returncode}): {said[-1] if said else 'it said nothing'}"
        raise BuildError(text, "PostLinkScript")
    after = _state(prefix)
    changed = sorted(path for path, state in after.items() if before.get(path) != state and path != _MESSAGES)
    for path in changed:
        _move(prefix / path, str(prefix).encode(), final.encode())
    return changed


def _state(prefix: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for here, folders, names in os.walk(prefix):
        for name in [*names, *(each for each in folders if Path(here, each).is_symlink())]:
            told = Path(here, name).lstat()
            found[os.path.relpath(f"{here}/{name}", prefix)] = (told.st_ino, told.st_size, told.st_mtime_ns)
    return found


def _move(file: Path, old: bytes, new: bytes) -> None:
    """The final place of the prefix in a file that names the folder it was made in."""
    if file.is_symlink():
        target = str(file.readlink()).encode()
        if old in target:
            file.unlink()
            file.symlink_to(target.replace(old, new).decode())
        return
    content = file.read_bytes()
    if old not in content:
        return
    if b"\0" in content:
        text = f"a post-link script has written {file.name}, a binary file that names the folder it was made in"
        raise BuildError(text, "PostLinkScript")
    file.write_bytes(content.replace(old, new))
