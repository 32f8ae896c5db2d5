"""One machine of a cluster from the outside: makes it, finds it, talks to its supervisor, ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import host
from .errors import LocalClusterError
from .paths import HERE
from .render import KUBELET_TUNABLES

SUPERVISOR = HERE / "supervisor.py"
MOUNT_POINTS = (Path("/var/lib/kubelet"), Path("/var/lib/cni"))
"""Folders whose path is fixed in the kubelet and in CNI: each machine sees its own there."""


def plan(folder: Path, hostname: str, cgroups: Iterable[Path], resolv_conf: str) -> dict[str, Any]:
    """machine.json: what the supervisor mounts (see its docstring). Makes the folders that it names."""
    binds = []
    for target in (*MOUNT_POINTS, Path("/var/log")):
        source = folder / "root" / target.relative_to("/")
        source.mkdir(parents=True, exist_ok=True)
        binds.append((str(source), str(target)))
    for name, value in KUBELET_TUNABLES.items():
        source = folder / "root/proc/sys" / name
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(value + "\n")
        binds.append((str(source), f"/proc/sys/{name}"))
    config = folder / "config/resolv.conf"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(resolv_conf)
    files = {}
    # Often a link into /run, which the machine has anew: then the file is made there, else laid over the host's.
    real = Path("/etc/resolv.conf").resolve()
    if real.is_relative_to("/run"):
        files[str(real)] = resolv_conf
    else:
        binds.append((str(config), str(real)))
    return {
        "hostname": hostname,
        "cgroups": [str(c) for c in cgroups],
        "tmpfs": ["/run"],
        "files": files,
        "binds": binds,
    }


def find(folder: Path) -> list[int]:
    """The processes that are, or are becoming, PID 1 of the machine in this folder, as this process sees them."""
    command = [str(SUPERVISOR).encode(), str(folder).encode()]
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                if words[-1] == command[1] and words[-2:-1] and words[-2].endswith(b"/supervisor.py"):
                    pids.append(int(entry.name))
    return pids


def alive(folder: Path) -> int:
    """The PID of the machine's PID 1 as this process sees it; 0 if there is none that answers."""
    try:
        with connect(folder) as connection:
            # The kernel's word on who listens: struct ucred, translated to the caller's PID namespace.
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            return int.from_bytes(credentials[:4], sys.byteorder)
    except OSError:
        return 0


def connect(folder: Path) -> socket.socket:
    """A connection to the machine's supervisor; raises OSError without one."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    # By way of the open folder: a Unix socket's path holds 107 bytes only.
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{handle}/supervisor.sock")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(handle)
    return connection


def ask(folder: Path, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Sends the supervisor a request; returns its components by name. Raises LocalClusterError with its words."""
    try:
        with connect(folder) as connection, connection.makefile("rwb") as stream:
            stream.write(json.dumps(request).encode() + b"\n")
            stream.flush()
            answer = json.loads(stream.readline())
    except (OSError, ValueError) as error:
        raise LocalClusterError(f"machine {folder.name} does not answer ({error}): run up again.") from error
    if "error" in answer:
        raise LocalClusterError(str(answer["error"]))
    components: dict[str, dict[str, Any]] = answer["components"]
    return components


def boot(folder: Path, machine_plan: dict[str, Any], path: str) -> int:
    """Makes the machine's namespaces and its PID 1; returns that process as this one sees it."""
    (folder / "machine.json").write_text(json.dumps(machine_plan, indent=2))
    command = [sys.executable, "-I", str(SUPERVISOR), str(folder)]
    environment = {"PATH": path, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment, cwd="/"
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"error": (done.stderr.strip().splitlines() or ["its first process died"])[-1]}
    if "pid" not in answer:
        raise LocalClusterError(
            f"machine {folder.name} cannot be made: {answer['error']}. Does this machine allow new namespaces?"
        )
    return int(answer["pid"])


def end(folders: Iterable[Path], seconds: float = 30.0) -> None:
    """Ends the machines in these folders: SIGKILL to each PID 1; returns when all their processes are gone."""
    pids = {pid for folder in folders for pid in find(folder)}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + seconds
    while any(running(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise LocalClusterError(
                f"processes of a machine do not end, {seconds:.0f} s after SIGKILL: {sorted(filter(running, pids))}."
            )
        time.sleep(0.02)


def running(pid: int) -> bool:
    """Whether the process is there and no zombie. PID 1 of a namespace becomes one only after all in it are gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def inside(folder: Path, command: list[str], bin_folder: Path) -> list[str]:
    """The command line that runs `command` in the machine's namespaces."""
    pid = alive(folder)
    if not pid:
        raise LocalClusterError(f"machine {folder.name} is not running: run up first.")
    enter = ["nsenter", "--target", str(pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
    return [*enter, "env", f"PATH={bin_folder}:{host.PATH}", *command]
