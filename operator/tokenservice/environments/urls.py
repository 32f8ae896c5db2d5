"""Credentials inside addresses, which must not stand in a resource that many can read."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

CREDENTIALS_ADVICE = (
    "holds a password or token; take it out, and let the cluster's owner put it into a Secret for that host "
    "(builder.credentials)"
)
_PARAMETER = re.compile(r"[?&][^=&]*(?:token|key|passw|secret|sig|credential|auth)[^=&]*=.", re.IGNORECASE)
# anaconda.org's tokens begin the path; elsewhere `/t/` is a folder unless what follows looks like a token.
_TOKEN = re.compile(r"^/t/[^/]+|/t/[A-Za-z]{2}-[0-9A-Fa-f-]{20,}")
_URL = re.compile(r"(?<![A-Za-z+])[A-Za-z+]+://[^\s'\"]+")


def holds_secret(text: str) -> bool:
    """Whether an address in the text has a user and password, a token as parameter, or anaconda.org's `/t/TOKEN/`."""
    for found in _URL.findall(text):
        try:
            parts = urlsplit(found)
        except ValueError:  # no address at all, so not to be repeated if it looks like one with a user
            if "@" in found:
                return True
            continue
        user, at, _ = parts.netloc.rpartition("@")
        # git@ of a repository's address is a name, not a secret.
        if (at and user != "git") or _PARAMETER.search(found) or _TOKEN.search(parts.path):
            return True
    return False
