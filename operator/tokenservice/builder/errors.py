"""What stops a build, in words for the person who started it."""

from __future__ import annotations

from tokenservice.api.jobs import Reason


class BuildError(Exception):
    """The build cannot go on. The text says what is wrong with which thing, and what to do next.

    `reason` sorts it for a Job's result: whether trying again can help, and which condition it becomes.
    """

    def __init__(self, message: str, reason: Reason = "Failed") -> None:
        super().__init__(message)
        self.reason: Reason = reason
