"""A layer of our own unpacked into a folder, to run programs of it in a chroot."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard


def unpack_layer(blob: Path, target: Path, wanted: Callable[[str], bool] = lambda _: True) -> None:
    """Unpacks the `wanted` paths of a layer file (zstd or gzip) below `target`.

    Meant for layers from our own cache, not for others'.
    """
    target.mkdir(parents=True, exist_ok=True)
    with blob.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        plain: Any
        plain = (
            gzip.GzipFile(fileobj=raw) if magic[:2] == b"\x1f\x8b" else zstandard.ZstdDecompressor().stream_reader(raw)
        )
        with tarfile.open(fileobj=plain, mode="r|") as archive:
            # Absolute link targets are meant inside the image: the "data" filter would refuse them.
            archive.extractall(  # noqa: S202
                target, members=(member for member in archive if wanted(member.name)), filter="fully_trusted"
            )
