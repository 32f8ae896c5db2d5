"""A toy channel, a stand-in registry with a base image, and builds between them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from tokenservice.api.jobs import BuildAnswer
from tokenservice.builder.conda.build_job import Place, Wanted, build
from tokenservice.builder.conda.packages import Package, Sources
from tokenservice.builder.http import Http, Retries
from tokenservice.builder.oci import CONFIG, MANIFEST, Descriptor, canonical_json, digest_of
from tokenservice.builder.registry import Registry
from tokenservice.builder.settings import RegistrySettings, Settings

from tests.support.conda_channel import Built, ChannelServer
from tests.unit.builder.standin_registry import StandinRegistry

REPOSITORY = "team/environments"
BASE = "library/base"
QUICK = Retries(attempts=3, sleep=lambda _: None)


def package(built: Built, channel: str, **more: Any) -> Package:
    """A toy package as a lock names it."""
    url = f"{channel}/{built.subdir}/{built.path.name}"
    return Package("conda", built.name, built.version, url, built.sha256, built.size, **more)


def wheel(path: Path, url: str) -> Package:
    name, version = path.name.split("-")[:2]
    data = path.read_bytes()
    return Package("pypi", name, version, url, hashlib.sha256(data).hexdigest(), len(data))


def push_base(registry: StandinRegistry, layers: int = 1, **config: Any) -> str:
    """A base image of this many layers; its reference."""
    blobs = registry.blobs.setdefault(BASE, {})
    descriptors, diff_ids = [], []
    for number in range(layers):
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as archive:
            info = tarfile.TarInfo(f"base-{number}")
            archive.addfile(info)
        data = gzip.compress(plain.getvalue(), mtime=0)
        blobs[digest_of(data)] = data
        descriptors.append(Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest_of(data), len(data)))
        diff_ids.append(digest_of(plain.getvalue()))
    history = [{"created_by": "base", "empty_layer": True}, *({"created_by": "base"} for _ in diff_ids)]
    content = {"os": "linux", "architecture": "amd64", "config": {"Env": ["PATH=/usr/bin:/bin", "BASE=1"], **config}}
    made = canonical_json({**content, "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history})
    blobs[digest_of(made)] = made
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor(CONFIG, digest_of(made), len(made)).as_json(),
            "layers": [each.as_json() for each in descriptors],
        }
    )
    named = registry.manifests.setdefault(BASE, {})
    named["1"] = named[digest_of(manifest)] = manifest
    return f"{registry.address}/{BASE}:1"


@dataclass
class Toy:
    """A channel server, a registry, and a folder for scratch."""

    server: ChannelServer
    registry: StandinRegistry
    folder: Path
    base: str = ""
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.base = push_base(self.registry)
        self.settings = Settings(registry=RegistrySettings(url=f"{self.registry.address}/team"))

    def client(self) -> Registry:
        return Registry(self.registry.address, Http(), lambda: None, retries=QUICK)

    def build(self, packages: Sequence[Package], **more: Any) -> BuildAnswer:
        """Builds with nothing kept from the last time but what the registry has."""
        asked = {"name": "env", "variables": {}, "base_image": self.base, **more}
        digest = digest_of(canonical_json(sorted([each.kind, each.name, each.sha256] for each in packages)))
        wanted = Wanted(packages, digest, "linux-64", asked["base_image"], asked["name"], asked["variables"])
        place = Place(
            self.client(),
            REPOSITORY,
            asked.get("sources", Sources(Http(), QUICK)),
            self.folder / "scratch",
            asked.get("archives"),
        )
        return build(wanted, place, self.settings)

    def manifest(self, answer: BuildAnswer) -> dict[str, Any]:
        digest = answer.image.partition("@")[2]
        return dict(json.loads(self.registry.manifests[REPOSITORY][digest]))

    def config(self, answer: BuildAnswer) -> dict[str, Any]:
        return dict(json.loads(self.blob(self.manifest(answer)["config"]["digest"])))

    def blob(self, digest: str) -> bytes:
        return self.registry.blobs[REPOSITORY][digest]

    def layers(self, answer: BuildAnswer) -> list[dict[str, tarfile.TarInfo]]:
        """The members of each layer, by path, lowest layer first."""
        found = []
        for each in self.manifest(answer)["layers"]:
            with tarfile.open(fileobj=io.BytesIO(plain(self.blob(each["digest"])))) as archive:
                found.append({member.name: member for member in archive})
        return found

    def files(self, answer: BuildAnswer) -> dict[str, bytes]:
        """What a container sees: path -> content (links: their target), the upper layer's."""
        found: dict[str, bytes] = {}
        for each in self.manifest(answer)["layers"]:
            with tarfile.open(fileobj=io.BytesIO(plain(self.blob(each["digest"])))) as archive:
                for member in archive:
                    if member.issym():
                        found[member.name] = f"-> {member.linkname}".encode()
                    elif member.isfile():
                        content = archive.extractfile(member)
                        found[member.name] = content.read() if content else b""
        return found


def plain(data: bytes) -> bytes:
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)
