"""Packages staged one by one: each unpacked, linked and compiled into a folder of its own, as if it were alone.

What a layer holds then depends on its packages and the environment's Python alone, not on what else is installed or
what was built before. Nothing of a package runs, except the environment's own Python, which compiles, and the post-link
scripts that the owner allows.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import posixpath
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenservice.builder.errors import BuildError
from tokenservice.builder.layers import Entry, folder, link, plain_mode
from tokenservice.builder.oci import sha256_of

from .archive import check_wheel, unpack_conda
from .bytecode import Interpreter, compile_tree, warm
from .link import FOLDER, LINK, PREFIX, Origin, Python, link_conda
from .normalise import with_bytecode, with_compiled
from .packages import Package, needed_to_run, python_of
from .post_link import run_script, script_of

RECIPE = 1
"""Counted up when the same packages would be staged otherwise: part of every layer's key."""
_ENV_VARS = "etc/conda/env_vars.d/"


@dataclass(frozen=True)
class Staged:
    """A package's files: `known` maps each path (relative to the prefix) to what its content is known by."""

    package: Package
    tree: Path
    known: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict)

    def entry(self, path: str) -> Entry:
        """The layer's entry of one of its files."""
        found, place = self.tree / path, f"{PREFIX}/{path}"
        if found.is_symlink():
            return link(place, os.readlink(found))  # noqa: PTH115 - a Path would drop a trailing slash
        if self.known[path] == FOLDER:
            return folder(place)
        return Entry(place, plain_mode(found.stat().st_mode), source=found)


class Stage:
    """Stages packages of one lock below a scratch folder. Safe for several threads.

    `fetch` gives the archives of packages, in the same order; `scripts` names packages whose post-link scripts may run.
    """

    def __init__(
        self,
        root: Path,
        packages: Sequence[Package],
        fetch: Callable[[Sequence[Package]], Sequence[Path]],
        scripts: Collection[str] = (),
    ) -> None:
        self._root, self._packages, self._fetch, self._scripts = root, packages, fetch, scripts
        self.python = python_of(packages)
        self._lock = threading.Lock()
        self._interpreter: Interpreter | None = None
        self._count = itertools.count(1)

    def stage(self, packages: Sequence[Package]) -> list[Staged]:
        """The packages, unpacked, linked, compiled; `discard` removes them again."""
        files = self._fetch(packages)
        return [self._compiled(self._linked(*each)) for each in zip(packages, files, strict=True)]

    def project(self, wheel: Path, package: Package) -> Staged:
        """A wheel that is no package of the lock: token_server."""
        return self._compiled(self._linked(package, wheel))

    def discard(self, staged: Sequence[Staged]) -> None:
        for each in staged:
            shutil.rmtree(each.tree, ignore_errors=True)

    def _linked(self, package: Package, archive: Path) -> Staged:
        tree = self._folder("tree")
        if package.kind == "pypi":
            if self.python is None:
                raise BuildError(f"{package.name} needs a Python, and the lock has none", "LockUnusable")
            check_wheel(archive)
            return Staged(package, tree, install_wheel(archive, tree, self.python))
        known = self._unpacked(package, archive, tree)
        if script_of(package.name) in known:
            known |= self._after_script(package, tree)
        return Staged(package, tree, known, _variables(tree, known))

    def _unpacked(self, package: Package, archive: Path, tree: Path) -> dict[str, str]:
        unpacked = self._folder("unpacked")
        try:
            unpack_conda(archive, unpacked)
            origin = Origin(package.url, package.sha256, package.size)
            return link_conda(unpacked, tree, origin, self.python, self._scripts)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)

    def _after_script(self, package: Package, tree: Path) -> dict[str, str]:
        """Runs the package's post-link script among what it depends on; what its new files are known by."""
        prefix = self._folder("prefix")
        shutil.copytree(tree, prefix, symlinks=True, dirs_exist_ok=True)
        self._install(needed_to_run(package.name, self._packages), prefix)
        found = {}
        for path in run_script(prefix, package.name, package.version, f"/{PREFIX}"):
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            (prefix / path).replace(target)
            found[path] = LINK + os.readlink(target) if target.is_symlink() else sha256_of(target)  # noqa: PTH115
        shutil.rmtree(prefix, ignore_errors=True)
        return found

    def _install(self, packages: Sequence[Package], prefix: Path) -> None:
        """Conda packages together in one folder, to run something of them."""
        for package, archive in zip(packages, self._fetch(packages), strict=True):
            tree = self._folder("tree")
            self._unpacked(package, archive, tree)
            _merge(tree, prefix)

    def _compiled(self, staged: Staged) -> Staged:
        if self.python is None or not staged.package.has_python_code:
            return staged
        library = self.python.site.rpartition("/")[0] + "/"
        sources = [
            path
            for path, content in staged.known.items()
            if path.startswith(library) and path.endswith(".py") and not content.startswith(LINK)
        ]
        if not sources:
            return staged
        made = compile_tree(self.interpreter(), staged.tree, sources, f"/{PREFIX}")
        known = {path: content for path, content in staged.known.items() if os.path.lexists(staged.tree / path)}
        # Equal sources give equal byte code: known by the same.
        known |= {path: f"byte code of {staged.known[_source(path)]}" for path in made}
        if staged.package.kind == "pypi":
            known |= _note_compiled(staged.tree, self.python.site, known, made)
        else:
            meta = next(path for path in known if path.startswith("conda-meta/"))
            file = staged.tree / meta
            file.write_bytes(with_bytecode(file.read_bytes(), staged.known.keys() - known.keys(), made))
            known[meta] = sha256_of(file)
        return Staged(staged.package, staged.tree, known, staged.variables)

    def interpreter(self) -> Interpreter:
        """The environment's Python with all it needs, staged where it can run."""
        with self._lock:
            if self._interpreter is None:
                self._interpreter = self._runtime()
            return self._interpreter

    def _runtime(self) -> Interpreter:
        assert self.python is not None  # noqa: S101 - asked for by what has Python code, which is checked
        home, runtime = self._folder("home"), self._folder("runtime")
        self._install(needed_to_run("python", self._packages), runtime)
        program = runtime / f"bin/python{self.python.version}"
        if not program.exists():
            raise BuildError(f"the package python has no bin/{program.name}", "LockUnusable")
        interpreter = Interpreter(program, home, runtime)
        warm(interpreter)
        return interpreter

    def _folder(self, kind: str) -> Path:
        made = self._root / f"{kind}-{next(self._count)}"
        made.mkdir(parents=True)
        return made


