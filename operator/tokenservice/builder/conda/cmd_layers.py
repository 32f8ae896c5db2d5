"""`tokenservice env layers FILE`: which packages of a lock would share a layer, before anything is built."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenservice.builder.errors import BuildError

from .layer_plan import Item, Sized, plan


def run(arguments: argparse.Namespace) -> int:
    """Prints a line of JSON for each layer, lowest first: `{"packages": [names], "size": bytes as downloaded}`."""
    for group in plan(packages_in(arguments.file, arguments.platform)):
        line = {"packages": [package.name for package in group.packages], "size": group.size}
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    return 0


def packages_in(file: Path, platform: str) -> Sequence[Sized]:
    """The packages of a pixi.lock, or of a JSON list of `{name, sha256, size}`."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BuildError(f"{file} cannot be read: {error.strerror}") from error
    if not data.lstrip().startswith((b"[", b"{")):
        from .lock import read_lock

        return read_lock(data, platform).packages
    try:
        content = json.loads(data)
    except ValueError as error:
        raise BuildError(f"{file} is no JSON: {error}") from error
    if not isinstance(content, list):
        raise BuildError(f"{file} is neither a pixi.lock nor a JSON list of {{name, sha256, size}}")
    found = [_item(file, number, each) for number, each in enumerate(content, 1)]
    # What is listed twice is one package.
    return list({(each.kind, each.name, each.sha256): each for each in found}.values())


def _item(file: Path, number: int, entry: Any) -> Item:
    text = f"{file}: entry {number}"
    if not isinstance(entry, dict):
        raise BuildError(f"{text} is no object with name, sha256 and size")
    name, sha256, size = (entry.get(key) for key in ("name", "sha256", "size"))
    if not isinstance(name, str) or not name:
        raise BuildError(f"{text} has no name")
    if not isinstance(sha256, str):
        raise BuildError(f"{text} ({name}) has no sha256")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BuildError(f"{text} ({name}): its size is no number of bytes")
    return Item(name, sha256, size, str(entry.get("kind") or "conda"))
