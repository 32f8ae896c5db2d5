"""What environments keep in the registry besides images: locks, and notes on layers. All in one repository.

    lock-<32 hex of the lock digest>   the lock file, as an OCI artifact
    layer-<key>                        one package layer, and in the config what is in it

Both are manifests, so that a registry's garbage collection leaves their blobs alone, and both can be read by any OCI
client (`crane`, `oras`, `skopeo`). Manifests: https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tokenservice.builder.access import open_reference, open_registry, pull_name
from tokenservice.builder.base_image import Base, copy_base
from tokenservice.builder.errors import BuildError
from tokenservice.builder.names import Place, Reference
from tokenservice.builder.oci import INDEX, MANIFEST, Descriptor, canonical_json, digest_of
from tokenservice.builder.registry import Registry
from tokenservice.builder.settings import Settings

__all__ = [
    "Base",
    "LayerNote",
    "copy_base",
    "environments_repository",
    "layer_note",
    "layer_tag",
    "lock_tag",
    "open_reference",
    "open_registry",
    "pull_lock",
    "pull_name",
    "push_layer_note",
    "push_lock",
]

REPOSITORY = "environments"
LOCK_ARTIFACT = "application/vnd.tokenservice.lock.v1"
LOCK_FILE = "application/vnd.pixi.lock.v6+yaml"
LAYER_ARTIFACT = "application/vnd.tokenservice.layer.v1"
LAYER_CONFIG = "application/vnd.tokenservice.layer.v1+json"
LOCK_DIGEST = "dev.tokenservice.lock-digest"
DIFF_ID = "dev.tokenservice.diff-id"
# A lock of 400 packages has 1.6 MB.
LOCK_BYTES = 64 << 20
_EMPTY = b"{}"
_EMPTY_CONFIG = Descriptor("application/vnd.oci.empty.v1+json", digest_of(_EMPTY), len(_EMPTY))


def environments_repository(place: Place) -> str:
    """The one repository of an installation's environments."""
    return place.repository(REPOSITORY)


# Locks


def lock_tag(lock_digest: str) -> str:
    return f"lock-{lock_digest.removeprefix('sha256:')[:32]}"


def push_lock(registry: Registry, repository: str, data: bytes, lock_digest: str) -> str:
    """Puts a lock into the repository; returns its reference by digest.

    Where the repository has a lock with this digest (of the packages: its bytes may be others), that one is named and
    nothing is sent, so that equal locks have one reference.
    """
    tag = lock_tag(lock_digest)
    there = registry.resolve(repository, tag)
    if there is not None and _holds(registry, repository, there, lock_digest):
        return f"{registry.host}/{repository}@{there}"
    layer = Descriptor(LOCK_FILE, digest_of(data), len(data))
    manifest = _artifact(
        LOCK_ARTIFACT, _EMPTY_CONFIG, layer.as_json() | _title("pixi.lock"), {LOCK_DIGEST: lock_digest}
    )
    registry.push_blob(repository, _EMPTY_CONFIG, lambda: io.BytesIO(_EMPTY))
    registry.push_blob(repository, layer, lambda: io.BytesIO(data))
    registry.push_manifest(repository, manifest, MANIFEST, tag)
    return f"{registry.host}/{repository}@{digest_of(manifest)}"


def pull_lock(reference: str, settings: Settings, registry: Registry | None = None) -> bytes:
    """The bytes of a lock: one of ours, or a lock file that somebody pushed as an artifact (`oras push`).

    `registry` is used where it is the reference's. Raises BuildError, LockUnusable for what holds no lock.
    """
    opened, found = open_reference(settings, reference)
    if registry is not None and registry.host == opened.host:
        opened = registry
    digest = opened.resolve(found.repository, found.wanted)
    if digest is None:
        raise BuildError(f"there is no lock {found}", "LockUnusable")
    layer = _only_layer(_manifest(opened, found.at(digest)), found)
    if layer.size > LOCK_BYTES:
        raise BuildError(f"{found} has {layer.size} bytes, too many for a lock", "LockUnusable")
    return opened.get_blob(found.repository, layer.digest)


