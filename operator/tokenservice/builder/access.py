"""Registries as the owner's settings describe them: logins, certificate authorities, time limits, other names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import urllib3

from .errors import BuildError
from .http import Http, Retries
from .names import Place, Reference, parse_place, parse_reference
from .registry import Registry
from .registry_auth import Login, default_docker_config, read_folder, read_login, same_host
from .settings import Settings


def open_registry(
    settings: Settings, place: str = "", *, plain_http: bool = False, environ: Mapping[str, str] = os.environ
) -> tuple[Registry, Place]:
    """The registry of `HOST[:PORT][/PREFIX]`, or of the settings where that is "".

    Nothing is asked yet. Raises BuildError for a place that is none, and where there is none at all.
    """
    text = place or settings.registry.url
    if not text:
        raise BuildError("there is no registry: name one with --registry, or in the settings as registry.url")
    found = parse_place(text)
    return registry_at(settings, found.host, plain_http=plain_http, environ=environ), found


def open_reference(
    settings: Settings, text: str, *, environ: Mapping[str, str] = os.environ
) -> tuple[Registry, Reference]:
    """The registry of an image or artifact, and its name there.

    What is named as nodes reach it (`registry.pullURL`) is asked as Jobs reach it (`registry.url`).
    """
    reference = parse_reference(
        _renamed(text.removeprefix("oci://"), settings.registry.pull_url, settings.registry.url)
    )
    return registry_at(settings, reference.host, environ=environ), reference


def pull_name(settings: Settings, text: str) -> str:
    """The reference of something in our registry as nodes reach it."""
    return _renamed(text, settings.registry.url, settings.registry.pull_url)


def _renamed(text: str, old: str, new: str) -> str:
    return (
        new.rstrip("/") + text[len(old.rstrip("/")) :]
        if old and new and text.startswith(f"{old.rstrip('/')}/")
        else text
    )


def registry_at(
    settings: Settings, host: str, *, plain_http: bool = False, environ: Mapping[str, str] = os.environ
) -> Registry:
    """The registry at `host` (`name[:port]`)."""
    ours = settings.registry.url.partition("/")[0]
    limit = float(settings.timeout_seconds)
    return Registry(
        host,
        Http(
            Path(settings.ca_bundle) if settings.ca_bundle else None,
            environ,
            urllib3.Timeout(connect=limit, read=limit),
        ),
        login_for(settings, host, environ),
        plain_http or (settings.registry.plain_http and host == ours),
        Retries(attempts=settings.retries + 1),
    )


def login_for(settings: Settings, host: str, environ: Mapping[str, str] = os.environ) -> Callable[[], Login | None]:
    """Reads the login for `host` when it is called: a folder of the settings first, then Docker's config.json."""

    def login() -> Login | None:
        folder = next((path for name, path in settings.credentials.items() if same_host(name, host)), None)
        if folder is not None:
            return read_folder(Path(folder))
        if settings.docker_config:
            return read_login(Path(settings.docker_config), host, required=True)
        return read_login(default_docker_config(environ), host)

    return login
