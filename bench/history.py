"""make bench-history: what the changes of real projects' locks cost, in our layers and in a layer for each package.

Some projects put their pixi.lock into the source distributions that they publish, so the releases of such a project are
a history of its lock. Every two successive locks that differ are one change. For each, the bytes are counted of the
layers that the image after it has and the one before it had not; and, beside them, of the packages, as if each had a
layer of its own, which no image could have: there may be a hundred layers at most, and these locks have more packages.
Sizes are those of the packages as downloaded, from the locks themselves; nothing is built.

    python -m bench.history [--releases N] [PROJECT ...]

The table goes to standard output, and on the last line stands one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import statistics
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from packaging.utils import InvalidSdistFilename, parse_sdist_filename
from packaging.version import Version
from pip._internal.models.index import PyPI
from tokenservice.builder.conda.layer_plan import Sized, plan
from tokenservice.builder.conda.lock import read_lock
from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import Http
from tokenservice.builder.wheels import pip_settings
from urllib3.exceptions import HTTPError

from bench.cluster import BenchError
from bench.program import run

PROJECTS = ("dataframely", "glum", "multiregex", "ndonnx", "tabmat")
ACCEPT = "application/vnd.pypi.simple.v1+json"
PLATFORM = "linux-64"
RELEASES = 60
GOAL = 1.1
AT_ONCE = 4

_http = Http()


@dataclass(frozen=True)
class Release:
    """A source distribution of the index."""

    version: Version
    url: str
    sha256: str


@dataclass(frozen=True)
class Change:
    """Bytes that come with one change: in our layers, and package by package."""

    layers: int
    packages: int


@dataclass(frozen=True)
class History:
    """One project: its locks, how many packages and layers the last one has, and the changes between them."""

    project: str
    locks: int
    packages: int
    layers: int
    changes: tuple[Change, ...]

    @property
    def ratio(self) -> float | None:
        """Bytes in our layers over bytes package by package, of all changes together."""
        alone = sum(change.packages for change in self.changes)
        return round(sum(change.layers for change in self.changes) / alone, 3) if alone else None

    @property
    def median(self) -> float | None:
        """The same, of the change in the middle."""
        return round(statistics.median(self._ratios), 3) if self._ratios else None

    @property
    def worst(self) -> float | None:
        """The same, of the change for which it is highest."""
        return round(max(self._ratios), 3) if self._ratios else None

    @property
    def _ratios(self) -> list[float]:
        return [change.layers / change.packages for change in self.changes]


def say(text: str) -> None:
    print(f"bench-history: {text}", file=sys.stderr, flush=True)


def releases(project: str, answer: Any) -> list[Release]:
    """The source distributions in an index's answer (PEP 691), in the order of their versions."""
    found = {}
    for file in answer["files"]:
        try:
            _, version = parse_sdist_filename(file["filename"])
        except InvalidSdistFilename:
            continue
        if "sha256" in file["hashes"]:
            found[version] = Release(version, file["url"], file["hashes"]["sha256"])
    if not found:
        raise BenchError(f"{project} has no source distributions at {_index()}")
    return [found[version] for version in sorted(found)]


