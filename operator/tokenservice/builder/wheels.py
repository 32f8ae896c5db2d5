"""From a hash-locked requirements file to wheels on disk.

uv chooses the wheel of each locked package for the base image's Python and C library; the choice is kept, so that a
warm build asks nobody. A wheel is downloaded only when a layer has to be made of it, and its hash must be in the lock.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import urllib3
from packaging.utils import canonicalize_name

from .errors import BuildError
from .http import RETRIED, Http, Retries, ca_file
from .oci import canonical_json, digest_of
from .progress import LineMeter, human_bytes, say
from .registry_errors import plain_cause
from .store import locked, scratch_folder

PYTHON_VERSION = "3.11"
# bookworm's C library is 2.36.
PLATFORMS: Mapping[str, str] = {"amd64": "x86_64-manylinux_2_36", "arm64": "aarch64-manylinux_2_36"}
# Counted up when choices are kept in another form.
_CHOICE = 2
_PARALLEL = 4
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Wheel:
    """One wheel of an index.

    `size` in bytes, 0 where the index does not say it; `url` may name a mirror; `uploaded` in RFC 3339, "" where the
    index does not say it.
    """

    name: str
    version: str
    filename: str
    sha256: str
    size: int
    url: str
    uploaded: str = ""


def locked_hashes(lock: str) -> dict[str, frozenset[str]]:
    """The sha256 digests of each package in a requirements file. Raises BuildError for one without."""
    found: dict[str, frozenset[str]] = {}
    for line in re.sub(r"\\\n", " ", lock).splitlines():
        match = re.match(r"\s*([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*==", line)
        if match:
            hashes = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
            if not hashes:
                raise BuildError(f"{match[1]} has no sha256 in the lock file: renew it with `make lock`")
            name = canonicalize_name(match[1])
            found[name] = found.get(name, frozenset()) | hashes
    return found


def parse_pylock(text: str) -> list[Wheel]:
    """The wheels that a pylock.toml (PEP 751) of one platform names, sorted by name."""
    wheels = []
    for package in tomllib.loads(text).get("packages", []):
        files = package.get("wheels", [])
        if not files:
            raise BuildError(f"{package['name']} {package.get('version', '')} has no wheel for Python {PYTHON_VERSION}")
        file = files[0]
        url = file["url"]
        filename = file.get("name") or unquote(urlsplit(url).path.rsplit("/", 1)[-1])
        name = canonicalize_name(package["name"])
        size, sha256 = int(file.get("size", 0)), file["hashes"]["sha256"]
        uploaded = file["upload-time"].isoformat() if "upload-time" in file else ""
        wheels.append(Wheel(name, package["version"], filename, sha256, size, url, uploaded))
    return sorted(wheels, key=lambda wheel: wheel.name)


def check_hashes(wheels: Sequence[Wheel], lock: Mapping[str, frozenset[str]]) -> None:
    """Raises BuildError for a wheel whose hash the lock does not know."""
    for wheel in wheels:
        if wheel.sha256 not in lock.get(wheel.name, frozenset()):
            raise BuildError(f"the index offers {wheel.filename} with a hash that is not in the lock file")


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def pip_settings(environ: Mapping[str, str], read: Callable[[Path], str | None] = _read) -> dict[str, str]:
    """uv's variables for what the user told pip: index, extra index, certificate. What uv is told itself stays."""
    settings: dict[str, str] = {}
    home = Path(environ.get("HOME", "/"))
    config_home = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path("/etc/pip.conf"), home / ".pip/pip.conf", config_home / "pip/pip.conf"]
    if environ.get("PIP_CONFIG_FILE"):
        files.append(Path(environ["PIP_CONFIG_FILE"]))
    for file in files:
        text = read(file)
        if text is None:
            continue
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            continue
        settings.update(parser["global"] if parser.has_section("global") else {})
    index = environ.get("PIP_INDEX_URL") or settings.get("index-url", "")
    extra = environ.get("PIP_EXTRA_INDEX_URL") or settings.get("extra-index-url", "")
    made: dict[str, str] = {}
    if index and not {"UV_INDEX_URL", "UV_DEFAULT_INDEX"} & environ.keys():
        made["UV_DEFAULT_INDEX"] = index
    if extra and not {"UV_EXTRA_INDEX_URL", "UV_INDEX"} & environ.keys():
        made["UV_INDEX"] = " ".join(extra.split())
    bundle = ca_file(environ) or settings.get("cert")
    if bundle and not environ.get("SSL_CERT_FILE"):
        made["SSL_CERT_FILE"] = bundle
    return made


