"""The API server's audit log: who wrote what. Reads are not in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Write:
    """One write request that was answered."""

    user: str
    agent: str
    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    at: str = ""
    """When it was answered, RFC 3339."""

    @property
    def what(self) -> str:
        """The resource with its subresource, as roles name it."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource

    def __str__(self) -> str:
        return f"{self.verb} {self.what} {self.namespace}/{self.name}: {self.code}"


class AuditLog:
    """Reads the log from where it was last asked to begin."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def position(self) -> int:
        """Where the log ends now."""
        return self._path.stat().st_size

    def writes(self, since: int, user: str) -> list[Write]:
        """The writes of this user since that position, in order; renewals of the Lease are left out."""
        with self._path.open("rb") as log:
            log.seek(since)
            data = log.read()
            log.seek(max(0, since - 1))
            whole = not since or log.read(1) == b"\n"
        lines = data[: data.rfind(b"\n") + 1].splitlines()  # the last one may be half written
        if not whole:
            del lines[:1]  # this one was, at that position: the write came before it
        # Cheaper than decoding every line: most are the controller manager's.
        mine = (_write(json.loads(line)) for line in lines if user.encode() in line)
        return [write for write in mine if write and write.user == user and write.resource != "leases"]


def _write(event: dict[str, Any]) -> Write | None:
    if event.get("stage") != "ResponseComplete":
        return None
    about = event.get("objectRef", {})
    return Write(
        user=event["user"]["username"],
        agent=event.get("userAgent", ""),
        verb=event["verb"],
        group=about.get("apiGroup", ""),
        resource=about.get("resource", ""),
        subresource=about.get("subresource", ""),
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
        at=event.get("stageTimestamp", ""),
    )
