from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tokenservice.builder.base_image import Base, copy_base
from tokenservice.builder.conda.artifacts import open_registry
from tokenservice.builder.errors import BuildError
from tokenservice.builder.oci import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    Descriptor,
    canonical_json,
    digest_of,
)
from tokenservice.builder.settings import RegistrySettings, Settings

from tests.unit.builder.standin_registry import StandinRegistry

LAYERS = [b"one layer" * 10_000, b"another", b"one layer" * 10_000]
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OURS = "team/environments"


@pytest.fixture
def hub() -> Iterator[StandinRegistry]:
    with StandinRegistry().running() as running:
        yield running


@pytest.fixture
def ours() -> Iterator[StandinRegistry]:
    with StandinRegistry().running() as running:
        yield running


def put(server: StandinRegistry, repository: str, data: bytes) -> str:
    server.blobs.setdefault(repository, {})[digest_of(data)] = data
    return digest_of(data)


def an_image(
    server: StandinRegistry, repository: str, architecture: str = "amd64", layer_type: str = OCI_LAYER, **more: Any
) -> bytes:
    """Puts the blobs of an image into a registry and returns its manifest."""
    config = canonical_json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/usr/bin", "X=a=b"], "User": "nobody"},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(b"diff" + layer) for layer in LAYERS]},
            "history": [{"created_by": "x"}, {"empty_layer": True}, {"created_by": "y"}, {"created_by": "z"}],
            **more,
        }
    )
    layers = [Descriptor(layer_type, put(server, repository, layer), len(layer)).as_json() for layer in LAYERS]
    kind = MANIFEST if layer_type == OCI_LAYER else DOCKER_MANIFEST
    described = Descriptor("application/vnd.oci.image.config.v1+json", put(server, repository, config), len(config))
    return canonical_json({"schemaVersion": 2, "mediaType": kind, "config": described.as_json(), "layers": layers})


def publish(server: StandinRegistry, repository: str, tag: str, *manifests: bytes) -> None:
    """Puts manifests into a registry; the tag is on the last."""
    for each in manifests:
        server.manifests.setdefault(repository, {})[digest_of(each)] = each
    server.manifests[repository][tag] = manifests[-1]


def an_index(kind: str, *images: tuple[str, bytes]) -> bytes:
    entries = [
        {"digest": digest_of(data), "size": len(data), "platform": {"os": "linux", "architecture": name}}
        for name, data in images
    ]
    attestation = {"digest": digest_of(b"-"), "platform": {"os": "unknown", "architecture": "unknown"}}
    return canonical_json({"schemaVersion": 2, "mediaType": kind, "manifests": [attestation, *entries]})


def copied(ours: StandinRegistry, reference: str, platform: str = "linux-64") -> Base:
    settings = Settings(registry=RegistrySettings(url=f"{ours.address}/team"), retries=0)
    registry, _ = open_registry(settings, environ={})
    return copy_base(registry, OURS, reference, platform, settings)


def test_a_base_is_copied_once(hub: StandinRegistry, ours: StandinRegistry) -> None:
    manifest = an_image(hub, "library/debian")
    publish(hub, "library/debian", "12-slim", manifest)
    base = copied(ours, f"{hub.address}/library/debian:12-slim")
    assert base.reference == f"{hub.address}/library/debian@{digest_of(manifest)}"
    assert base.digest == digest_of(manifest)
    assert [layer.digest for layer in base.layers] == [digest_of(layer) for layer in LAYERS]
    assert [layer.media_type for layer in base.layers] == [OCI_LAYER] * 3
    assert base.diff_ids == tuple(digest_of(b"diff" + layer) for layer in LAYERS)
    assert [entry.get("empty_layer", False) for entry in base.history] == [False, True, False, False]
    assert base.config["User"] == "nobody"
    assert base.env == {"PATH": "/usr/bin", "X": "a=b"}
    assert base.pushed_bytes == len(LAYERS[0]) + len(LAYERS[1])
    assert set(ours.blobs[OURS].values()) == set(LAYERS)

    hub.requests.clear()
    again = copied(ours, f"{hub.address}/library/debian:12-slim")
    assert again.pushed_bytes == 0
    assert again.layers == base.layers
    blobs = [request.path for request in hub.seen("GET", "/blobs/")]
    assert blobs == [f"/v2/library/debian/blobs/{config_digest(manifest)}"], "the config alone"


