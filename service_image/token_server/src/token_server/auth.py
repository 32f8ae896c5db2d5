"""API keys: the files of a mounted Secret, read again when they change."""

from __future__ import annotations

import hmac
import os
import threading
from typing import Optional

Signature = tuple[tuple[str, int, int, int], ...]


class ApiKeys:
    """Accepted keys of a folder: each visible file's content, white space around it removed.

    Kubernetes swaps a mounted Secret through the link `..data`, so a look at the files' status tells of a change. No
    folder, no readable file or only empty files: no key is accepted.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._seen: Optional[Signature] = None
        self._keys: tuple[bytes, ...] = ()
        self._lock = threading.Lock()

    def any(self) -> bool:
        """Whether there is a key at all."""
        return bool(self._current())

    def accepts(self, authorization: Optional[str]) -> bool:
        """Whether the Authorization header's value is `Bearer KEY` with an accepted key."""
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            return False
        wanted = given.strip().encode("utf-8", "surrogateescape")
        # Each key is compared, in constant time, so that the time tells nothing about which one was close.
        matches = [hmac.compare_digest(wanted, key) for key in self._current()]
        return any(matches)

    def _current(self) -> tuple[bytes, ...]:
        with self._lock:
            signature = self._signature()
            if signature != self._seen:
                self._keys = self._read(signature)
                self._seen = signature
            return self._keys

    def _signature(self) -> Signature:
        found = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and entry.is_file():
                        status = entry.stat()
                        found.append((entry.name, status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            return ()
        return tuple(sorted(found))

    def _read(self, signature: Signature) -> tuple[bytes, ...]:
        keys = []
        for name, *_ in signature:
            try:
                with open(os.path.join(self._folder, name), "rb") as file:  # noqa: PTH118, PTH123
                    keys.append(file.read().strip())
            except OSError:
                continue
        return tuple(key for key in keys if key)
