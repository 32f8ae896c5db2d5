"""Byte code, compiled by an image's own Python at the paths that files have in the image.

`unchecked-hash` .pyc files: the interpreter neither compares times (a layer has only one) nor reads the source. Without
them every start of a container with a read-only root compiles everything it imports.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from .errors import BuildError

PYTHON_PATH = "/usr/bin/python3.11"
# Fixed, so that which files share a process, and with that the byte code, does not depend on the machine.
SHARDS = 4
_ENV = {"LC_ALL": "C.UTF-8", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def compile_in_root(root: Path, files: Sequence[Path]) -> None:
    """Compiles `files`, which lie below `root`, with the Python in `root`. Files that are no Python 3 are passed over.

    -B and -I: nothing of the caller's environment, and no .pyc files of other modules written on the side.
    """
    inside = sorted("/" + str(path.relative_to(root)) for path in files)
    command = ["chroot", str(root), PYTHON_PATH, "-B", "-I", "-m", "compileall", "-qq", "-f"]
    command += ["--invalidation-mode", "unchecked-hash", "-i", "-"]
    shards = [inside[start::SHARDS] for start in range(SHARDS)]
    # One process after the other would be slower, more at once than two does not pay on small machines.
    for first in range(0, SHARDS, 2):
        running = []
        for names in filter(None, shards[first : first + 2]):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_ENV
            )
            running.append((process, "\n".join(names) + "\n"))
        _finish(running)


def _finish(running: list[tuple[subprocess.Popen[str], str]]) -> None:
    # Their lists of names are longer than a pipe holds: written while the other process works on its own.
    from threading import Thread

    errors: list[str] = []

    def talk(process: subprocess.Popen[str], names: str) -> None:
        _, stderr = process.communicate(names)
        # 1: some file does not compile, as templates and test data of packages do not.
        if process.returncode not in (0, 1) or "Traceback" in stderr:
            errors.append(stderr.strip().splitlines()[-1] if stderr.strip() else f"exit code {process.returncode}")

    threads = [Thread(target=talk, args=each) for each in running]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise BuildError(f"the image's Python cannot compile: {errors[0]}")
