"""What clusters change on the host, and put back when the last one goes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .locks import folder_lock
from .machine import MOUNT_POINTS

WANTED = {"net/ipv4/ip_forward": 1, "fs/inotify/max_user_instances": 1024}
"""The default of 128 inotify instances is used up by a few nodes."""


class HostSettings:
    """Kernel settings, and empty folders to mount upon; what there was before is kept in `folder`.

    That is one folder for this host, whichever state folders its clusters have. `kernel` stands in for /proc/sys, and
    `mount_points` for the folders, in tests.
    """

    def __init__(
        self, folder: Path, kernel: Path = Path("/proc/sys"), mount_points: tuple[Path, ...] = MOUNT_POINTS
    ) -> None:
        self.file = folder / "host.json"
        self.kernel = kernel
        self.mount_points = mount_points

    def apply(self) -> None:
        with self._locked():
            before = self._load()
            for name, wanted in WANTED.items():
                setting = self.kernel / name
                value = int(setting.read_text())
                if value < wanted:
                    before["settings"].setdefault(name, value)
                    self._save(before)
                    setting.write_text(str(wanted))
            for folder in self.mount_points:
                if not folder.exists():
                    before["folders"].append(str(folder))
                    self._save(before)
                    folder.mkdir(parents=True)

    def restore(self, still_used: Callable[[], bool]) -> None:
        """Puts everything back, unless a cluster still needs it."""
        with self._locked():
            if not still_used():
                before = self._load()
                for name, value in before["settings"].items():
                    (self.kernel / name).write_text(str(value))
                for folder in before["folders"]:
                    with contextlib.suppress(OSError):  # in use by something else by now
                        Path(folder).rmdir()
                self.file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds clusters
                self.file.parent.rmdir()

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return folder_lock(self.file.parent, "another cluster's change of the host's settings")

    def _load(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.file.read_text())
        except (FileNotFoundError, ValueError):
            found = {"settings": {}, "folders": []}
        return found

    def _save(self, before: dict[str, Any]) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(before))
        part.replace(self.file)
