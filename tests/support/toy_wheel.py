"""Small wheels for tests of pip's side."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def toy_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: Iterable[str] = (),
    requires_python: str = "",
    extras: Iterable[str] = (),
    files: Mapping[str, str | bytes] | None = None,
    entry_points: Iterable[str] = (),
    tag: str = "py3-none-any",
    record: bool = True,
    uploaded: float = 1_700_000_000,
) -> Path:
    """Writes NAME-VERSION-TAG.whl into `folder` and returns its path.

    `requires`: Requires-Dist lines. `files`: path in the wheel -> content; a module of the project's name by default.
    `entry_points`: console scripts, `name = module:function`. `record=False` leaves hashes out, as no tool should.
    `uploaded`: when, in seconds since 1970, as the index says it.
    """
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    content: dict[str, bytes] = {
        path: data.encode() if isinstance(data, str) else data
        for path, data in (files if files is not None else {f"{module}/__init__.py": ""}).items()
    }
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    lines += [f"Requires-Python: {requires_python}"] if requires_python else []
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {each}" for each in requires]
    content[f"{info}/METADATA"] = "\n".join([*lines, ""]).encode()
    pure = "true" if tag.endswith("-none-any") else "false"
    content[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: toy\nRoot-Is-Purelib: {pure}\nTag: {tag}\n".encode()
    scripts = "".join(f"{each}\n" for each in entry_points)
    if scripts:
        content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}".encode()
    rows = [f"{path},sha256={_hash(data)},{len(data)}" if record else f"{path},," for path, data in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(content):
            entry = zipfile.ZipInfo(path, date_time=(2000, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content[path])
    os.utime(out, (uploaded, uploaded))
    return out


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
