"""The command lines and configuration files of every component. Pure: text from a `Machine` and a `Record`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .addresses import DNS, KWOK_PODS, PODS, SERVICES, Resolvers, pod_range
from .paths import HERE
from .records import Record

DOMAIN = "cluster.local"
PAUSE_IMAGE = "docker.io/localcluster/pause:1"
POD_READY = HERE / "kwok" / "pod-ready.yaml"
"""KWOK's stage of pods that become Ready, which can be told to take its time."""
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
KUBELET_TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""Kernel settings that the kubelet sets to these values. They are not namespaced: a machine gets files that already
say so in their place, and the host keeps its own."""


@dataclass(frozen=True)
class Machine:
    """One machine, as its configuration needs it."""

    name: str
    number: int
    folder: Path
    certificates: Path
    bin: Path
    cgroup_root: str
    cni_bin: Path
    resolvers: Resolvers
    kwok_stages: Path
    audit_log: Path
    proxies: Mapping[str, str]

    def config(self, file: str) -> Path:
        return self.folder / "config" / file


@dataclass(frozen=True)
class Rendered:
    """What a machine runs: configuration files by name, and components as the supervisor takes them."""

    files: dict[str, str]
    components: list[dict[str, Any]]


def render(machine: Machine, record: Record) -> Rendered:
    files: dict[str, str] = {}
    components: list[dict[str, Any]] = []
    if machine.number == 0:
        files |= control_plane_files(machine, record)
        components += control_plane(machine, record)
    if record.shape == "node":
        files |= node_files(machine, record)
        components += node(machine, record)
    return Rendered(files, components)


def component(
    machine: Machine, name: str, argv: list[str], after: list[str] | None = None, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`argv` without the program, which is `name` in the machine's bin folder."""
    return {
        "name": name,
        "argv": [str(machine.bin / name), *argv],
        "env": {"HOME": str(machine.folder), **(env or {})},
        "after": after or [],
    }


def control_plane(machine: Machine, record: Record) -> list[dict[str, Any]]:
    pki = machine.certificates
    etcd = "http://127.0.0.1:2379"
    peers = "http://127.0.0.1:2380"
    api = "tcp:127.0.0.1:6443"
    components = [
        component(
            machine,
            "etcd",
            [
                f"--data-dir={machine.folder / 'etcd'}",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={peers}",
                f"--initial-advertise-peer-urls={peers}",
                f"--initial-cluster=default={peers}",
                f"--quota-backend-bytes={4 << 30}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
        ),
        component(machine, "kube-apiserver", api_server_arguments(machine, record, etcd), after=["tcp:127.0.0.1:2379"]),
        component(
            machine,
            "kube-controller-manager",
            [
                f"--kubeconfig={pki / 'kube-controller-manager.kubeconfig'}",
                f"--service-account-private-key-file={pki / 'service-accounts.key'}",
                f"--root-ca-file={pki / 'ca.crt'}",
                f"--cluster-signing-cert-file={pki / 'ca.crt'}",
                f"--cluster-signing-key-file={pki / 'ca.key'}",
                "--use-service-account-credentials=true",
                "--allocate-node-cidrs=false",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                *(["--kube-api-qps=1000", "--kube-api-burst=2000"] if record.raise_client_limits else []),
            ],
            after=[api],
        ),
        component(
            machine,
            "kube-scheduler",
            [f"--config={machine.config('scheduler.yaml')}", "--bind-address=127.0.0.1"],
            after=[api],
        ),
        component(
            machine, "registry", ["serve", str(machine.config("registry.yaml"))], env={"OTEL_TRACES_EXPORTER": "none"}
        ),
    ]
    if record.shape == "node":
        components.append(component(machine, "coredns", ["-conf", str(machine.config("Corefile"))], after=[api]))
    if record.kwok_nodes:
        stages = [
            "node/fast/node-initialize.yaml",
            "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
            "pod/fast/pod-complete.yaml",
            "pod/fast/pod-delete.yaml",
        ]
        arguments = [
            f"--kubeconfig={pki / 'kwok.kubeconfig'}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
            f"--node-ip={record.address}",
            f"--cidr={KWOK_PODS}",
            *(f"--config={machine.kwok_stages / stage}" for stage in stages),
            f"--config={POD_READY}",
        ]
        components.append(component(machine, "kwok", arguments, after=[api]))
    return components


def api_server_arguments(machine: Machine, record: Record, etcd: str) -> list[str]:
    pki = machine.certificates
    arguments = [
        f"--etcd-servers={etcd}",
        "--bind-address=0.0.0.0",
        "--secure-port=6443",
        f"--advertise-address={record.address}",
        f"--tls-cert-file={pki / 'kube-apiserver.crt'}",
        f"--tls-private-key-file={pki / 'kube-apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--service-account-key-file={pki / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'kube-apiserver-kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kube-apiserver-kubelet-client.key'}",
    ]
    if record.audit:
        arguments += [
            f"--audit-policy-file={machine.config('audit-policy.yaml')}",
            f"--audit-log-path={machine.audit_log}",
            "--audit-log-mode=blocking",
            "--audit-log-maxsize=2000",
            "--audit-log-maxbackup=1",
        ]
    return arguments


def control_plane_files(machine: Machine, record: Record) -> dict[str, str]:
    limits = {"qps": 1000, "burst": 2000} if record.raise_client_limits else {}
    scheduler = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": str(machine.certificates / "kube-scheduler.kubeconfig"), **limits},
        "leaderElection": {"leaderElect": False},
    }
    return {
        "scheduler.yaml": _yaml(scheduler),
        "audit-policy.yaml": _yaml(audit_policy(record)),
        "Corefile": corefile(machine, record),
    }


