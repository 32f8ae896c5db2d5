"""`tokenservice job`: what a Job of the operator runs. Request and result are those of tokenservice.api.jobs."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from tokenservice.api.jobs import (
    EXIT_DONE,
    EXIT_PASSING,
    EXIT_TERMINAL,
    REQUEST_VARIABLE,
    RESULT_BYTES,
    BuildRequest,
    JobResult,
    LockRequest,
    Problem,
    Request,
    decode_request,
    encode_result,
)
from tokenservice.builder.errors import BuildError
from tokenservice.builder.settings import Settings, load

TERMINATION_LOG = "TOKENSERVICE_TERMINATION_LOG"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def run(_: argparse.Namespace) -> NoReturn:
    """Works, tells, and ends the process: libraries in it crash now and then when it ends the usual way."""
    # One stream: of two, the container runtime may put what was said before behind the result.
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
    result = work(os.environ)
    code = tell(result, Path(os.environ.get(TERMINATION_LOG, "/dev/termination-log")))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def work(environ: Mapping[str, str]) -> JobResult:
    """What the request in the environment comes to. Raises nothing."""
    begun = time.monotonic()
    try:
        result = _carry_out(_request(environ), load(environ))
    except BuildError as error:
        result = JobResult(problem=Problem(reason=error.reason, message=str(error)))
    except OSError as error:
        if error.errno not in _FULL:
            result = _unforeseen(error)
        else:
            text = f"the disk of this Job is full ({error.filename or error.strerror}): give it more scratch space"
            result = JobResult(problem=Problem(reason="DiskFull", message=text))
    except Exception as error:  # noqa: BLE001 - whatever it is, the manager has to hear of it
        result = _unforeseen(error)
    return msgspec.structs.replace(result, seconds=round(time.monotonic() - begun, 3))


def _unforeseen(error: Exception) -> JobResult:
    traceback.print_exception(error)
    return JobResult(problem=Problem(reason="Failed", message=f"{type(error).__name__}: {error}"))


def _request(environ: Mapping[str, str]) -> Request:
    try:
        return decode_request(environ.get(REQUEST_VARIABLE, ""))
    except msgspec.DecodeError as error:
        raise BuildError(
            f"{REQUEST_VARIABLE} holds no request ({error}); this command is run by the operator"
        ) from error


def _carry_out(request: Request, settings: Settings) -> JobResult:
    if isinstance(request, LockRequest):
        from .lock_job import run as lock

        return lock(request, settings)
    if isinstance(request, BuildRequest):
        from .build_job import run as build

        return build(request, settings)
    from .collect_job import run as collect

    return collect(request, settings)


def tell(result: JobResult, note: Path) -> int:
    """Writes the result where the kubelet and the operator look for it; returns the exit code."""
    if result.problem is not None:
        sys.stderr.write(f"{result.problem.reason}: {result.problem.message}\n")
    # The log's last line is the result, in full.
    sys.stdout.write(encode_result(result).decode() + "\n")
    with contextlib.suppress(OSError):  # a container that keeps no such file: the log has it
        note.write_bytes(encode_result(result, RESULT_BYTES))
    if result.problem is None:
        return EXIT_DONE
    return EXIT_TERMINAL if result.problem.terminal else EXIT_PASSING
