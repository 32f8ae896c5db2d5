"""Chooses the wheels of an environment's `pip:` section, beside what conda has chosen.

uv resolves. What conda installs stands fixed: for each of its distributions uv is given a wheel of metadata alone,
`NAME-VERSION+conda`, and a constraint to just that, so that a clash names both sides and conda's packages are never
replaced. token_server's own requirements are part of every environment; they come as those of a `token-server`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import ca_file
from tokenservice.builder.registry_auth import read_folder
from tokenservice.builder.settings import Settings, allowed
from tokenservice.builder.wheels import pip_settings

from .distributions import Distribution
from .lock import Locked
from .solver import moment

SERVER = "token-server"
SERVER_REQUIRES = ("starlette>=0.26", "uvicorn>=0.22", "prometheus-client>=0.17")
"""As in service_image/token_server/pyproject.toml; a test holds them equal."""

_GLIBCS = (17, 28, *range(31, 41))
"""Minor versions of glibc that uv knows a platform for."""
_MACHINES = {"linux-64": "x86_64", "linux-aarch64": "aarch64"}


@dataclass(frozen=True)
class Target:
    """What wheels are chosen for: conda's platform, Python's version (3.11), and glibc's (2.36)."""

    platform: str
    python: str
    glibc: str

    @property
    def name(self) -> str:
        """uv's name of the platform."""
        major, _, minor = self.glibc.partition(".")
        known = [each for each in _GLIBCS if each <= int(minor or 0)] if major == "2" else list(_GLIBCS)
        return f"{_MACHINES[self.platform]}-manylinux_2_{max(known, default=17)}"


def check_addresses(lines: Sequence[str], patterns: Sequence[str]) -> None:
    """Lets wheels be named by their address only where the owner allows it.

    Raises:
        BuildError: ChannelNotAllowed; names the line.

    """
    for line in lines:
        address = line.rpartition(" @ ")[2].split(" ;")[0].strip()
        if "://" in address and not allowed(address, patterns):
            hint = f"; allowed are {', '.join(patterns)}" if patterns else ""
            raise BuildError(
                f"pip: {line}: wheels by address are not allowed here{hint}; name the package, or ask the cluster's "
                "owner (builder.pip.allow)",
                "ChannelNotAllowed",
            )


def extras_of(metadata: str) -> list[str]:
    """Of a METADATA file the lines that belong to extras: Provides-Extra and Requires-Dist with `extra ==`.

    What a distribution requires besides is conda's affair, which has chosen it.
    """
    headers = HeaderParser().parsestr(metadata)
    lines = [f"Provides-Extra: {extra}" for extra in headers.get_all("Provides-Extra", [])]
    for text in headers.get_all("Requires-Dist", []):
        if re.search(r"\bextra\s*==", text):
            lines.append(f"Requires-Dist: {text}")
    return lines


def wants_extras(lines: Sequence[str], provided: Mapping[str, Distribution]) -> list[Distribution]:
    """The distributions of conda of which a line wants an extra, as `uvicorn[standard]` does."""
    found = {}
    for line in (*lines, *SERVER_REQUIRES):
        if "://" in line and " @ " not in line:
            continue
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if requirement.extras and name in provided:
            found[name] = provided[name]
    return list(found.values())


