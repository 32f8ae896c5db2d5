"""The packages of a lock as layers need them, and their archives on disk, downloaded once and checked.

A download goes on where it broke off, tries each mirror in turn, and is used only when its hash is the lock's.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import urllib3

from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import RETRIED, Http, Retries
from tokenservice.builder.oci import sha256_of
from tokenservice.builder.progress import LineMeter, say
from tokenservice.builder.registry_errors import plain_cause
from tokenservice.builder.store import locked, scratch_folder

from .link import Python

_PARALLEL = 6
_CHUNK = 1 << 20
_PYTHON = re.compile(r"^(python|python_abi)(\s|$)")


@dataclass(frozen=True)
class Package:
    """A locked package. `kind` is conda or pypi; `size` in bytes, as downloaded (0: the lock does not say it)."""

    kind: str
    name: str
    version: str
    url: str
    sha256: str
    size: int = 0
    noarch: str = ""
    depends: tuple[str, ...] = ()
    site: str = ""

    @property
    def filename(self) -> str:
        """The archive's name. Raises BuildError for a URL that has none: it would become a path of ours."""
        name = unquote(urlsplit(self.url).path).rpartition("/")[2]
        if name in ("", ".", "..") or "\0" in name:
            raise BuildError(f"the lock has no address of a file for {self.name}", "LockUnusable")
        return name

    @property
    def is_python(self) -> bool:
        return self.kind == "conda" and self.name == "python"

    @property
    def has_python_code(self) -> bool:
        """Whether what it installs depends on the environment's Python: where it lies, and its byte code."""
        return (
            self.kind == "pypi"
            or self.noarch == "python"
            or self.is_python
            or any(_PYTHON.match(each) for each in self.depends)
        )


def python_of(packages: Iterable[Package]) -> Python | None:
    """The environment's Python, by its conda package."""
    found = next((package for package in packages if package.is_python), None)
    if found is None:
        return None
    short = ".".join(found.version.split(".")[:2])
    return Python(short, found.site or f"lib/python{short}/site-packages")


def needed_to_run(name: str, packages: Sequence[Package]) -> list[Package]:
    """The conda package `name` and everything it depends on, by name."""
    by_name = {package.name: package for package in packages if package.kind == "conda"}
    found: dict[str, Package] = {}
    asked = [name]
    while asked:
        package = by_name.get(asked.pop())
        if package is not None and package.name not in found:
            found[package.name] = package
            asked += [re.split(r"[\s=<>!~\[]", each.strip(), maxsplit=1)[0].lower() for each in package.depends]
    return [found[each] for each in sorted(found)]


