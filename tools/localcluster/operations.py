"""What can be done to a cluster that exists: take it down, ask how it fares, stop parts of it, add and lose nodes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import build, cgroups, host, machine, network, records
from .api import Api
from .cluster import READY_SECONDS, Cluster, describe, dismantle, wait_until
from .errors import UnsupportedError
from .locks import folder_lock
from .paths import ClusterPaths
from .records import Record


def down(paths: ClusterPaths) -> bool:
    """Takes the cluster down, whatever is left of it; returns whether there was anything."""
    there = paths.state.exists() or paths.owner in network.owners()
    if not there and paths.cgroup not in cgroups.clusters(cgroups.current()):
        return False
    dismantle(paths)
    return True


def names(root: Path) -> list[str]:
    """The clusters of this state folder."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []


def status(paths: ClusterPaths) -> dict[str, Any]:
    """What `status --json` prints for one cluster: `up --json`'s fields and how its machines fare."""
    record = records.load(paths.record)
    if record is None:
        raise UnsupportedError(
            f"there is no cluster {paths.name}; there are: {', '.join(names(paths.root)) or 'none'}."
        )
    machines = {}
    for name in record.machines:
        folder = paths.node(name)
        pid = machine.alive(folder)
        machines[name] = {"pid": pid, "components": machine.ask(folder, {"op": "status"}) if pid else {}}
    ready = False
    if (paths.certificates / "admin.crt").exists():
        with Api(record.address, paths.certificates, timeout=3) as api:
            ready = bool(machines[record.first]["pid"]) and api.ready()
    return {**describe(paths, record), "ready": ready, "machines": machines}


@contextmanager
def existing(paths: ClusterPaths) -> Iterator[Record]:
    """The record of a cluster that must exist, locked."""
    if records.load(paths.record) is None:
        raise UnsupportedError(
            f"there is no cluster {paths.name}; there are: {', '.join(names(paths.root)) or 'none'}."
        )
    with folder_lock(paths.state, f"another command on cluster {paths.name}"):
        record = records.load(paths.record)
        if record is None:
            raise UnsupportedError(f"cluster {paths.name} has just been taken down.")
        yield record


def control(paths: ClusterPaths, operation: str, component: str, node: str | None, wait: bool) -> None:
    """Starts, stops or restarts a component of a machine (the first, or `node`) and waits until that is done."""
    record = records.load(paths.record)
    if record is None:
        raise UnsupportedError(
            f"there is no cluster {paths.name}; there are: {', '.join(names(paths.root)) or 'none'}."
        )
    name = node or record.first
    if name not in record.machines:
        raise UnsupportedError(f"cluster {paths.name} has no machine {name}; it has: {', '.join(record.machines)}.")
    folder = paths.node(name)
    before = machine.ask(folder, {"op": "status"}).get(component, {}).get("pid", 0)
    machine.ask(folder, {"op": operation, "name": component})
    if not wait:
        return
    log = folder / "log" / f"{component}.log"

    def done() -> bool:
        now = machine.ask(folder, {"op": "status"}).get(component, {"state": "stopped", "pid": 0})
        if operation == "stop":
            return not now["pid"]
        return now["state"] == "running" and (operation == "start" or now["pid"] != before)

    wait_until(f"{component} to {operation}", done, 60, log)
    if operation != "stop" and component in ("kube-apiserver", "etcd"):
        with Api(record.address, paths.certificates) as api:
            wait_until("the API server", api.ready, READY_SECONDS, folder / "log/kube-apiserver.log")


def add_node(paths: ClusterPaths, cache: Path, name: str) -> dict[str, Any]:
    """Adds a real node, or brings back one that was lost, under this name."""
    host.check()
    programs = build.programs(cache)
    with existing(paths) as record:
        if record.shape != "node":
            raise UnsupportedError(f"cluster {paths.name} is a control plane alone: bring one up with --shape node.")
        ClusterPaths(paths.root, name)  # the same rule as for a cluster's name
        if name not in record.machines:
            record.machines[name] = records.number_for(name, record.machines)
            records.save(paths.record, record)
        Cluster(paths, record, programs, cgroups.current()).up()
        return describe(paths, record)


def remove_node(paths: ClusterPaths, name: str, delete_object: bool) -> None:
    """Loses a node: its PID 1 gets SIGKILL, and what it leaves is removed; its Node object only if asked for."""
    with existing(paths) as record:
        if name not in record.machines or record.machines[name] == 0:
            others = [other for other, number in record.machines.items() if number]
            reason = "has the control plane" if name in record.machines else "does not exist"
            raise UnsupportedError(f"{name} {reason}; these can be removed: {', '.join(others) or 'none'}.")
        machine.end([paths.node(name)])
        cgroups.remove(cgroups.current(), paths.cgroup, name)
        network.detach(record.subnet, record.machines[name])
        shutil.rmtree(paths.node(name), ignore_errors=True)
        for file in paths.certificates.glob(f"kubelet-{name}.*"):
            file.unlink()
        del record.machines[name]
        records.save(paths.record, record)
        if delete_object:
            with Api(record.address, paths.certificates) as api:
                api.delete(f"/api/v1/nodes/{name}")
