"""The layout that a Dockerfile gives an environment, and what images weigh.

A Dockerfile has one layer for all packages (`RUN conda env create`) and the code on top. It is made here by the same
builder of the same packages, compressed in the same way: only the layout differs.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

import zstandard
from tokenservice.builder.conda.artifacts import copy_base, open_registry, pull_lock
from tokenservice.builder.conda.build_job import packages_of
from tokenservice.builder.conda.image import compose, run_config
from tokenservice.builder.conda.layer_build import LayerBuild
from tokenservice.builder.conda.layer_plan import Group
from tokenservice.builder.conda.lock import lock_digest, read_lock
from tokenservice.builder.conda.packages import Package
from tokenservice.builder.conda.stage import Stage
from tokenservice.builder.conda.token_server import token_server_wheel
from tokenservice.builder.oci import MANIFEST
from tokenservice.builder.settings import Settings

from bench.cluster import BenchError
from bench.environment_registry import Storage

REPOSITORY = "dockerfile-layout"
PLATFORM = "linux-64"

Layers = Sequence[tuple[str, int]]
"""Digest and bytes as stored of each layer, lowest first."""


@dataclass(frozen=True)
class Difference:
    """What a node that has one image needs for another.

    Attributes:
        layers: how many it lacks.
        bytes: of these.
        chain: bytes of all layers from the lowest that differs upwards: a node unpacks all of these anew, and one that
            discards layers once they are unpacked downloads them all.

    """

    layers: int
    bytes: int
    chain: int


def difference(before: Layers, after: Layers) -> Difference:
    """Of two images' layers."""
    there = {digest for digest, _ in before}
    missing = {digest: size for digest, size in after if digest not in there}
    same = 0
    while same < min(len(before), len(after)) and before[same][0] == after[same][0]:
        same += 1
    return Difference(len(missing), sum(missing.values()), sum(size for _, size in after[same:]))


def layers_of(manifest: Mapping[str, Any]) -> Layers:
    return [(each["digest"], int(each["size"])) for each in manifest["layers"]]


def unpacked(file: IO[bytes], media_type: str) -> int:
    """Bytes of the files in a layer."""
    zstd = media_type.endswith("+zstd")
    stream = cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(file)) if zstd else file
    with tarfile.open(fileobj=stream, mode="r|gz" if media_type.endswith("gzip") else "r|") as archive:
        return sum(member.size for member in archive if member.isreg())


def weight(storage: Storage, repository: str, reference: str) -> tuple[int, int]:
    """Bytes of an image's layers: as stored and pulled, and unpacked."""
    manifest = storage.manifest(repository, reference)
    total = 0
    for each in manifest["layers"]:
        with storage.blob(each["digest"]).open("rb") as file:
            total += unpacked(file, each["mediaType"])
    return sum(size for _, size in layers_of(manifest)), total


def from_channel(channel: Path, package: Package) -> Path:
    """Where a package of the local channel lies on this machine, whatever server the lock names."""
    found = channel.joinpath(*unquote(urlsplit(package.url).path).strip("/").split("/"))
    if not found.is_file():
        raise BenchError(f"{package.url} is not in the channel {channel}")
    return found


def build(lock: str, settings: Settings, channel: Path, scratch: Path) -> str:
    """Makes the image of a lock (a reference) in a Dockerfile's layout, and pushes it; its digest."""
    registry, place = open_registry(settings)
    repository = place.repository(REPOSITORY)
    locked = read_lock(pull_lock(lock, settings), PLATFORM)
    packages = packages_of(locked)
    base = copy_base(registry, repository, settings.base_image, PLATFORM, settings)
    stage = Stage(scratch / "stage", packages, lambda wanted: [from_channel(channel, each) for each in wanted])
    making = LayerBuild(registry, repository, stage, scratch)
    [everything] = making.layers([Group("all packages", tuple(packages))])
    wheel = token_server_wheel()
    file = scratch / wheel.filename
    file.write_bytes(wheel.content)
    top = making.top(file, Package("pypi", wheel.name, wheel.version, "", wheel.sha256))
    config = run_config(base, "dockerfile", lock_digest(locked), everything.note.variables, {})
    image = compose(base, [everything.layer, top.layer], config)
    registry.push_blob(repository, image.config_descriptor, lambda: io.BytesIO(image.config))
    registry.push_manifest(repository, image.manifest, MANIFEST, image.digest.removeprefix("sha256:")[:32])
    return image.digest