def resolve(
    lines: Sequence[str],
    provided: Mapping[str, tuple[str, Sequence[str]]],
    target: Target,
    settings: Settings,
    scratch: Path,
    *,
    previous: Sequence[Locked] = (),
    exclude_newer: str = "",
    environ: Mapping[str, str] = os.environ,
) -> list[Locked]:
    """The wheels for these pip lines, and for token_server.

    Args:
        lines: canonical pip lines.
        provided: canonical name -> version and lines on extras, of what conda installs.
        target: what they must fit.
        settings: index, credentials, certificate authorities, time limits.
        scratch: an empty folder.
        previous: the wheels of the previous lock, which are preferred.
        exclude_newer: wheels uploaded later are left out; "" for none.
        environ: for the machine's own settings of pip.

    Raises:
        BuildError: Unsolvable or UnknownPackage in uv's words, ChannelUnavailable, TimedOut.

    """
    import uv

    links = scratch / "conda"
    links.mkdir()
    constraints = []
    for name, (version, extras) in provided.items():
        local = f"{version}.conda" if "+" in version else f"{version}+conda"
        _stub(links, name, local, extras)
        constraints.append(f"{name}=={local}")
    _stub(links, SERVER, "0", [f"Requires-Dist: {each}" for each in SERVER_REQUIRES])
    (scratch / "requirements.in").write_text("".join(f"{line}\n" for line in (*lines, SERVER)))
    (scratch / "constraints.txt").write_text("".join(f"{line}\n" for line in constraints))
    if previous:
        (scratch / "pylock.toml").write_text(_as_pylock(previous))
    command = [
        uv.find_uv_bin(),
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--no-annotate",
        "--python",
        sys.executable,
    ]
    command += ["--python-version", target.python, "--python-platform", target.name, "--only-binary", ":all:"]
    command += ["--find-links", str(links), "--constraints", "constraints.txt", "--no-config", "--color", "never"]
    for name in (*provided, SERVER):
        command += ["--no-emit-package", name]
    if exclude_newer:
        # As a moment: of a day uv would take the end, in the machine's own time zone.
        command += ["--exclude-newer", moment(exclude_newer).isoformat()]
    command += ["--format", "pylock.toml", "--output-file", "pylock.toml", "requirements.in"]
    try:
        done = subprocess.run(
            command,
            cwd=scratch,
            env=environment(settings, scratch, environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=settings.solve_timeout_seconds,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(
            f"pip: no solution was found within {settings.solve_timeout_seconds} s: name versions more exactly, or let "
            "the owner raise solveTimeoutSeconds",
            "TimedOut",
        ) from None
    if done.returncode != 0:
        raise failure(done.stderr)
    return parse_answer((scratch / "pylock.toml").read_text())


def environment(settings: Settings, scratch: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """uv's variables: index, time limits, certificate authorities, and a netrc with the logins by host."""
    made = {**environ, **pip_settings(environ)}
    if settings.pip.index_url:
        made["UV_DEFAULT_INDEX"] = settings.pip.index_url
        made.pop("UV_INDEX_URL", None)
    if settings.pip.extra_index_urls:
        made["UV_INDEX"] = " ".join(settings.pip.extra_index_urls)
    made["UV_HTTP_TIMEOUT"] = str(settings.timeout_seconds)
    made["UV_HTTP_RETRIES"] = str(settings.retries)
    made["UV_NO_PROGRESS"] = "1"
    if settings.cache_folder:
        made["UV_CACHE_DIR"] = str(Path(settings.cache_folder) / "uv")
    if settings.ca_bundle:
        made["SSL_CERT_FILE"] = str(_all_authorities(settings.ca_bundle, scratch, environ))
    if settings.credentials:
        made["NETRC"] = str(_netrc(settings.credentials, scratch))
    return made


def _all_authorities(bundle: str, scratch: Path, environ: Mapping[str, str]) -> Path:
    """The machine's certificate authorities and the owner's in one file: uv takes but one."""
    import ssl

    paths = [ca_file(environ) or ssl.get_default_verify_paths().cafile, bundle]
    file = scratch / "authorities.pem"
    file.write_text("\n".join(Path(path).read_text() for path in paths if path and Path(path).is_file()))
    return file


def _netrc(credentials: Mapping[str, str], scratch: Path) -> Path:
    file = scratch / "netrc"
    file.touch(mode=0o600)
    lines = []
    for host, folder in credentials.items():
        login = read_folder(Path(folder))
        name = urlsplit(f"//{host}").hostname
        # https://packaging.python.org/en/latest/specifications/pypirc/: the user whose password is a token.
        user = login.user if (Path(folder) / "username").is_file() else "__token__"
        lines.append(f"machine {name} login {user} password {login.password}\n")
    file.write_text("".join(lines))
    return file


def failure(words: str) -> BuildError:
    """What uv's error stands for, with the index's addresses left out, which may be nobody's business."""
    text = "\n".join(line.rstrip() for line in words.splitlines() if line.strip())
    text = re.sub(r"^(?:error: |× )", "", text).replace("  ╰─▶ ", "").replace("  cause: ", "")
    text = re.sub(r"\+conda\b", " (from conda)", re.sub(r"://[^/\s@]+@", "://", text))
    text = re.sub(
        rf"(all versions of )?{SERVER}(==0)? depends?\b", "token_server, which serves the model, depends", text
    )
    if re.search(r"valid authentication credentials|\b(401 Unauthorized|403 Forbidden)\b", text):
        # To uv such an index just has nothing.
        return BuildError(
            "pip: the package index is not available: it wants a login (credentials by host, in the owner's settings)\n"
            f"{text}",
            "ChannelUnavailable",
        )
    if re.search(r"was not found in the package registry|not found in the provided package locations", text):
        missing = re.search(r"(?:Because )?(\S+) was not found", text)
        return BuildError(
            f"pip: no index has a package named {missing[1] if missing else '?'}\n{text}", "UnknownPackage"
        )
    if "No solution found" in text or "has no wheels" in text or "no usable wheels" in text:
        body = text.partition("\n")[2].strip() or text
        return BuildError(f"pip: {body}", "Unsolvable")
    if re.search(r"(Failed to fetch|error sending request|timed out|status (server|client) error|dns error)", text):
        return BuildError(f"pip: the package index is not available: {text}", "ChannelUnavailable")
    return BuildError(f"pip: {text}")


def _stub(folder: Path, name: str, version: str, lines: Sequence[str]) -> None:
    """A wheel of metadata alone."""
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        info = f"{stem}.dist-info"
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", head + "".join(f"{line}\n" for line in lines))
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def parse_answer(text: str) -> list[Locked]:
    """The wheels in uv's pylock.toml (PEP 751): of an index, or by their address (`archive`).

    Raises:
        BuildError: LockUnusable, for a file without a sha256.

    """
    found = []
    for package in tomllib.loads(text).get("packages", []):
        file: dict[str, Any] = package.get("archive") or next(iter(package.get("wheels", ())), {})
        parts = urlsplit(file.get("url", ""))
        sha256 = file.get("hashes", {}).get("sha256", "")
        if not parts.netloc or not sha256:
            raise BuildError(
                f"pip: the index gives no sha256 for {package['name']}: it cannot be locked", "LockUnusable"
            )
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        name = str(canonicalize_name(package["name"]))
        # In one form (2024.1, not 2024.01), as it will be read from the lock, whose digest covers it.
        version = str(Version(package.get("version") or _version_in(plain)))
        found.append(Locked("pypi", name, version, plain, sha256, size=file.get("size", 0)))
    return found


def _version_in(url: str) -> str:
    """Of a wheel, by its file's name; uv gives none for wheels by address."""
    return str(parse_wheel_filename(unquote(urlsplit(url).path.rpartition("/")[2]))[1])


def _as_pylock(packages: Sequence[Locked]) -> str:
    """The previous lock's wheels in the form in which uv takes them for its own earlier choice."""
    lines = ['lock-version = "1.0"', 'created-by = "uv"']
    for package in packages:
        lines += [
            "[[packages]]",
            f'name = "{package.name}"',
            f'version = "{package.version}"',
            f'wheels = [{{ url = "{package.url}", hashes = {{ sha256 = "{package.sha256}" }} }}]',
        ]
    return "\n".join(lines) + "\n"