def lock_of(archive: bytes) -> bytes | None:
    """The pixi.lock at the top of a source distribution."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if re.fullmatch(r"[^/]+/pixi\.lock", member.name) and (file := tar.extractfile(member)):
                return file.read()
    return None


def changes(locks: Iterable[Sequence[Sized]]) -> Iterator[Change]:
    """What comes with each of the locks after the first; those that bring nothing are none."""
    for before, after in pairwise(locks):
        had = {_key([package]) for package in before}
        alone = sum(package.size for package in after if _key([package]) not in had)
        groups = {_key(group.packages) for group in plan(before)}
        together = sum(group.size for group in plan(after) if _key(group.packages) not in groups)
        if alone:
            yield Change(together, alone)


def _key(packages: Iterable[Sized]) -> frozenset[tuple[str, str, str]]:
    return frozenset((package.kind, package.name, package.sha256) for package in packages)


def history(project: str, locks: Sequence[Sequence[Sized]]) -> History:
    last = locks[-1] if locks else ()
    return History(project, len(locks), len(last), len(plan(last)), tuple(changes(locks)))


def measure(projects: Sequence[str], most: int) -> list[History]:
    """Raises BenchError."""
    made = []
    for project in projects:
        answer = json.loads(_get(f"{_index()}/{project}/", Accept=ACCEPT))
        newest = releases(project, answer)[-most:]
        say(f"{project}: {len(newest)} releases")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(lambda release, project=project: _lock(project, release), newest))
        # A release whose lock did not change, or that has none that we read, is no step.
        unique: list[bytes] = []
        for lock in found:
            if lock is not None and lock not in unique[-1:]:
                unique.append(lock)
        read = [packages for lock in unique if (packages := _packages(project, lock))]
        made.append(history(project, read))
        say(f"{project}: {len(read)} locks, {len(made[-1].changes)} changes, ratio {made[-1].ratio}")
    return made


def _lock(project: str, release: Release) -> bytes | None:
    archive = _get(urljoin(f"{_index()}/{project}/", release.url))
    if hashlib.sha256(archive).hexdigest() != release.sha256:
        raise BenchError(f"{project} {release.version}: the archive is not what the index says")
    return lock_of(archive)


def _packages(project: str, lock: bytes) -> Sequence[Sized]:
    try:
        return read_lock(lock, PLATFORM).packages
    except BuildError as error:
        say(f"{project}: a lock is left out: {error}")
        return ()


def _index() -> str:
    """The package index that the machine's pip is told to use, else pip's own default."""
    return (pip_settings(os.environ).get("UV_DEFAULT_INDEX") or PyPI.simple_url).rstrip("/")


def _get(url: str, **headers: str) -> bytes:
    try:
        answer = _http.open("GET", url, headers)
        data = answer.read(decode_content=True)
    except HTTPError as error:
        raise BenchError(f"the package index does not answer: {error}") from error
    if answer.status != 200:
        raise BenchError(f"the package index answers {answer.status} for {url}")
    return data


def table(found: Sequence[History]) -> str:
    lines = [
        f"{'project':<14}{'locks':>7}{'packages':>10}{'layers':>8}{'changes':>9}{'ratio':>8}{'median':>8}{'worst':>8}"
    ]
    for each in found:
        counts = f"{each.locks:>7}{each.packages:>10}{each.layers:>8}{len(each.changes):>9}"
        lines.append(f"{each.project:<14}{counts}{each.ratio or '-':>8}{each.median or '-':>8}{each.worst or '-':>8}")
    return "\n".join(lines)


def result(found: Sequence[History]) -> dict[str, Any]:
    every = [change for each in found for change in each.changes]
    alone = sum(change.packages for change in every)
    return {
        "changes": len(every),
        "layers_over_packages": round(sum(change.layers for change in every) / alone, 3) if alone else None,
        "goal": GOAL,
        "projects": {
            each.project: {
                **{key: value for key, value in asdict(each).items() if key not in ("project", "changes")},
                "changes": len(each.changes),
                "ratio": each.ratio,
                "median": each.median,
                "worst": each.worst,
            }
            for each in found
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-history", description=__doc__.partition("\n")[0])
    parser.add_argument("projects", nargs="*", default=PROJECTS, metavar="PROJECT")
    parser.add_argument("--releases", type=int, default=RELEASES, help="the newest of each project (default: 60)")
    arguments = parser.parse_args()
    if arguments.releases < 2:
        parser.error("--releases must be at least 2")

    def work(_: Path) -> list[History]:
        return measure(tuple(arguments.projects), arguments.releases)

    return run("history", work, table, result, say)


if __name__ == "__main__":
    sys.exit(main())
