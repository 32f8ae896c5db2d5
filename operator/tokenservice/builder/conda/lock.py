"""The lock of an environment: a pixi.lock with one environment, `default`, for one platform.

Format: https://pixi.prefix.dev/latest/workspace/lockfile/ (versions 4 to 7 are read, by rattler; 6 is written, which
all tools of pixi since 2024 read). What a lock is, is its packages: `lock_digest` is over them, never over bytes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from tokenservice.builder.errors import BuildError
from tokenservice.builder.oci import canonical_json, digest_of

LOCK_VERSION = 1
"""Counted up when the same packages would get another digest."""

ENVIRONMENT = "default"


@dataclass(frozen=True)
class Locked:
    """A package in a lock.

    Attributes:
        kind: conda, or pypi for a wheel.
        url: where its file is, as the channel itself or the index names it; without credentials.
        sha256: of the file, 64 hexadecimal digits.
        size: bytes of the file, 0 where nobody said it.
        noarch: "", python or generic.
        depends: what it asks for: MatchSpecs of a conda package, Requires-Dist of a wheel.
        site: where its Python has its site-packages, relative to the prefix; only python says it.

    """

    kind: Literal["conda", "pypi"]
    name: str
    version: str
    url: str
    sha256: str
    build: str = ""
    size: int = 0
    subdir: str = ""
    noarch: str = ""
    depends: tuple[str, ...] = ()
    constrains: tuple[str, ...] = ()
    site: str = ""
    more: Mapping[str, Any] | None = None
    """What else the channel says of a conda package (build number, md5, license, ...), kept as it is."""

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name


@dataclass(frozen=True)
class Lock:
    """Packages sorted by kind and name, and the channels they were chosen from, in order."""

    platform: str
    channels: tuple[str, ...]
    packages: tuple[Locked, ...]

    @property
    def conda(self) -> tuple[Locked, ...]:
        return tuple(package for package in self.packages if package.kind == "conda")

    @property
    def pypi(self) -> tuple[Locked, ...]:
        return tuple(package for package in self.packages if package.kind == "pypi")


def make_lock(platform: str, channels: Sequence[str], packages: Iterable[Locked]) -> Lock:
    """A lock with its packages in order."""
    return Lock(platform, tuple(channels), tuple(sorted(packages, key=lambda package: package.key)))


def lock_digest(lock: Lock) -> str:
    """The identity of a lock: a hash over its platform and packages."""
    packages = sorted([each.kind, each.name, each.version, each.build, each.sha256] for each in lock.packages)
    return digest_of(canonical_json([LOCK_VERSION, lock.platform, packages]))


def changes(before: Lock | None, after: Lock) -> list[str]:
    """What a new lock changes, a line for each package: `+ name 1.2`, `- name 1.1`, `~ name 1.1 -> 1.2`."""
    old = {package.key: package for package in before.packages} if before else {}
    new = {package.key: package for package in after.packages}
    lines = []
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key[1], key[0])):
        was, now = old.get(key), new.get(key)
        if was is None and now is not None:
            lines.append(f"+ {_named(now)}")
        elif now is None and was is not None:
            lines.append(f"- {_named(was)}")
        elif was and now and was.sha256 != now.sha256:
            lines.append(f"~ {now.name} {_version(was, now)} -> {_version(now, was)}{_pip(now)}")
    return lines


def _version(one: Locked, other: Locked) -> str:
    return f"{one.version} {one.build}".strip() if one.version == other.version else one.version


def _named(package: Locked) -> str:
    return f"{package.name} {package.version}{_pip(package)}"


def _pip(package: Locked) -> str:
    return " (pip)" if package.kind == "pypi" else ""


# Writing


def write_lock(lock: Lock) -> bytes:
    """The lock as a file: the same lock gives the same bytes."""
    references = [{package.kind: package.url} for package in lock.packages]
    document = {
        "version": 6,
        "environments": {
            ENVIRONMENT: {
                "channels": [{"url": _slash(channel)} for channel in lock.channels],
                "packages": {lock.platform: references},
            }
        },
        "packages": [_as_yaml(package) for package in lock.packages],
    }
    return yaml.dump(document, Dumper=_dumper(), sort_keys=False, width=1000, allow_unicode=True).encode()


_NUMBER_LIKE = re.compile(r"[-+]?[0-9.]")


def _dumper() -> Any:
    base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class Dumper(base):  # type: ignore[misc]
        """Quotes what begins like a number: YAML 1.2, which rattler reads, has more of them than YAML 1.1."""

    def text(dumper: Any, value: str) -> Any:
        style = "'" if _NUMBER_LIKE.match(value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper


def _slash(url: str) -> str:
    return url if url.endswith("/") else f"{url}/"


def _as_yaml(package: Locked) -> dict[str, Any]:
    if package.kind == "pypi":
        made: dict[str, Any] = {
            "pypi": package.url,
            "name": package.name,
            "version": package.version,
            "sha256": package.sha256,
        }
        if package.size:
            made["size"] = package.size  # ours: other tools pass it over; layers are planned by sizes
        if package.depends:
            made["requires_dist"] = list(package.depends)
        return made
    made = {"conda": package.url, **(package.more or {}), "sha256": package.sha256}
    for name in ("depends", "constrains"):
        if getattr(package, name):
            made[name] = list(getattr(package, name))
    if package.size:
        made["size"] = package.size
    if package.site:
        made["python_site_packages_path"] = package.site
    return made


# Reading


def read_lock(data: bytes, platform: str | None = None) -> Lock:
    """Reads a pixi.lock. `platform`: which of several; needed if there are several.

    Raises:
        BuildError: LockUnusable; it is none, has no such platform, or names a package without a sha256.

    """
    import rattler

    with tempfile.TemporaryDirectory(prefix="tokenservice-lock-") as folder:
        file = Path(folder) / "pixi.lock"
        file.write_bytes(data)
        try:
            content = rattler.LockFile.from_path(file)
        except Exception as error:  # rattler has one kind for all
            raise BuildError(f"the lock cannot be read: {error}", "LockUnusable") from error
    environment = content.environment(ENVIRONMENT)
    if environment is None:
        raise BuildError(f"the lock has no environment {ENVIRONMENT!r}", "LockUnusable")
    names = [each.name for each in environment.platforms()]
    if platform is None:
        if len(names) != 1:
            raise BuildError(f"the lock is for {', '.join(names)}: say which platform is meant", "LockUnusable")
        platform = names[0]
    found = next((each for each in environment.platforms() if each.name == platform), None)
    if found is None:
        raise BuildError(f"the lock is for {', '.join(names) or 'no platform'}, not for {platform}", "LockUnusable")
    sizes = _wheel_sizes(data)
    packages = [_sized(_locked(package), sizes) for package in environment.packages(found) or ()]
    lock = make_lock(platform, [str(channel).rstrip("/") for channel in _channels(environment)], packages)
    for package in lock.packages:
        if not package.sha256:
            raise BuildError(f"the lock has no sha256 for {package.name}: it cannot be checked", "LockUnusable")
        if package.kind == "pypi" and not package.url.startswith(("http://", "https://")):
            raise BuildError(f"the lock has {package.name} at {package.url}, which is no address", "LockUnusable")
    return lock


_WHEEL_SIZE = re.compile(rb"^- pypi: (\S+)\n(?: .*\n)*?  size: (\d+)$", re.MULTILINE)


def _wheel_sizes(data: bytes) -> dict[str, int]:
    """The sizes of wheels, by URL, which `write_lock` notes and rattler does not read."""
    return {url.decode(): int(size) for url, size in _WHEEL_SIZE.findall(data)}


def _sized(package: Locked, sizes: Mapping[str, int]) -> Locked:
    return replace(package, size=sizes[package.url]) if package.kind == "pypi" and package.url in sizes else package


def _channels(environment: Any) -> list[str]:
    return [channel.url if hasattr(channel, "url") else str(channel) for channel in environment.channels()]


def _locked(package: Any) -> Locked:
    """From rattler's own."""
    sha256 = _sha256(package.hashes)
    if hasattr(package, "requires_dist"):
        return Locked(
            "pypi",
            str(package.name),
            str(package.version),
            str(package.location),
            sha256,
            depends=tuple(sorted(package.requires_dist)),
        )
    if not hasattr(package, "repo_data_record"):
        raise BuildError(f"the lock has {package.name} as source; only built packages can be used", "LockUnusable")
    return from_record(package.repo_data_record())


def _sha256(hashes: Any) -> str:
    try:
        return bytes(hashes.sha256).hex() if hashes and hashes.sha256 else ""
    except AttributeError:  # rattler's way to say that there are no hashes at all
        return ""


def from_record(record: Any, url: str | None = None) -> Locked:
    """From a rattler.RepoDataRecord; `url` where it was solved at a mirror."""
    noarch = record.noarch
    kind = "python" if noarch.python else "generic" if noarch.generic else ""
    more = {
        "md5": bytes(record.md5).hex() if record.md5 else None,
        "license": record.license,
        "license_family": record.license_family,
    }
    return Locked(
        "conda",
        record.name.normalized,
        str(record.version),
        url or str(record.url),
        bytes(record.sha256).hex() if record.sha256 else "",
        build=str(record.build),
        size=record.size or 0,
        subdir=str(record.subdir),
        noarch=kind,
        depends=tuple(record.depends),
        constrains=tuple(record.constrains),
        site=record.python_site_packages_path or "",
        more={
            "build_number": record.build_number,
            **({"noarch": kind} if kind else {}),
            **{name: value for name, value in more.items() if value},
            "subdir": str(record.subdir),
            "name": record.name.normalized,
            "version": str(record.version),
            "build": str(record.build),
        },
    )
