"""Logs as JSON, one object a line: a constant message, and what varies in keys.

    log = get_logger(__name__)
    log.info("Applied", namespace=namespace, name=name, action="update")

Modules that must not import this one write `logging.getLogger(__name__).info("Applied", extra={"data": {...}})`: the
same line.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO

import msgspec

_context: ContextVar[Mapping[str, Any]] = ContextVar("log_context", default=MappingProxyType({}))
_encoder = msgspec.json.Encoder(enc_hook=str)


@contextmanager
def context(**keys: Any) -> Iterator[None]:
    """Adds keys to every line logged inside, by whatever module."""
    token = _context.set({**_context.get(), **keys})
    try:
        yield
    finally:
        _context.reset(token)


class Logger:
    """A logger whose keyword arguments become keys of the line."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, message: str, **data: Any) -> None:
        self._log(logging.DEBUG, message, data)

    def info(self, message: str, **data: Any) -> None:
        self._log(logging.INFO, message, data)

    def warning(self, message: str, **data: Any) -> None:
        self._log(logging.WARNING, message, data)

    def error(self, message: str, **data: Any) -> None:
        self._log(logging.ERROR, message, data)

    def exception(self, message: str, **data: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, message, data, trace=True)

    def _log(self, level: int, message: str, data: dict[str, Any], trace: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, message, exc_info=trace, stacklevel=3, extra={"data": data})


def get_logger(name: str) -> Logger:
    """The logger of a module."""
    return Logger(logging.getLogger(name))


class JsonFormatter(logging.Formatter):
    """ts (RFC 3339, UTC, milliseconds), level, logger, msg, then the keys of the context and of the line."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "ts": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        for key, value in {**_context.get(), **_data(record)}.items():
            line[key if key not in _FIXED else f"{key}_"] = value
        if record.exc_info and record.exc_info[0] is not None:
            line.setdefault("error", _first_line(record.exc_info[1]))
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        try:
            return _encoder.encode(line).decode("utf-8")
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):
            # Half a surrogate pair, a number beyond 64 bits, a key that is no text: no reason to lose the line.
            return json.dumps(line, default=str, skipkeys=True)


_FIXED = frozenset({"ts", "level", "logger", "msg", "traceback"})


def _data(record: logging.LogRecord) -> Mapping[str, Any]:
    data = getattr(record, "data", None)
    if isinstance(data, Mapping):
        return data
    reference = getattr(record, "k8s_ref", None)  # kopf's name for the object that a line is about
    if isinstance(reference, Mapping):
        return {key: reference[key] for key in ("kind", "namespace", "name") if reference.get(key)}
    return {}


def _first_line(error: BaseException | None) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def setup(level: str | int = "INFO", stream: TextIO | None = None) -> None:
    """Makes JSON lines of everything that this process logs, libraries included; theirs from WARNING on only."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("tokenservice").setLevel(level.upper() if isinstance(level, str) else level)
    for name in ("kopf", "aiohttp"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    logging.captureWarnings(capture=True)
