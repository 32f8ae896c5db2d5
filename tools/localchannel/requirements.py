"""What a wheel's metadata asks for, as conda says it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from email.parser import HeaderParser

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

PYTHON = "3.11"
_TARGET = {
    "implementation_name": "cpython",
    "implementation_version": f"{PYTHON}.2",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_release": "",
    "platform_system": "Linux",
    "platform_version": "",
    "python_full_version": f"{PYTHON}.2",
    "python_version": PYTHON,
    "sys_platform": "linux",
}
# Names on conda's channels that differ from PyPI's.
_NAMES: Mapping[str, str] = {
    "huggingface-hub": "huggingface_hub",
    "prometheus-client": "prometheus_client",
    "torch": "pytorch",
    "typing-extensions": "typing_extensions",
}


def conda_name(project: str) -> str:
    """torch -> pytorch."""
    name = canonicalize_name(project)
    return _NAMES.get(name, name)


class Projects:
    """The METADATA of the projects that are converted together, by canonical name."""

    def __init__(self, metadata: Mapping[str, str], replaced: Iterable[str] = ()) -> None:
        """`replaced`: projects that are left out and that nothing is to ask for."""
        self._metadata = {canonicalize_name(name): HeaderParser().parsestr(text) for name, text in metadata.items()}
        self._replaced = {canonicalize_name(name) for name in replaced}

    def depends(self, project: str, filename: str) -> list[str]:
        """The `depends` of a wheel's conda package: its requirements on the target, extras resolved, and Python."""
        python = self._metadata[canonicalize_name(project)].get("Requires-Python", "")
        made = {_spec(name, specifier) for name, specifier in self._requirements(project, "", set())}
        made.add(_spec("python", SpecifierSet(python)) if is_pure(filename) else f"python {PYTHON}.*")
        if glibc := glibc_of(filename):
            made.add(f"__glibc >={glibc}")
        return sorted(made)

    def _requirements(self, project: str, extra: str, seen: set[tuple[str, str]]) -> Iterator[tuple[str, SpecifierSet]]:
        name = canonicalize_name(project)
        if (name, extra) in seen or name not in self._metadata:
            return
        seen.add((name, extra))
        for text in self._metadata[name].get_all("Requires-Dist", []):
            wanted = Requirement(text)
            if wanted.marker is not None and not wanted.marker.evaluate({**_TARGET, "extra": extra}):
                continue
            # With an extra, only what the extra adds: the rest is the other package's own business.
            if extra and (wanted.marker is None or wanted.marker.evaluate({**_TARGET, "extra": ""})):
                continue
            target = canonicalize_name(wanted.name)
            if target not in self._replaced and target != name:
                yield conda_name(target), wanted.specifier
            for further in wanted.extras:
                yield from self._requirements(target, further, seen)

    def dropped(self, project: str) -> list[str]:
        """The Requires-Dist lines of a project that ask for what was left out."""
        lines = self._metadata[canonicalize_name(project)].get_all("Requires-Dist", [])
        return [line for line in lines if canonicalize_name(Requirement(line).name) in self._replaced]

    def without_dropped(self, project: str, metadata: str) -> str:
        """METADATA without these lines: what is installed is not to ask for what cannot be there."""
        left_out = {f"Requires-Dist: {line}" for line in self.dropped(project)}
        head, blank, rest = metadata.partition("\n\n")
        return "\n".join(line for line in head.splitlines() if line not in left_out) + blank + rest


def _spec(name: str, specifier: SpecifierSet) -> str:
    parts = sorted(
        each.version if each.operator == "==" and each.version.endswith(".*") else _plain(each.operator) + each.version
        for each in specifier
    )
    return f"{name} {','.join(parts)}" if parts else name


def _plain(operator: str) -> str:
    return "==" if operator == "===" else operator


def is_pure(filename: str) -> bool:
    """Whether one wheel serves every platform, and with that one conda package."""
    return all(tag.abi == "none" and tag.platform == "any" for tag in parse_wheel_filename(filename)[3])


def glibc_of(filename: str) -> str:
    """The oldest C library that a wheel's tags promise to run with; "" where they name none."""
    old = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
    found = set()
    for tag in parse_wheel_filename(filename)[3]:
        if match := re.match(r"manylinux_(\d+)_(\d+)_", tag.platform):
            found.add((int(match[1]), int(match[2])))
        elif (legacy := tag.platform.split("_")[0]) in old:
            found.add(old[legacy])
    return ".".join(map(str, min(found))) if found else ""
