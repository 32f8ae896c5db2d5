"""Who wrote what, and when: the API server's audit log, read as it grows.

Source of the format: audit.k8s.io/v1 in the Kubernetes reference. The log holds writes only, at the level
Metadata; where the cluster was made with --audit-bodies, those of pods and TokenServices at the level Request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

CHILDREN = frozenset({"controllerrevisions", "deployments", "services", "poddisruptionbudgets"})


@dataclass(frozen=True)
class Write:
    """One write request that was answered; `what` is the resource, with `/status` for that subresource."""

    user: str
    verb: str
    what: str
    namespace: str
    name: str
    code: int
    received: datetime
    answered: datetime
    body: bytes = b""
    """What was sent, as JSON; empty where the log does not tell."""


class _User(msgspec.Struct):
    username: str = ""


class _Reference(msgspec.Struct):
    resource: str = ""
    namespace: str = ""
    name: str = ""
    subresource: str = ""


class _Answer(msgspec.Struct):
    code: int = 0


class _Line(msgspec.Struct, rename="camel"):
    verb: str
    request_received_timestamp: datetime
    stage_timestamp: datetime
    user: _User = msgspec.field(default_factory=_User)
    object_ref: _Reference = msgspec.field(default_factory=_Reference)
    response_status: _Answer = msgspec.field(default_factory=_Answer)
    request_object: msgspec.Raw = msgspec.Raw(b"")


_decoder = msgspec.json.Decoder(_Line)


def parse(line: bytes) -> Write:
    """One line of the log. Raises msgspec.ValidationError if it is something else."""
    entry = _decoder.decode(line)
    about = entry.object_ref
    return Write(
        user=entry.user.username,
        verb=entry.verb,
        what=f"{about.resource}/{about.subresource}" if about.subresource else about.resource,
        namespace=about.namespace,
        name=about.name,
        code=entry.response_status.code,
        received=entry.request_received_timestamp,
        answered=entry.stage_timestamp,
        body=bytes(entry.request_object),
    )


class AuditLog:
    """The writes of some users, or of all in some namespaces, in the order in which they were answered; `read` takes in
    what is new, since the log was opened or from `offset` on.
    """

    def __init__(
        self, path: Path, users: Iterable[str] = (), namespaces: Iterable[str] = (), offset: int | None = None
    ) -> None:
        self._path = path
        self._needles = tuple(
            f'"{key}":"{value}"'.encode()
            for key, values in (("username", users), ("namespace", namespaces))
            for value in values
        )
        self._offset = path.stat().st_size if offset is None else offset
        self._rest = b""
        self.writes: list[Write] = []

    def read(self) -> list[Write]:
        """All writes so far."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.writes += [parse(line) for line in lines if any(needle in line for needle in self._needles)]
        return self.writes


def first_creation(writes: Iterable[Write], namespace: str) -> datetime | None:
    """When the API server received the first TokenService of the namespace."""
    return min(
        (w.received for w in writes if w.verb == "create" and w.what == "tokenservices" and w.namespace == namespace),
        default=None,
    )


def all_begun(writes: Iterable[Write], user: str, namespace: str, services: int) -> datetime | None:
    """When the last of the TokenServices had all its children and its first status, written by `user`; None if not yet.

    A status always speaks of the generation that its writer saw, and the specs do not change: the first one is the
    first with the current observedGeneration.
    """
    first: dict[tuple[str, str], datetime] = {}
    for write in writes:
        wanted = write.what in CHILDREN or write.what == "tokenservices/status"
        if wanted and write.user == user and write.namespace == namespace and write.code < 300:
            first.setdefault((write.what, write.name), write.answered)
    return max(first.values()) if len(first) == services * (len(CHILDREN) + 1) else None


def counted(writes: Iterable[Write], user: str, since: datetime, until: datetime) -> Counter[str]:
    """How often `user` wrote what, from `since` to `until`; its Lease does not count, refused requests do."""
    return Counter(
        f"{w.verb} {w.what}" if w.code < 300 else f"{w.verb} {w.what} ({w.code})"
        for w in writes
        if w.user == user and w.what != "leases" and since <= w.answered <= until
    )


def after_ready(writes: Iterable[Write], user: str, namespace: str, ready: Mapping[str, datetime]) -> int:
    """How many statuses `user` wrote of TokenServices that had been seen Ready before. ready: name -> when."""
    return sum(
        w.answered > ready[w.name]
        for w in writes
        if w.user == user and w.what == "tokenservices/status" and w.namespace == namespace and w.name in ready
    )
