"""What of an environment runs in a build, kept from all but its own folders: the owner's credentials lie beside it.

By Landlock, which needs no privilege: Linux 5.13 or newer, switched on, and not filtered by the container runtime.
Where the kernel has none, the program runs with what the Job itself can reach, and the log says so once.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenservice.builder.progress import say

from . import confine

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
"""The base's C library and its loader, which every program of an environment needs."""
TOOLS = ("/bin", "/usr/bin", "/usr/share")
"""What a shell script uses beside its package."""
FILES = ("/etc/ld.so.cache", "/dev/urandom", "/dev/random", "/dev/zero")
_DEVICES = ("/dev/null",)


@dataclass(frozen=True)
class Reach:
    """What a program can reach: folders to read and to run programs of, and folders to read and change."""

    run: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


def run(
    command: Sequence[str],
    reach: Reach,
    *,
    environ: Mapping[str, str],
    cwd: Path,
    given: str | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `command`, whose first is an absolute path, with these variables and no others.

    `given`: its standard input. `timeout` in seconds. Raises OSError where it cannot be started, TimeoutExpired.
    """
    started = list(command)
    if confined():
        asked = {
            "read": FILES,
            "run": [*LIBRARIES, *reach.run],
            "write": [*_DEVICES, *reach.write],
            "command": started,
        }
        # A process of its own confines itself: after a fork of one with threads no Python may run.
        started = [sys.executable, "-I", "-S", confine.__file__, json.dumps(asked)]
    return subprocess.run(
        started,
        input=given or "",
        env=dict(environ),
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


@functools.cache
def confined() -> bool:
    """Whether the kernel can confine what runs; the first time it cannot, the log says why."""
    try:
        confine.abi()
    except OSError as error:
        say(
            f"the kernel has no Landlock ({error.strerror}): the environment's Python and post-link scripts can read "
            "what this Job can, its credentials included"
        )
        return False
    return True
