"""Brings clusters up and takes them down. Every step can be done again: an interrupted `up` goes on where it was."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from . import build, cgroups, components, host, machine, network, objects, pause, records
from .addresses import API, choose_resolvers
from .api import Api, node_ready
from .certificates import Authority
from .errors import LocalClusterError, UnsupportedError
from .hostsettings import HostSettings
from .locks import folder_lock
from .paths import DEFAULT_STATE, ClusterPaths
from .progress import Step, duration, say
from .records import Record, Wish
from .render import PAUSE_IMAGE, Machine, registry_config, render, resolv_conf

STATE_BYTES = 3 << 30
READY_SECONDS = 180.0
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def up(paths: ClusterPaths, cache: Path, wish: Wish) -> dict[str, Any]:
    """Makes the cluster as wished, or completes it; returns what `up --json` prints."""
    began = time.monotonic()
    host.check()
    existing = records.load(paths.record)
    wished = records.merged(existing, wish) if existing else records.fresh(paths.name, wish, "10.213.0.0/24")
    hierarchies = cgroups.current()
    programs = build.programs(cache)
    wanted = components.for_shape(wished.shape, wished.kwok_nodes)
    host.check_namespaces()
    build.check_disk(paths.root, STATE_BYTES, "a local cluster")
    build.check_room(programs, wanted)
    host.install_packages(node=wished.shape == "node")
    build.ensure(programs, wanted)
    try:
        with folder_lock(paths.state, f"another command on cluster {paths.name}"):
            record = _claim(paths, wish)
            Cluster(paths, record, programs, hierarchies).up()
    except UnsupportedError:
        if existing is None:
            dismantle(paths)
        raise
    say(f"cluster {paths.name} is up ({duration(time.monotonic() - began)})")
    return describe(paths, record)


def dismantle(paths: ClusterPaths) -> None:
    """Ends the cluster's machines and removes all that is its own, whatever is left of it."""
    with folder_lock(paths.state, f"another command on cluster {paths.name}"), Step(f"taking down {paths.name}"):
        machine.end(list(paths.nodes.iterdir()) if paths.nodes.is_dir() else [])
        cgroups.remove(cgroups.current(), paths.cgroup)
        network.teardown(paths.owner)
        shutil.rmtree(paths.state)
    HostSettings(DEFAULT_STATE).restore(still_used=lambda: bool(network.owners()))
    with contextlib.suppress(OSError):  # there are other clusters
        paths.root.rmdir()


def _claim(paths: ClusterPaths, wish: Wish) -> Record:
    """The record on disk, with a network that is the cluster's own."""
    record = records.load(paths.record)
    if record is None:
        cleared = network.owners().get(paths.owner)
        if cleared:  # of an `up` that was interrupted before it could write its record
            network.teardown(paths.owner)
        record = records.fresh(paths.name, wish, str(network.reserve(paths.owner).network))
    else:
        record = records.merged(record, wish)
    records.save(paths.record, record)
    return record


def describe(paths: ClusterPaths, record: Record) -> dict[str, Any]:
    """What `up --json` prints."""
    first = record.first
    return {
        "name": record.name,
        "shape": record.shape,
        "kubeconfig": str(paths.admin),
        "server": record.server,
        "address": record.address,
        "host_address": str(record.subnet.gateway),
        "registry": record.registry,
        "bin": str(paths.bin),
        "audit_log": str(paths.audit_log) if record.audit else None,
        "state": str(paths.state),
        "hostpath": str(paths.hostpath(first)) if record.shape == "node" else None,
        "nodes": [
            {"name": name, "address": str(record.subnet.machine(number)), "hostpath": str(paths.hostpath(name))}
            for name, number in record.machines.items()
            if record.shape == "node"
        ],
        "kwok_nodes": record.kwok_nodes,
        "raise_client_limits": record.raise_client_limits,
    }


