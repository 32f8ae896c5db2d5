"""What the benchmark of starts needs in its cluster: the environment's packages, models on a volume, manifests."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tokenservice import protocol
from tokenservice.api import names
from tokenservice.builder.settings import ChannelSettings, PipSettings, RegistrySettings, Settings

from bench import environment_setup, start_bare
from bench.cluster import ROOT, BenchError, Cluster

SPACE = "start"
"""Namespace of everything that is started."""
CLAIM = "models"
TINY, BIG = "tiny", "big"
"""TokenServices, their models, and the folders of these on the volume."""
POOL = "warm"
BARE = "bare"
EXAMPLE = ROOT / "examples" / "tiny.yaml"
GRACE_SECONDS = 15
"""For pods to end in: they drain for 5 s, and nobody asks them any more."""
RESOURCES = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "3Gi"}}
ENDING = {"terminationGracePeriodSeconds": GRACE_SECONDS}
PRELOAD = ("LlamaForCausalLM",)
BIG_BYTES = 500e6
"""The least that the big model's weights must have."""


def install(cluster: Cluster, folder: Path) -> None:
    """The local channel, the base image, and the operator by its chart."""
    registry = str(cluster.facts["registry"])
    servers = environment_setup.serve_channel(cluster, environment_setup.make_channel())
    environment_setup.install(cluster, settings(registry, environment_setup.push(registry, "base"), servers), folder)


def settings(registry: str, base: str, servers: tuple[str, str]) -> Settings:
    """The owner's settings: environments go to the cluster's own registry."""
    alias, index = servers
    return Settings(
        registry=RegistrySettings(url=f"{registry}/tokenservice", plain_http=True),
        channels=ChannelSettings(alias=alias),
        pip=PipSettings(index_url=index),
        base_image=base,
    )


def make_models(folder: Path) -> dict[str, int]:
    """Writes both models; bytes of each one's weights. Raises BenchError."""
    sizes = {}
    for name in (TINY, BIG):
        environment_setup.run(sys.executable, "tools/make_model.py", str(folder / name), "--size", name)
        sizes[name] = (folder / name / "model.safetensors").stat().st_size
    if sizes[BIG] < BIG_BYTES:
        raise BenchError(f"the big model has {sizes[BIG]} bytes of weights, less than {BIG_BYTES:g}")
    return sizes


def claim(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A volume that is a folder of the node, and the claim that is bound to it."""
    size = {"storage": "2Gi"}
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    volume = {"capacity": size, "hostPath": {"path": str(folder), "type": "Directory"}, **common}
    asked = {"resources": {"requests": size}, "volumeName": CLAIM, **common}
    return (
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": CLAIM}, "spec": volume},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM, "namespace": SPACE},
            "spec": asked,
        },
    )


def service(name: str) -> dict[str, Any]:
    """The TokenService of that model. The environment is that of examples/tiny.yaml, declared by the tiny one."""
    conda = yaml.safe_load(EXAMPLE.read_text())["spec"]["environment"]["conda"]
    spec = {
        "model": {"source": f"pvc://{CLAIM}/{name}"},
        "environment": {"conda": conda} if name == TINY else {"ref": {"name": TINY}},
        "replicas": 1,
        "template": {"spec": {**ENDING, "containers": [{"name": names.CONTAINER, "resources": RESOURCES}]}},
    }
    return _resource("TokenService", name, spec)


def pool() -> dict[str, Any]:
    """A WarmPool of one pod, which either TokenService can take: its volume has both models."""
    server = {"name": names.CONTAINER, "resources": RESOURCES, **_mounts(protocol.MODEL_MOUNT)}
    spec = {
        "environment": {"ref": {"name": TINY}},
        "replicas": 1,
        "preload": list(PRELOAD),
        "template": {"spec": {**ENDING, "containers": [server], "volumes": [_volume()]}},
    }
    return _resource("WarmPool", POOL, spec)


def bare_pod(image: str, runs: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """start_bare.py in a pod like those that are started; what it prints is its log."""
    program = Path(start_bare.__file__)
    metadata = {"name": BARE, "namespace": SPACE}
    mounts = [*_mounts(protocol.MODEL_MOUNT)["volumeMounts"], {"name": "program", "mountPath": "/program"}]
    folders = [f"{protocol.MODEL_MOUNT}/{name}" for name in (TINY, BIG)]
    container = {
        "name": names.CONTAINER,
        "image": image,
        "command": ["/opt/env/bin/python", f"/program/{program.name}", "--runs", str(runs), *folders],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": RESOURCES,
        "volumeMounts": [*mounts, {"name": "tmp", "mountPath": "/tmp"}],
        "securityContext": {"readOnlyRootFilesystem": True},
    }
    spec = {
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "securityContext": {"runAsUser": protocol.USER_ID, "runAsGroup": protocol.USER_ID},
        "containers": [container],
        "volumes": [_volume(), {"name": "program", "configMap": {"name": BARE}}, {"name": "tmp", "emptyDir": {}}],
    }
    return (
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {program.name: program.read_text()}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
    )


def _resource(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": SPACE}
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def _mounts(path: str) -> dict[str, Any]:
    return {"volumeMounts": [{"name": "model", "mountPath": path, "readOnly": True}]}


def _volume() -> dict[str, Any]:
    return {"name": "model", "persistentVolumeClaim": {"claimName": CLAIM, "readOnly": True}}
