"""JSON lines on standard output: a constant message, variables in keys. Never a prompt, an answer or a secret."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from typing import Any, Optional

_lock = threading.Lock()
_TOKENS = re.compile(r"\bhf_[A-Za-z0-9]{8,}|\bsk-[A-Za-z0-9_-]{8,}|(?<=Bearer )\S+")


def log(message: str, *, level: str = "info", **fields: Any) -> None:
    """Writes one line; `time` is in seconds since 1970, durations are keys that end in _s."""
    record = {"time": round(time.time(), 3), "level": level, "message": message, **fields}
    line = json.dumps(record, default=str, ensure_ascii=False)
    with _lock:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def redact(text: str, *secrets: Optional[str]) -> str:
    """Replaces known secrets and whatever looks like a token."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _TOKENS.sub("***", text)
