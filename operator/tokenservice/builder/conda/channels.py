"""Conda channels: what their names stand for, whether they are allowed, and the index of what they have.

An index (`repodata.json`, CEP 14 and conda's documentation of channels) is fetched by our own client, so that mirrors,
logins, certificate authorities, time limits and retries are those of the owner's settings, and kept with its ETag.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
import zstandard

from tokenservice.builder.access import login_for
from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import RETRIED, Http, Retries
from tokenservice.builder.progress import LineMeter, human_bytes, say
from tokenservice.builder.registry_errors import plain_cause
from tokenservice.builder.settings import ChannelSettings, Settings, allowed
from tokenservice.builder.store import locked

from .packages import Sources

_CHUNK = 1 << 20
_ABSENT = frozenset({404, 410})


@dataclass(frozen=True)
class Channel:
    """`name` as the environment has it; `url` of the channel itself, without a slash at the end."""

    name: str
    url: str


@dataclass(frozen=True)
class Index:
    """What a channel has for one subdir, as a file of repodata."""

    channel: Channel
    subdir: str
    file: Path


def resolve(names: Sequence[str], settings: ChannelSettings) -> list[Channel]:
    """The channels behind names and URLs, in order, each once.

    Raises:
        BuildError: ChannelNotAllowed; names the channel and what is allowed.

    """
    found: dict[str, Channel] = {}
    for name in names:
        for url in _urls(name, settings):
            if settings.allow and not _allowed(name, url, settings.allow):
                raise BuildError(
                    f"the channel {name} is not allowed here; allowed are {', '.join(settings.allow)}",
                    "ChannelNotAllowed",
                )
            found.setdefault(url, Channel(name, url))
    return list(found.values())


def _urls(name: str, settings: ChannelSettings) -> list[str]:
    if name == "defaults":
        return [url.rstrip("/") for url in settings.defaults]
    return [name.rstrip("/") if "://" in name else f"{settings.alias.rstrip('/')}/{name}"]


def _allowed(name: str, url: str, patterns: Sequence[str]) -> bool:
    plain = tuple(pattern.rstrip("/") for pattern in patterns)
    return allowed(name, plain) or allowed(url, plain)


def mirrors_of(url: str, settings: ChannelSettings) -> tuple[str, ...]:
    """The addresses to ask for something at `url`: its channel's mirrors where there are any, else itself."""
    for base, mirrors in settings.mirrors.items():
        stem = base.rstrip("/")
        if (url == stem or url.startswith(f"{stem}/")) and mirrors:
            return tuple(mirror.rstrip("/") + url[len(stem) :] for mirror in mirrors)
    return (url,)


def http_of(settings: Settings) -> Http:
    limit = float(settings.timeout_seconds)
    bundle = Path(settings.ca_bundle) if settings.ca_bundle else None
    return Http(bundle, os.environ, urllib3.Timeout(connect=limit, read=limit))


def sources(settings: Settings) -> Sources:
    """Where the archives of packages come from."""
    return Sources(
        http_of(settings),
        Retries(attempts=settings.retries + 1),
        mirrors=lambda url: mirrors_of(url, settings.channels),
        login=lambda url: login_headers(settings, url),
    )


def login_headers(settings: Settings, url: str) -> dict[str, str]:
    """The header with the owner's login for the URL's host, if there is one.

    A `token` alone is sent as conda's clients send it to private channels, as a bearer token.
    """
    host = urlsplit(url).netloc.rpartition("@")[2]
    folder = settings.credentials.get(host)
    if folder is None:
        return {}
    token = Path(folder) / "token"
    if token.is_file() and not (Path(folder) / "username").is_file():
        return {"Authorization": f"Bearer {token.read_text().strip()}"}
    login = login_for(settings, host)()
    if login is None:
        return {}
    return {"Authorization": login.basic}


