"""Config and manifest of an environment's image: a base, the packages' layers, token_server, and how it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenservice.builder.base import USER_ID
from tokenservice.builder.base_image import Base
from tokenservice.builder.oci import CONFIG, MANIFEST, Descriptor, Image, Layer, RunConfig, canonical_json, digest_of

from .link import PREFIX

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PORT = 8000
_LABEL = "org.opencontainers.image."
LOCK_LABEL = "dev.tokenservice.lock-digest"
ENVIRONMENT_LABEL = "dev.tokenservice.environment"
_BASE_LABEL = _LABEL + "base.digest"


def run_config(
    base: Base, name: str, lock_digest: str, from_packages: Mapping[str, str], declared: Mapping[str, str]
) -> RunConfig:
    """How a container starts. An image cannot activate an environment, so what activation sets stands here.

    `from_packages`: what packages set in etc/conda/env_vars.d. `declared`: the environment's own variables, which win.
    PATH always begins with the environment's folder.
    """
    chosen = dict(sorted({**from_packages, **declared}.items()))
    path = chosen.pop("PATH", base.env.get("PATH", SYSTEM_PATH))
    env = {
        **base.env,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        # The user has no entry in every base's passwd: getpass and expanduser ask these.
        "HOME": "/tmp",  # noqa: S108 - where a container with a read-only root may write
        "USER": "nonroot",
        "HF_HOME": "/var/cache/tokenservice/huggingface",
        # Which GPUs a container sees is the device plugin's decision; what of the driver, ours.
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        **chosen,
        "PATH": f"/{PREFIX}/bin:{path}",
        "CONDA_PREFIX": f"/{PREFIX}",
        "CONDA_DEFAULT_ENV": name,
    }
    labels = {
        **(base.config.get("Labels") or {}),
        _LABEL + "title": name,
        _BASE_LABEL: base.digest,
        LOCK_LABEL: lock_digest,
        ENVIRONMENT_LABEL: name,
    }
    return RunConfig(
        entrypoint=["token-server"],
        env=env,
        user=f"{USER_ID}:{USER_ID}",
        working_dir="/",
        ports=[PORT],
        labels=labels,
    )


def compose(base: Base, layers: Sequence[Layer], run: RunConfig) -> Image:
    """The image, whose layers the registry must hold. No time of making in it: the same content, the same digest."""
    annotations = {name: run.labels[name] for name in (_LABEL + "title", _BASE_LABEL, LOCK_LABEL, ENVIRONMENT_LABEL)}
    config = canonical_json(
        {
            "architecture": base.architecture,
            "os": "linux",
            "config": run.as_json(),
            "rootfs": {"type": "layers", "diff_ids": [*base.diff_ids, *(layer.file.diff_id for layer in layers)]},
            "history": [
                *_history_of(base),
                *({"created_by": "tokenservice env build", "comment": layer.comment} for layer in layers),
            ],
        }
    )
    descriptors = [*base.layers, *(layer.descriptor for layer in layers)]
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor(CONFIG, digest_of(config), len(config)).as_json(),
            "layers": [each.as_json() for each in descriptors],
            "annotations": annotations,
        }
    )
    return Image(config, manifest, tuple(layers))


def _history_of(base: Base) -> list[Mapping[str, Any]]:
    """The base's history, if it fits its layers: tools refuse a config where the numbers differ."""
    told = [each for each in base.history if not each.get("empty_layer")]
    if len(told) == len(base.layers):
        return list(base.history)
    return [{"created_by": "base image", "comment": base.digest} for _ in base.layers]