def install_wheel(wheel: Path, tree: Path, python: Python) -> dict[str, str]:
    """Unpacks a wheel below `tree`, with scripts for the environment's Python; returns what each file is known by."""
    from installer import install
    from installer.destinations import SchemeDictionaryDestination
    from installer.sources import WheelFile

    site = tree / python.site
    with WheelFile.open(wheel) as source:
        scheme = {
            "purelib": site,
            "platlib": site,
            "scripts": tree / "bin",
            "data": tree,
            "headers": tree / f"include/site/python{python.version}" / source.distribution,
        }
        destination = SchemeDictionaryDestination(
            {name: str(path) for name, path in scheme.items()},
            interpreter=f"/{PREFIX}/bin/python{python.version}",
            script_kind="posix",
            overwrite_existing=True,
        )
        try:
            install(source, destination, additional_metadata={"INSTALLER": b"tokenservice\n"})
        except (AssertionError, ValueError, KeyError) as error:
            raise BuildError(f"{wheel.name} cannot be installed: {error}", "LockUnusable") from error
    return _known(tree, python.site)


def _known(tree: Path, site: str) -> dict[str, str]:
    """What the files of an installed wheel are known by: their hash, from its RECORD where it has it."""
    record = _record(tree, site)
    told: dict[str, str] = {}
    if record is not None:
        for row in csv.reader(record.read_text().splitlines()):
            if len(row) >= 2 and row[1].startswith("sha256="):
                told[posixpath.normpath(f"{site}/{row[0]}")] = row[1]
    found = {}
    for here, _, names in os.walk(tree):
        for name in names:
            path = os.path.relpath(f"{here}/{name}", tree)
            found[path] = told.get(path) or sha256_of(tree / path)
    return found


def _record(tree: Path, site: str) -> Path | None:
    return next(iter(sorted((tree / site).glob("*.dist-info/RECORD"))), None)


def _note_compiled(tree: Path, site: str, known: Mapping[str, str], made: Sequence[str]) -> dict[str, str]:
    """Adds the byte code to a wheel's RECORD; what that is known by now."""
    record = _record(tree, site)
    if record is None:
        return {}
    rows = [os.path.relpath(path, site) for path in made]
    record.write_text(with_compiled(record.read_text(), rows))
    path = str(record.relative_to(tree))
    return {path: sha256_of(record)} if path in known else {}


def _source(path: str) -> str:
    """a/__pycache__/b.cpython-311.pyc -> a/b.py"""
    cache, _, name = path.rpartition("/")
    return f"{cache.removesuffix('__pycache__')}{name.rsplit('.', 2)[0]}.py"


def _variables(tree: Path, known: Mapping[str, str]) -> dict[str, str]:
    """What a package sets in etc/conda/env_vars.d, which conda reads when it activates an environment."""
    found: dict[str, str] = {}
    for path in sorted(known):
        if path.startswith(_ENV_VARS) and path.endswith(".json") and not known[path].startswith(LINK):
            try:
                content = json.loads((tree / path).read_bytes())
                found.update({str(name): str(value) for name, value in content.items()})
            except (ValueError, AttributeError):
                continue  # conda passes it over, too
    return found


def _merge(tree: Path, into: Path) -> None:
    """Moves a tree's files into another, which wins where both have one."""
    for here, folders, names in os.walk(tree):
        there = into / os.path.relpath(here, tree)
        there.mkdir(exist_ok=True)
        for name in [*names, *(each for each in folders if Path(here, each).is_symlink())]:
            if not os.path.lexists(there / name):
                Path(here, name).rename(there / name)
    shutil.rmtree(tree, ignore_errors=True)


def entries(staged: Sequence[Staged]) -> list[Entry]:
    """The entries of a layer with these packages; where two have a file, the later one's is taken."""
    owners: dict[str, Staged] = {}
    for each in staged:
        for path in each.known:
            owners[path] = each
    links = _links(owners)
    made: dict[str, Entry] = {}
    for path, owner in owners.items():
        place = _through(path, links)
        if place in owners and place != path:
            continue  # the file that lies there by its own name
        entry = owner.entry(path)
        made[place] = Entry(f"{PREFIX}/{place}", entry.mode, entry.source, entry.target, entry.content)
    return [folder(PREFIX), *made.values()]


def _links(owners: Mapping[str, Staged]) -> dict[str, str]:
    found = {}
    for path, owner in owners.items():
        if owner.known[path].startswith(LINK):
            found[path] = owner.known[path].removeprefix(LINK)
    return found


def _through(path: str, links: Mapping[str, str]) -> str:
    """Where a file lies whose folder is a link of another package: lib64/x with lib64 -> lib is lib/x."""
    for _ in range(8):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if parent in links:
                target = posixpath.normpath(posixpath.join(posixpath.dirname(parent), links[parent]))
                path = "/".join([target, *parts[depth:]]).removeprefix("./")
                break
        else:
            return path
    return path