class Indexes:
    """Indexes of channels below a folder, asked for anew at each use, and sent anew only if they changed."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self._root, self._settings = root, settings
        self._sources = sources(settings)
        self._retries = self._sources.retries

    def fetch(self, channels: Sequence[Channel], platform: str) -> list[Index]:
        """The indexes of the platform and of noarch, in the channels' order; a subdir that a channel lacks is left out.

        Raises:
            BuildError: ChannelUnavailable; names the channel and what its server says.

        """
        wanted = [(channel, subdir) for channel in channels for subdir in (platform, "noarch")]
        with ThreadPoolExecutor(8) as pool:
            files = list(pool.map(lambda each: self._any(*each), wanted))
        found = [Index(*each, file) for each, file in zip(wanted, files, strict=True) if file is not None]
        for channel in channels:
            if not any(index.channel == channel for index in found):
                raise BuildError(
                    f"the channel {channel.name} ({channel.url}) is not there: it has neither {platform} nor noarch",
                    "ChannelUnavailable",
                )
        return found

    def _any(self, channel: Channel, subdir: str) -> Path | None:
        """From the first address that answers. None: every one says that there is no such subdir."""
        error: BuildError | None = None
        answered = False
        for base in mirrors_of(channel.url, self._settings.channels):
            try:
                for name in ("repodata.json.zst", "repodata.json"):
                    file = self._one(channel, f"{base}/{subdir}/{name}")
                    if file is not None:
                        return file
                answered = True
            except BuildError as failed:
                say(str(failed))
                error = error or failed
        if error is not None and not answered:
            raise error
        return None

    def _one(self, channel: Channel, url: str) -> Path | None:
        """The index at this address. None where there is none."""
        stem = self._root / hashlib.sha256(url.encode()).hexdigest()[:32]
        file, note = stem.with_suffix(".json"), stem.with_suffix(".etag")
        with locked(self._root / "locks" / stem.name):
            headers: dict[str, str] = {}
            if file.exists() and note.exists():
                headers = json.loads(note.read_text())
            return self._ask(channel, url, headers, file, note)

    def _ask(self, channel: Channel, url: str, headers: Mapping[str, str], file: Path, note: Path) -> Path | None:
        cause = ""
        for attempt in range(self._retries.attempts):
            try:
                with self._sources.open("GET", url, headers) as answer:
                    if answer.status == 304:
                        return file
                    if answer.status == 200:
                        self._keep(answer, url, file, note)
                        return file
                    if answer.status in _ABSENT or (answer.status == 403 and url.endswith(".zst")):
                        return None  # where nobody may list, what is not there is forbidden: repodata.json decides
                    cause = _meaning(answer.status)
                    if answer.status not in RETRIED:
                        break
            except (urllib3.exceptions.HTTPError, zstandard.ZstdError) as error:
                cause = plain_cause(error) if isinstance(error, urllib3.exceptions.HTTPError) else "sends a broken file"
                if isinstance(error, urllib3.exceptions.SSLError):
                    break
            if attempt < self._retries.attempts - 1:
                self._retries.pause(attempt)
        host = urlsplit(url).netloc
        raise BuildError(f"the channel {channel.name} is not available: {host}: {cause}", "ChannelUnavailable")

    def _keep(self, answer: urllib3.BaseHTTPResponse, url: str, file: Path, note: Path) -> None:
        part = file.with_suffix(".part")
        size = int(answer.headers.get("Content-Length") or 0)
        meter, done = LineMeter(f"reading {url}"), 0
        with part.open("wb") as out:
            target: Any = out
            if url.endswith(".zst"):
                target = zstandard.ZstdDecompressor().stream_writer(out, closefd=False)
            for piece in answer.stream(_CHUNK):
                target.write(piece)
                done += len(piece)
                meter(done, size)
            if target is not out:
                target.flush()
        if size and done != size:
            raise urllib3.exceptions.ProtocolError("connection broken")
        note.unlink(missing_ok=True)
        part.rename(file)
        known = {
            asked: answer.headers[said]
            for asked, said in (("If-None-Match", "ETag"), ("If-Modified-Since", "Last-Modified"))
            if said in answer.headers
        }
        if known:
            note.write_text(json.dumps(known))
        say(f"index of {url.rsplit('/', 2)[0]} {url.rsplit('/', 2)[1]}: {human_bytes(done)}")


def _meaning(status: int) -> str:
    if status in (401, 403):
        return f"answers {status}: it wants a login (credentials by host, in the owner's settings)"
    return f"answers {status}"
