"""Byte code of packages, compiled by the environment's own Python at the paths that files have in the image.

`unchecked-hash` .pyc files: the interpreter neither compares times (a layer has only one) nor reads the source. Byte
code depends a little on what its process compiled before (marshal notes which strings are shared), so each batch
of files gets a process of its own, forked from one that has only loaded the compiler: a package's byte code is then
the same whatever else is built beside it.

That Python is a package of a stranger's: it reaches its own files and those that it compiles, see sandbox.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenservice.builder.errors import BuildError

from .sandbox import Reach, run

BATCH = 200
"""Files compiled by one process. Part of what byte code depends on: see above."""

# Runs in the environment's Python, 3.9 or newer, whose standard library has no byte code yet and may be trimmed.
_DRIVER = """
import importlib.util, json, os, sys, warnings
import py_compile
warnings.simplefilter("ignore")
sys.setrecursionlimit(5000)
work = json.load(sys.stdin)
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH

def compile_all(files):
    for source, final in files:
        try:
            py_compile.compile(source, dfile=final, doraise=True, invalidation_mode=mode)
        except OSError:
            raise
        except Exception:
            pass  # templates and test data that are no Python of this version

failed = 0
running = set()

def wait_for_one():
    global failed
    child, status = os.wait()
    running.discard(child)
    failed = failed or status

for files in work["batches"]:
    child = os.fork()
    if not child:
        try:
            compile_all(files)
        except BaseException as error:
            sys.stderr.write("%s: %s\\n" % (type(error).__name__, error))
            sys.stderr.flush()
            os._exit(3)
        os._exit(0)
    running.add(child)
    if len(running) >= work["jobs"]:
        wait_for_one()
while running:
    wait_for_one()
sys.exit(3 if failed else 0)
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that runs where it was staged; `home` is an empty folder that it runs in, `root` has all its files."""

    program: Path
    home: Path
    root: Path


def compile_tree(python: Interpreter, tree: Path, files: Sequence[str], prefix: str) -> list[str]:
    """Compiles `files` (relative to `tree`); returns the byte code files that are there afterwards, likewise.

    `prefix`: where the tree lies in the image, such as /opt/env. Raises BuildError when the interpreter cannot run.
    """
    wanted = sorted(path for path in files if not _through_link(tree, path))
    if not wanted:
        return []
    # What packages brought was made for other paths, or goes by the time of a source.
    for path in _cached(tree, wanted):
        (tree / path).unlink()
    pairs = [[f"{tree}/{path}", f"{prefix}/{path}"] for path in wanted]
    batches = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    _run(python, json.dumps({"batches": batches, "jobs": max(1, len(os.sched_getaffinity(0)))}), tree)
    return _cached(tree, wanted)


def _cached(tree: Path, sources: Sequence[str]) -> list[str]:
    """The byte code files of these sources that are there."""
    stems: dict[str, set[str]] = {}
    for path in sources:
        folder, _, name = path.rpartition("/")
        stems.setdefault(folder, set()).add(name.removesuffix(".py"))
    found = []
    for folder, names in stems.items():
        place = f"{folder}/__pycache__".lstrip("/")
        try:
            listed = os.listdir(tree / place)  # noqa: PTH208 - names are all that is wanted, of many files
        except FileNotFoundError:
            continue
        for name in listed:
            # a.cpython-311.pyc and a.cpython-311.opt-1.pyc are of a.py
            stem, _, kind = name.removesuffix(".pyc").partition(".cpython-")
            if kind and name.endswith(".pyc") and stem in names:
                found.append(f"{place}/{name}")
    return sorted(found)


def _through_link(tree: Path, path: str) -> bool:
    file = f"{tree}/{path}"
    return os.path.islink(file) or os.path.islink(f"{os.path.dirname(file)}/__pycache__")  # noqa: PTH114, PTH120


def _run(python: Interpreter, work: str, *trees: Path) -> None:
    # -s -S and an empty environment: no .pth file and no sitecustomize of the packages runs here. Not -I, which would
    # ignore PYTHONHASHSEED, on which the byte code of sets depends before Python 3.11.
    command = [str(python.program), "-s", "-S", "-c", _DRIVER]
    environ = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    reach = Reach(run=(str(python.root),), write=tuple(map(str, (python.root, python.home, *trees))))
    try:
        done = run(command, reach, environ=environ, cwd=python.home, given=work)
    except OSError as error:
        raise BuildError(f"the environment's Python cannot be started here: {error.strerror}") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        if any("No space left on device" in line for line in said):
            raise BuildError("no space is left while compiling byte code", "DiskFull")
        ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        raise BuildError(f"the environment's Python cannot compile: {said[-1] if said else ended}")


def warm(python: Interpreter) -> None:
    """Runs the driver once with nothing to do: its own imports are compiled now, and later runs begin alike."""
    _run(python, '{"batches": [], "jobs": 1}')
