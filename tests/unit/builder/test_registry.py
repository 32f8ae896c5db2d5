from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import Http, Retries
from tokenservice.builder.layers import LayerFile
from tokenservice.builder.oci import MANIFEST, Descriptor, Image, Layer, RunConfig, digest_of, image
from tokenservice.builder.registry import Registry
from tokenservice.builder.registry_auth import Login

from tests.unit.builder.standin_registry import StandinRegistry

BLOB = b"layer" * 400_000
DESCRIPTOR = Descriptor("application/octet-stream", digest_of(BLOB), len(BLOB))
OTHER = b"config"


@pytest.fixture
def server() -> Iterator[StandinRegistry]:
    with StandinRegistry().running() as running:
        yield running


@pytest.fixture
def pauses() -> list[float]:
    return []


def connect(server: StandinRegistry, pauses: list[float], login: Login | None = None) -> Registry:
    return Registry(server.address, Http(), lambda: login, retries=Retries(sleep=pauses.append))


def push(registry: Registry, repository: str = "a/b", mount_from: tuple[str, ...] = ()) -> int:
    return registry.push_blob(repository, DESCRIPTOR, lambda: io.BytesIO(BLOB), mount_from)


def an_image() -> Image:
    layer = LayerFile(
        DESCRIPTOR.digest, DESCRIPTOR.digest, DESCRIPTOR.size, "application/vnd.oci.image.layer.v1.tar+zstd"
    )
    return image([Layer(layer, "x")], RunConfig(entrypoint=["x"]), "amd64")


def push_image(registry: Registry, tag: str = "v1") -> int:
    made = an_image()
    sent = push(registry)
    sent += registry.push_blob("a/b", made.config_descriptor, lambda: io.BytesIO(made.config))
    return sent + registry.push_manifest("a/b", made.manifest, MANIFEST, tag)


def test_plain_http_is_found_out_on_this_machine(server: StandinRegistry, pauses: list[float]) -> None:
    assert push(connect(server, pauses)) == len(BLOB)
    assert server.blobs["a/b"][DESCRIPTOR.digest] == BLOB
    assert pauses == []


def test_an_image_is_pushed_by_digest_then_by_tag(server: StandinRegistry, pauses: list[float]) -> None:
    push_image(connect(server, pauses))
    made = an_image()
    puts = [request.path.rsplit("/", 1)[-1] for request in server.seen("PUT", "/manifests/")]
    assert puts == [made.digest, "v1"]
    assert connect(server, pauses).resolve("a/b", "v1") == made.digest
    assert connect(server, pauses).get_manifest("a/b", made.digest) == (made.manifest, MANIFEST)
    assert connect(server, pauses).get_blob("a/b", made.config_descriptor.digest) == made.config


def test_an_unchanged_image_sends_nothing(server: StandinRegistry, pauses: list[float]) -> None:
    push_image(connect(server, pauses))
    server.requests.clear()
    assert push_image(connect(server, pauses)) == 0
    assert {request.method for request in server.requests} <= {"GET", "HEAD"}


def test_another_tag_sends_the_manifest_alone(server: StandinRegistry, pauses: list[float]) -> None:
    push_image(connect(server, pauses))
    assert push_image(connect(server, pauses), "v2") == len(an_image().manifest)


def test_what_a_neighbour_has_is_mounted(server: StandinRegistry, pauses: list[float]) -> None:
    registry = connect(server, pauses)
    push(registry, "a/b")
    server.requests.clear()
    assert push(registry, "c/d", ("x/y", "a/b")) == 0
    assert server.blobs["c/d"][DESCRIPTOR.digest] == BLOB
    assert sum(request.body_bytes for request in server.requests) == 0


def test_a_registry_that_does_not_mount_gets_the_bytes(server: StandinRegistry, pauses: list[float]) -> None:
    registry = connect(server, pauses)
    push(registry, "a/b")
    server.mounts = False
    assert push(registry, "c/d", ("a/b",)) == len(BLOB)
    assert server.seen("DELETE", "/uploads/"), "the upload that the refused mount began is ended"


@pytest.mark.parametrize("trouble", [500, 502, 503, 429, "drop"])
@pytest.mark.parametrize(
    "line",
    ["GET /v2/$", "HEAD .*/blobs/", "POST .*/uploads/", "PUT .*/uploads/", "HEAD .*/manifests/", "PUT .*/manifests/"],
)
def test_passing_trouble_is_survived(
    server: StandinRegistry, pauses: list[float], line: str, trouble: int | str
) -> None:
    server.trouble = [(line, trouble), (line, trouble)]
    push_image(connect(server, pauses))
    assert server.manifests["a/b"]["v1"] == an_image().manifest
    assert server.trouble == []
    assert len(pauses) == 2


def test_pauses_grow_and_end(server: StandinRegistry, pauses: list[float]) -> None:
    registry = connect(server, pauses)
    registry.has_blob("a/b", DESCRIPTOR.digest)
    server.trouble = [("HEAD", 503)] * 6
    with pytest.raises(BuildError, match="gave 503"):
        registry.has_blob("a/b", DESCRIPTOR.digest)
    assert len(pauses) == 5
    assert all(half / 2 <= pause <= half for pause, half in zip(pauses, [0.5, 1, 2, 4, 8], strict=True))


