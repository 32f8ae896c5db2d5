"""What the cluster's owner decides for environments: registry, channels, indexes, credentials, limits.

A YAML file that the chart renders (TOKENSERVICE_SETTINGS names it in a Job); on a developer's machine
`--settings FILE`, or the defaults: conda's public channels, PyPI as the machine's pip knows it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tokenservice.api.jobs import SETTINGS_VARIABLE

from .errors import BuildError

CONDA_SERVER = "https://conda.anaconda.org"
DEFAULT_CHANNELS = ("https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r")
"""What the channel name `defaults` stands for on Linux, as conda has it."""


class _Settings(msgspec.Struct, rename="camel", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base: camelCase in the file; a key that is not known is an error that names it."""


class RegistrySettings(_Settings, frozen=True, kw_only=True):
    """Where locks and images go.

    Attributes:
        url: `HOST[:PORT][/PREFIX]` as Jobs reach it; "" where nothing is pushed.
        pull_url: the same as nodes reach it, if that is another name.
        plain_http: speaks HTTP without TLS.

    """

    url: str = ""
    pull_url: str = ""
    plain_http: bool = msgspec.field(default=False, name="plainHTTP")


class ChannelSettings(_Settings, frozen=True, kw_only=True):
    """Conda channels.

    Attributes:
        alias: the server that a bare channel name (`conda-forge`) is a path of.
        defaults: what the name `defaults` stands for.
        allow: shell patterns of channel names or URLs that environments may use; empty allows all.
        mirrors: base URL of a channel -> base URLs to ask in its place, in this order. A lock keeps
            the channel's own URL.

    """

    alias: str = CONDA_SERVER
    defaults: tuple[str, ...] = DEFAULT_CHANNELS
    allow: tuple[str, ...] = ()
    mirrors: dict[str, tuple[str, ...]] = {}


class PipSettings(_Settings, frozen=True, kw_only=True):
    """The Python package index.

    Attributes:
        index_url: "" for the one that pip's and uv's own settings name, else PyPI.
        extra_index_urls: further indexes, asked for packages that the first does not have.
        allow: shell patterns of addresses of wheels that `pip:` may name beyond packages of the index.

    """

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()


class Settings(_Settings, frozen=True, kw_only=True):
    """Everything.

    Attributes:
        base_image: the image below an environment that names none itself; "" on a machine that builds none.
        base_images: shell patterns of base images that environments may name themselves; empty allows any. `base_image`
            is always allowed.
        ca_bundle: path of a PEM file with further certificate authorities, for every connection; "" for none.
        timeout_seconds: for a connection to answer.
        retries: tries after the first, with growing pauses.
        solve_timeout_seconds: for a solve to end.
        post_link_scripts: names of packages whose post-link scripts may run; none unless named.
        credentials: host -> folder with files `username` and `password`, or `token` (a mounted Secret).
        docker_config: path of a Docker config.json with logins of registries; "" for none.
        cache_folder: packages and layers kept between Jobs; "" for a scratch folder.

    """

    registry: RegistrySettings = RegistrySettings()
    channels: ChannelSettings = ChannelSettings()
    pip: PipSettings = PipSettings()
    base_image: str = ""
    base_images: tuple[str, ...] = ()
    ca_bundle: str = ""
    timeout_seconds: int = 30
    retries: int = 3
    solve_timeout_seconds: int = 300
    post_link_scripts: tuple[str, ...] = ()
    credentials: dict[str, str] = {}
    docker_config: str = ""
    cache_folder: str = ""


def load(environ: Mapping[str, str], path: Path | None = None) -> Settings:
    """The settings in `path`, else in the file that the environment names, else the defaults.

    Raises BuildError that names file and key.
    """
    file = path or (Path(environ[SETTINGS_VARIABLE]) if environ.get(SETTINGS_VARIABLE) else None)
    if file is None:
        return Settings()
    try:
        return msgspec.yaml.decode(file.read_bytes() or b"{}", type=Settings)
    except OSError as error:
        raise BuildError(f"the settings {file} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BuildError(f"{file}: {error}") from error


def allowed(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name or URL is on an allow-list; a list that is empty allows nothing here."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