def config_digest(manifest: bytes) -> str:
    return str(json.loads(manifest)["config"]["digest"])


def test_a_base_of_the_same_registry_is_mounted(ours: StandinRegistry) -> None:
    publish(ours, "bases/mini", "1", an_image(ours, "bases/mini"))
    assert copied(ours, f"{ours.address}/bases/mini:1").pushed_bytes == 0
    assert ours.seen("GET", f"/blobs/{digest_of(LAYERS[0])}") == []
    assert set(ours.blobs[OURS].values()) == set(LAYERS)


@pytest.mark.parametrize("kind", [INDEX, DOCKER_LIST])
def test_an_index_gives_the_platforms_image(hub: StandinRegistry, ours: StandinRegistry, kind: str) -> None:
    amd, arm = an_image(hub, "x/y"), an_image(hub, "x/y", "arm64")
    publish(hub, "x/y", "1", amd, arm, an_index(kind, ("amd64", amd), ("arm64", arm)))
    assert copied(ours, f"{hub.address}/x/y:1").digest == digest_of(amd)
    found = copied(ours, f"{hub.address}/x/y:1", "linux-aarch64")
    assert (found.digest, found.architecture) == (digest_of(arm), "arm64")


def test_a_tag_that_moved_is_seen(hub: StandinRegistry, ours: StandinRegistry) -> None:
    old, new = an_image(hub, "x/y"), an_image(hub, "x/y", created="2030-01-01T00:00:00Z")
    publish(hub, "x/y", "1", old)
    first = copied(ours, f"{hub.address}/x/y:1")
    publish(hub, "x/y", "1", new)
    assert copied(ours, f"{hub.address}/x/y:1").digest == digest_of(new)
    assert copied(ours, first.reference).digest == digest_of(old)


def test_dockers_types_become_ocis(hub: StandinRegistry, ours: StandinRegistry) -> None:
    publish(hub, "x/y", "1", an_image(hub, "x/y", layer_type=DOCKER_LAYER))
    assert {layer.media_type for layer in copied(ours, f"{hub.address}/x/y:1").layers} == {OCI_LAYER}


def test_what_cannot_be_a_base(hub: StandinRegistry, ours: StandinRegistry) -> None:
    arm = an_image(hub, "x/y", "arm64")
    publish(hub, "x/y", "arm", arm)
    publish(hub, "x/y", "arm-index", arm, an_index(INDEX, ("arm64", arm)))
    publish(hub, "x/y", "foreign", an_image(hub, "x/y", layer_type=DOCKER_LAYER.replace("diff", "foreign.diff")))
    publish(hub, "x/y", "fewer", an_image(hub, "x/y", rootfs={"diff_ids": []}))
    publish(hub, "x/y", "artifact", an_image(hub, "x/y", rootfs=None))
    for tag, words in {
        "none": r"there is no image .*/x/y:none",
        "arm": r"is for linux/arm64, and linux/amd64 is asked for",
        "arm-index": r"is not made for linux/amd64, but for linux/arm64$",
        "foreign": r"has a layer of the media type .*foreign.*, which cannot be copied",
        "fewer": r"3 layers, 0 diff_ids",
        "artifact": r"is no image",
    }.items():
        with pytest.raises(BuildError, match=words) as raised:
            copied(ours, f"{hub.address}/x/y:{tag}")
        assert raised.value.reason == "InvalidEnvironment"
    assert ours.blobs == {}, "nothing is copied of what cannot be used"


def test_a_hub_that_is_down(ours: StandinRegistry) -> None:
    with pytest.raises(BuildError, match=r"the registry 127\.0\.0\.1:1 cannot be reached") as raised:
        copied(ours, "127.0.0.1:1/x/y:1")
    assert raised.value.reason == "RegistryUnavailable"


def test_a_broken_copy_is_made_again(hub: StandinRegistry, ours: StandinRegistry) -> None:
    publish(hub, "x/y", "1", an_image(hub, "x/y"))
    ours.trouble = [("PUT .*/uploads/", 503)] * 2
    with pytest.raises(BuildError, match="gave 503"):
        copied(ours, f"{hub.address}/x/y:1")
    ours.trouble.clear()
    copied(ours, f"{hub.address}/x/y:1")
    assert set(ours.blobs[OURS].values()) == set(LAYERS)
