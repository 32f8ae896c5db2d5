"""Deletes images, locks and layer notes that nothing needs any more.

What goes is decided by a pure function of what the repository holds. Only manifests are deleted; the space of their
blobs comes back when the registry collects its garbage, which is the registry's own work. An image that a build is just
making stands on nobody's list: whoever asks for a collection waits until no build runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tokenservice.api.jobs import CollectAnswer, CollectRequest, JobResult
from tokenservice.builder.errors import BuildError
from tokenservice.builder.progress import say
from tokenservice.builder.registry import Registry
from tokenservice.builder.settings import Settings

from .artifacts import environments_repository, open_registry

IMAGE, LOCK, NOTE = "image-", "lock-", "layer-"
_PARALLEL = 8


@dataclass(frozen=True)
class Content:
    """What the repository holds.

    Attributes:
        tags: tag -> digest of its manifest.
        layers: digest of each image's and note's manifest -> digests of its layers.

    """

    tags: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, frozenset[str]] = field(default_factory=dict)


def doomed(content: Content, keep: Iterable[str]) -> list[str]:
    """The digests to delete: images and locks first, then notes, so that an interruption leaves no image without notes.

    An image or a lock goes unless its digest is in `keep`, a note unless an image that stays has its layer. What has
    (also) a tag of another kind is not ours to delete.
    """
    keep = set(keep)
    foreign = {digest for tag, digest in content.tags.items() if not tag.startswith((IMAGE, LOCK, NOTE))}
    stays = keep | foreign
    made = {digest for tag, digest in content.tags.items() if tag.startswith((IMAGE, LOCK))}
    notes = {digest for tag, digest in content.tags.items() if tag.startswith(NOTE)} - made
    used = {layer for digest in stays for layer in content.layers.get(digest, frozenset())}
    unused = {digest for digest in notes - stays if not content.layers.get(digest, frozenset()) & used}
    return [*sorted(made - stays), *sorted(unused)]


def run(request: CollectRequest, settings: Settings) -> JobResult:
    """Collects. Raises BuildError where the registry does not allow deleting, or does not answer."""
    begun = time.monotonic()
    registry, place = open_registry(settings)
    answer = collect(registry, environments_repository(place), request.keep)
    return JobResult(collect=answer, seconds=round(time.monotonic() - begun, 3))


def collect(registry: Registry, repository: str, keep: Iterable[str]) -> CollectAnswer:
    """Deletes what `doomed` says; how many manifests were deleted, and how many stay."""
    keep = frozenset(keep)
    content = look(registry, repository, keep)
    going = doomed(content, keep)
    tags: dict[str, list[str]] = {}
    for tag, digest in content.tags.items():
        tags.setdefault(digest, []).append(tag)
    deleted = 0
    for digest in going:
        deleted += registry.delete_manifest(repository, digest)
        for tag in tags[digest]:
            # Some registries leave the tag behind; a tag that stands for something else by now was just made anew.
            if registry.resolve(repository, tag) == digest:
                registry.delete_tag(repository, tag)
    stay = len(set(content.tags.values())) - len(going)
    say(f"{registry.host}/{repository}: {deleted} manifests deleted, {stay} stay")
    return CollectAnswer(deleted=deleted, kept=stay)


def look(registry: Registry, repository: str, keep: frozenset[str]) -> Content:
    """Asks the repository for everything that the decision needs."""
    with ThreadPoolExecutor(_PARALLEL) as threads:
        tags = registry.list_tags(repository)
        digests = dict(zip(tags, threads.map(lambda tag: registry.resolve(repository, tag), tags), strict=True))
        found = {tag: digest for tag, digest in digests.items() if digest is not None}
        # Of images that go, nothing has to be known; one that stays may have no tag any more.
        known = {digest for tag, digest in found.items() if not tag.startswith((IMAGE, LOCK))} | keep
        wanted = sorted(known)
        layers = dict(zip(wanted, threads.map(_layers_of(registry, repository), wanted), strict=True))
    return Content(found, layers)


def _layers_of(registry: Registry, repository: str) -> Callable[[str], frozenset[str]]:
    def layers(digest: str) -> frozenset[str]:
        data = registry.find_manifest(repository, digest)
        try:
            content: Any = msgspec.json.decode(data) if data is not None else {}
            return frozenset(each["digest"] for each in content.get("layers") or ())
        except (msgspec.DecodeError, AttributeError, KeyError, TypeError) as error:
            raise BuildError(f"{registry.host}/{repository}@{digest} has no readable manifest") from error

    return layers