class Cluster:
    """The steps of `up`, on the record of one cluster."""

    def __init__(
        self, paths: ClusterPaths, record: Record, programs: build.Programs, hierarchies: cgroups.Hierarchies
    ) -> None:
        self.paths = paths
        self.record = record
        self.programs = programs
        self.hierarchies = hierarchies
        self.booted: dict[str, str] = {}
        self.authority = Authority(paths.certificates)
        self.resolvers = choose_resolvers(
            _text("/etc/resolv.conf"), _text("/run/systemd/resolve/resolv.conf"), record.subnet.gateway
        )

    def up(self) -> None:
        HostSettings(DEFAULT_STATE).apply()
        self._link_programs()
        self._credentials()
        network.ensure_bridge(self.record.subnet, self.paths.owner, self.resolvers)
        for name in self.record.machines:
            self.ensure_machine(name)
        with Api(self.record.address, self.paths.certificates) as api:
            self._wait("the API server", api.ready, self.record.first, "kube-apiserver")
            for obj in objects.initial(self.record):
                api.apply(obj)
            for number in range(self.record.kwok_nodes):
                api.create(objects.kwok_node(number))
            self._wait_for_parts(api)

    def ensure_machine(self, name: str) -> None:
        """The machine runs, is connected, and runs the components that it should."""
        folder = self.paths.node(name)
        number = self.record.machines[name]
        self.paths.hostpath(name).mkdir(parents=True, exist_ok=True)
        self.paths.hostpath(name).chmod(0o777)
        made = Machine(
            name=name,
            number=number,
            folder=folder,
            certificates=self.paths.certificates,
            bin=self.paths.bin,
            cgroup_root=cgroups.machine_root(self.paths.cgroup, name),
            cni_bin=host.cni_folder() or host.CNI_FOLDERS[0],
            resolvers=self.resolvers,
            kwok_stages=self.programs.kwok_stages(),
            audit_log=self.paths.audit_log,
            proxies={key: os.environ[key] for key in PROXIES if key in os.environ},
        )
        rendered = render(made, self.record)
        files = dict(rendered.files)
        if number == 0:
            storage = self.programs.cache / "registry"
            storage.mkdir(parents=True, exist_ok=True)
            files["registry.yaml"] = registry_config(storage, self.record.registry_secret)
        for file, text in files.items():
            target = made.config(file)
            if _text(target) != text:  # kube-proxy ends when its file is written, be it with the same text
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
        pid = machine.alive(folder)
        new = not pid
        if new:
            machine.end([folder])  # one that was being made, or whose supervisor hangs
            cgroups.remove(self.hierarchies, self.paths.cgroup, name)
            leaves = cgroups.create(self.hierarchies, self.paths.cgroup, name)
            plan = machine.plan(folder, name, leaves, resolv_conf(self.resolvers))
            self.booted[name] = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
            pid = machine.boot(folder, plan, f"{self.paths.bin}:{host.PATH}")
            say(f"machine {name} runs")
        network.attach(self.record.subnet, number, pid, new)
        network.configure(self.record.subnet, number, pid, list(self.record.machines.values()))
        machine.ask(folder, {"op": "apply", "components": rendered.components})
        if self.record.shape == "node":
            self._import_pause(name)

    def _import_pause(self, name: str) -> None:
        folder = self.paths.node(name)
        marker = folder / "pause.tar"
        if marker.exists():
            return
        part = folder / "pause.tar.part"
        pause.write(self.programs.path("pause"), PAUSE_IMAGE, platform.machine(), part)
        command = machine.inside(
            folder, ["ctr", "--namespace", "k8s.io", "image", "import", "--local", str(part)], self.paths.bin
        )

        def imported() -> bool:
            try:
                network.run(command)
            except LocalClusterError:
                return False
            return True

        self._wait("containerd", imported, name, "containerd")
        part.replace(marker)

    def _link_programs(self) -> None:
        self.paths.bin.mkdir(parents=True, exist_ok=True)
        for name in components.for_shape(self.record.shape, self.record.kwok_nodes):
            link = self.paths.bin / name
            target = self.programs.path(name)
            if not link.is_symlink() or link.readlink() != target:
                link.unlink(missing_ok=True)
                link.symlink_to(target)

    def _credentials(self) -> None:
        record, authority, folder = self.record, self.authority, self.paths.certificates
        authority.signing_key("service-accounts")
        names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ]
        addresses: list[str | IPv4Address] = [*names, record.subnet.machine(0), API, IPv4Address("127.0.0.1")]
        authority.issue("kube-apiserver", "kube-apiserver", hosts=addresses)
        authority.issue("kube-apiserver-kubelet-client", "kube-apiserver-kubelet-client")
        users = {
            "kube-controller-manager": "system:kube-controller-manager",
            "kube-scheduler": "system:kube-scheduler",
            "kube-proxy": "system:kube-proxy",
            "coredns": "system:coredns",
            "kwok": "localcluster:kwok",
        }
        for file, user in users.items():
            authority.kubeconfig(folder / f"{file}.kubeconfig", record.name, record.server, authority.issue(file, user))
        for name in record.real_nodes():
            hosts: list[str | IPv4Address] = [name, record.subnet.machine(record.machines[name])]
            issued = authority.issue(f"kubelet-{name}", f"system:node:{name}", ["system:nodes"], hosts)
            authority.kubeconfig(folder / f"kubelet-{name}.kubeconfig", record.name, record.server, issued)
        admin = authority.issue("admin", "localcluster-admin", ["system:masters"])
        authority.kubeconfig(self.paths.admin, record.name, record.server, admin)

    def _wait_for_parts(self, api: Api) -> None:
        record, first = self.record, self.record.first
        default = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait("the controller manager", lambda: api.get(default) is not None, first, "kube-controller-manager")
        self._wait("the image registry", lambda: answers(f"http://{record.registry}/v2/"), first, "registry")
        for name in record.real_nodes():
            address = record.subnet.machine(record.machines[name])
            self._wait(f"node {name}", partial(self._node_ready, api, name), name, "kubelet")
            self._wait("kube-proxy", partial(answers, f"http://{address}:10256/healthz"), name, "kube-proxy")
        if record.shape == "node":
            self._wait("CoreDNS", lambda: answers(f"http://{record.address}:8181/ready"), first, "coredns")
        if record.kwok_nodes:
            last = f"/api/v1/nodes/kwok-{record.kwok_nodes - 1}"
            self._wait("the KWOK nodes", lambda: node_ready(api.get(last)), first, "kwok")

    def _node_ready(self, api: Api, name: str) -> bool:
        """Whether the kubelet says so, and lately: the last word of a node that was lost may be "ready"."""
        since = self.booted.get(name)
        if since:
            lease = api.get(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}")
            if not lease or lease["spec"].get("renewTime", "") < since:
                return False
        return node_ready(api.get(f"/api/v1/nodes/{name}"))

    def _wait(self, what: str, ready: Callable[[], bool], machine_name: str, component: str) -> None:
        """Waits until `ready`; says what the component's log ends with if it takes too long."""
        wait_until(what, ready, READY_SECONDS, self.paths.node(machine_name) / "log" / f"{component}.log")


def wait_until(what: str, ready: Callable[[], bool], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    with Step(f"waiting for {what}"):
        while not ready():
            if time.monotonic() > deadline:
                lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
                last = lines[-1] if lines else "nothing"
                raise LocalClusterError(f"{what} is not ready after {seconds:.0f} s; the last line of {log} is: {last}")
            time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether the URL answers 200, asked directly whatever proxies are set."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
