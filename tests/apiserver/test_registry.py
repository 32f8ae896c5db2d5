"""The image builder's registry client against the real registry, and what another client reads of it there."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tokenservice.api.jobs import CollectRequest
from tokenservice.builder.conda import collect_job
from tokenservice.builder.conda.artifacts import (
    LayerNote,
    copy_base,
    environments_repository,
    layer_note,
    lock_tag,
    open_registry,
    pull_lock,
    push_layer_note,
    push_lock,
)
from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import Http
from tokenservice.builder.images import Builder, Target, push_image
from tokenservice.builder.layers import Compression
from tokenservice.builder.names import Place
from tokenservice.builder.oci import CONFIG, INDEX, MANIFEST, Descriptor, canonical_json, digest_of
from tokenservice.builder.registry import Registry
from tokenservice.builder.registry_auth import read_login
from tokenservice.builder.settings import RegistrySettings, Settings
from tokenservice.builder.store import cache_folder

from tests.support.cluster import ROOT, localcluster
from tests.support.wait import eventually
from tests.unit.builder.test_registry import self_signed

# Hashed by bcrypt, the one form the registry takes: the password is "tests-only".
HTPASSWD = "tester:$2y$05$OKWu1aCbrBp84Ao/i/jwDOED7/hWxtLV0fxSx/Zjgg8m2doubIGUi\n"


@dataclass
class RealRegistry:
    address: str
    crane: Path

    def client(self, config: Path | None = None) -> Registry:
        return Registry(self.address, Http(), lambda: read_login(config, self.address) if config else None)

    def look(self, *arguments: str) -> str:
        """What crane, a client by others, sees."""
        done = subprocess.run([self.crane, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()


@pytest.fixture(scope="module")
def binaries() -> dict[str, Path]:
    localcluster("build", "--only", "registry,crane")
    folder = cache_folder(os.environ) / "bin"
    return {
        name: max(folder.glob(f"{name}-*/{name}"), key=lambda path: path.stat().st_mtime)
        for name in ("registry", "crane")
    }


@pytest.fixture
def start(binaries: dict[str, Path], tmp_path: Path) -> Iterator[Callable[..., RealRegistry]]:
    running: list[subprocess.Popen[bytes]] = []

    def begin(*, crane_serves: bool = False, **more: object) -> RealRegistry:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(tmp_path / f"storage-{len(running)}")},
                "delete": {"enabled": True},
            },
        }
        http = more.pop("http", {})
        assert isinstance(http, dict)
        settings["http"] = {"addr": address, **http}
        files = tmp_path / f"registry-{len(running)}"
        files.with_suffix(".yml").write_text(yaml.safe_dump({**settings, **more}))
        command = [binaries["registry"], "serve", files.with_suffix(".yml")]
        if crane_serves:
            command = [binaries["crane"], "registry", "serve", f"--address={address}"]
        with files.with_suffix(".log").open("wb") as log:
            environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
            running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        eventually(lambda: _answers(address, tls="tls" in http), "the registry answers")
        return RealRegistry(address, binaries["crane"])

    yield begin
    for process in running:
        process.terminate()
        process.wait(10)


def _answers(address: str, *, tls: bool = False) -> bool:
    # Whether its certificate is good is the client's question.
    context = ssl._create_unverified_context() if tls else None
    try:
        urllib.request.urlopen(f"http{'s' * tls}://{address}/v2/", timeout=1, context=context).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "weights.safetensors").write_bytes(hashlib.shake_128(b"weights").digest(3_000_000))
    (folder / ".cache").mkdir()
    (folder / ".cache/x").write_text("not part of a model")
    return folder


def push(
    registry: RealRegistry, builder: Builder, model: Path, tag: str, config: Path | None = None
) -> dict[str, object]:
    target = Target(registry.client(config), Place(registry.address, "team"), "models/tiny", tag)
    return dict(push_image(builder.model(model, "tiny"), builder.blob, target, 0.0).as_json())


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_a_model_is_pushed_once_and_read_by_others(
    start: Callable[..., RealRegistry], model: Path, tmp_path: Path, compression: Compression
) -> None:
    registry, builder = start(), Builder(tmp_path / "cache", ROOT, Http(), compression)
    first = push(registry, builder, model, "v1")
    assert first["pushed_bytes"] >= first["bytes"] > 3_000_000  # type: ignore[operator]
    reference = f"{registry.address}/team/models/tiny"
    assert registry.look("digest", f"{reference}:v1") == str(first["image"]).partition("@")[2]
    if compression == "gzip":  # crane validates no zstd; containerd, which does, is met in tests/e2e
        registry.look("validate", "--remote", f"{reference}:v1")
    registry.look("pull", "--format=oci", f"{reference}:v1", str(tmp_path / "pulled"))
    config = json.loads(registry.look("config", f"{reference}:v1"))
    assert config["config"]["User"] == "65532:65532"

    again = push(registry, Builder(tmp_path / "cache", ROOT, Http(), compression), model, "v1")
    assert (again["image"], again["pushed_bytes"]) == (first["image"], 0)
    other_cache = push(registry, Builder(tmp_path / "other", ROOT, Http(), compression), model, "v1")
    assert (other_cache["image"], other_cache["pushed_bytes"]) == (first["image"], 0)

    (model / "config.json").write_text('{"model_type": "mistral"}')
    changed = push(registry, builder, model, "v2")
    assert changed["image"] != first["image"]
    assert registry.look("ls", reference).split() == ["v1", "v2"]


def test_a_neighbours_layer_is_mounted(start: Callable[..., RealRegistry], model: Path, tmp_path: Path) -> None:
    registry, builder = start(), Builder(tmp_path / "cache", ROOT, Http())
    push(registry, builder, model, "v1")
    made = builder.model(model, "tiny")
    layer = made.layers[0]
    path = builder.blob(layer)
    client = registry.client()
    neighbours = ["team/nothing/here", "team/models/tiny"]
    assert client.push_blob("team/another", layer.descriptor, lambda: path.open("rb"), neighbours) == 0
    assert client.has_blob("team/another", layer.descriptor.digest)
    assert not client.has_blob("team/elsewhere", layer.descriptor.digest)


def test_a_login_of_docker_is_used(start: Callable[..., RealRegistry], model: Path, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    registry = start(auth={"htpasswd": {"realm": "here", "path": str(tmp_path / "htpasswd")}})
    login = base64.b64encode(b"tester:tests-only").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": login}}}))
    builder = Builder(tmp_path / "cache", ROOT, Http())
    assert push(registry, builder, model, "v1", tmp_path / "config.json")["pushed_bytes"]


def test_a_wrong_login_is_refused_in_words(start: Callable[..., RealRegistry], model: Path, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    registry = start(auth={"htpasswd": {"realm": "here", "path": str(tmp_path / "htpasswd")}})
    login = base64.b64encode(b"tester:something-else").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": login}}}))
    builder = Builder(tmp_path / "cache", ROOT, Http())
    with pytest.raises(BuildError, match="gave 401") as raised:
        push(registry, builder, model, "v1", tmp_path / "config.json")
    assert "something-else" not in str(raised.value)


# What environments need of a registry: a login over TLS, locks, notes, copies of bases, and room again


@pytest.fixture(params=["distribution, TLS and a login", "distribution", "crane"])
def owner(request: pytest.FixtureRequest, start: Callable[..., RealRegistry], tmp_path: Path) -> Settings:
    """The settings of an owner whose registry is of this kind."""
    if request.param == "distribution, TLS and a login":
        (tmp_path / "htpasswd").write_text(HTPASSWD)
        bundle, key = self_signed(tmp_path)
        found = start(
            auth={"htpasswd": {"realm": "here", "path": str(tmp_path / "htpasswd")}},
            http={"tls": {"certificate": str(bundle), "key": str(key)}},
        )
        secret = tmp_path / "secret"
        secret.mkdir()
        (secret / "username").write_text("tester\n")
        (secret / "password").write_text("tests-only\n")
        place = RegistrySettings(url=f"{found.address}/team")
        return Settings(registry=place, ca_bundle=str(bundle), credentials={found.address: str(secret)}, retries=1)
    found = start(crane_serves=request.param == "crane")
    return Settings(registry=RegistrySettings(url=f"{found.address}/team"), retries=1)


def described(data: bytes, kind: str = "application/vnd.oci.image.layer.v1.tar+gzip") -> Descriptor:
    return Descriptor(kind, digest_of(data), len(data))


def push_base(registry: Registry, repository: str, layer: bytes) -> str:
    """An image of one layer, below an index of two platforms; the digest of its manifest."""
    config = canonical_json(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(b"unpacked")]}}
    )
    blobs = {described(layer): layer, described(config, CONFIG): config}
    for blob, data in blobs.items():
        registry.push_blob(repository, blob, lambda data=data: io.BytesIO(data))  # type: ignore[misc]
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described(config, CONFIG).as_json(),
            "layers": [described(layer).as_json()],
        }
    )
    registry.push_manifest(repository, manifest, MANIFEST, "amd64")
    entry = described(manifest, MANIFEST).as_json() | {"platform": {"os": "linux", "architecture": "amd64"}}
    index = canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
    registry.push_manifest(repository, index, INDEX, "v1")
    return digest_of(manifest)


def test_a_base_is_copied_or_mounted(start: Callable[..., RealRegistry], owner: Settings, tmp_path: Path) -> None:
    elsewhere, layer = start(), hashlib.shake_128(b"base").digest(5_000_000)
    manifest = push_base(elsewhere.client(), "bases/mini", layer)
    registry, place = open_registry(owner, environ={})
    ours = environments_repository(place)
    first = copy_base(registry, ours, f"{elsewhere.address}/bases/mini:v1", "linux-64", owner)
    assert (first.digest, first.pushed_bytes) == (manifest, len(layer))
    assert copy_base(registry, ours, first.reference, "linux-64", owner).pushed_bytes == 0
    registry.download_blob(ours, first.layers[0], tmp_path / "layer")
    assert (tmp_path / "layer").read_bytes() == layer

    other = hashlib.shake_128(b"another base").digest(1_000_000)
    push_base(registry, place.repository("bases/mini"), other)
    near = copy_base(registry, ours, f"{place.host}/{place.repository('bases/mini')}:v1", "linux-64", owner)
    assert near.pushed_bytes == 0, "mounted"
    assert registry.has_blob(ours, digest_of(other))


def test_locks_and_notes_are_kept_and_collected(owner: Settings) -> None:
    registry, place = open_registry(owner, environ={})
    ours = environments_repository(place)
    lock = push_lock(registry, ours, b"version: 6\n", digest_of(b"packages"))
    assert push_lock(registry, ours, b"version: 6 \n", digest_of(b"packages")) == lock
    assert pull_lock(lock, owner) == b"version: 6\n"
    push_lock(registry, ours, b"version: 6\n# old\n", digest_of(b"old packages"))

    manifest = push_base(registry, ours, b"a package")
    registry.push_manifest(ours, registry.get_manifest(ours, manifest)[0], MANIFEST, "image-1")
    registry.delete_tag(ours, "amd64")
    registry.delete_tag(ours, "v1")
    unused = described(b"another package")
    registry.push_blob(ours, unused, lambda: io.BytesIO(b"another package"))
    notes = {"used": described(b"a package"), "unused": unused}
    for key, blob in notes.items():
        note = LayerNote(blob.digest, digest_of(b"unpacked"), blob.size, blob.media_type, {"bin/x": "1"})
        push_layer_note(registry, ours, key, note)
        assert layer_note(registry, ours, key) == note

    keep = (lock.partition("@")[2], manifest)
    result = collect_job.run(CollectRequest(keep=keep), owner)
    assert result.collect is not None
    assert result.collect.deleted == 2
    assert registry.list_tags(ours) == ["image-1", "layer-used", lock_tag(digest_of(b"packages"))]
    assert pull_lock(lock, owner) == b"version: 6\n"
    again = collect_job.run(CollectRequest(keep=keep), owner)
    assert again.collect is not None
    assert again.collect.deleted == 0


def test_a_registry_that_deletes_nothing_says_how(start: Callable[..., RealRegistry], tmp_path: Path) -> None:
    found = start(storage={"filesystem": {"rootdirectory": str(tmp_path / "kept")}})
    owner = Settings(registry=RegistrySettings(url=f"{found.address}/team"), retries=1)
    registry, place = open_registry(owner, environ={})
    push_lock(registry, environments_repository(place), b"version: 6\n", digest_of(b"packages"))
    with pytest.raises(BuildError, match="REGISTRY_STORAGE_DELETE_ENABLED=true"):
        collect_job.run(CollectRequest(), owner)
