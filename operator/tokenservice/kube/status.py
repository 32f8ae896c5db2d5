"""What of a status has to be written, and when."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol

import msgspec

from tokenservice.api.meta import Condition

NUMBERS_SECONDS = 1.0
"""Between two writes of a status in which only numbers changed: in a burst of claims they change all the time."""


class Status(Protocol):
    """A struct that is a status."""

    @property
    def observed_generation(self) -> int: ...

    @property
    def conditions(self) -> tuple[Condition, ...]: ...


def status_patch(before: Status, after: Status) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) that turns one status into the other: what changed, null for what is gone.

    Of a status that was never written nothing stands there, not even the zeroes: all of it is sent.
    """
    old: dict[str, Any] = msgspec.to_builtins(before) if before.observed_generation else {}
    new: dict[str, Any] = msgspec.to_builtins(after)
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    gone = {name: None for name in old if name not in new}
    return {"status": {**changed, **gone}}


def numbers_wait(
    before: Status, after: Status, numbers: Iterable[str], written: datetime | None, now: datetime
) -> float:
    """Seconds for which a status need not be written, since nothing in it changed but numbers; 0 if it is to be.

    Args:
        before: what stands there.
        after: what is to.
        numbers: the fields that have them; messages of conditions do, too.
        written: when it was written last; None if that was not seen.
        now: the time.

    """
    if written is None or _without(before, numbers) != _without(after, numbers):
        return 0.0
    return min(NUMBERS_SECONDS, max(0.0, NUMBERS_SECONDS - (now - written).total_seconds()))


def _without(status: Status, numbers: Iterable[str]) -> Any:
    conditions = tuple(msgspec.structs.replace(each, message="") for each in status.conditions)
    found: Any = status
    return msgspec.structs.replace(found, conditions=conditions, **dict.fromkeys(numbers))
