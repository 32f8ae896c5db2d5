"""Makes the image of a lock and pushes it: what a build Job does, and `tokenservice env build`.

image-<key>: there already, and it is answered; nothing is done. Base: resolved to a digest, its layers copied or
mounted. Layers: found by their notes; the others are staged, packed, pushed and noted, several at once; those that want
different files at one path become one layer. Image: config, manifest, tag, in this order.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokenservice.api.jobs import BuildAnswer, BuildRequest, JobResult
from tokenservice.builder.base_image import Base, describe
from tokenservice.builder.errors import BuildError
from tokenservice.builder.layers import Compression
from tokenservice.builder.names import parse_reference
from tokenservice.builder.oci import MANIFEST, Descriptor, Image, digest_of
from tokenservice.builder.progress import human_bytes, say
from tokenservice.builder.project import ProjectWheel
from tokenservice.builder.registry import Registry
from tokenservice.builder.settings import Settings, allowed
from tokenservice.builder.store import layer_key, scratch_folder

from .artifacts import copy_base, environments_repository, open_reference, open_registry, pull_lock, pull_name
from .image import compose, run_config
from .layer_build import LayerBuild, Made, clashes
from .layer_plan import merged, plan, room
from .packages import Archives, Package, Sources, needed_to_run
from .stage import Stage
from .token_server import token_server_wheel

if TYPE_CHECKING:
    from .lock import Lock

IMAGE_FORMAT = 1
"""Counted up when the same layers would get another config or manifest."""
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class Wanted:
    """An image to make.

    Attributes:
        packages: of the lock.
        lock_digest: over these packages.
        platform: conda's name of it.
        base_image: its reference.
        name: of the environment.
        variables: that the environment declares.

    """

    packages: Sequence[Package]
    lock_digest: str
    platform: str
    base_image: str
    name: str
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where an image goes, and where what it is made of comes from.

    `archives`: a folder that packages are kept in, or None to keep none. `scratch`: for files of this build alone.
    """

    registry: Registry
    repository: str
    sources: Sources
    scratch: Path
    archives: Path | None = None
    compression: Compression = "zstd"


def run(request: BuildRequest, settings: Settings) -> JobResult:
    """The Job. Raises BuildError with its reason."""
    from .channels import sources
    from .lock import lock_digest, read_lock

    registry, place = open_registry(settings)
    lock = read_lock(pull_lock(request.lock, settings, registry), request.platform)
    found = lock_digest(lock)
    if found != request.lock_digest:
        raise BuildError(f"{request.lock} is the lock {found}, and {request.lock_digest} is wanted", "LockUnusable")
    base = request.base_image or settings.base_image
    if not base:
        raise BuildError("there is no base image: spec.baseImage or the owner's setting baseImage names one")
    check_base(base, settings)
    wanted = Wanted(packages_of(lock), found, request.platform, base, request.name, request.variables)
    archives = Path(settings.cache_folder) / "packages" if settings.cache_folder else None
    scratch = Path(tempfile.gettempdir()) / "tokenservice-build"
    where = Place(registry, environments_repository(place), sources(settings), scratch, archives)
    answer = build(wanted, where, settings)
    return JobResult(build=msgspec.structs.replace(answer, image=pull_name(settings, answer.image)))


def check_base(text: str, settings: Settings) -> None:
    """Raises BuildError, BaseImageNotAllowed, unless the owner allows environments to be built on this image.

    Patterns are compared with the image's whole name, host and tag or digest included, and with the name without these.
    """
    if text == settings.base_image or not settings.base_images:
        return
    reference = parse_reference(text)
    names = (str(reference), f"{reference.host}/{reference.repository}")
    if not any(allowed(name, settings.base_images) for name in names):
        told = ", ".join(settings.base_images)
        raise BuildError(
            f"the cluster's owner does not allow the base image {reference}; allowed are {told}, and the "
            "owner's own, without spec.baseImage",
            "BaseImageNotAllowed",
        )


def packages_of(lock: Lock) -> list[Package]:
    """The packages of a lock, as layers need them."""
    return [
        Package(
            each.kind, each.name, each.version, each.url, each.sha256, each.size, each.noarch, each.depends, each.site
        )
        for each in lock.packages
    ]


def build(wanted: Wanted, place: Place, settings: Settings) -> BuildAnswer:
    """Makes what the registry lacks of the image; the answer names it as we reach the registry."""
    with _told_when_full():
        return _Build(wanted, place, settings).answer()


@contextmanager
def _told_when_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        text = "the disk of this Job is full: give the chart's scratch volume more room"
        raise BuildError(f"{text} ({error.filename or error.strerror})", "DiskFull") from error


