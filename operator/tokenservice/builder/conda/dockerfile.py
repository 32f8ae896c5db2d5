"""A Miniconda Dockerfile of an environment.yml: text from data, every value quoted for where it stands.

The shape is that of service_image/Dockerfile, whose comments tell why. No secret is an argument, a variable or a file
of a layer: BuildKit mounts a netrc file for the commands that need it
(https://docs.docker.com/build/building/secrets/).
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import jinja2

from tokenservice.builder.errors import BuildError
from tokenservice.builder.settings import CONDA_SERVER, DEFAULT_CHANNELS, Settings

from .pip import SERVER_REQUIRES

MINICONDA = "docker.io/continuumio/miniconda3:25.3.1-1"
RUNTIME = "docker.io/library/debian:12-slim"
PUBLIC_HOSTS = frozenset({"conda.anaconda.org", "repo.anaconda.com", "conda-forge.org"})
_NETRC = "--mount=type=secret,id=netrc,target=/root/.netrc"
_BUNDLE = "/run/secrets/ca.pem"


@dataclass(frozen=True)
class Inputs:
    """What a Dockerfile is made of.

    Attributes:
        file: name of the environment file in the build context.
        name: the environment's name.
        channels: as the file names them.
        variables: to be set in the image.
        base: reference of the Miniconda image, by digest if that could be found out.
        runtime: reference of the image that the environment is copied onto.
        server: folder of token_server's source for a named context; "" where it lies beside the file.
        warnings: what the reader should know, a line each.

    """

    file: str
    name: str
    channels: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    base: str = MINICONDA
    runtime: str = RUNTIME
    server: str = ""
    warnings: Sequence[str] = ()


def render(inputs: Inputs, settings: Settings) -> str:
    """The Dockerfile's text. Raises BuildError for a value that no Dockerfile can hold."""
    secret = needs_login(inputs.channels, settings)
    text = _environment().get_template("Dockerfile.j2")
    return text.render(
        file=_file(inputs.file),
        name=inputs.name,
        variables=inputs.variables,
        base=inputs.base,
        runtime=inputs.runtime,
        named_context=bool(inputs.server),
        build_command=build_command(inputs, settings, secret=secret),
        warnings=[*inputs.warnings, *_unsaid(inputs.channels, settings)],
        secret=secret,
        bundle=bool(settings.ca_bundle),
        conda_settings=_conda_settings(settings),
        mounts=_mounts(settings, secret=secret),
        exports=_exports(settings),
        requirements=SERVER_REQUIRES,
    )


def needs_login(channels: Iterable[str], settings: Settings) -> bool:
    """Whether a channel or an index that the build asks wants to know who asks, or may: a host that is not public."""
    addresses = [_address(channel, settings) for channel in channels]
    if "defaults" in channels:
        addresses += settings.channels.defaults
    addresses += [settings.pip.index_url, *settings.pip.extra_index_urls]
    hosts = {urlsplit(each).hostname for each in addresses if each}
    known = {urlsplit(f"//{host}").hostname for host in settings.credentials}
    return any(host in known or host not in PUBLIC_HOSTS for host in hosts)


def build_command(inputs: Inputs, settings: Settings, *, secret: bool) -> str:
    """The command that builds the image."""
    parts = ["docker", "build", "-t", "token-service", "-f", "Dockerfile"]
    if inputs.server:
        parts += ["--build-context", f"token_server={inputs.server}"]
    if secret:
        parts += ["--secret", "id=netrc,src=NETRC"]
    if settings.ca_bundle:
        parts += ["--secret", f"id=ca,src={settings.ca_bundle}"]
    return shlex.join([*parts, "."])


def _address(channel: str, settings: Settings) -> str:
    return channel if "://" in channel else f"{settings.channels.alias}/{channel}"


def _file(name: str) -> str:
    # In COPY, [ ] * and ? are patterns and $ a variable; a name with them is not worth the escapes.
    if not re.fullmatch(r"[\w.+@ -]+", name):
        raise BuildError(f"{name!r}: a Dockerfile cannot name this file; call it environment.yml")
    return name


def _conda_settings(settings: Settings) -> list[tuple[str, str]]:
    made = [
        ("remote_connect_timeout_secs", str(settings.timeout_seconds)),
        ("remote_max_retries", str(settings.retries)),
    ]
    if settings.channels.alias != CONDA_SERVER:
        made.append(("channel_alias", settings.channels.alias))
    return made


def _unsaid(channels: Iterable[str], settings: Settings) -> list[str]:
    """What the person has to decide, and what the settings say and conda has no setting for."""
    made = []
    if "defaults" in channels:
        made.append(
            "Miniconda asks you to accept the terms of use of the channel `defaults` "
            "(CONDA_PLUGINS_AUTO_ACCEPT_TOS=yes does); other channels have none"
        )
    if settings.channels.mirrors:
        made.append(
            "the settings' mirrors are not in here, since conda knows none: set its channel_alias in their place"
        )
    if settings.channels.defaults != DEFAULT_CHANNELS:
        made.append("the channel `defaults` is conda's own here, not what the settings name")
    return made


def _mounts(settings: Settings, *, secret: bool) -> str:
    mounts = [_NETRC] if secret else []
    if settings.ca_bundle:
        mounts.append(f"--mount=type=secret,id=ca,required=true,target={_BUNDLE}")
    return "".join(f"{mount} \\\n    " for mount in mounts)


def _exports(settings: Settings) -> str:
    """Variables of one command, in front of it: they are not in the image's config."""
    made: dict[str, str] = {}
    if settings.ca_bundle:
        made |= {"REQUESTS_CA_BUNDLE": _BUNDLE, "PIP_CERT": _BUNDLE}
    if settings.pip.index_url:
        made["PIP_INDEX_URL"] = without_login(settings.pip.index_url)
    if settings.pip.extra_index_urls:
        made["PIP_EXTRA_INDEX_URL"] = " ".join(without_login(each) for each in settings.pip.extra_index_urls)
    return "".join(f"{name}={shlex.quote(value)} \\\n    " for name, value in made.items())


def without_login(url: str) -> str:
    """The address without a user and a password in it: those belong into the netrc file."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


# Quoting: https://docs.docker.com/reference/dockerfile/


def quoted(value: str) -> str:
    """A value of ENV or LABEL in double quotes, in which a Dockerfile knows backslash, quote and $."""
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise BuildError(f"{value!r} has a line break or another control character, which no Dockerfile can hold")
    return '"' + re.sub(r'([\\"$])', r"\\\1", value) + '"'


def comment(value: str) -> str:
    """Text in a comment: of one line."""
    return " ".join(value.split())


def _copy(paths: Sequence[str]) -> str:
    return json.dumps(list(paths), ensure_ascii=False)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tokenservice.builder.conda"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - no HTML; the filters quote
    )
    environment.filters |= {"quoted": quoted, "comment": comment, "copy": _copy, "shell": shlex.quote}
    return environment
