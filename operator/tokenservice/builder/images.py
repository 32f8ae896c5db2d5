"""The images of this project: what is in each, and pushing one.

| image | content |
| --- | --- |
| base | Debian with glibc, certificates and Python: the slim base of conda environments |
| operator | base, locked dependencies, token_server's wheel as a file, the tokenservice package |
| serving | base, PyTorch with CUDA, transformers, token_server |
| serving-cpu-standins | the same, with stand-ins for most CUDA libraries: for machines without a GPU |
| token-server-standin | base and a small server of the standard library alone: for end-to-end tests |
| models/NAME | a folder of files at the image's root: for image volumes and init containers |
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from . import cuda_standins
from .base import USER_ID, Base, this_architecture
from .conda import token_server
from .environment import PREFIX, SITE, Environments
from .errors import BuildError
from .http import Http
from .layers import Compression, Entry, LayerFile, entries_below
from .names import Place
from .oci import MANIFEST, Image, Layer, RunConfig, image
from .progress import LineMeter, human_bytes, say
from .project import ProjectWheel, project_wheel
from .registry import Registry, open_file
from .store import LayerStore, layer_key
from .wheels import WheelCache

# Layers of one image are looked for in the others' repositories before they are sent.
REPOSITORIES = {
    "base": "tokenservice/base",
    "operator": "tokenservice/operator",
    "serving": "tokenservice/serving",
    "serving-cpu-standins": "tokenservice/serving-cpu-standins",
    "token-server-standin": "tokenservice/token-server-standin",
}
MODELS = "models"
# A model's file from this size on (bytes) has a layer of its own, so that nodes pull several at once.
MODEL_FILE_ALONE = 64 << 20
_USER = f"{USER_ID}:{USER_ID}"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PYTHON_ENV = {"LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
_LABEL = "org.opencontainers.image."


class Builder:
    """Makes images with the caches below one folder."""

    def __init__(self, cache: Path, source: Path, http: Http, compression: Compression = "zstd") -> None:
        self.source = source
        self.store = LayerStore(cache / "images", compression)
        self.base = Base(LayerStore(cache / "base", compression))
        self.wheels = WheelCache(cache / "wheels", http)
        self.environments = Environments(self.store, self.base, self.wheels)
        self.architecture = this_architecture()

    def blob(self, layer: Layer) -> Path:
        """Where a layer's file lies."""
        path = self.store.blob(layer.file.digest)
        return path if path.exists() else self.base.store.blob(layer.file.digest)

    def make(self, name: str) -> Image:
        """One of `REPOSITORIES`, from the caches as far as they go."""
        makers = {
            "base": self._base,
            "operator": self._operator,
            "serving": lambda: self._serving(standins=False),
            "serving-cpu-standins": lambda: self._serving(standins=True),
            "token-server-standin": self._token_server_standin,
        }
        try:
            return makers[name]()
        finally:
            self.environments.close()

    def model(self, folder: Path, name: str) -> Image:
        """A folder of a model's files, at the image's root."""
        layers = [
            Layer(self._model_layer(folder, files), comment) for comment, files in model_groups(model_files(folder))
        ]
        run = RunConfig(user=_USER, labels={_LABEL + "title": f"model {name}"})
        return image(layers, run, self.architecture)

    def _base(self) -> Image:
        run = RunConfig(
            env={"PATH": _SYSTEM_PATH, "LANG": "C.UTF-8"}, user=_USER, labels={_LABEL + "title": "slim base image"}
        )
        return image([self.base.layer()], run, self.architecture)

    def _operator(self) -> Image:
        wheel = project_wheel(self.source)
        layers = self._environment_layers("requirements.lock")
        run = RunConfig(
            entrypoint=["tokenservice"],
            env={"PATH": f"/opt/env/bin:{_SYSTEM_PATH}", **_PYTHON_ENV},
            user=_USER,
            ports=[8080],
            labels=_labels("tokenservice-operator", wheel),
        )
        return image([*layers, self._carried(), self.environments.project_layer(wheel)], run, self.architecture)

    def _carried(self) -> Layer:
        """token_server's wheel as a file: Jobs, which run in this image, put it on top of environments."""
        wheel = project_wheel(self.source / "service_image/token_server")
        entry = Entry(f"{PREFIX}/{token_server.FOLDER}/{wheel.filename}", 0o644, content=wheel.content)
        file = self.store.make(layer_key("carried", [entry.path, wheel.sha256]), lambda: nullcontext([entry]))
        return Layer(file, f"the wheel of {wheel.name} {wheel.version}")

    def _serving(self, *, standins: bool) -> Image:
        wheel = project_wheel(self.source / "service_image/token_server")
        title = "token-server with stand-ins for CUDA libraries (CPU only)" if standins else "token-server"
        labels = _labels(title, wheel)
        if standins:
            labels["tokenservice.dev/cuda"] = "stand-ins"
        layers = self._environment_layers("service_image/requirements.lock", standins=standins)
        run = RunConfig(
            entrypoint=["token-server"],
            env={
                "PATH": f"/opt/env/bin:{_SYSTEM_PATH}",
                **_PYTHON_ENV,
                "HF_HOME": "/var/cache/tokenservice/huggingface",
                # Which GPUs a container sees is the device plugin's decision; what of the driver, ours.
                "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
            },
            user=_USER,
            ports=[8000],
            labels=labels,
        )
        return image([*layers, self.environments.project_layer(wheel)], run, self.architecture)

    def _environment_layers(self, lock: str, *, standins: bool = False) -> list[Layer]:
        path = self.source / lock
        try:
            wheels = self.wheels.select(path.read_text(), self.architecture)
        except FileNotFoundError:
            raise BuildError(f"{path} is missing: make it with `make lock`") from None
        base = self.base.layer()
        if not standins:
            return [base, self.environments.scaffold_layer(), *self.environments.package_layers(wheels)]
        kept, replaced = cuda_standins.split(wheels)
        packages = self.environments.package_layers(kept)
        torch = next((layer for layer in packages if layer.comment.startswith("torch ")), None)
        if torch is None:
            raise BuildError(f"{lock} has no torch, for which CUDA libraries could be replaced")
        made = cuda_standins.layer(self.store, torch, [each.name for each in replaced], SITE)
        return [base, self.environments.scaffold_layer(), *packages, made]

    def _token_server_standin(self) -> Image:
        folder = self.source / "tests/e2e/standin_server"
        if not (folder / "standin.py").is_file():
            raise BuildError(f"{folder}/standin.py is missing")
        entries = [entry for entry in entries_below(folder, "opt/standin") if "__pycache__" not in entry.path]
        content = [[entry.path, entry.source.read_text() if entry.source else ""] for entry in entries]
        key = layer_key("standin", sorted(content))
        run = RunConfig(
            entrypoint=["/usr/bin/python3.11", "-I", "/opt/standin/standin.py"],
            env={"PATH": _SYSTEM_PATH, **_PYTHON_ENV},
            user=_USER,
            ports=[8000],
            labels={_LABEL + "title": "stand-in for token-server, for tests"},
        )
        layer = Layer(self.store.make(key, lambda: nullcontext(entries)), "stand-in for token-server")
        return image([self.base.layer(), layer], run, self.architecture)

    def _model_layer(self, folder: Path, files: Sequence[Path]) -> LayerFile:
        # By name, size and time, as make does it: hashing gigabytes would take longer than pushing nothing.
        stats = [(file, (folder / file).stat()) for file in files]
        key = layer_key(
            "model", [[file.as_posix(), found.st_size, found.st_mtime_ns, found.st_ino] for file, found in stats]
        )

        @contextmanager
        def staged() -> Iterator[list[Entry]]:
            yield [Entry(file.as_posix(), 0o644, source=folder / file) for file in files]

        return self.store.make(key, staged)


