"""Which packages share a layer, and in which order layers lie: a pure function of the set of packages.

The largest packages have a layer each, the others lie in a few buckets by a hash of their names. Large packages are at
the bottom, by size class (powers of two) and then name, so that a new version of one keeps its place: a node unpacks
everything above the lowest layer that changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, TypeVar

IMAGE_LAYERS = 80
"""Layers of a whole image: mount options and some snapshotters end near 100."""
ALONE = 68
BUCKETS = 8
"""With a base of up to three layers and token_server's own this makes 80; environments on such bases share a plan."""


class Sized(Protocol):
    """What has a place in a plan. `size` in bytes, as downloaded; `kind` keeps apart what only names have in common."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def size(self) -> int: ...


P = TypeVar("P", bound=Sized)


@dataclass(frozen=True)
class Item:
    """A package as a plan sees it."""

    name: str
    sha256: str
    size: int
    kind: str = "conda"


@dataclass(frozen=True)
class Group(Generic[P]):
    """Packages that share a layer, sorted; `name` says in a log line which one it is."""

    name: str
    packages: tuple[P, ...]

    @cached_property
    def size(self) -> int:
        """Bytes of its packages, as downloaded."""
        return sum(package.size for package in self.packages)


def room(base_layers: int) -> int:
    """How many package layers an image can have above a base of so many layers."""
    return max(0, min(ALONE + BUCKETS, IMAGE_LAYERS - base_layers - 1))


def plan(packages: Iterable[P], limit: int = ALONE + BUCKETS) -> list[Group[P]]:
    """At most `limit` groups (at least one, if there are packages), lowest layer first; each package in one of them."""
    ordered = sorted(packages, key=_order)
    buckets = max(1, min(BUCKETS, limit))
    alone = min(ALONE, max(0, limit - buckets))
    groups = [Group(_label(package), (package,)) for package in ordered[:alone]]
    shared: dict[int, list[P]] = {}
    for package in ordered[alone:]:
        shared.setdefault(bucket_of(package.name, buckets), []).append(package)
    for number, found in sorted(shared.items()):
        groups.append(Group(f"bucket {number}", tuple(sorted(found, key=_by_name))))
    return groups


def bucket_of(name: str, buckets: int) -> int:
    """The bucket of a package, by its name alone: another version stays where the last one was."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % buckets


def merged(groups: Sequence[Group[P]], sets: Iterable[Iterable[int]]) -> list[Group[P]]:
    """The groups, of which those in one of `sets` (indexes) are one, in the place of the lowest of them."""
    root = list(range(len(groups)))

    def find(index: int) -> int:
        while root[index] != index:
            index = root[index]
        return index

    for each in sets:
        first, *others = sorted({find(index) for index in each})
        for other in others:
            root[other] = first
    members: dict[int, list[int]] = {}
    for index in range(len(groups)):
        members.setdefault(find(index), []).append(index)
    made = []
    for first, indexes in sorted(members.items()):
        if len(indexes) == 1:
            made.append(groups[first])
            continue
        packages = sorted((package for index in indexes for package in groups[index].packages), key=_by_name)
        made.append(Group(" + ".join(groups[index].name for index in indexes), tuple(packages)))
    return made


def _order(package: Sized) -> tuple[int, str, str, str]:
    return -package.size.bit_length(), package.name, package.kind, package.sha256


def _by_name(package: Sized) -> tuple[str, str, str]:
    return package.name, package.kind, package.sha256


def _label(package: Sized) -> str:
    version = getattr(package, "version", "")
    return f"{package.name} {version}".strip()
