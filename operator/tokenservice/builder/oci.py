"""Image config, manifest and descriptors of the OCI image specification, version 1.1.

https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md and config.md. Everything is written as canonical
JSON, so that the same image has the same digest wherever it is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .layers import LayerFile

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

# Names of architectures as Go (and so OCI) has them, by the machine's own name.
ARCHITECTURES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64"}


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, in UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_of(file: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def digest_of(data: bytes) -> str:
    """`sha256:` and the hexadecimal digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Descriptor:
    """Names a blob: what it is, its digest, and its size in bytes."""

    media_type: str
    digest: str
    size: int

    def as_json(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class RunConfig:
    """How a container of the image starts. `env` keeps its order; `user` is `uid:gid`."""

    entrypoint: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_dir: str = "/"
    ports: Sequence[int] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""

    def as_json(self) -> dict[str, Any]:
        """The `config` object; empty fields are left out."""
        made: dict[str, Any] = {
            "Entrypoint": list(self.entrypoint),
            "Env": [f"{name}={value}" for name, value in self.env.items()],
            "User": self.user,
            "WorkingDir": self.working_dir,
            "ExposedPorts": {f"{port}/tcp": {} for port in self.ports},
            "Labels": dict(self.labels),
            "StopSignal": self.stop_signal,
        }
        return {name: value for name, value in made.items() if value}


@dataclass(frozen=True)
class Layer:
    """A layer as the image's config and manifest name it, and a word on what is in it for the image's history."""

    file: LayerFile
    comment: str

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.file.media_type, self.file.digest, self.file.size)


@dataclass(frozen=True)
class Image:
    """Config and manifest as bytes, ready to be pushed after the layers."""

    config: bytes
    manifest: bytes
    layers: tuple[Layer, ...]

    @property
    def config_descriptor(self) -> Descriptor:
        return Descriptor(CONFIG, digest_of(self.config), len(self.config))

    @property
    def manifest_descriptor(self) -> Descriptor:
        return Descriptor(MANIFEST, digest_of(self.manifest), len(self.manifest))

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def size(self) -> int:
        """Bytes of manifest, config and all layers, as stored in a registry."""
        return len(self.manifest) + len(self.config) + sum(layer.file.size for layer in self.layers)


def image(layers: Sequence[Layer], run: RunConfig, architecture: str) -> Image:
    """Puts an image together. No time of making in it: the same content has the same digest."""
    config = canonical_json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": run.as_json(),
            "rootfs": {"type": "layers", "diff_ids": [layer.file.diff_id for layer in layers]},
            "history": [{"created_by": "tokenservice image", "comment": layer.comment} for layer in layers],
        }
    )
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor(CONFIG, digest_of(config), len(config)).as_json(),
            "layers": [layer.descriptor.as_json() for layer in layers],
            "annotations": dict(run.labels),
        }
    )
    return Image(config, manifest, tuple(layers))