def _labels(title: str, wheel: ProjectWheel) -> dict[str, str]:
    # No revision and no time: the same content is to have the same digest.
    return {_LABEL + "title": title, _LABEL + "version": wheel.version, _LABEL + "licenses": "Apache-2.0"}


def model_files(folder: Path) -> list[tuple[Path, int]]:
    """The files below `folder` (relative) with their sizes; links are followed, as the hub's cache is made of them.

    Hidden files and folders are left out.
    """
    if not folder.is_dir():
        raise BuildError(f"--from {folder}: there is no such folder")
    found = []
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(here, name)
            if not name.startswith(".") and path.is_file():
                found.append((path.relative_to(folder), path.stat().st_size))
    if not found:
        raise BuildError(f"--from {folder}: there are no files in it")
    return sorted(found)


def model_groups(files: Sequence[tuple[Path, int]]) -> list[tuple[str, list[Path]]]:
    """Which files share a layer: each large one alone, the others together on top."""
    groups = [(file.as_posix(), [file]) for file, size in files if size > MODEL_FILE_ALONE]
    rest = [file for file, size in files if size <= MODEL_FILE_ALONE]
    return [*groups, ("the other files", rest)] if rest else groups


@dataclass(frozen=True)
class Pushed:
    """What a push did: `bytes` of the whole image, `pushed_bytes` of it sent now, in `seconds`."""

    image: str
    tag: str
    layers: int
    bytes: int
    pushed_bytes: int
    seconds: float

    def as_json(self) -> Mapping[str, object]:
        return {**self.__dict__, "seconds": round(self.seconds, 2)}


@dataclass(frozen=True)
class Target:
    """Where an image goes: `repository` without the place's prefix."""

    registry: Registry
    place: Place
    repository: str
    tag: str


def push_image(made: Image, blob: Callable[[Layer], Path], target: Target, begun: float) -> Pushed:
    """Layers, config, manifest, tag, in this order, so that a tag never names what is not there.

    `blob` gives a layer's file; `begun` is when the work began, of the monotonic clock.
    """
    registry, place, repository = target.registry, target.place, target.repository
    name = place.repository(repository)
    neighbours = [place.repository(other) for other in REPOSITORIES.values() if other != repository]
    sent = 0
    for number, layer in enumerate(made.layers, 1):
        label = f"pushing layer {number} of {len(made.layers)} ({layer.comment})"
        count = registry.push_blob(name, layer.descriptor, open_file(blob(layer)), neighbours, LineMeter(label))
        if count:
            say(f"pushed layer {number} of {len(made.layers)}, {human_bytes(count)}: {layer.comment}")
        sent += count
    sent += registry.push_blob(name, made.config_descriptor, lambda: io.BytesIO(made.config))
    sent += registry.push_manifest(name, made.manifest, MANIFEST, target.tag)
    seconds = time.monotonic() - begun
    reference = f"{place.host}/{name}@{made.digest}"
    return Pushed(reference, target.tag, len(made.layers), made.size, sent, seconds)
