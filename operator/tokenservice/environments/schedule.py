"""When the base image is looked up anew: the cron expression of `spec.rebuild.schedule`, in UTC. Pure functions."""

from __future__ import annotations

from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

MAX_SCHEDULE = 100
"""Characters."""

_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_ANY = datetime(2000, 1, 1, tzinfo=UTC)
"""A schedule that fires at all fires within 50 years of any moment."""

ADVICE = (
    'write minute, hour, day of month, month and day of week in UTC, as in "0 3 1 * *", '
    'or "@monthly", "@weekly", "@daily", "@yearly" or "@hourly"'
)


class InvalidSchedule(ValueError):  # noqa: N818 - a finding, not a mistake of the program
    """The text says what is wrong, and what to write instead."""


def check(schedule: str) -> None:
    """Raises InvalidSchedule for what is none, never fires, or fires more often than once an hour."""
    period(schedule, _ANY)
    # An image that is not built before the next firing would never be: the Job for it gives way to the next one.
    if len(CronSim(_expression(schedule), _ANY).minutes) > 1:
        raise InvalidSchedule('names several minutes; once an hour is the most: name one, as in "0 3 1 * *"')


def period(schedule: str, now: datetime) -> tuple[datetime, datetime]:
    """The newest firing at or before `now`, and the next one after it.

    Raises:
        InvalidSchedule: it is no schedule, or never fires.

    """
    expression = _expression(schedule)
    try:
        following = next(CronSim(expression, now.astimezone(UTC)))
        return next(CronSim(expression, following, reverse=True)), following
    except CronSimError as error:
        field = str(error).removeprefix("Bad ")  # all that it says, such as "Bad minute"
        raise InvalidSchedule(f"names no possible {field}; {ADVICE}") from None
    except StopIteration:
        raise InvalidSchedule(f"never fires; {ADVICE}") from None


def _expression(schedule: str) -> str:
    """The five fields."""
    if len(schedule) > MAX_SCHEDULE:
        raise InvalidSchedule(f"is longer than {MAX_SCHEDULE} characters; {ADVICE}")
    text = schedule.strip()
    if text.startswith("@"):
        if text not in _NAMED:
            raise InvalidSchedule(f"is no name of a schedule; {ADVICE}")
        return _NAMED[text]
    if len(text.split()) != 5:
        raise InvalidSchedule(f"must have five fields; {ADVICE}")
    return text
