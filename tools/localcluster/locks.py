"""Locks between processes; they end with the process that holds them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .progress import Step


@contextmanager
def folder_lock(folder: Path, waiting_for: str) -> Iterator[None]:
    """Holds `folder`, which is made if missing, for this process; waits for another's, saying so.

    The folder itself is locked, so that no lock file stays behind.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with Step(f"waiting for {waiting_for}"):
                    fcntl.flock(handle, fcntl.LOCK_EX)
            if not _same(handle, folder):  # its last holder removed the folder
                continue
            yield
            return
        finally:
            os.close(handle)


def _same(handle: int, folder: Path) -> bool:
    try:
        there = folder.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