class WheelCache:
    """Wheels in a folder of the cache, each below its own hash; and the choices made for lock files."""

    def __init__(
        self, root: Path, http: Http, environ: Mapping[str, str] = os.environ, retries: Retries | None = None
    ) -> None:
        self.root, self._http, self._environ, self._retries = root, http, environ, retries or Retries()

    def select(self, lock: str, architecture: str) -> list[Wheel]:
        """The wheels that the lock file's text stands for on this architecture."""
        hashes = locked_hashes(lock)
        platform = PLATFORMS[architecture]
        note = (
            self.root / "choices" / f"{digest_of(canonical_json([_CHOICE, PYTHON_VERSION, platform, lock]))[7:39]}.json"
        )
        text = _read(note)
        if text is not None:
            return [Wheel(**each) for each in json.loads(text)]
        wheels = parse_pylock(self._ask_uv(lock, platform))
        check_hashes(wheels, hashes)
        note.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(self.root / "scratch") as scratch:
            (scratch / "note").write_bytes(canonical_json([asdict(wheel) for wheel in wheels]))
            (scratch / "note").rename(note)
        return wheels

    def _ask_uv(self, lock: str, platform: str) -> str:
        import uv

        with scratch_folder(self.root / "scratch") as scratch:
            (scratch / "requirements.txt").write_text(lock)
            command = [uv.find_uv_bin(), "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-annotate"]
            command += ["--only-binary", ":all:", "--python-version", PYTHON_VERSION, "--python-platform", platform]
            command += ["--format", "pylock.toml", "-o", "pylock.toml", "requirements.txt"]
            environ = {**self._environ, **pip_settings(self._environ)}
            done = subprocess.run(command, cwd=scratch, env=environ, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                words = " ".join(done.stderr.split())
                raise BuildError(f"uv cannot choose the wheels: {words[:500]}")
            return (scratch / "pylock.toml").read_text()

    def path(self, wheel: Wheel) -> Path:
        """Where the wheel lies once it is downloaded."""
        return self.root / wheel.sha256[:16] / wheel.filename

    def fetch(self, wheels: Sequence[Wheel]) -> list[Path]:
        """Downloads what is missing of `wheels`, several at once; returns their files in the same order."""
        missing = [wheel for wheel in wheels if not self.path(wheel).exists()]
        if missing:
            total = sum(wheel.size for wheel in missing)
            say(f"downloading {len(missing)} wheels, {human_bytes(total)}")
            meter = _Sum(LineMeter("wheels"), total)
            with ThreadPoolExecutor(_PARALLEL) as pool:
                for done in [pool.submit(self._download, wheel, meter) for wheel in missing]:
                    done.result()
        return [self.path(wheel) for wheel in wheels]

    def forget(self, wheels: Sequence[Wheel]) -> None:
        """Deletes wheels whose content is kept elsewhere."""
        for wheel in wheels:
            self.path(wheel).unlink(missing_ok=True)

    def _download(self, wheel: Wheel, meter: _Sum) -> None:
        target = self.path(wheel)
        with locked(self.root / "locks" / wheel.sha256[:16]):
            if target.exists():
                return
            with scratch_folder(self.root / "scratch") as scratch:
                part = scratch / "part"
                found = self._stream(wheel, part, meter)
                if found != wheel.sha256:
                    raise BuildError(f"{wheel.filename} has another content than the lock file says: sha256 {found}")
                target.parent.mkdir(parents=True, exist_ok=True)
                part.rename(target)

    def _stream(self, wheel: Wheel, part: Path, meter: _Sum) -> str:
        """Downloads to `part`, going on where a broken connection left off; returns the sha256."""
        hashed, done = hashlib.sha256(), 0
        headers = self._authorization(wheel.url)
        with part.open("wb") as out:
            for attempt in range(self._retries.attempts):
                try:
                    answer = self._get(wheel.url, {**headers, **({"Range": f"bytes={done}-"} if done else {})})
                    if answer.status not in (200, 206):
                        if answer.status not in RETRIED:
                            host = urlsplit(wheel.url).hostname
                            raise BuildError(f"{wheel.filename} cannot be downloaded: {host} answers {answer.status}")
                        cause = f"answer {answer.status}"
                    else:
                        if done and answer.status == 200:
                            meter.add(-done)
                            hashed, done = hashlib.sha256(), 0
                            out.seek(0)
                            out.truncate()
                        for piece in answer.stream(_CHUNK):
                            out.write(piece)
                            hashed.update(piece)
                            done += len(piece)
                            meter.add(len(piece))
                        return hashed.hexdigest()
                except urllib3.exceptions.HTTPError as error:
                    cause = plain_cause(error)
                if attempt < self._retries.attempts - 1:
                    say(f"{wheel.filename}: {cause}, trying again")
                    self._retries.pause(attempt)
        raise BuildError(f"{wheel.filename} cannot be downloaded: {cause}")

    def _get(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        for _ in range(5):
            answer = self._http.open("GET", url, headers)
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            answer.drain_conn()
            target = urllib3.util.parse_url(answer.headers["Location"])
            if target.host and target.host != urlsplit(url).hostname:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = (
                answer.headers["Location"]
                if target.host
                else f"{url.split('/', 3)[0]}//{urlsplit(url).netloc}{target.url}"
            )
        raise BuildError(f"too many redirects from {urlsplit(url).hostname}")

    def _authorization(self, url: str) -> dict[str, str]:
        """The login that the user's index address holds, for files of the same host."""
        wanted = urlsplit(url)
        told = {**self._environ, **pip_settings(self._environ)}
        addresses = " ".join(
            told.get(name, "") for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")
        )
        for address in (wanted.geturl(), *addresses.split()):
            parts = urlsplit(address)
            if parts.username and parts.hostname == wanted.hostname:
                login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
        return {}


class _Sum:
    """Adds up what several downloads have done, for one meter."""

    def __init__(self, meter: LineMeter, total: int) -> None:
        self._meter, self._total, self._done = meter, total, 0

    def add(self, count: int) -> None:
        self._done += count
        self._meter(self._done, self._total)
