"""A warm server's one assignment: taken once, kept, and its outcome told to all who bring it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Optional

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from token_server.assignment import MOST_BYTES, Assignment, assigned, believed, parse, stored, write
from token_server.errors import ApiError, stopping
from token_server.lifecycle import Lifecycle, Phase
from token_server.log import log
from token_server.settings import Settings
from token_server.streaming import ClientGoneError, read_json

PATH = "/assignment"


class Handover:
    """For one event loop; `done`, `failed` and `stop` may be called from any thread.

    Args:
        settings: of the warm server.
        lifecycle: of the process; says whether a model can be taken now.
        begin: starts to load a model, and returns at once.

    """

    def __init__(self, settings: Settings, lifecycle: Lifecycle, begin: Callable[[Settings], None]) -> None:
        self._settings = settings
        self._file = Path(settings.assignment_file)
        self._lifecycle = lifecycle
        self._begin = begin
        self._taken: Optional[Assignment] = None
        self._outcome: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._outcome.add_done_callback(lambda outcome: outcome.exception())  # it counts as told if nobody asks

    def resume(self) -> Optional[Settings]:
        """What an earlier start of this container was given; None if it was nothing.

        Raises ValueError, one line, if that cannot be known.
        """
        found = stored(self._file)
        if found is None:
            return None
        try:
            settings = assigned(self._settings, found)
        except ApiError as error:
            raise ValueError(f"{self._file}: {error.message} Delete the pod") from None
        self._taken = found
        return settings

    async def take(self, document: Any) -> dict[str, Any]:
        """What `done` is told, for this assignment and for it alone. Raises ApiError."""
        assignment = parse(document)
        if self._taken is None:
            self._accept(assignment)
        elif assignment != self._taken:
            raise ApiError(409, "This server has been given another model already.", code="already_assigned")
        return await asyncio.shield(self._outcome)  # who goes away cancels nothing but the own waiting

    def _accept(self, assignment: Assignment) -> None:
        settings = assigned(self._settings, assignment)
        if self._lifecycle.phase is Phase.LOADING:
            message = "The server is not warm yet."
            raise ApiError(503, message, code="not_warm", kind="server_error", retry_after=1)
        try:
            write(self._file, assignment)
        except OSError as error:
            message = f"The assignment cannot be written to {self._file}: {error.strerror}."
            raise ApiError(500, message, code="not_kept", kind="server_error") from None
        if not self._lifecycle.assign():
            with suppress(OSError):
                self._file.unlink()
            raise stopping()
        self._taken = assignment
        log("assigned", service=assignment.service, model=settings.model_name, source=settings.model_source)
        self._begin(settings)

    def done(self, report: dict[str, Any]) -> None:
        """The model serves."""
        self._settle(lambda: self._outcome.set_result(report))

    def failed(self, message: str) -> None:
        """The model cannot be loaded; the process is about to end."""
        error = ApiError(500, message, code="load_failed", kind="server_error")
        self._settle(lambda: self._outcome.set_exception(error))

    def stop(self) -> None:
        """The server ends before the outcome is known."""
        self._settle(lambda: self._outcome.set_exception(stopping()))

    def _settle(self, how: Callable[[], None]) -> None:
        def settle() -> None:
            if not self._outcome.done():
                how()

        with suppress(RuntimeError):  # the loop has ended, and with it everybody who asks
            self._outcome.get_loop().call_soon_threadsafe(settle)


def make_app(handover: Handover, sha256: str) -> Starlette:
    """The application behind the second port: PUT /assignment, with the pod's token."""

    async def put(http: Request) -> JSONResponse:
        if not believed(http.headers.get("authorization"), sha256):
            message = "Wrong or missing token: send 'Authorization: Bearer TOKEN'."
            raise ApiError(401, message, code="invalid_token")
        return JSONResponse(await handover.take(await read_json(http.receive, MOST_BYTES)))

    async def refused(_: Request, error: Any) -> JSONResponse:
        log("assignment refused", level="warning", status=error.status, code=error.code, error=error.message)
        return JSONResponse(error.body(), error.status, error.headers())

    async def gone(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({}, 400)  # nobody reads it

    return Starlette(
        routes=[Route(PATH, put, methods=["PUT"])], exception_handlers={ApiError: refused, ClientGoneError: gone}
    )
