from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from tokenservice.builder.errors import BuildError
from tokenservice.builder.registry_auth import Login, default_docker_config, parse_challenge, read_login


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def config(folder: Path, content: object) -> Path:
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("auths", "host", "wanted"),
    [
        ({"r.io": {"auth": encoded("me:pass:word")}}, "r.io", Login("me", "pass:word")),
        ({"https://r.io/v2/": {"auth": encoded("me:x")}}, "r.io", Login("me", "x")),
        ({"r.io:5000": {"username": "me", "password": "x"}}, "r.io:5000", Login("me", "x")),
        ({"r.io": {"auth": encoded("me:x"), "identitytoken": "t"}}, "r.io", Login("me", "x", "t")),
        ({"https://index.docker.io/v1/": {"auth": encoded("me:x")}}, "docker.io", Login("me", "x")),
        ({"r.io:5000": {"auth": encoded("me:x")}}, "r.io", None),
        ({}, "r.io", None),
    ],
)
def test_logins(tmp_path: Path, auths: object, host: str, wanted: Login | None) -> None:
    assert read_login(config(tmp_path, {"auths": auths}), host) == wanted


@pytest.mark.parametrize(
    "content",
    [{"credHelpers": {"r.io": "gcloud"}}, {"credsStore": "gcloud", "auths": {"r.io": {}}}],
)
def test_credential_helpers_are_named_as_not_supported(tmp_path: Path, content: object) -> None:
    with pytest.raises(BuildError, match=r"credential helper 'gcloud', which is not supported: .*--docker-config"):
        read_login(config(tmp_path, content), "r.io")
    assert read_login(config(tmp_path, content), "other.io") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no Docker config.json"),
        ("[]", "holds no object"),
        ({"auths": {"r.io": {"auth": "?"}}}, "is not base64"),
        ({"auths": {"r.io": {"email": "a@b"}}}, "has neither auth, nor username"),
    ],
)
def test_broken_files_are_explained(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        read_login(config(tmp_path, content), "r.io")


def test_a_file_has_to_be_there_only_if_it_was_named(tmp_path: Path) -> None:
    assert read_login(tmp_path / "none", "r.io") is None
    with pytest.raises(BuildError, match="--docker-config: there is no file"):
        read_login(tmp_path / "none", "r.io", required=True)


def test_where_docker_keeps_it() -> None:
    assert default_docker_config({"HOME": "/h"}) == Path("/h/.docker/config.json")
    assert default_docker_config({"HOME": "/h", "DOCKER_CONFIG": "/d"}) == Path("/d/config.json")


def test_challenges() -> None:
    found = parse_challenge('Bearer realm="https://auth.io/token",service="r.io",scope="repository:a/b:pull,push"')
    assert found.scheme == "bearer"
    assert found.parameters == {
        "realm": "https://auth.io/token",
        "service": "r.io",
        "scope": "repository:a/b:pull,push",
    }
    assert parse_challenge("Basic realm=x").parameters == {"realm": "x"}
