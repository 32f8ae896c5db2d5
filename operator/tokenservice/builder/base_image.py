"""The image below an environment: found by its name, brought into our repository, and described.

https://github.com/opencontainers/image-spec/blob/v1.1.0/image-index.md for images of several platforms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .access import open_reference
from .errors import BuildError
from .names import Reference
from .oci import DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST, Descriptor
from .progress import LineMeter, human_bytes, say
from .registry import Registry
from .settings import Settings

# conda's names of platforms, as architectures are named in images.
ARCHITECTURES: Mapping[str, str] = {"linux-64": "amd64", "linux-aarch64": "arm64"}
# Docker's older names of the same archives: an OCI manifest has OCI's.
_LAYER_TYPES: Mapping[str, str] = {
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
_OCI_LAYERS = frozenset(_LAYER_TYPES.values())
_PARALLEL = 4


@dataclass(frozen=True)
class Base:
    """A base image of one platform, whose layers our repository holds.

    Attributes:
        reference: `HOST/REPOSITORY@sha256:...` of the platform's manifest, where it came from.
        digest: of that manifest.
        layers: lowest first, with OCI's media types.
        diff_ids: digests of the unpacked layers, in the same order.
        history: as in the image's config; entries without a layer have `empty_layer`.
        config: the `config` object of the image's config: Env, User, ...
        architecture: in OCI's words, amd64 or arm64.
        pushed_bytes: what was sent for it now.

    """

    reference: str
    digest: str
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    history: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any]
    architecture: str
    pushed_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes of the layers as stored."""
        return sum(layer.size for layer in self.layers)

    @property
    def env(self) -> dict[str, str]:
        """The variables that the base sets."""
        return dict(each.split("=", 1) for each in self.config.get("Env") or () if "=" in each)


def copy_base(registry: Registry, repository: str, source_reference: str, platform: str, settings: Settings) -> Base:
    """Resolves an image to a digest, now, and makes sure that `repository` holds its layers.

    `platform` is conda's name of it. What the repository has is not asked of the source again; what is in another
    repository of the same registry is mounted. Raises BuildError.
    """
    source, reference = open_reference(settings, source_reference)
    if source.host == registry.host:
        source = registry
    found = describe(source, reference, platform)

    def copy(layer: Descriptor) -> int:
        label = f"copying {human_bytes(layer.size)} of {reference}"
        return registry.copy_blob(repository, layer, source, reference.repository, LineMeter(label))

    unique = list({layer.digest: layer for layer in found.layers}.values())
    with ThreadPoolExecutor(_PARALLEL) as threads:
        sent = sum(threads.map(copy, unique))
    if sent:
        say(f"base image {found.reference}: {len(unique)} layers, {human_bytes(sent)} copied")
    return Base(**{**found.__dict__, "pushed_bytes": sent})


def resolve_image(registry: Registry, reference: Reference) -> str:
    """The digest that an image's name stands for now: of its index, if it is for several platforms.

    Raises BuildError where there is no such image.
    """
    digest = registry.resolve(reference.repository, reference.wanted)
    if digest is None:
        raise BuildError(f"there is no image {reference}", "InvalidEnvironment")
    return digest


def describe(source: Registry, reference: Reference, platform: str) -> Base:
    """What is known of an image without its layers."""
    architecture = ARCHITECTURES[platform]
    digest = resolve_image(source, reference)
    manifest, kind = _manifest(source, reference.at(digest))
    if kind in (INDEX, DOCKER_LIST):
        digest = platform_manifest(manifest.get("manifests") or (), architecture, str(reference))
        manifest, kind = _manifest(source, reference.at(digest))
    at = reference.at(digest)
    if kind not in (MANIFEST, DOCKER_MANIFEST):
        raise BuildError(f"{at} has the media type {kind}, which is no image", "InvalidEnvironment")
    try:
        config = json.loads(source.get_blob(reference.repository, manifest["config"]["digest"]))
        layers = tuple(_layer(each, at) for each in manifest["layers"])
        diff_ids = tuple(config["rootfs"]["diff_ids"])
    except (KeyError, TypeError, ValueError) as error:
        raise BuildError(f"{at} is no image: its manifest or config lacks {error}", "InvalidEnvironment") from error
    if len(layers) != len(diff_ids):
        raise BuildError(f"{at} is no image: {len(layers)} layers, {len(diff_ids)} diff_ids", "InvalidEnvironment")
    if (config.get("os"), config.get("architecture")) != ("linux", architecture):
        told = f"{config.get('os')}/{config.get('architecture')}"
        raise BuildError(f"{at} is for {told}, and linux/{architecture} is asked for", "InvalidEnvironment")
    history = tuple(config.get("history") or ())
    return Base(str(at), digest, layers, diff_ids, history, config.get("config") or {}, architecture)


def platform_manifest(manifests: Sequence[Mapping[str, Any]], architecture: str, name: str) -> str:
    """The digest of an index's manifest for linux and this architecture: the first, as the specification has it."""
    told = []
    for each in manifests:
        platform = each.get("platform") or {}
        if platform.get("os") == "linux" and platform.get("architecture") == architecture:
            return str(each["digest"])
        told.append(f"{platform.get('os')}/{platform.get('architecture')}")
    known = ", ".join(sorted(set(told) - {"unknown/unknown"})) or "no platform"
    raise BuildError(f"{name} is not made for linux/{architecture}, but for {known}", "InvalidEnvironment")


def _manifest(source: Registry, reference: Reference) -> tuple[dict[str, Any], str]:
    data, kind = source.get_manifest(reference.repository, reference.wanted)
    try:
        content = json.loads(data)
        return dict(content), str(content.get("mediaType") or kind)
    except (ValueError, AttributeError, TypeError) as error:
        raise BuildError(f"{reference} has no readable manifest", "InvalidEnvironment") from error


def _layer(found: Mapping[str, Any], image: Reference) -> Descriptor:
    kind = _LAYER_TYPES.get(found["mediaType"], found["mediaType"])
    if kind not in _OCI_LAYERS:
        raise BuildError(f"{image} has a layer of the media type {kind}, which cannot be copied", "InvalidEnvironment")
    return Descriptor(kind, found["digest"], int(found["size"]))
