"""A package index as static files: PEP 503 as HTML, PEP 691 as JSON beside it, for serve.py to choose from."""

from __future__ import annotations

import html
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenservice.builder.wheels import Wheel


def write(folder: Path, wheels: Sequence[Wheel], files: Sequence[Path]) -> None:
    """Puts the wheels into the index and removes what else is there."""
    projects: dict[str, list[Wheel]] = {}
    for wheel, file in zip(wheels, files, strict=True):
        projects.setdefault(wheel.name, []).append(wheel)
        _place(file, folder / wheel.name / wheel.filename)
    wanted = {folder / wheel.name / wheel.filename for wheel in wheels}
    for path in folder.glob("*/*.whl"):
        if path not in wanted:
            path.unlink()
    for path in folder.glob("*/"):
        if path.name not in projects:
            shutil.rmtree(path)
    for name, own in projects.items():
        own.sort(key=lambda wheel: wheel.filename)
        listed: list[dict[str, Any]] = [_entry(wheel) for wheel in own]
        versions = sorted({wheel.version for wheel in own})
        _write(
            folder / name,
            {"meta": {"api-version": "1.1"}, "name": name, "versions": versions, "files": listed},
            [(f"{wheel.filename}#sha256={wheel.sha256}", wheel.filename) for wheel in own],
        )
    names = sorted(projects)
    data = {"meta": {"api-version": "1.1"}, "projects": [{"name": name} for name in names]}
    _write(folder, data, [(f"{name}/", name) for name in names])


def _entry(wheel: Wheel) -> dict[str, Any]:
    entry = {"filename": wheel.filename, "url": wheel.filename, "hashes": {"sha256": wheel.sha256}, "yanked": False}
    if wheel.size:
        entry["size"] = wheel.size
    if wheel.uploaded:
        entry["upload-time"] = wheel.uploaded.replace("+00:00", "Z")
    return entry


def _place(file: Path, target: Path) -> None:
    """The same file under another name where that is possible: wheels lie on disk once."""
    if target.exists() and target.stat().st_size == file.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _write(folder: Path, data: dict[str, Any], links: Sequence[tuple[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").write_text(json.dumps(data, indent=1, sort_keys=True))
    anchors = "".join(f'<a href="{html.escape(url)}">{html.escape(text)}</a><br>\n' for url, text in links)
    (folder / "index.html").write_text(f"<!DOCTYPE html>\n<html><body>\n{anchors}</body></html>\n")
