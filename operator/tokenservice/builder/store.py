"""Finished layers on disk, each once, by digest; and an index from what a layer was made of to the layer.

    FOLDER/blobs/sha256/<hex>      the layer
    FOLDER/index/<key>.json        digest, diff id, size and media type of the layer with this key
    FOLDER/locks/<key>             held while the layer is made

The index is written after the blob and is trusted: nothing is hashed again. Files appear by rename, so that an
interrupted build leaves nothing half-written, and a lock per key lets several builds run at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from .layers import LAYER_FORMAT, Compression, Entry, LayerFile, write_layer
from .oci import canonical_json, digest_of


def cache_folder(environ: Mapping[str, str]) -> Path:
    """$TOKENSERVICE_CACHE, else tokenservice-operator in the user's cache folder."""
    if environ.get("TOKENSERVICE_CACHE"):
        return Path(environ["TOKENSERVICE_CACHE"]).expanduser().absolute()
    home = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache"
    return Path(home).absolute() / "tokenservice-operator"


def layer_key(kind: str, parts: Any) -> str:
    """The name under which a layer is found again: a hash over what it is made of and how layers are written."""
    return f"{kind}-{digest_of(canonical_json([LAYER_FORMAT, kind, parts]))[7:39]}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file `path`, which stays. Free again when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _lock_now(path: Path) -> IO[str] | None:
    """The opened file with an exclusive lock on it, or None where another process holds it or took it away."""
    held = path.open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(held.fileno()), path.stat()):
            return held
    except (BlockingIOError, FileNotFoundError):
        pass
    held.close()
    return None


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder below `parent`, removed at the end. What killed processes left there goes first."""
    parent.mkdir(parents=True, exist_ok=True)
    for lock in parent.glob("*.lock"):
        held = _lock_now(lock)
        if held is not None:
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
            held.close()
    # Locked before there is a folder, and again if another process took the new lock for an abandoned one.
    while True:
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        lock, made = parent / f"{name}.lock", parent / name
        held = _lock_now(lock)
        if held is not None:
            break
    try:
        made.mkdir(mode=0o755)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        lock.unlink(missing_ok=True)
        held.close()


class LayerStore:
    """The folder described above. Safe for several processes at once."""

    def __init__(self, root: Path, compression: Compression = "zstd") -> None:
        self.root, self.compression = root, compression

    def blob(self, digest: str) -> Path:
        """Where the blob with this digest lies."""
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def get(self, key: str) -> LayerFile | None:
        """The layer with this key, if it was made and its blob has the size it should have."""
        try:
            known = LayerFile(**json.loads(self._index(key).read_text()))
            return known if self.blob(known.digest).stat().st_size == known.size else None
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def make(self, key: str, staged: Callable[[], AbstractContextManager[Iterable[Entry]]]) -> LayerFile:
        """The layer with this key; if there is none, made from what `staged` yields.

        The files have to be there until that context ends. One process makes the layer, others wait.
        """
        known = self.get(key)
        if known is not None:
            return known
        with locked(self.root / "locks" / key):
            known = self.get(key)
            if known is not None:
                return known
            with staged() as entries:
                return self._write(key, entries)

    def _index(self, key: str) -> Path:
        return self.root / "index" / f"{key}.{self.compression}.json"

    def _write(self, key: str, entries: Iterable[Entry]) -> LayerFile:
        with scratch_folder(self.root / "scratch") as scratch:
            out = scratch / "layer"
            made = write_layer(entries, out, self.compression)
            blob, index = self.blob(made.digest), self._index(key)
            blob.parent.mkdir(parents=True, exist_ok=True)
            index.parent.mkdir(parents=True, exist_ok=True)
            out.rename(blob)
            note = scratch / "note"
            note.write_bytes(canonical_json(asdict(made)))
            note.rename(index)
        return made
