"""Credentials for a registry: Docker's config.json, and the token flow of the distribution specification.

https://distribution.github.io/distribution/spec/auth/token/ . Docker's config.json is read, never written. Credential
helpers are programs; they are not run, and a config that needs one is an error that says so.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import BuildError


@dataclass(frozen=True)
class Login:
    """User and password, or an identity token that is exchanged for access tokens. `source` names where it stood."""

    user: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)
    source: str = field(default="the Docker config.json", compare=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def default_docker_config(environ: Mapping[str, str]) -> Path:
    """Where Docker keeps its logins."""
    folder = environ.get("DOCKER_CONFIG")
    return (
        Path(folder) / "config.json" if folder else Path(environ.get("HOME", "~")).expanduser() / ".docker/config.json"
    )


def read_login(config: Path, host: str, *, required: bool = False) -> Login | None:
    """The login for `host` (`name[:port]`) in a Docker config.json, or None where it has none.

    Raises BuildError for a file that cannot be read, and where only a credential helper knows the login.
    """
    try:
        content = json.loads(config.read_text())
    except FileNotFoundError:
        if required:
            raise BuildError(f"--docker-config: there is no file {config}") from None
        return None
    except (OSError, ValueError) as error:
        raise BuildError(f"{config} is no Docker config.json: {error}") from error
    if not isinstance(content, dict):
        raise BuildError(f"{config} is no Docker config.json: it holds no object")
    names = _names(host)
    auths = content.get("auths") or {}
    for name, auth in auths.items():
        if _host_of(name) in names and auth:
            return _login(config, name, auth)
    helpers = content.get("credHelpers") or {}
    helper = next((helpers[name] for name in helpers if _host_of(name) in names), None)
    if helper is None and any(_host_of(name) in names for name in auths):
        helper = content.get("credsStore")
    if helper:
        raise BuildError(
            f"{config} keeps the login for {host} in the credential helper {helper!r}, which is not supported: "
            "write it into the `auths` of a config.json of its own and name that with --docker-config"
        )
    return None


def read_folder(folder: Path) -> Login:
    """The login in a mounted Secret: files `username` and `password`, or `token` (then `username` may be left out).

    A token is sent as the password, which is how registries take access tokens; most do not look at the user beside it.
    Raises BuildError that names the folder and what is missing in it.
    """
    user, password, token = (_content(folder / name) for name in ("username", "password", "token"))
    if token:
        return Login(user or "token", token, source=f"{folder}")
    if user and password:
        return Login(user, password, source=f"{folder}")
    raise BuildError(f"{folder} has neither a file token, nor files username and password", "RegistryUnauthorized")


def _content(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"the login {file} cannot be read: {error}", "RegistryUnauthorized") from error


def same_host(one: str, other: str) -> bool:
    """Whether both name the same registry."""
    return one in _names(other)


def _names(host: str) -> set[str]:
    # Docker Hub goes by several names; its logins are kept under the oldest.
    hub = {"docker.io", "index.docker.io", "registry-1.docker.io"}
    return hub if host in hub else {host}


def _host_of(name: str) -> str:
    return re.sub(r"^https?://", "", name).split("/", 1)[0]


def _login(config: Path, name: str, auth: Mapping[str, str]) -> Login:
    user, password = auth.get("username", ""), auth.get("password", "")
    if not user and auth.get("auth"):
        try:
            user, _, password = base64.b64decode(auth["auth"], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise BuildError(f"{config}: the `auth` of {name} is not base64 of user:password") from None
    if not user and not auth.get("identitytoken"):
        raise BuildError(f"{config}: the entry {name} has neither auth, nor username and password, nor identitytoken")
    return Login(user, password, auth.get("identitytoken", ""))


@dataclass(frozen=True)
class Challenge:
    """A WWW-Authenticate header: the scheme in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


_PARAMETER = re.compile(r'([A-Za-z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')


def parse_challenge(header: str) -> Challenge:
    """`Bearer realm="https://...",service="..."` taken apart."""
    scheme, _, rest = header.strip().partition(" ")
    found = {match[1].lower(): match[2] if match[2] is not None else match[3] for match in _PARAMETER.finditer(rest)}
    return Challenge(scheme.lower(), found)
