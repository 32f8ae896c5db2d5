"""Errors as OpenAI's API writes them: {"error": {"message", "type", "param", "code"}}, with an HTTP status."""

from __future__ import annotations

from typing import Any, Optional


class ApiError(Exception):
    """An answer that is not 200. `param` names the request's field, `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: Optional[str] = None,
        param: Optional[str] = None,
        kind: str = "invalid_request_error",
        retry_after: Optional[int] = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found


def bad_value(param: str, message: str) -> ApiError:
    return ApiError(400, f"Invalid value for '{param}': {message}", code="invalid_value", param=param)


def bad_type(param: str, wanted: str) -> ApiError:
    return ApiError(400, f"Invalid type for '{param}': expected {wanted}.", code="invalid_type", param=param)


def unsupported(param: str, message: str) -> ApiError:
    return ApiError(400, f"'{param}' is not supported by this server: {message}", code="unsupported_value", param=param)


def unknown_model(name: str, served: str) -> ApiError:
    message = f"The model `{name}` does not exist; this server has `{served}`."
    return ApiError(404, message, code="model_not_found", param="model")


def too_long(param: str, context: int, prompt: int, completion: int) -> ApiError:
    """Prompt and answer do not fit; lengths in tokens."""
    message = (
        f"This model's maximum context length is {context} tokens. However, you requested {prompt + completion} tokens "
        f"({prompt} in the {param}, {completion} in the completion). Please reduce the length of either."
    )
    return ApiError(400, message, code="context_length_exceeded", param=param)


def too_many_characters(param: str, context: int, characters: int) -> ApiError:
    """What cannot fit, whatever its tokens are."""
    message = f"This model's maximum context length is {context} tokens. The {param} has {characters} characters."
    return ApiError(400, message, code="context_length_exceeded", param=param)


def loading() -> ApiError:
    return ApiError(503, "The model is still loading.", code="model_loading", kind="server_error", retry_after=1)


def stopping() -> ApiError:
    message = "The server stopped before the answer was complete."
    return ApiError(503, message, code="server_stopping", kind="server_error", retry_after=1)


def busy(retry_after: int) -> ApiError:
    message = "The server's queue is full; try again soon."
    return ApiError(429, message, code="queue_full", kind="rate_limit_error", retry_after=retry_after)


def wrong_key() -> ApiError:
    return ApiError(401, "Incorrect or missing API key: send 'Authorization: Bearer KEY'.", code="invalid_api_key")


def internal() -> ApiError:
    return ApiError(500, "The server failed to answer; its log tells why.", code="internal_error", kind="server_error")