def _holds(registry: Registry, repository: str, digest: str, lock_digest: str) -> bool:
    manifest = _manifest(registry, Reference(registry.host, repository, "", digest))
    if (manifest.get("annotations") or {}).get(LOCK_DIGEST) != lock_digest:
        return False
    return all(registry.has_blob(repository, each["digest"]) for each in manifest.get("layers") or ())


def _only_layer(manifest: dict[str, Any], reference: Reference) -> Descriptor:
    layers = manifest.get("layers") or []
    locks = [each for each in layers if "pixi.lock" in each.get("mediaType", "")] or layers
    if manifest.get("mediaType") == INDEX or len(locks) != 1:
        text = f"{reference} is no lock: an artifact with a pixi.lock as its only layer is wanted"
        raise BuildError(text, "LockUnusable")
    return Descriptor(locks[0]["mediaType"], locks[0]["digest"], int(locks[0]["size"]))


# Notes on layers


@dataclass(frozen=True)
class LayerNote:
    """A layer that the repository holds.

    Attributes:
        digest: of the compressed archive.
        diff_id: of the archive in it.
        size: bytes as stored.
        media_type: of the layer.
        paths: what it holds: path below the prefix -> what its content is known by (equal for equal content), so that
            layers can be compared without either; empty where they were not asked for.
        variables: what its packages want to be set in an environment's processes.

    """

    digest: str
    diff_id: str
    size: int
    media_type: str
    paths: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, self.size)


class _Config(msgspec.Struct, rename={"diff_id": "diffID"}):
    """The config of a note. Not all of it is needed to read one: see `layer_note`."""

    digest: str
    diff_id: str
    size: int
    paths: dict[str, str] = {}
    variables: dict[str, str] = {}


def layer_tag(key: str) -> str:
    return f"layer-{key}"


def layer_note(registry: Registry, repository: str, key: str, *, paths: bool = True) -> LayerNote | None:
    """The note on the layer with this key, or None. Without `paths` one request is enough."""
    data = registry.find_manifest(repository, layer_tag(key))
    if data is None:
        return None
    try:
        manifest = msgspec.json.decode(data)
        layer = manifest["layers"][0]
        note = LayerNote(layer["digest"], manifest["annotations"][DIFF_ID], int(layer["size"]), layer["mediaType"])
        config = manifest["config"]["digest"]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError):
        return None  # not a note: made anew, and overwritten
    if not paths:
        return note
    try:
        found = msgspec.json.decode(registry.get_blob(repository, config), type=_Config)
    except msgspec.DecodeError:
        return None
    return LayerNote(note.digest, note.diff_id, note.size, note.media_type, found.paths, found.variables)


def push_layer_note(registry: Registry, repository: str, key: str, note: LayerNote) -> int:
    """Puts a note on a layer that the repository holds; returns the bytes sent."""
    config = canonical_json(
        {
            "digest": note.digest,
            "diffID": note.diff_id,
            "size": note.size,
            "paths": dict(note.paths),
            "variables": dict(note.variables),
        }
    )
    descriptor = Descriptor(LAYER_CONFIG, digest_of(config), len(config))
    manifest = _artifact(LAYER_ARTIFACT, descriptor, note.descriptor.as_json(), {DIFF_ID: note.diff_id})
    sent = registry.push_blob(repository, descriptor, lambda: io.BytesIO(config))
    return sent + registry.push_manifest(repository, manifest, MANIFEST, layer_tag(key))


def _artifact(kind: str, config: Descriptor, layer: dict[str, Any], annotations: dict[str, str]) -> bytes:
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": kind,
            "config": config.as_json(),
            "layers": [layer],
            "annotations": annotations,
        }
    )


def _title(name: str) -> dict[str, Any]:
    # The name under which `oras pull` writes the file.
    return {"annotations": {"org.opencontainers.image.title": name}}


def _manifest(registry: Registry, reference: Reference) -> dict[str, Any]:
    data, _ = registry.get_manifest(reference.repository, reference.wanted)
    try:
        return dict(msgspec.json.decode(data))
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise BuildError(f"{reference} has no readable manifest", "LockUnusable") from error
