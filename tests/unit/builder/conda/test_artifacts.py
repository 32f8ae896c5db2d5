from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenservice.builder.conda.artifacts import (
    LayerNote,
    environments_repository,
    layer_note,
    lock_tag,
    open_reference,
    open_registry,
    pull_lock,
    pull_name,
    push_layer_note,
    push_lock,
)
from tokenservice.builder.errors import BuildError
from tokenservice.builder.oci import MANIFEST, Descriptor, canonical_json, digest_of
from tokenservice.builder.registry import Registry
from tokenservice.builder.settings import RegistrySettings, Settings

from tests.unit.builder.standin_registry import StandinRegistry

LOCK = b"version: 6\npackages: []\n"
LOCK_DIGEST = digest_of(b"the packages")
WHERE = "team/environments"


@pytest.fixture
def server() -> Iterator[StandinRegistry]:
    with StandinRegistry().running() as running:
        yield running


def owner(server: StandinRegistry, **more: object) -> Settings:
    return Settings(registry=RegistrySettings(url=f"{server.address}/team"), retries=0, **more)  # type: ignore[arg-type]


def opened(server: StandinRegistry) -> Registry:
    registry, place = open_registry(owner(server), environ={})
    assert environments_repository(place) == WHERE
    return registry


# Locks


def test_a_lock_comes_back(server: StandinRegistry) -> None:
    reference = push_lock(opened(server), WHERE, LOCK, LOCK_DIGEST)
    assert reference.startswith(f"{server.address}/{WHERE}@sha256:")
    assert pull_lock(reference, owner(server)) == LOCK
    assert pull_lock(f"{server.address}/{WHERE}:{lock_tag(LOCK_DIGEST)}", owner(server)) == LOCK
    manifest = json.loads(server.manifests[WHERE][lock_tag(LOCK_DIGEST)])
    assert manifest["artifactType"] == "application/vnd.tokenservice.lock.v1"
    assert [layer["mediaType"] for layer in manifest["layers"]] == ["application/vnd.pixi.lock.v6+yaml"]


def test_equal_locks_have_one_reference(server: StandinRegistry) -> None:
    first = push_lock(opened(server), WHERE, LOCK, LOCK_DIGEST)
    server.requests.clear()
    assert push_lock(opened(server), WHERE, LOCK + b"# other bytes, the same packages\n", LOCK_DIGEST) == first
    assert {request.method for request in server.requests} <= {"GET", "HEAD"}
    assert push_lock(opened(server), WHERE, LOCK, digest_of(b"other packages")) != first


def test_a_lock_whose_content_is_gone_is_pushed_again(server: StandinRegistry) -> None:
    first = push_lock(opened(server), WHERE, LOCK, LOCK_DIGEST)
    del server.blobs[WHERE][digest_of(LOCK)]
    assert push_lock(opened(server), WHERE, LOCK, LOCK_DIGEST) == first
    assert pull_lock(first, owner(server)) == LOCK


def test_a_lock_that_somebody_pushed_with_oras(server: StandinRegistry) -> None:
    layer = Descriptor("application/x-yaml", digest_of(LOCK), len(LOCK))
    empty = Descriptor("application/vnd.oci.empty.v1+json", digest_of(b"{}"), 2)
    registry = opened(server)
    registry.push_blob("a/b", layer, lambda: io.BytesIO(LOCK))
    registry.push_blob("a/b", empty, lambda: io.BytesIO(b"{}"))
    manifest = {"mediaType": MANIFEST, "config": empty.as_json(), "layers": [layer.as_json()]}
    registry.push_manifest("a/b", canonical_json(manifest), MANIFEST, "v1")
    assert pull_lock(f"oci://{server.address}/a/b:v1", owner(server)) == LOCK

    manifest["layers"] = [layer.as_json(), layer.as_json()]
    registry.push_manifest("a/b", canonical_json(manifest), MANIFEST, "v2")
    with pytest.raises(BuildError, match=r"is no lock: an artifact with a pixi\.lock as its only layer") as raised:
        pull_lock(f"{server.address}/a/b:v2", owner(server))
    assert raised.value.reason == "LockUnusable"


def test_a_lock_that_is_not_there(server: StandinRegistry) -> None:
    with pytest.raises(BuildError, match=r"there is no lock .*/a/b:v1") as raised:
        pull_lock(f"{server.address}/a/b:v1", owner(server))
    assert raised.value.reason == "LockUnusable"


# Notes on layers

LAYER = b"a layer"
NOTE = LayerNote(
    digest_of(LAYER),
    digest_of(b"diff"),
    len(LAYER),
    "application/vnd.oci.image.layer.v1.tar+zstd",
    {"bin/x": "1f", "lib/\N{LATIN SMALL LETTER A WITH DIAERESIS}": "link x"},
    {"PROJ_DATA": "/opt/env/share/proj"},
)


def with_layer(server: StandinRegistry) -> Registry:
    registry = opened(server)
    registry.push_blob(WHERE, NOTE.descriptor, lambda: io.BytesIO(LAYER))
    return registry


