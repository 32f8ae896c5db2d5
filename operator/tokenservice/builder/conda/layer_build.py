"""Layers of packages in the registry: those that are there are found by their notes, the others made and pushed.

A layer is noted as soon as it is pushed, so that a build that is killed and begun again goes on where it was.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tokenservice.builder.layers import Compression, Entry, LayerFile, text_file, write_layer
from tokenservice.builder.oci import Layer
from tokenservice.builder.progress import LineMeter, human_bytes, say
from tokenservice.builder.registry import Registry, open_file
from tokenservice.builder.store import layer_key

from .artifacts import LayerNote, layer_note, push_layer_note
from .layer_plan import Group
from .link import FOLDER, LINK, PREFIX, Python
from .normalise import without_login
from .packages import Package
from .stage import RECIPE, Stage, Staged, entries

_ASKED_AT_ONCE = 8


@dataclass(frozen=True)
class Made:
    """A layer that the registry holds, and what it took: `sent` bytes, `new` if it was not there before."""

    note: LayerNote
    comment: str
    sent: int = 0
    new: bool = False

    @property
    def layer(self) -> Layer:
        note = self.note
        return Layer(LayerFile(note.digest, note.diff_id, note.size, note.media_type), self.comment)


def group_key(packages: Iterable[Package], python: Python | None, compression: Compression = "zstd") -> str:
    """What a layer of these packages is found by: everything that its bytes depend on."""
    packages = list(packages)
    parts = sorted(
        [each.kind, each.name, each.sha256, without_login(each.url) if each.kind == "conda" else ""]
        for each in packages
    )
    place = python.site if python is not None and any(each.has_python_code for each in packages) else ""
    return layer_key("conda", [RECIPE, PREFIX, compression, place, parts])


def clashes(contents: Sequence[Mapping[str, str]]) -> list[set[int]]:
    """Which layers (indexes) want different things at one path, by what notes say: each set must become one layer.

    The same file in several is none: it does not matter which is on top.
    """
    found: list[set[int]] = []
    owner: dict[str, int] = {}
    links: dict[str, int] = {}
    for index, paths in enumerate(contents):
        for path, known in paths.items():
            first = owner.setdefault(path, index)
            if first != index and contents[first][path] != known:
                found.append({first, index})
            if known.startswith(LINK):
                links[path] = index
    if not links:
        return found
    # A file below a folder that is a link in another layer would replace the link.
    for index, paths in enumerate(contents):
        for path in paths:
            end = path.rfind("/")
            while end > 0:
                at = links.get(path[:end])
                if at is not None and at != index:
                    found.append({at, index})
                end = path.rfind("/", 0, end)
    return found


def install_order(packages: Sequence[Package]) -> list[Package]:
    """What others depend on first, wheels last: where two have a file, the later one's is taken, as conda does it."""
    by_name = {package.name: package for package in packages if package.kind == "conda"}
    ordered: list[Package] = []
    state: dict[str, bool] = {}

    def visit(name: str) -> None:
        package = by_name.get(name)
        if package is None or name in state:
            return
        state[name] = True
        for each in sorted(depend.split(" ", 1)[0] for depend in package.depends):
            visit(each)
        ordered.append(package)

    for name in sorted(by_name):
        visit(name)
    wheels = sorted((each for each in packages if each.kind != "conda"), key=lambda each: each.name)
    return [*ordered, *wheels]


@dataclass
class LayerBuild:
    """Makes the layers of one lock. `jobs`: how many at once; `done_with` is told which packages are packed."""

    registry: Registry
    repository: str
    stage: Stage
    scratch: Path
    jobs: int = 2
    done_with: Callable[[Iterable[Package]], None] = lambda _: None
    compression: Compression = "zstd"
    _known: dict[str, Made] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _number: int = field(default=0, init=False)
    _total: int = field(default=0, init=False)

    def layers(self, groups: Sequence[Group[Package]]) -> list[Made]:
        """The layers of these groups, in their order."""
        keys = [group_key(group.packages, self.stage.python, self.compression) for group in groups]
        self._find([key for key in keys if key not in self._known])
        missing = [(key, group) for key, group in zip(keys, groups, strict=True) if key not in self._known]
        if missing:
            size = sum(group.size for _, group in missing)
            say(f"{len(missing)} of {len(groups)} layers are to be made, of {human_bytes(size)} of packages")
        self._total += len(missing)
        self._run([partial(self._make, key, group) for key, group in missing])
        return [replace(self._known[key], comment=group.name) for key, group in zip(keys, groups, strict=True)]

    def top(self, wheel: Path, package: Package) -> Made:
        """The layer of token_server, with what makes conda see an environment."""
        key = layer_key("top", [RECIPE, PREFIX, self.compression, self.stage.python and self.stage.python.site,
                                package.sha256])  # fmt: skip
        self._find([key])
        if key not in self._known:
            staged = [self.stage.project(wheel, package)]
            history = text_file(f"{PREFIX}/conda-meta/history", "")
            self._total += 1
            self._push(key, f"{package.name} {package.version}", staged, [*entries(staged), history])
        return replace(self._known[key], comment=f"{package.name} {package.version}")

    def _find(self, keys: Sequence[str]) -> None:
        def ask(key: str) -> tuple[str, LayerNote | None]:
            return key, layer_note(self.registry, self.repository, key)

        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            for key, note in pool.map(ask, keys):
                if note is not None:
                    self._known[key] = Made(note, "")

    def _run(self, work: Sequence[Callable[[], None]]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            running = [pool.submit(each) for each in work]
            try:
                for each in running:
                    each.result()
            except BaseException:
                # What runs finishes its upload; nothing else begins.
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _make(self, key: str, group: Group[Package]) -> None:
        staged = self.stage.stage(install_order(group.packages))
        try:
            self._push(key, group.name, staged, entries(staged))
        finally:
            self.stage.discard(staged)
            self.done_with(group.packages)

    def _push(self, key: str, name: str, staged: Sequence[Staged], content: Sequence[Entry]) -> None:
        begun = time.monotonic()
        out = self.scratch / key
        file = write_layer(content, out, self.compression, durable=False)
        note = LayerNote(
            file.digest,
            file.diff_id,
            file.size,
            file.media_type,
            {path: _short(known) for each in staged for path, known in each.known.items()},
            {variable: value for each in staged for variable, value in each.variables.items()},
        )
        packed = time.monotonic()
        sent = self.registry.push_blob(
            self.repository, note.descriptor, open_file(out), meter=LineMeter(f"pushing {name}")
        )
        sent += push_layer_note(self.registry, self.repository, key, note)
        out.unlink()
        with self._lock:
            self._number += 1
            number = self._number
            self._known[key] = Made(note, name, sent, new=True)
        took = max(time.monotonic() - packed, 1e-3)
        rate = f", {human_bytes(sent / took)}/s" if sent else ", was there"
        pushed = f"{human_bytes(file.size)}{rate}"
        say(f"layer {number} of {self._total}: {name}: packed in {packed - begun:.1f} s, pushed {pushed}")


def _short(known: str) -> str:
    """What a note keeps: links and folders as they are, of contents enough to tell them apart."""
    if known.startswith(LINK) or known == FOLDER:
        return known
    return hashlib.sha256(known.encode()).hexdigest()[:12]
