"""What the benchmark of environments needs in its cluster: images, the local channel, the operator by Helm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from tokenservice.builder.settings import ChannelSettings, PipSettings, RegistrySettings, Settings

from bench.cluster import CHART, CLIENT, ROOT, SYSTEM, BenchError, Cluster, Identity
from bench.environment_registry import Registry
from tools.localchannel import in_cluster

CHANNEL = "conda-channel"
"""Namespace of the local channel."""
ENVIRONMENT = ROOT / "examples" / "environment-tiny.yml"
OLDER = ROOT / "tools" / "localchannel" / "older.in"
PACKAGE = "tqdm"
"""The small package that is changed: the local channel has two releases of it."""


def older_release(text: str, package: str = PACKAGE) -> str:
    """The release that tools/localchannel/older.in adds to the channel."""
    found = re.search(rf"^{re.escape(package)}==(\S+)", text, re.MULTILINE)
    if not found:
        raise BenchError(f"{OLDER.name} has no {package}")
    return found[1]


def pinned(environment: dict[str, Any], package: str, version: str) -> dict[str, Any]:
    """The environment with one package more in its list, at this version; everything else as it stands."""
    first, *rest = environment["dependencies"]
    return {**environment, "dependencies": [first, f"{package}={version}", *rest]}


def run(*command: str, env: dict[str, str] | None = None) -> str:
    """What a program of ours printed; its progress goes to the terminal. Raises BenchError."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT, env=env)
    if done.returncode:
        raise BenchError(f"{' '.join(command[:7])}: exit status {done.returncode}")
    return done.stdout


def push(registry: str, image: str, *arguments: str) -> str:
    """Builds an image and pushes it; its reference by digest."""
    program = (sys.executable, "-m", "tokenservice.cli", "image", "push", image)
    said = run(*program, "--registry", registry, "--plain-http", "--tag", "bench", *arguments)
    return str(json.loads(said.splitlines()[-1])["image"])


def make_channel(*arguments: str) -> Path:
    """Makes the local channel; its folder."""
    return Path(run(sys.executable, "-m", "tools.localchannel", "build", *arguments).splitlines()[-1])


def serve_channel(cluster: Cluster, channel: Path) -> tuple[str, str]:
    """Serves the channel in the cluster; the server of channels, and the package index."""
    image = push(cluster.facts["registry"], "model", "--from", str(channel), "--name", "channel")
    python = push(cluster.facts["registry"], "token-server-standin")
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": CHANNEL}})

    def kubectl(*words: str, text: str = "") -> str:
        return cluster.run("kubectl", *words, text=text)

    return in_cluster.apply(kubectl, image, python, CHANNEL)


def settings_for(registry: Registry, base: str, servers: tuple[str, str]) -> Settings:
    """The owner's settings as Jobs have them."""
    alias, index = servers
    return Settings(
        registry=RegistrySettings(url=registry.url, pull_url=registry.pull_url, plain_http=True),
        channels=ChannelSettings(alias=alias),
        pip=PipSettings(index_url=index),
        base_image=base,
    )


def install(cluster: Cluster, settings: Settings, folder: Path) -> None:
    """Installs the operator with the chart's own values, and these settings."""
    repository, digest = push(cluster.facts["registry"], "operator").split("@")
    values = {
        "image": {"repository": repository, "digest": digest},
        "registry": {
            "url": settings.registry.url,
            "pullUrl": settings.registry.pull_url,
            "plainHTTP": settings.registry.plain_http,
        },
        "builder": {
            "baseImage": settings.base_image,
            "channels": {"alias": settings.channels.alias},
            "pip": {"indexUrl": settings.pip.index_url},
        },
    }
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    cluster.run(
        *("helm", "upgrade", "--install", "tokenservice-operator", str(CHART), "--namespace", SYSTEM),
        *("--create-namespace", "--values", str(file), "--wait", "--timeout", "5m"),
    )


def client(cluster: Cluster, folder: Path) -> Identity:
    """The benchmark's own identity: an administrator, as a service account."""
    account = {"name": CLIENT, "namespace": SYSTEM}
    cluster.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": CLIENT},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", **account}],
        },
    )
    return cluster.identity(CLIENT, folder)


def load() -> float:
    """Processes that ran or waited for a core during the last minute."""
    return os.getloadavg()[0]
