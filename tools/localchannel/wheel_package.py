"""Wheels as conda packages: pure ones as `noarch: python`, compiled ones for linux-64."""

from __future__ import annotations

import base64
import configparser
import csv
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tokenservice.builder.errors import BuildError

from .package import Member, Noarch
from .requirements import PYTHON, Projects, is_pure

PLACEHOLDER = "/opt/" + "placehold_" * 24 + "prefix"
"""Stands for the prefix until a package is installed; 251 characters leave room for any real one."""
_SITE = f"lib/python{PYTHON}/site-packages"
# As conda-build writes it.
_SCRIPT = """\
#!{prefix}/bin/python
# -*- coding: utf-8 -*-
import re
import sys

from {module} import {imported}

if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw?|\\.exe)?$', '', sys.argv[0])
    sys.exit({function}())
"""


@dataclass(frozen=True)
class Converted:
    """A wheel's content as a conda package has it."""

    members: tuple[Member, ...]
    noarch: Noarch | None
    entry_points: tuple[str, ...]


def metadata_of(wheel: Path) -> str:
    """The text of METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        name = next((each for each in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", each)), "")
        if not name:
            raise BuildError(f"{wheel.name} has no METADATA")
        return archive.read(name).decode()


def convert(name: str, wheel: Path, projects: Projects, scratch: Path) -> Converted:
    """The members of project `name`'s package. Their content lies below `scratch`, an empty folder, until written."""
    pure = is_pure(wheel.name)
    site, scripts = ("site-packages", "python-scripts") if pure else (_SITE, "bin")
    with zipfile.ZipFile(wheel) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        dist_info = next(PurePosixPath(info.filename).parts[0] for info in infos if ".dist-info/" in info.filename)
        project = dist_info.rsplit("-", 1)[0].removesuffix(".dist-info").split("-")[0]
        found: dict[str, Member] = {}
        entry_points: list[str] = []
        for info in infos:
            path = _placed(info.filename, site, scripts, project)
            if path in (
                f"{site}/{dist_info}/RECORD",
                f"{site}/{dist_info}/RECORD.jws",
                f"{site}/{dist_info}/RECORD.p7s",
            ):
                continue
            mode = 0o755 if info.external_attr >> 16 & 0o111 or path.startswith(f"{scripts}/") else 0o644
            if path == f"{site}/{dist_info}/METADATA":
                found[path] = Member(path, projects.without_dropped(name, archive.read(info).decode()).encode())
            elif path == f"{site}/{dist_info}/INSTALLER":
                continue
            elif path.startswith(f"{scripts}/"):
                found[path] = _script(path, archive.read(info))
            else:
                found[path] = Member(path, Path(archive.extract(info, scratch)), mode)
            if path == f"{site}/{dist_info}/entry_points.txt":
                entry_points = list(_console_scripts(archive.read(info).decode()))
    found[f"{site}/{dist_info}/INSTALLER"] = Member(f"{site}/{dist_info}/INSTALLER", b"conda\n")
    if not pure:
        for entry_point in entry_points:
            member = _console_script(entry_point)
            found[member.path] = member
    record = _record(found.values(), f"{dist_info}/RECORD", site, entry_points if pure else [])
    found[f"{site}/{dist_info}/RECORD"] = Member(f"{site}/{dist_info}/RECORD", record)
    return Converted(tuple(found.values()), "python" if pure else None, tuple(entry_points) if pure else ())


def _placed(name: str, site: str, scripts: str, project: str) -> str:
    """Where a wheel's member lies below the prefix."""
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/"):
        raise BuildError(f"a wheel has a member outside of it: {name}")
    if not parts[0].endswith(".data"):
        return f"{site}/{name}"
    folders = {
        "purelib": f"{site}/",
        "platlib": f"{site}/",
        "scripts": f"{scripts}/",
        "data": "",
        "headers": f"include/python{PYTHON}/{project}/",
    }
    return folders[parts[1]] + "/".join(parts[2:])


def _script(path: str, content: bytes) -> Member:
    """A script of the wheel; `#!python` stands for the interpreter."""
    if re.match(rb"#!pythonw?\b", content):
        line = f"#!{PLACEHOLDER}/bin/python".encode()
        return Member(path, re.sub(rb"^#!pythonw?", line, content, count=1), 0o755, placeholder=PLACEHOLDER)
    return Member(path, content, 0o755)


def _console_scripts(text: str) -> Iterator[str]:
    parser = configparser.RawConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    if parser.has_section("console_scripts"):
        for name, target in parser.items("console_scripts"):
            yield f"{name} = {target.split('[')[0].strip()}"


def _console_script(entry_point: str) -> Member:
    name, target = (part.strip() for part in entry_point.split("=", 1))
    module, _, function = (part.strip() for part in target.partition(":"))
    text = _SCRIPT.format(prefix=PLACEHOLDER, module=module, imported=function.split(".")[0], function=function)
    return Member(f"bin/{name}", text.encode(), 0o755, placeholder=PLACEHOLDER)


def _record(members: Iterable[Member], own: str, site: str, entry_points: list[str]) -> bytes:
    """RECORD of what is installed. Files that the installer rewrites or makes have no hash there."""
    rows: list[tuple[str, str, str]] = [(own, "", "")]
    for member in members:
        path = member.path.removeprefix(f"{site}/") if member.path.startswith(f"{site}/") else _outside(member.path)
        if member.placeholder:
            rows.append((path, "", ""))
        else:
            digest = base64.urlsafe_b64encode(bytes.fromhex(member.sha256())).rstrip(b"=").decode()
            rows.append((path, f"sha256={digest}", str(member.size)))
    rows += [(_outside(f"bin/{each.split('=')[0].strip()}"), "", "") for each in entry_points]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(sorted(rows))
    return text.getvalue().encode()


def _outside(path: str) -> str:
    return "../../../" + path.replace("python-scripts/", "bin/", 1)