class _Build:
    def __init__(self, wanted: Wanted, place: Place, settings: Settings) -> None:
        self._wanted, self._place, self._settings = wanted, place, settings
        self._registry, self._repository = place.registry, place.repository
        self._begun = time.monotonic()

    def answer(self) -> BuildAnswer:
        wanted, registry = self._wanted, self._registry
        if not any(package.is_python for package in wanted.packages):
            raise BuildError("the lock has no python, and token_server needs one", "LockUnusable")
        source, reference = open_reference(self._settings, wanted.base_image)
        with ThreadPoolExecutor(1) as side:
            wheel_made = side.submit(token_server_wheel)
            base = describe(registry if source.host == registry.host else source, reference, wanted.platform)
            wheel = wheel_made.result()
        tag = f"image-{self._key(base, wheel)}"
        there = registry.find_manifest(self._repository, tag)
        if there is not None:
            say(f"the image is there already: {tag}")
            return self._answer_of(there, base)
        if room(len(base.layers)) == 0:
            text = f"{base.reference} has {len(base.layers)} layers, too many for an environment's to fit on top"
            raise BuildError(text, "InvalidEnvironment")
        copied = copy_base(registry, self._repository, base.reference, wanted.platform, self._settings)
        layers = self._layers(len(base.layers), wheel)
        return self._push(copied, layers, tag)

    def _key(self, base: Base, wheel: ProjectWheel) -> str:
        wanted = self._wanted
        parts = [IMAGE_FORMAT, base.digest, wanted.lock_digest, wanted.name, dict(wanted.variables), wheel.sha256]
        return layer_key("env", [*parts, self._place.compression]).removeprefix("env-")

    def _layers(self, base_layers: int, wheel: ProjectWheel) -> list[Made]:
        wanted, place = self._wanted, self._place
        groups = plan(wanted.packages, room(base_layers))
        with scratch_folder(place.scratch) as scratch:
            archives = Archives(place.archives or scratch / "archives", place.sources, keep=place.archives is not None)
            stage = Stage(scratch / "stage", wanted.packages, archives.fetch, self._settings.post_link_scripts)
            # Other threads may be about to unpack these, too: to run Python, or a script.
            shared = set(
                wanted.packages if self._settings.post_link_scripts else needed_to_run("python", wanted.packages)
            )
            making = LayerBuild(
                self._registry,
                self._repository,
                stage,
                scratch,
                max(2, min(4, len(os.sched_getaffinity(0)))),
                lambda packed: archives.forget(package for package in packed if package not in shared),
                place.compression,
            )
            made = making.layers(groups)
            # Merging never makes more layers, so this ends.
            while sets := clashes([each.note.paths for each in made]):
                for each in sets:
                    names = " and ".join(groups[index].name for index in sorted(each))
                    say(f"{names} have different files at one path: they share a layer")
                groups = merged(groups, sets)
                made = making.layers(groups)
            file = scratch / wheel.filename
            file.write_bytes(wheel.content)
            top = making.top(file, Package("pypi", wheel.name, wheel.version, "", wheel.sha256))
        return [*made, top]

    def _push(self, base: Base, layers: Sequence[Made], tag: str) -> BuildAnswer:
        wanted, registry = self._wanted, self._registry
        self._tell_scripts(layers)
        variables = {name: value for each in layers for name, value in each.note.variables.items()}
        config = run_config(base, wanted.name, wanted.lock_digest, variables, wanted.variables)
        image = compose(base, [each.layer for each in layers], config)
        sent = base.pushed_bytes + sum(each.sent for each in layers)
        sent += registry.push_blob(self._repository, image.config_descriptor, lambda: io.BytesIO(image.config))
        sent += registry.push_manifest(self._repository, image.manifest, MANIFEST, tag)
        total = _size(image, base)
        shared = sum(each.note.size for each in layers if not each.new)
        shared += max(0, base.size - base.pushed_bytes)
        seconds = time.monotonic() - self._begun
        say(
            f"image {image.digest}: {len(wanted.packages)} packages in {len(base.layers) + len(layers)} layers, "
            f"{human_bytes(total)}, of which {human_bytes(sent)} were pushed, in {seconds:.1f} s"
        )
        name = f"{registry.host}/{self._repository}@{image.digest}"
        return BuildAnswer(
            image=name,
            base=base.reference,
            bytes_total=total,
            bytes_pushed=sent,
            bytes_shared=shared,
            layers=len(base.layers) + len(layers),
        )

    def _answer_of(self, manifest: bytes, base: Base) -> BuildAnswer:
        content = msgspec.json.decode(manifest)
        layers = [Descriptor(each["mediaType"], each["digest"], each["size"]) for each in content["layers"]]
        stored = sum(each.size for each in layers)
        return BuildAnswer(
            image=f"{self._registry.host}/{self._repository}@{digest_of(manifest)}",
            base=base.reference,
            bytes_total=stored + len(manifest) + content["config"]["size"],
            bytes_pushed=0,
            bytes_shared=stored,
            layers=len(layers),
        )

    def _tell_scripts(self, layers: Sequence[Made]) -> None:
        """An image starts a program, not a shell: what activate.d would do is not done, and that is said."""
        paths = (path for each in layers for path in each.note.paths)
        scripts = sorted(path for path in paths if path.startswith("etc/conda/activate.d/"))
        if scripts:
            say(f"scripts that conda runs when a shell activates the environment are not run: {', '.join(scripts)}")


def _size(image: Image, base: Base) -> int:
    return image.size + base.size
