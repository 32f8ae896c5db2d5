from __future__ import annotations

import pytest
from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import proxy_for
from tokenservice.builder.names import (
    Place,
    check_repository,
    check_tag,
    may_be_plain,
    parse_place,
    parse_reference,
    speaks_no_tls,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("registry.example.com", Place("registry.example.com")),
        ("10.0.0.1:5000/", Place("10.0.0.1:5000")),
        ("localhost:5000/a/b-c", Place("localhost:5000", "a/b-c")),
        ("[::1]:5000/x", Place("[::1]:5000", "x")),
    ],
)
def test_places(text: str, wanted: Place) -> None:
    assert parse_place(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://r.example.com", "without a scheme"),
        ("r.example.com/Team", "'Team' is no repository path"),
        ("r.example.com/a//b", "is no repository path"),
        ("user@r.example.com", "is no HOST or HOST:PORT"),
        ("", "is no HOST"),
    ],
)
def test_wrong_places_are_explained(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        parse_place(text)


def test_repositories_stand_below_the_prefix() -> None:
    assert parse_place("h:1").repository("tokenservice/operator") == "tokenservice/operator"
    assert parse_place("h:1/team").repository("tokenservice/operator") == "team/tokenservice/operator"


@pytest.mark.parametrize("tag", ["", ".x", "a b", "x" * 129, "a:b"])
def test_wrong_tags(tag: str) -> None:
    with pytest.raises(BuildError, match="--tag"):
        check_tag(tag)


def test_names_that_are_right() -> None:
    assert check_tag("v1.0_rc-1") == "v1.0_rc-1"
    assert check_repository("models/tiny-llama_1.0") == "models/tiny-llama_1.0"


@pytest.mark.parametrize("name", ["models/Tiny", "models/../x", "a/"])
def test_wrong_repositories(name: str) -> None:
    with pytest.raises(BuildError, match="no repository name"):
        check_repository(name)


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("localhost:5000", True), ("a.localhost", True), ("127.0.0.9", True), ("[::1]:5", True),
        ("10.1.2.3:5000", True),
        ("172.16.0.1", True), ("172.32.0.1", False), ("192.168.1.1:80", True), ("8.8.8.8", False),
        ("registry.example.com", False), ("[fe80::1]", False),
    ],
)  # fmt: skip
def test_where_plain_http_is_tried(host: str, wanted: bool) -> None:
    assert may_be_plain(host) is wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1000)", True),
        ("[SSL: RECORD_LAYER_FAILURE] record layer failure (_ssl.c:1000)", True),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate", False),
        ("[Errno 111] Connection refused", False),
    ],
)
def test_a_certificate_that_is_not_trusted_is_no_plain_http(text: str, wanted: bool) -> None:
    assert speaks_no_tls(OSError(text)) is wanted


PROXIES = {"https": "http://proxy:1", "http": "http://proxy:2", "no": "10.0.0.0/8,.corp.example,single.example"}


@pytest.mark.parametrize(
    ("scheme", "host", "wanted"),
    [
        ("https", "index.example", "http://proxy:1"), ("http", "mirror.example", "http://proxy:2"),
        ("http", "localhost", ""),
        ("http", "127.0.0.1", ""), ("http", "10.213.0.2", ""), ("http", "192.168.0.1", "http://proxy:2"),
        ("https", "a.corp.example", ""), ("https", "single.example", ""),
    ],
)  # fmt: skip
def test_proxies(scheme: str, host: str, wanted: str) -> None:
    assert proxy_for(scheme, host, PROXIES) == wanted
    assert proxy_for(scheme, host, {}) == ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12-slim", "docker.io/library/debian:12-slim"),
        ("continuumio/miniconda3:25.3.1-1", "docker.io/continuumio/miniconda3:25.3.1-1"),
        ("docker.io/debian:12", "docker.io/library/debian:12"),
        ("quay.io/a/b/c:x", "quay.io/a/b/c:x"),
        ("localhost/x:1", "localhost/x:1"),
        ("r:5000/x", "r:5000/x:latest"),
        ("[::1]:5000/x:1", "[::1]:5000/x:1"),
        (f"r.io/x@sha256:{'a' * 64}", f"r.io/x@sha256:{'a' * 64}"),
        (f"r.io/x:1@sha256:{'a' * 64}", f"r.io/x@sha256:{'a' * 64}"),
        ("oci://r.io/x:1", "r.io/x:1"),
    ],
)
def test_references(text: str, wanted: str) -> None:
    found = parse_reference(text)
    assert str(found) == wanted
    assert parse_reference(str(found)) == found
    assert found.wanted == (found.digest or found.tag)


@pytest.mark.parametrize(
    "text",
    ["", "r.io/", "r.io/UPPER:1", "r.io/x:", "r.io/x:-a", "r.io/x@sha256:1", "https://r.io/x", "r.io/x y", "a/../b"],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(BuildError) as raised:
        parse_reference(text)
    assert raised.value.reason == "InvalidEnvironment"
