"""What of a status has to be written."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec


class Status(Protocol):
    """A struct that is a status."""

    @property
    def observed_generation(self) -> int: ...


def status_patch(before: Status, after: Status) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) that turns one status into the other: what changed, null for what is gone.

    Of a status that was never written nothing stands there, not even the zeroes: all of it is sent.
    """
    old: dict[str, Any] = msgspec.to_builtins(before) if before.observed_generation else {}
    new: dict[str, Any] = msgspec.to_builtins(after)
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    gone = {name: None for name in old if name not in new}
    return {"status": {**changed, **gone}}
