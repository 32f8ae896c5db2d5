"""What a registry's refusal means, in words and as a reason: pure, so that every case can stand in a table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import urllib3

from tokenservice.api.jobs import Reason

from .errors import BuildError
from .http import RETRIED

# What registries say when there is no room: distribution passes on the file system's error (ENOSPC is number 28),
# Harbor, Quay, GitLab and the clouds name a quota or a limit.
_FULL = re.compile(
    r"no space left|\bENOSPC\b|\"Err\":\s*28\b|quota|storage limit|exceed the configured upper limit", re.IGNORECASE
)


@dataclass(frozen=True)
class Answer:
    """A response whose body, if it was asked for, is read. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_full(self) -> bool:
        """Whether the registry has no room for what was sent; trying again at once would not help."""
        return self.status == 507 or (self.status >= 400 and bool(_FULL.search(self.text)))

    @property
    def passes(self) -> bool:
        """Whether another try may have another answer."""
        return self.status in RETRIED and not self.is_full

    @property
    def text(self) -> str:
        return self.body[:8192].decode(errors="replace")


def reason_of(answer: Answer | None) -> Reason:
    """The reason of a refusal; None is no answer at all."""
    if answer is None:
        return "RegistryUnavailable"
    if answer.is_full or answer.status == 413:
        return "RegistryFull"
    if answer.status in (401, 403):
        return "RegistryUnauthorized"
    return "RegistryUnavailable" if answer.status in RETRIED or answer.status >= 500 else "Failed"


def refused(host: str, method: str, path: str, answer: Answer | None) -> BuildError:
    """An answer that the request cannot go on from."""
    if answer is None:
        return BuildError(f"the registry {host} does not answer", "RegistryUnavailable")
    reason = reason_of(answer)
    hint = ""
    if reason == "RegistryFull":
        hint = " (it has no room, or its quota is used up)"
        if answer.status == 413:
            hint = " (it, or a proxy before it, takes nothing this large: raise its limit of a request's size)"
    elif reason == "RegistryUnauthorized":
        hint = " (may the login write there?)" if method in ("PUT", "POST", "PATCH", "DELETE") else " (may it be read?)"
    words = _words(answer)
    what = path.split("?", 1)[0]
    return BuildError(f"{host}: {method} {what} gave {answer.status}{hint}{': ' + words if words else ''}", reason)


def _words(answer: Answer) -> str:
    """The registry's own explanation, by the distribution specification's error codes."""
    try:
        errors = json.loads(answer.body or b"{}").get("errors", [])
        return "; ".join(_one(each) for each in errors)
    except (ValueError, AttributeError, TypeError):
        return ""


def _one(error: Mapping[str, object]) -> str:
    found = f"{error.get('code')}: {error.get('message')}"
    detail = json.dumps(error["detail"]) if error.get("detail") else ""
    # The cause of an "unknown error" stands in the detail alone.
    return f"{found} ({detail[:300]})" if detail and _FULL.search(detail) else found


def unreachable(host: str, error: Exception) -> BuildError:
    """No connection."""
    if isinstance(error, urllib3.exceptions.SSLError):
        hint = "name its certificate authority with --ca-bundle, or use --plain-http if it speaks plain HTTP"
        text = f"no trusted connection to the registry {host}: {plain_cause(error)}; {hint}"
    else:
        text = f"the registry {host} cannot be reached: {plain_cause(error)}"
    return BuildError(text, "RegistryUnavailable")


def plain_cause(error: BaseException) -> str:
    """The innermost words of an HTTP error, on one line, without object addresses."""
    text = str(error).rsplit(">: ", 1)[-1]
    found = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text) or re.search(r"^\('Connection .*\('(.+?)'\)\)$", text)
    return (found[1] if found else text).replace("\n", " ").strip()
