"""What a request to the API server can end with, beside an answer."""

from __future__ import annotations

import msgspec

# Server-side apply answers these for mistakes in the applied object, with status 500 whatever fieldValidation says:
# an unknown field, a quantity or number that does not parse.
_USER_ERROR_TEXTS = ("failed to create typed patch object", "failed to convert", "unable to convert")


class Unreachable(Exception):  # noqa: N818 - a state of the world, read as `except Unreachable`
    """No answer: the connection could not be made, broke, or took too long."""


class Cause(msgspec.Struct, frozen=True):
    """One cause of a refused request: the field's path and what is wrong with it."""

    field: str = ""
    message: str = ""
    reason: str = ""


class _Details(msgspec.Struct, rename="camel", frozen=True):
    causes: tuple[Cause, ...] = ()
    retry_after_seconds: float = 0


class Status(msgspec.Struct, frozen=True):
    """A `Status` object of meta/v1: the body of an error answer, and the object of a watch's ERROR event."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


_status_decoder = msgspec.json.Decoder(Status)


class ApiError(Exception):
    """An error answer of the API server.

    status: the HTTP status. reason: Kubernetes' machine-readable word (`Conflict`, `NotFound`, ...), or "". message:
    its text for people. causes: pairs (field path, message). retry_after: seconds the server asks to wait, if it said
    so.
    """

    def __init__(
        self,
        status: int,
        reason: str = "",
        message: str = "",
        causes: tuple[tuple[str, str], ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}" if reason else f"{status}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes
        self.retry_after = retry_after

    @classmethod
    def from_answer(cls, status: int, body: bytes, retry_after: str | None = None) -> ApiError:
        """From an HTTP answer; `body` may be anything (proxies answer HTML), `retry_after` is the header as it came."""
        try:
            parsed = _status_decoder.decode(body)
        except msgspec.MsgspecError:  # not JSON, or JSON of another shape
            parsed = Status(message=body[:512].decode("utf-8", "replace").strip())
        return cls.from_status(parsed, status=status, retry_after=retry_after)

    @classmethod
    def from_status(cls, parsed: Status, *, status: int | None = None, retry_after: str | None = None) -> ApiError:
        """From a Status object."""
        details = parsed.details or _Details()
        wait: float | None = details.retry_after_seconds or None
        if retry_after is not None and retry_after.strip().isdigit():  # the other form, a date, Kubernetes never sends
            wait = float(retry_after)
        return cls(
            status=status or parsed.code or 500,
            reason=parsed.reason,
            message=parsed.message or "no message",
            causes=tuple((cause.field, cause.message) for cause in details.causes),
            retry_after=wait,
        )

    @property
    def is_conflict(self) -> bool:
        """Someone else wrote in between: read again and decide again."""
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def is_already_exists(self) -> bool:
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def is_not_found(self) -> bool:
        return self.status == 404

    @property
    def is_forbidden(self) -> bool:
        """A quota, an admission policy, or a right that is lacking."""
        return self.status == 403 and not self.is_leaving

    @property
    def is_leaving(self) -> bool:
        """The namespace is being deleted, and whoever wants something made there with it."""
        return self.status == 403 and "because it is being terminated" in self.message

    @property
    def is_expired(self) -> bool:
        """The resourceVersion or continue token is too old: list again."""
        return self.status == 410 or self.reason in {"Expired", "Gone"}

    @property
    def is_invalid(self) -> bool:
        """The object itself is at fault; sending it again cannot help."""
        if self.status in {400, 422}:
            return True
        return self.status == 500 and any(text in self.message for text in _USER_ERROR_TEXTS)

    @property
    def is_refused(self) -> bool:
        """It is not to be, for as long as nothing changes that is not ours to change."""
        return self.is_forbidden or self.is_invalid

    @property
    def is_transient(self) -> bool:
        """The same request may succeed later."""
        return (self.status in {408, 429} or self.status >= 500) and not self.is_invalid
