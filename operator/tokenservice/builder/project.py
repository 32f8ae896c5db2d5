"""A wheel of a Python package as it stands in the source tree, without a build backend and without a network.

Reads name, version, scripts and `tool.hatch.build.targets.wheel.packages` of a pyproject.toml. The dependencies stand
in the image's lock file, not here. The wheel's bytes depend on the files' content alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from .errors import BuildError

_LEFT_OUT = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


@dataclass(frozen=True)
class ProjectWheel:
    """A wheel in memory."""

    name: str
    version: str
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def filename(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


def source_root(given: Path | None) -> Path:
    """The source tree: the one named, or that around this file. Raises BuildError where there is none."""
    root = given or Path(__file__).resolve().parents[3]
    if not (root / "pyproject.toml").is_file() or not (root / "operator/tokenservice").is_dir():
        raise BuildError(f"{root} is no source tree of tokenservice-operator: name one with --source")
    return root


def project_wheel(folder: Path) -> ProjectWheel:
    """The wheel of the project whose pyproject.toml lies in `folder`."""
    try:
        settings = tomllib.loads((folder / "pyproject.toml").read_text())
        project = settings["project"]
        packages = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise BuildError(f"{folder / 'pyproject.toml'} cannot be used: {error}") from error
    name, version = canonicalize_name(project["name"]), project["version"]
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files: dict[str, bytes] = {}
    for package in packages:
        top = folder / package
        if not top.is_dir():
            raise BuildError(f"{top} is named in pyproject.toml and is no folder")
        for file in _files(top):
            files[f"{top.name}/{file.relative_to(top).as_posix()}"] = file.read_bytes()
    scripts = "".join(f"{script} = {target}\n" for script, target in sorted(project.get("scripts", {}).items()))
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: tokenservice image\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}".encode()
    rows = [f"{path},sha256={_urlsafe(content)},{len(content)}" for path, content in sorted(files.items())]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    return ProjectWheel(name, version, _zip(files))


def _files(top: Path) -> Iterator[Path]:
    for path in sorted(top.rglob("*")):
        if path.is_file() and not _LEFT_OUT & set(path.relative_to(top).parts) and path.suffix not in (".pyc", ".swp"):
            yield path


def _urlsafe(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _zip(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(files):
            info = zipfile.ZipInfo(path, date_time=(2000, 1, 1, 0, 0, 0))
            info.external_attr = 0o100644 << 16
            archive.writestr(info, files[path])
    return made.getvalue()
