"""A cluster's own cgroups: one folder for every machine in every hierarchy, with cgroup v1 and v2.

    HIERARCHY/tokenservice-localcluster/CLUSTER/MACHINE/machine    the machine's own processes
    HIERARCHY/tokenservice-localcluster/CLUSTER/MACHINE/kubepods   its pods, made by the kubelet

The machine's processes are in a leaf because cgroup v2 allows processes in leaves only, once controllers are passed on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from .errors import LocalClusterError, UnsupportedError

TOP = "tokenservice-localcluster"
PASSED_ON = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")
NEEDED_V2 = {"cpu", "cpuset", "memory", "pids"}


@dataclass(frozen=True)
class Hierarchies:
    """The mounted cgroup hierarchies. `unified` is the one that controls, or None with cgroup v1."""

    mounts: tuple[Path, ...]
    unified: Path | None


def hierarchies(mountinfo: str) -> Hierarchies:
    """From the text of /proc/self/mountinfo (proc_pid_mountinfo(5)). With any v1 hierarchy, v1 controls."""
    first: list[Path] = []
    second: list[Path] = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind = after.split(" ", 1)[0]
        if kind in ("cgroup", "cgroup2"):
            # Octal escapes (a space is \040) do not occur in these paths.
            (first if kind == "cgroup" else second).append(Path(before.split()[4]))
    mounts = tuple(dict.fromkeys([*first, *second]))
    return Hierarchies(mounts, None if first else next(iter(second), None))


def current() -> Hierarchies:
    found = hierarchies(Path("/proc/self/mountinfo").read_text())
    if not found.mounts:
        raise UnsupportedError(
            "no cgroup hierarchy is mounted here: mount one (a container needs its host's) and run this again."
        )
    return found


def machine_root(cluster: str, machine: str) -> str:
    """The kubelet's cgroupRoot: a path below every hierarchy's mount point."""
    return f"/{TOP}/{cluster}/{machine}"


def delegated(controllers: str) -> str:
    """What to write to cgroup.subtree_control, given the text of cgroup.controllers."""
    return " ".join(f"+{name}" for name in PASSED_ON if name in controllers.split())


def create(found: Hierarchies, cluster: str, machine: str) -> list[Path]:
    """Makes the folders; returns those that the machine's first process joins."""
    leaves = []
    for mount in found.mounts:
        folder = mount
        try:
            # All at once: another cluster that goes removes the common folder if it is empty.
            (mount / TOP / cluster / machine / "machine").mkdir(parents=True, exist_ok=True)
            for part in [TOP, cluster, machine, "machine"]:
                if found.unified == mount:
                    _delegate(folder)
                folder = folder / part
                _copy_cpuset(folder)
        except OSError as error:
            raise UnsupportedError(
                f"cgroups cannot be made in {mount}: {error.strerror}. Run this where root may manage cgroups."
            ) from error
        leaves.append(folder)
    return leaves


def _delegate(folder: Path) -> None:
    available = (folder / "cgroup.controllers").read_text()
    lacking = NEEDED_V2 - set(available.split())
    if lacking:
        raise UnsupportedError(f"the cgroup controllers {', '.join(sorted(lacking))} are not available in {folder}.")
    (folder / "cgroup.subtree_control").write_text(delegated(available))


def _copy_cpuset(folder: Path) -> None:
    """A new v1 cpuset has no CPUs and no memory, and takes no process, until it is given its parent's."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = folder / name
        parent = folder.parent / name
        if file.exists() and parent.exists() and not file.read_text().strip():
            with contextlib.suppress(OSError):  # v2: empty means the parent's
                file.write_text(parent.read_text())


def processes(found: Hierarchies, cluster: str) -> set[int]:
    """Every process in the cluster's cgroups."""
    pids: set[int] = set()
    for mount in found.mounts:
        for file in (mount / TOP / cluster).glob("**/cgroup.procs"):
            with contextlib.suppress(OSError):
                pids.update(int(pid) for pid in file.read_text().split())
    return pids - {0}


def remove(found: Hierarchies, cluster: str, machine: str | None = None, seconds: float = 20.0) -> None:
    """Ends what is left in the cluster's (or one machine's) cgroups and removes them, bottom up."""
    below = f"{cluster}/{machine}" if machine else cluster
    deadline = time.monotonic() + seconds
    while True:
        for pid in processes(found, below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        left = [mount for mount in found.mounts if not _remove_tree(mount / TOP / below)]
        if not left:
            break
        if time.monotonic() > deadline:
            raise LocalClusterError(
                f"cgroups of {below} are still in use after {seconds:.0f} s; run the same command again."
            )
        time.sleep(0.05)
    for mount in found.mounts:
        for folder in (mount / TOP / cluster, mount / TOP):
            with contextlib.suppress(OSError):  # other machines or clusters are in it
                folder.rmdir()


def _remove_tree(top: Path) -> bool:
    """Whether the folder is gone."""
    if not top.exists():
        return True
    for folder, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
    return not top.exists()


def clusters(found: Hierarchies) -> set[str]:
    """The names of cgroups of clusters, of whatever state folder."""
    return {
        entry.name
        for mount in found.mounts
        if (mount / TOP).is_dir()
        for entry in (mount / TOP).iterdir()
        if entry.is_dir()
    }