@dataclass(frozen=True)
class Sources:
    """Where archives are asked for. `mirrors` gives the URLs to try for one of the lock; `login` headers by URL."""

    http: Http
    retries: Retries = field(default_factory=Retries)
    mirrors: Callable[[str], Sequence[str]] = lambda url: (url,)
    login: Callable[[str], Mapping[str, str]] = lambda _: {}

    def open(self, method: str, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """One request, its body not read; follows redirects, and each host gets its own login and no other's.

        Raises BuildError: ChannelUnavailable, where they do not end; urllib3's HTTPError when there is no answer.
        """
        for _ in range(6):
            plain, own = _login_in(url)
            answer = self.http.open(method, plain, {**headers, **own, **self.login(plain)})
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            answer.drain_conn()
            url = urljoin(plain, answer.headers.get("Location", ""))
            if urlsplit(url).scheme not in ("http", "https"):
                break
        raise BuildError(f"{_host(url)}: too many redirects, or one that leads nowhere", "ChannelUnavailable")


class Archives:
    """Archives below a folder, each under its own hash. Safe for several threads and processes at once."""

    def __init__(self, root: Path, sources: Sources, *, keep: bool) -> None:
        self.root, self._sources, self._keep = root, sources, keep
        self.downloaded = 0

    def path(self, package: Package) -> Path:
        """Where the archive lies once it is there."""
        return self.root / package.sha256[:32] / package.filename

    def fetch(self, packages: Sequence[Package]) -> list[Path]:
        """Downloads what is missing, several at once; the files in the same order.

        Raises BuildError: ChannelUnavailable, ChecksumMismatch; names the package.
        """
        missing = [package for package in packages if not self._there(package)]
        if len(missing) == 1:
            self._download(missing[0])
        elif missing:
            with ThreadPoolExecutor(_PARALLEL) as pool:
                for done in [pool.submit(self._download, package) for package in missing]:
                    done.result()
        return [self.path(package) for package in packages]

    def _there(self, package: Package) -> bool:
        """Whether the archive lies there. One that is kept may be cut off, where a machine has lost its power, or be
        somebody's own: it is deleted then.
        """
        file = self.path(package)
        if not file.exists() or not self._keep:
            return file.exists()
        sound = sha256_of(file) == package.sha256
        if not sound:
            say(f"{package.filename} of the cache is damaged: it is downloaded again")
            file.unlink(missing_ok=True)
        return sound

    def forget(self, packages: Iterable[Package]) -> None:
        """Deletes archives, unless they are kept for later builds."""
        if not self._keep:
            for package in packages:
                self.path(package).unlink(missing_ok=True)

    def _download(self, package: Package) -> None:
        target = self.path(package)
        if not re.fullmatch(r"[0-9a-f]{64}", package.sha256):
            raise BuildError(f"the lock has no sha256 for {package.name}: it cannot be checked", "LockUnusable")
        with locked(self.root / "locks" / package.sha256[:32]):
            if target.exists():
                return
            with scratch_folder(self.root / "scratch") as scratch:
                part = scratch / "part"
                self._from_any(package, part)
                target.parent.mkdir(parents=True, exist_ok=True)
                part.rename(target)

    def _from_any(self, package: Package, part: Path) -> None:
        """Tries every address; what the last one that answered had wrong is the error."""
        error: BuildError | None = None
        for url in self._sources.mirrors(package.url):
            try:
                found = self._stream(package, url, part)
            except BuildError as failed:
                error = error if error is not None and error.reason == "ChecksumMismatch" else failed
                say(f"{failed}")
                continue
            if found == package.sha256:
                return
            text = f"{package.filename} from {_host(url)} has the sha256 {found}, and the lock says {package.sha256}"
            error = BuildError(f"{text}: it is not used", "ChecksumMismatch")
        part.unlink(missing_ok=True)
        raise error or BuildError(f"{package.filename} has no address", "LockUnusable")

    def _stream(self, package: Package, url: str, part: Path) -> str:
        """Downloads to `part`; returns the sha256 of what came."""
        hashed, done, cause = hashlib.sha256(), 0, ""
        meter = LineMeter(f"downloading {package.filename}")
        with part.open("wb") as out:
            for attempt in range(self._sources.retries.attempts):
                try:
                    answer = self._sources.open("GET", url, {"Range": f"bytes={done}-"} if done else {})
                    with answer:
                        if answer.status in (200, 206):
                            if done and answer.status == 200:  # it does not know ranges: everything again
                                hashed, done = _again(out)
                            for piece in answer.stream(_CHUNK):
                                out.write(piece)
                                hashed.update(piece)
                                done += len(piece)
                                meter(done, package.size)
                            self.downloaded += done
                            return hashed.hexdigest()
                        cause = f"answers {answer.status}"
                        if answer.status not in RETRIED:
                            break
                except urllib3.exceptions.HTTPError as error:
                    cause = plain_cause(error)
                    if isinstance(error, urllib3.exceptions.SSLError):
                        break
                if attempt < self._sources.retries.attempts - 1:
                    say(f"{package.filename}: {_host(url)}: {cause}, trying again")
                    self._sources.retries.pause(attempt)
        text = f"{package.filename} cannot be downloaded from {_host(url)}: {cause}"
        raise BuildError(text, "ChannelUnavailable")


def _again(out: IO[bytes]) -> tuple[hashlib._Hash, int]:
    out.seek(0)
    out.truncate()
    return hashlib.sha256(), 0


def _login_in(url: str) -> tuple[str, dict[str, str]]:
    """A URL without its user and password, which an index may have in its own links, and the header of them."""
    parts = urlsplit(url)
    if not parts.username:
        return url, {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return plain, {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] or "a file"