def test_a_note_comes_back(server: StandinRegistry) -> None:
    registry = with_layer(server)
    assert layer_note(registry, WHERE, "k") is None
    assert push_layer_note(registry, WHERE, "k", NOTE) > 0
    assert layer_note(registry, WHERE, "k") == NOTE
    assert push_layer_note(registry, WHERE, "k", NOTE) == 0


def test_a_note_without_its_paths_is_one_request(server: StandinRegistry) -> None:
    registry = with_layer(server)
    push_layer_note(registry, WHERE, "k", NOTE)
    server.requests.clear()
    found = layer_note(registry, WHERE, "k", paths=False)
    assert found is not None
    assert (found.digest, found.diff_id, found.size, found.media_type) == (
        NOTE.digest,
        NOTE.diff_id,
        NOTE.size,
        NOTE.media_type,
    )
    assert found.paths == {}
    assert len(server.requests) == 1


def test_what_is_no_note_is_none(server: StandinRegistry) -> None:
    registry = with_layer(server)
    registry.push_manifest(WHERE, canonical_json({"mediaType": MANIFEST, "manifests": []}), MANIFEST, "layer-k")
    assert layer_note(registry, WHERE, "k") is None


# Which registry, with which login


def secret(folder: Path, **files: str) -> str:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
    return str(folder)


@pytest.mark.parametrize(
    ("files", "users"),
    [
        ({"username": "me", "password": "pass:word"}, {"me": "pass:word"}),
        ({"token": "t0ken"}, {"token": "t0ken"}),
        ({"username": "oauth2", "token": "t0ken"}, {"oauth2": "t0ken"}),
    ],
)
@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_mounted_secret(
    server: StandinRegistry, tmp_path: Path, files: dict[str, str], users: dict[str, str], kind: str
) -> None:
    server.authentication, server.users = kind, users
    settings = owner(server, credentials={server.address: secret(tmp_path / "s", **files)})
    registry, _ = open_registry(settings, environ={})
    assert push_lock(registry, WHERE, LOCK, LOCK_DIGEST)


def test_a_docker_config(server: StandinRegistry, tmp_path: Path) -> None:
    server.authentication, server.users = "basic", {"me": "secret"}
    auth = base64.b64encode(b"me:secret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {server.address: {"auth": auth}}}))
    registry, _ = open_registry(owner(server, docker_config=str(tmp_path / "config.json")), environ={})
    assert push_lock(registry, WHERE, LOCK, LOCK_DIGEST)
    registry, _ = open_registry(owner(server), environ={"DOCKER_CONFIG": str(tmp_path)})
    assert registry.has_blob(WHERE, digest_of(LOCK))


def test_an_empty_secret_is_named(server: StandinRegistry, tmp_path: Path) -> None:
    server.authentication, server.users = "basic", {"me": "secret"}
    settings = owner(server, credentials={server.address: secret(tmp_path / "s", username="me")})
    with pytest.raises(BuildError, match="has neither a file token, nor files username and password") as raised:
        open_registry(settings, environ={})[0].has_blob(WHERE, digest_of(LOCK))
    assert raised.value.reason == "RegistryUnauthorized"


def test_a_wrong_login_names_its_folder_and_not_its_content(server: StandinRegistry, tmp_path: Path) -> None:
    server.authentication, server.users = "bearer", {"me": "secret"}
    folder = secret(tmp_path / "login", username="me", password="planted-password")
    registry, _ = open_registry(owner(server, credentials={server.address: folder}), environ={})
    with pytest.raises(BuildError, match=r"gave no token for the login from .*/login \(401\)") as raised:
        registry.has_blob(WHERE, digest_of(LOCK))
    assert raised.value.reason == "RegistryUnauthorized"
    assert "planted-password" not in f"{raised.value}{registry!r}"


def test_the_owners_limits(server: StandinRegistry, tmp_path: Path) -> None:
    settings = Settings(registry=RegistrySettings(url="r.example.com/x", plain_http=True), timeout_seconds=7, retries=2)
    registry, _ = open_registry(settings)
    assert registry.http.timeout.connect_timeout == registry.http.timeout.read_timeout == 7
    assert registry.retries.attempts == 3
    assert registry.plain_http
    assert not open_reference(settings, "quay.io/x/y:1")[0].plain_http
    with pytest.raises(BuildError, match="there is no registry: name one with --registry"):
        open_registry(Settings())


def test_names_of_nodes_and_of_jobs() -> None:
    ours = RegistrySettings(url="registry.ns.svc:5000/team", pull_url="localhost:30500/team")
    settings = Settings(registry=ours)
    digest = digest_of(b"x")
    assert pull_name(settings, f"registry.ns.svc:5000/team/environments@{digest}") == (
        f"localhost:30500/team/environments@{digest}"
    )
    asked = open_reference(settings, f"localhost:30500/team/environments@{digest}")[1]
    assert str(asked) == f"registry.ns.svc:5000/team/environments@{digest}"
    for other in ("localhost:30500/teammate/x:1", "quay.io/a/b:1"):
        assert str(open_reference(settings, other)[1]) == other
        assert pull_name(settings, other) == other
    assert pull_name(Settings(registry=RegistrySettings(url="r.io")), "r.io/x:1") == "r.io/x:1"
