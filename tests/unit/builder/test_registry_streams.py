from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import Http, Retries
from tokenservice.builder.oci import Descriptor, digest_of
from tokenservice.builder.registry import Registry
from tokenservice.builder.registry_auth import Login
from tokenservice.builder.registry_session import may_know

from tests.unit.builder.standin_registry import StandinRegistry

BLOB = bytes(range(256)) * 20_000
DESCRIPTOR = Descriptor("application/octet-stream", digest_of(BLOB), len(BLOB))


@pytest.fixture
def server() -> Iterator[StandinRegistry]:
    with StandinRegistry(blobs={"a/b": {DESCRIPTOR.digest: BLOB}}).running() as running:
        yield running


@pytest.fixture
def pauses() -> list[float]:
    return []


def connect(server: StandinRegistry, pauses: list[float], login: Login | None = None, attempts: int = 4) -> Registry:
    return Registry(server.address, Http(), lambda: login, retries=Retries(attempts=attempts, sleep=pauses.append))


def fetched(registry: Registry, folder: Path) -> bytes:
    registry.download_blob("a/b", DESCRIPTOR, folder / "deep/blob")
    assert [path.name for path in (folder / "deep").iterdir()] == ["blob"]
    return (folder / "deep/blob").read_bytes()


def test_a_blob_into_a_file(server: StandinRegistry, pauses: list[float], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    connect(server, pauses).download_blob("a/b", DESCRIPTOR, tmp_path / "x", lambda *now: told.append(now))
    assert (tmp_path / "x").read_bytes() == BLOB
    assert told[-1] == (len(BLOB), len(BLOB))
    assert len(told) > 2
    assert pauses == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_broke(
    server: StandinRegistry, pauses: list[float], tmp_path: Path, ranges: bool
) -> None:
    server.ranges = ranges
    server.trouble = [("GET .*/blobs/", "cut"), ("GET .*/blobs/", 503), ("GET .*/blobs/", "drop")]
    assert fetched(connect(server, pauses), tmp_path) == BLOB
    assert len(pauses) == 3
    rest = server.seen("GET", "/blobs/")[-1]
    begin, end = map(int, rest.range.removeprefix("bytes=").split("-"))
    assert end == len(BLOB) - 1
    assert 0 < begin <= len(BLOB) // 2
    assert rest.status == (206 if ranges else 200)


def test_a_download_that_never_comes_through_is_given_up(
    server: StandinRegistry, pauses: list[float], tmp_path: Path
) -> None:
    server.trouble = [("GET .*/blobs/", "drop")] * 9
    with pytest.raises(BuildError, match="cannot be reached") as raised:
        connect(server, pauses).download_blob("a/b", DESCRIPTOR, tmp_path / "x")
    assert raised.value.reason == "RegistryUnavailable"
    assert len(pauses) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_blob_that_is_not_there(server: StandinRegistry, pauses: list[float], tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"GET c/d/blobs/sha256:\w+ gave 404"):
        connect(server, pauses).download_blob("c/d", DESCRIPTOR, tmp_path / "x")
    assert pauses == []


def test_wrong_content_is_never_used(server: StandinRegistry, pauses: list[float], tmp_path: Path) -> None:
    server.blobs["a/b"][DESCRIPTOR.digest] = BLOB[::-1]
    with pytest.raises(BuildError, match="the registry sent other content") as raised:
        connect(server, pauses).download_blob("a/b", DESCRIPTOR, tmp_path / "x")
    assert raised.value.reason == "ChecksumMismatch"
    assert list(tmp_path.iterdir()) == []
    assert len(server.seen("GET", "/blobs/")) == 2


def test_a_token_that_ran_out_is_renewed_for_a_download(
    server: StandinRegistry, pauses: list[float], tmp_path: Path
) -> None:
    server.authentication, server.users = "bearer", {"me": "secret"}
    registry = connect(server, pauses, Login("me", "secret"))
    assert registry.has_blob("a/b", DESCRIPTOR.digest)
    server.end_tokens()
    assert fetched(registry, tmp_path) == BLOB


def test_another_host_gets_no_credentials(server: StandinRegistry, pauses: list[float], tmp_path: Path) -> None:
    server.authentication, server.users = "basic", {"me": "secret"}
    with StandinRegistry(blobs={"a/b": {DESCRIPTOR.digest: BLOB}}).running() as storage:
        server.blobs_at = f"http://{storage.address}"
        assert fetched(connect(server, pauses, Login("me", "secret")), tmp_path) == BLOB
        assert [request.authorization for request in storage.requests] == [""]
    assert server.seen("GET", "/blobs/")[-1].authorization.startswith("Basic ")


# From one registry to another


@pytest.fixture
def target() -> Iterator[StandinRegistry]:
    with StandinRegistry().running() as running:
        yield running


def test_a_copy_is_sent_once(server: StandinRegistry, target: StandinRegistry, pauses: list[float]) -> None:
    ours, theirs = connect(target, pauses), connect(server, pauses)
    assert ours.copy_blob("our/own", DESCRIPTOR, theirs, "a/b") == len(BLOB)
    assert target.blobs["our/own"][DESCRIPTOR.digest] == BLOB
    server.requests.clear()
    assert ours.copy_blob("our/own", DESCRIPTOR, theirs, "a/b") == 0
    assert server.requests == []


def test_a_copy_within_a_registry_is_mounted(server: StandinRegistry, pauses: list[float]) -> None:
    registry = connect(server, pauses)
    assert registry.copy_blob("our/own", DESCRIPTOR, connect(server, pauses), "a/b") == 0
    assert server.blobs["our/own"][DESCRIPTOR.digest] == BLOB
    assert server.seen("GET", "/blobs/") == []
    server.mounts = False
    assert registry.copy_blob("an/other", DESCRIPTOR, registry, "a/b") == len(BLOB)


@pytest.mark.parametrize("trouble", ["cut", "drop", 502])
def test_a_copy_survives_its_source(
    server: StandinRegistry, target: StandinRegistry, pauses: list[float], trouble: int | str
) -> None:
    server.trouble = [("GET .*/blobs/", trouble)]
    assert connect(target, pauses).copy_blob("our/own", DESCRIPTOR, connect(server, pauses), "a/b") == len(BLOB)
    assert target.uploads == 1, "the upload waits for its source"


def test_a_copy_survives_its_target(server: StandinRegistry, target: StandinRegistry, pauses: list[float]) -> None:
    target.trouble = [("PUT .*/uploads/", 503), ("PUT .*/uploads/", "drop")]
    assert connect(target, pauses).copy_blob("our/own", DESCRIPTOR, connect(server, pauses), "a/b") == len(BLOB)
    assert target.blobs["our/own"][DESCRIPTOR.digest] == BLOB


def test_a_copy_of_other_content_is_refused(
    server: StandinRegistry, target: StandinRegistry, pauses: list[float]
) -> None:
    server.blobs["a/b"][DESCRIPTOR.digest] = BLOB[::-1]
    with pytest.raises(BuildError, match="gave 400"):
        connect(target, pauses).copy_blob("our/own", DESCRIPTOR, connect(server, pauses), "a/b")
    assert target.blobs["our/own"] == {}


# Tags and deletion


def manifest(text: str) -> bytes:
    return b'{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"x":"%s"}' % text.encode()


INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.mark.parametrize("links", [True, False])
def test_tags_are_listed_page_by_page(
    server: StandinRegistry, pauses: list[float], monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    monkeypatch.setattr("tokenservice.builder.registry._TAGS_PAGE", 1000 if links else 5)
    registry = connect(server, pauses)
    assert registry.list_tags("a/b") == []
    wanted = [f"t{number:02}" for number in range(23)]
    for tag in wanted:
        registry.push_manifest("a/b", manifest(tag), INDEX, tag)
    server.page, server.links = 5, links
    assert registry.list_tags("a/b") == wanted
    assert len(server.seen("GET", "/tags/list")) == 6


def test_the_media_type_tells_an_index(server: StandinRegistry, pauses: list[float]) -> None:
    registry = connect(server, pauses)
    registry.push_manifest("a/b", manifest("x"), INDEX, "v1")
    assert registry.get_manifest("a/b", "v1") == (manifest("x"), INDEX)
    assert registry.find_manifest("a/b", "v1") == manifest("x")
    assert registry.find_manifest("a/b", "v2") is None


def test_deletion(server: StandinRegistry, pauses: list[float]) -> None:
    registry = connect(server, pauses)
    registry.push_manifest("a/b", manifest("x"), INDEX, "v1")
    registry.push_manifest("a/b", manifest("x"), INDEX, "v2")
    assert registry.delete_manifest("a/b", digest_of(manifest("x")))
    assert registry.list_tags("a/b") == []
    assert not registry.delete_manifest("a/b", digest_of(manifest("x")))
    server.deletes = False
    with pytest.raises(BuildError, match=r"does not let manifests be deleted: .*REGISTRY_STORAGE_DELETE_ENABLED=true"):
        registry.delete_manifest("a/b", digest_of(manifest("x")))


# What a refusal means


@pytest.mark.parametrize(
    ("status", "body", "reason", "tries"),
    [
        (401, b"", "RegistryUnauthorized", 1),
        (403, b'{"errors":[{"code":"DENIED","message":"no"}]}', "RegistryUnauthorized", 1),
        (403, b'{"errors":[{"code":"DENIED","message":"Quota has been exceeded on namespace"}]}', "RegistryFull", 1),
        (412, b"will exceed the configured upper limit of 1.0 MiB", "RegistryFull", 1),
        (413, b"<html>Request Entity Too Large</html>", "RegistryFull", 1),
        (507, b"", "RegistryFull", 1),
        (
            500,
            b'{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":{"DriverName":"filesystem","Enclosed":'
            b'{"Op":"mkdir","Path":"/var/lib/registry","Err":28}}}]}',
            "RegistryFull",
            1,
        ),
        (500, b'{"errors":[{"code":"UNKNOWN","message":"unknown error"}]}', "RegistryUnavailable", 4),
        (503, b"", "RegistryUnavailable", 4),
        (429, b"", "RegistryUnavailable", 4),
        (400, b"", "Failed", 1),
    ],
)
def test_reasons(
    server: StandinRegistry, pauses: list[float], status: int, body: bytes, reason: str, tries: int
) -> None:
    other = b"another"
    blob = Descriptor("x", digest_of(other), len(other))
    server.trouble, server.trouble_body = [("PUT .*/uploads/", status)] * 8, body
    with pytest.raises(BuildError, match=f"gave {status}") as raised:
        connect(server, pauses, attempts=4).push_blob("a/b", blob, lambda: io.BytesIO(other))
    assert raised.value.reason == reason
    assert len(server.seen("PUT", "/uploads/")) == (4 if status == 401 else tries)


@pytest.mark.parametrize(
    ("origin", "url", "known"),
    [
        ("https://r.io", "https://r.io/v2/x", True),
        ("http://r.io:5000", "http://r.io:5000/v2/x", True),
        ("http://r.io", "https://r.io/v2/x", True),
        ("https://r.io", "http://r.io/v2/x", False),
        ("https://r.io", "https://storage.io/x", False),
        ("https://r.io", "https://r.io:444/x", False),
    ],
)
def test_where_a_login_may_go(origin: str, url: str, known: bool) -> None:
    assert may_know(origin, url) == known