def audit_policy(record: Record) -> dict[str, Any]:
    """Writes only. Bodies, where they are asked for, of what has no secrets in it."""
    bodies = {
        "level": "Request",
        "verbs": ["create", "update", "patch"],
        "resources": [
            {"group": "", "resources": ["pods"]},
            {"group": "tokenservice.dev", "resources": ["tokenservices"]},
        ],
    }
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "verbs": ["get", "list", "watch"]},
            *([bodies] if record.audit_bodies else []),
            {"level": "Metadata"},
        ],
    }


def registry_config(storage: Path, secret: str) -> str:
    """Of the image registry. Its blobs are shared by all clusters, so nothing is kept in memory about them."""
    return _yaml(
        {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(storage), "maxthreads": 64},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": True, "age": "24h", "interval": "24h", "dryrun": False}},
            },
            "http": {"addr": "0.0.0.0:5000", "secret": secret, "relativeurls": True},
        }
    )


def corefile(machine: Machine, record: Record) -> str:
    forward = f"forward . {' '.join(map(str, machine.resolvers.servers))}" if machine.resolvers.servers else ""
    return f"""\
.:53 {{
    bind {record.address}
    errors
    ready {record.address}:8181
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {machine.certificates / "coredns.kubeconfig"}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }}
    {forward}
    cache 5
}}
"""


def node(machine: Machine, record: Record) -> list[dict[str, Any]]:
    address = str(record.subnet.machine(machine.number))
    api = f"tcp:{record.address}:6443"
    path = {"PATH": f"{machine.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    return [
        component(
            machine, "containerd", ["--config", str(machine.config("containerd.toml"))], env={**path, **machine.proxies}
        ),
        component(
            machine,
            "kubelet",
            [
                f"--config={machine.config('kubelet.yaml')}",
                f"--kubeconfig={machine.certificates / f'kubelet-{machine.name}.kubeconfig'}",
                f"--hostname-override={machine.name}",
                f"--node-ip={address}",
                f"--node-labels=tokenservice.dev/localcluster={record.name}",
            ],
            after=[f"unix:{CONTAINERD_SOCKET}", api],
            env=path,
        ),
        component(machine, "kube-proxy", [f"--config={machine.config('kube-proxy.yaml')}"], after=[api], env=path),
    ]


def node_files(machine: Machine, record: Record) -> dict[str, str]:
    return {
        "kubelet.yaml": kubelet_config(machine),
        "kube-proxy.yaml": kube_proxy_config(machine),
        "containerd.toml": containerd_config(machine),
        f"hosts/{record.registry}/hosts.toml": f'server = "http://{record.registry}"\n\n[host."http://{record.registry}"]\n'
        'capabilities = ["pull", "resolve"]\n',
        "cni/10-localcluster.conflist": cni_config(machine),
    }


def kubelet_config(machine: Machine) -> str:
    pki = machine.certificates
    return _yaml(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pki / f"kubelet-{machine.name}.crt"),
            "tlsPrivateKeyFile": str(pki / f"kubelet-{machine.name}.key"),
            "clusterDNS": [str(DNS)],
            "clusterDomain": DOMAIN,
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "resolvConf": str(machine.config("resolv.conf")),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": machine.cgroup_root,
            "failCgroupV1": False,
            "failSwapOn": False,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "500Mi",
                "nodefs.inodesFree": "1%",
                "imagefs.available": "500Mi",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "serializeImagePulls": False,
            "volumePluginDir": str(machine.folder / "volume-plugins"),
            "nodeStatusUpdateFrequency": "10s",
        }
    )


def kube_proxy_config(machine: Machine) -> str:
    return _yaml(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(machine.certificates / "kube-proxy.kubeconfig")},
            "clusterCIDR": str(PODS),
            "mode": "iptables",
            "hostnameOverride": machine.name,
            "conntrack": {"maxPerCore": 0},
            "iptables": {"minSyncPeriod": "0s"},
        }
    )


def containerd_config(machine: Machine) -> str:
    """Version 3. `restrict_oom_score_adj`: without CAP_SYS_RESOURCE no sandbox could start otherwise."""
    folder = machine.folder
    return f"""\
version = 3
imports = []
root = {_toml(folder / "containerd")}
state = "/run/containerd"

[grpc]
  address = {_toml(CONTAINERD_SOCKET)}

[plugins."io.containerd.internal.v1.opt"]
  path = {_toml(folder / "containerd-opt")}

[plugins."io.containerd.cri.v1.images"]
  discard_unpacked_layers = true
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = {_toml(PAUSE_IMAGE)}
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = {_toml(machine.config("hosts"))}

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [{_toml(machine.cni_bin)}]
    conf_dir = {_toml(machine.config("cni"))}
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def cni_config(machine: Machine) -> str:
    """Every pod has a cable of its own to the machine, no bridge.

    What passes between two pods is routed: a service's answers take the way back through the firewall that rewrote the
    request, with or without br_netfilter.
    """
    ranges = [[{"subnet": str(pod_range(machine.number))}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni-addresses"}
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ]
    return json.dumps({"cniVersion": "1.0.0", "name": "localcluster", "plugins": plugins}, indent=2) + "\n"


def resolv_conf(resolvers: Resolvers) -> str:
    return "".join(f"nameserver {server}\n" for server in resolvers.servers)


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False)


def _toml(value: object) -> str:
    return json.dumps(str(value))
