"""The template of a pod that runs token_server, as a pure function of what differs between such pods.

It stands in templates/pod.yaml.j2; this module gives it its values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenservice import protocol
from tokenservice.api import names
from tokenservice.api.v1alpha1 import EnvironmentStatus, SecretRef
from tokenservice.pods.manifests import Manifest, manifest
from tokenservice.pods.reserved import check_reserved
from tokenservice.pods.schema import PodSchema

_KUBERNETES_GRACE_SECONDS = 30
"""What a pod gets that names no terminationGracePeriodSeconds; a template's null brings it back."""

_CONDA = "/opt/conda"
"""Where Miniconda's images have conda, and with it the environment called base."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What comes after the environment's folder: an image's own PATH cannot be known here; this is the usual one."""

_ORDER = (
    protocol.VAR_PORT,
    protocol.VAR_MODEL_SOURCE,
    protocol.VAR_MODEL_NAME,
    protocol.VAR_TRUST_REMOTE_CODE,
    protocol.VAR_GRACE_SECONDS,
    protocol.VAR_DRAIN_DELAY_SECONDS,
    protocol.VAR_HF_HOME,
    "HOME",
    protocol.VAR_MODEL_REVISION,
    protocol.VAR_API_KEYS_DIR,
    protocol.VAR_HF_TOKEN,
)
"""The server's variables, as templates have always had them; others follow.

A revision is also recognised by its template, and a list in another order is another list.
"""
_PLACES = {name: place for place, name in enumerate(_ORDER)}


@dataclass(frozen=True)
class ServerPod:
    """What differs between pods that run token_server."""

    labels: Mapping[str, str]
    """Of the pod, among them those by which its owner finds it."""
    runs_in: EnvironmentStatus
    """The image, and which of its conda environments if it has several; no other field counts."""
    args: Sequence[str] = ()
    """The server's arguments; without any it gets the image's own."""
    env: Sequence[Manifest] = ()
    """Variables of the server besides those that every one has, as `EnvVar`s: what it serves, for example."""
    mounts: Sequence[Manifest] = ()
    """Volume mounts of the server besides /tmp, the cache and the API keys, as `VolumeMount`s."""
    volumes: Sequence[Manifest] = ()
    """Volumes of the pod besides those, as `Volume`s; `tmp`, `cache` and `api-keys` are taken names."""
    ports: Sequence[Manifest] = ()
    """Ports of the server besides the one that serves, as `ContainerPort`s, each with its protocol."""
    key_secret_ref: SecretRef | None = None
    """The Secret with the API keys that the server accepts. None: it asks for no key."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """The user's partial pod template (`spec.template`); `pod_template` checks it."""


def pod_template(pod: ServerPod, schema: PodSchema) -> Manifest:
    """The PodTemplateSpec, the user's partial template merged into it. The container that serves is the first.

    Raises:
        InvalidTemplateError: the partial template cannot be used; the text names the field.

    """
    schema.check(pod.template)
    check_reserved(pod.template)
    return schema.merge(manifest("tokenservice.pods", "pod.yaml.j2", _values(pod)), pod.template)


def variables(values: Mapping[str, str]) -> list[Manifest]:
    """Variables as a container's `env` has them."""
    return [{"name": name, "value": value} for name, value in values.items()]


def prefix(conda_env: str) -> str:
    """The folder of a conda environment in a prebuilt image, given by name or by its path."""
    if conda_env.startswith("/"):
        return conda_env.rstrip("/")
    return _CONDA if conda_env == "base" else f"{_CONDA}/envs/{conda_env}"


def _values(pod: ServerPod) -> dict[str, Any]:
    grace = (pod.template.get("spec") or {}).get("terminationGracePeriodSeconds", protocol.GRACE_SECONDS)
    grace_seconds = _KUBERNETES_GRACE_SECONDS if grace is None else grace
    mounts, volumes = _storage(pod)
    return {
        "labels": dict(pod.labels),
        "container": names.CONTAINER,
        "image": pod.runs_in.image,
        "command": _command(pod.runs_in),
        "args": list(pod.args),
        "env": _env(pod, grace_seconds) + _activation(pod.runs_in),
        "ports": pod.ports,
        "mounts": mounts,
        "volumes": volumes,
        "grace_seconds": grace_seconds,
        "user_id": protocol.USER_ID,
        "port": protocol.PORT,
        "port_name": protocol.PORT_NAME,
        "healthz": protocol.HEALTHZ,
        "readyz": protocol.READYZ,
    }


def _env(pod: ServerPod, grace_seconds: int) -> list[Manifest]:
    own = {
        protocol.VAR_PORT: str(protocol.PORT),
        protocol.VAR_GRACE_SECONDS: str(grace_seconds),
        protocol.VAR_DRAIN_DELAY_SECONDS: str(protocol.DRAIN_DELAY_SECONDS),
        protocol.VAR_HF_HOME: f"{protocol.CACHE_MOUNT}/huggingface",
        "HOME": "/tmp",  # noqa: S108 - an emptyDir of the pod's own
    }
    if pod.key_secret_ref:
        own[protocol.VAR_API_KEYS_DIR] = protocol.API_KEYS_MOUNT
    return sorted([*variables(own), *pod.env], key=lambda item: _PLACES.get(item["name"], len(_PLACES)))


def _command(runs_in: EnvironmentStatus) -> list[str]:
    """The command in place of the image's own, for one of several environments.

    Through that environment's interpreter, not the script token-server: what that begins with (`#!`) may name another
    environment, and where it lies only the image knows.
    """
    if runs_in.conda_env is None:
        return []
    return [f"{prefix(runs_in.conda_env)}/bin/python", "-m", protocol.MODULE]


def _activation(runs_in: EnvironmentStatus) -> list[Manifest]:
    """The variables that `conda activate` would set."""
    if runs_in.conda_env is None:
        return []
    folder = prefix(runs_in.conda_env)
    return variables(
        {
            "PATH": f"{folder}/bin:{_PATH}",
            "CONDA_PREFIX": folder,
            "CONDA_DEFAULT_ENV": runs_in.conda_env,
        }
    )


def _storage(pod: ServerPod) -> tuple[list[Manifest], list[Manifest]]:
    """Volume mounts of the container that serves, and the pod's volumes."""
    mounts: list[Manifest] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "cache", "mountPath": protocol.CACHE_MOUNT},
        *pod.mounts,
    ]
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {}}, *pod.volumes]
    if pod.key_secret_ref:
        # Optional: a Secret that is missing then shows in the container's own words, not as a pod that never starts.
        secret = {"secretName": pod.key_secret_ref.name, "optional": True}
        mounts.append({"name": "api-keys", "mountPath": protocol.API_KEYS_MOUNT, "readOnly": True})
        volumes.append({"name": "api-keys", "secret": secret})
    return mounts, volumes
