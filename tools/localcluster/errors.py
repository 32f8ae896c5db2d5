"""The one error that a user reads as a single line."""

from __future__ import annotations


class LocalClusterError(Exception):
    """What went wrong and what to do next, in one line. `status` is the process's exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class UnsupportedError(LocalClusterError):
    """This machine, or what was asked for, is not supported; nothing was begun."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=2)