def test_a_forgotten_upload_begins_anew(server: StandinRegistry, pauses: list[float]) -> None:
    server.trouble = [("PUT .*/uploads/", 404)]
    assert push(connect(server, pauses)) == len(BLOB)
    assert server.uploads == 2


def test_a_refusal_is_told_with_the_registrys_words(server: StandinRegistry, pauses: list[float]) -> None:
    server.trouble = [("PUT .*/manifests/", 400)]
    with pytest.raises(BuildError, match=r"PUT a/b/manifests/sha256:\w+ gave 400: TROUBLE: as the test wants"):
        push_image(connect(server, pauses))
    assert pauses == []


def test_nobody_there(pauses: list[float]) -> None:
    registry = Registry("127.0.0.1:1", Http(), lambda: None, retries=Retries(sleep=pauses.append))
    with pytest.raises(BuildError, match=r"^the registry 127\.0\.0\.1:1 cannot be reached: Connection refused$"):
        registry.has_blob("a/b", DESCRIPTOR.digest)
    assert len(pauses) == 5


def test_basic_login(server: StandinRegistry, pauses: list[float]) -> None:
    server.authentication, server.users = "basic", {"me": "secret"}
    assert push_image(connect(server, pauses, Login("me", "secret"))) > len(BLOB)


def test_a_missing_login_is_named(server: StandinRegistry, pauses: list[float]) -> None:
    server.authentication, server.users = "basic", {"me": "secret"}
    with pytest.raises(BuildError, match=r"wants a user and a password: .*--docker-config"):
        push(connect(server, pauses))


def test_a_wrong_login_is_told_without_it(server: StandinRegistry, pauses: list[float]) -> None:
    server.authentication, server.users = "basic", {"me": "secret"}
    with pytest.raises(BuildError, match="gave 401") as raised:
        push(connect(server, pauses, Login("me", "verywrong")))
    assert "verywrong" not in str(raised.value)
    assert "verywrong" not in repr(Login("me", "verywrong"))


def test_bearer_tokens_are_asked_for_by_scope(server: StandinRegistry, pauses: list[float]) -> None:
    server.authentication, server.users = "bearer", {"me": "secret"}
    push_image(connect(server, pauses, Login("me", "secret")))
    assert sorted(set(server.tokens.values())) == ["repository:a/b:pull", "repository:a/b:pull,push"]
    assert all(not request.authorization.startswith("Basic") for request in server.requests if "/v2/" in request.path)


def test_anonymous_tokens(server: StandinRegistry, pauses: list[float]) -> None:
    server.authentication = "bearer"
    assert push(connect(server, pauses)) == len(BLOB)


def test_a_token_that_ran_out_is_renewed(server: StandinRegistry, pauses: list[float]) -> None:
    server.authentication, server.users = "bearer", {"me": "secret"}
    registry = connect(server, pauses, Login("me", "secret"))
    push(registry)
    server.end_tokens()
    push_image(registry)
    assert server.manifests["a/b"]["v1"] == an_image().manifest


def test_a_token_may_run_out_in_an_upload(server: StandinRegistry, pauses: list[float]) -> None:
    server.authentication, server.users = "bearer", {"me": "secret"}
    server.trouble = [("PUT .*/uploads/", 401)]
    assert push(connect(server, pauses, Login("me", "secret"))) == len(BLOB)


def test_no_token_for_a_wrong_login(server: StandinRegistry, pauses: list[float]) -> None:
    server.authentication, server.users = "bearer", {"me": "secret"}
    with pytest.raises(BuildError, match=r"gave no token for the login from the Docker config\.json \(401\)"):
        push(connect(server, pauses, Login("me", "wrong")))


def test_content_that_is_not_what_was_asked_for(server: StandinRegistry, pauses: list[float]) -> None:
    server.blobs["a/b"] = {digest_of(OTHER): b"something else"}
    with pytest.raises(BuildError, match="the registry sent other content"):
        connect(server, pauses).get_blob("a/b", digest_of(OTHER))


def test_progress_ends_at_the_whole(server: StandinRegistry, pauses: list[float]) -> None:
    told: list[tuple[int, int]] = []
    connect(server, pauses).push_blob("a/b", DESCRIPTOR, lambda: io.BytesIO(BLOB), meter=lambda *now: told.append(now))
    assert told[-1] == (len(BLOB), len(BLOB))
    assert len(told) > 2


def test_a_certificate_of_ones_own(tmp_path: Path, pauses: list[float]) -> None:
    import ssl

    bundle, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle, key)
    with StandinRegistry(tls=context).running() as server:
        assert push(Registry(server.address, Http(bundle), lambda: None)) == len(BLOB)
        with pytest.raises(BuildError, match=r"no trusted connection .*--ca-bundle"):
            push(connect(server, pauses))
        assert pauses == [], "an untrusted certificate is not tried again, and not in plain HTTP"


def self_signed(folder: Path) -> tuple[Path, Path]:
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    return folder / "ca.pem", folder / "key.pem"


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(BuildError, match=r"the CA bundle .*ca\.pem cannot be read"):
        push(Registry("127.0.0.1:1", Http(tmp_path / "ca.pem"), lambda: None))
