from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api.jobs import CollectRequest
from tokenservice.builder.conda import collect_job
from tokenservice.builder.conda.artifacts import LayerNote, layer_note, open_registry, push_layer_note, push_lock
from tokenservice.builder.conda.collect_job import Content, doomed
from tokenservice.builder.errors import BuildError
from tokenservice.builder.oci import MANIFEST, Descriptor, canonical_json, digest_of
from tokenservice.builder.registry import Registry
from tokenservice.builder.settings import RegistrySettings, Settings

from tests.unit.builder.standin_registry import StandinRegistry

DIGESTS = st.sampled_from([f"d{number}" for number in range(12)])
TAGS = st.sampled_from(
    [f"{kind}-{number}" for kind in ("image", "lock", "layer") for number in range(5)] + ["latest", "v1"]
)
LAYERS = st.frozensets(st.sampled_from(["l1", "l2", "l3", "l4"]), max_size=3)
CONTENTS = st.builds(Content, st.dictionaries(TAGS, DIGESTS), st.dictionaries(DIGESTS, LAYERS))


@given(CONTENTS, st.frozensets(DIGESTS))
def test_what_goes(content: Content, keep: frozenset[str]) -> None:
    going = doomed(content, keep)
    assert len(going) == len(set(going))
    assert not set(going) & keep
    stay = {tag: digest for tag, digest in content.tags.items() if digest not in going}
    for tag, digest in content.tags.items():
        if tag.startswith(("image-", "lock-")) and digest in going:
            assert digest not in keep
        elif not tag.startswith(("image-", "lock-", "layer-")):
            assert tag in stay, "what is not ours stays"
    # No image or lock is left that nobody asked to keep, unless somebody else's tag is on it.
    foreign = {digest for tag, digest in content.tags.items() if not tag.startswith(("image-", "lock-", "layer-"))}
    for tag, digest in stay.items():
        if tag.startswith(("image-", "lock-")):
            assert digest in keep | foreign
    # Every layer of an image that stays keeps its notes, and no other layer has any.
    used = {layer for digest in keep | foreign for layer in content.layers.get(digest, frozenset())}
    for tag, digest in content.tags.items():
        others = {other for other, each in content.tags.items() if each == digest}
        if all(other.startswith("layer-") for other in others) and digest not in keep:
            assert (tag in stay) == bool(content.layers.get(digest, frozenset()) & used)


@given(CONTENTS, st.frozensets(DIGESTS))
def test_a_second_collection_finds_nothing(content: Content, keep: frozenset[str]) -> None:
    going = set(doomed(content, keep))
    rest = Content({tag: digest for tag, digest in content.tags.items() if digest not in going}, content.layers)
    assert doomed(rest, keep) == []


@given(CONTENTS, st.frozensets(DIGESTS))
def test_images_go_before_their_notes(content: Content, keep: frozenset[str]) -> None:
    kinds = dict.fromkeys(doomed(content, keep), False)
    for tag, digest in content.tags.items():
        if digest in kinds and tag.startswith(("image-", "lock-")):
            kinds[digest] = True
    order = list(kinds.values())
    assert order == sorted(order, reverse=True)


# With a registry

WHERE = "team/environments"


@pytest.fixture
def server() -> Iterator[StandinRegistry]:
    with StandinRegistry().running() as running:
        yield running


def owner(server: StandinRegistry) -> Settings:
    return Settings(registry=RegistrySettings(url=f"{server.address}/team"), retries=0)


def layer(registry: Registry, name: str) -> Descriptor:
    data = name.encode()
    found = Descriptor("application/vnd.oci.image.layer.v1.tar+zstd", digest_of(data), len(data))
    registry.push_blob(WHERE, found, lambda: io.BytesIO(data))
    push_layer_note(
        registry, WHERE, name, LayerNote(found.digest, digest_of(b"diff" + data), found.size, found.media_type)
    )
    return found


def image(registry: Registry, name: str, *layers: str) -> str:
    config = name.encode()
    described = Descriptor("application/vnd.oci.image.config.v1+json", digest_of(config), len(config))
    registry.push_blob(WHERE, described, lambda: io.BytesIO(config))
    manifest = canonical_json(
        {
            "mediaType": MANIFEST,
            "config": described.as_json(),
            "layers": [layer(registry, each).as_json() for each in layers],
        }
    )
    registry.push_manifest(WHERE, manifest, MANIFEST, f"image-{name}")
    return digest_of(manifest)


@pytest.mark.parametrize("keeps_tags", [False, True])
def test_a_repository_is_tidied(server: StandinRegistry, keeps_tags: bool) -> None:
    server.keeps_tags, server.page = keeps_tags, 3
    registry, _ = open_registry(owner(server))
    old = image(registry, "old", "python-3.10", "numpy")
    new = image(registry, "new", "python-3.11", "numpy")
    lock = push_lock(registry, WHERE, b"new lock", digest_of(b"new")).partition("@")[2]
    push_lock(registry, WHERE, b"old lock", digest_of(b"old"))
    registry.push_manifest(WHERE, server.manifests[WHERE][old].replace(b"}", b"} "), MANIFEST, "somebodys")

    result = collect_job.run(CollectRequest(keep=(new, lock)), owner(server))
    assert result.collect is not None
    # image, lock and python-3.10's note would go, were it not for somebody's image with that layer: its note stays.
    assert (result.collect.deleted, result.collect.kept) == (2, 6)
    tags = registry.list_tags(WHERE)
    assert "image-old" not in tags
    assert layer_note(registry, WHERE, "python-3.10") is not None

    registry.delete_manifest(WHERE, registry.resolve(WHERE, "somebodys") or "")
    registry.delete_tag(WHERE, "somebodys")
    result = collect_job.run(CollectRequest(keep=(new, lock)), owner(server))
    assert result.collect is not None
    assert (result.collect.deleted, result.collect.kept) == (1, 4)
    assert layer_note(registry, WHERE, "python-3.10") is None
    assert layer_note(registry, WHERE, "numpy") is not None
    assert sorted(registry.list_tags(WHERE))[0] == "image-new"


def test_an_image_in_use_without_a_tag_keeps_its_layers(server: StandinRegistry) -> None:
    registry, _ = open_registry(owner(server))
    used = image(registry, "used", "numpy")
    del server.manifests[WHERE]["image-used"]
    collect_job.run(CollectRequest(keep=(used,)), owner(server))
    assert layer_note(registry, WHERE, "numpy") is not None
    assert registry.resolve(WHERE, used) == used


def test_an_empty_repository(server: StandinRegistry) -> None:
    result = collect_job.run(CollectRequest(keep=("sha256:" + "0" * 64,)), owner(server))
    assert result.collect is not None
    assert (result.collect.deleted, result.collect.kept) == (0, 0)


def test_a_registry_that_deletes_nothing_says_how(server: StandinRegistry) -> None:
    registry, _ = open_registry(owner(server))
    image(registry, "old", "numpy")
    server.deletes = False
    with pytest.raises(BuildError, match="REGISTRY_STORAGE_DELETE_ENABLED=true"):
        collect_job.run(CollectRequest(), owner(server))


def test_trouble_while_looking_deletes_nothing(server: StandinRegistry) -> None:
    registry, _ = open_registry(owner(server))
    image(registry, "old", "numpy")
    server.trouble = [("GET .*/manifests/sha256", 503)] * 4
    with pytest.raises(BuildError, match="gave 503"):
        collect_job.run(CollectRequest(), owner(server))
    assert server.seen("DELETE", "") == []
