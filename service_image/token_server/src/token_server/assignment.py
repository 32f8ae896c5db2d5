"""What a warm server is given: which model to serve for whom, and where that is kept for when its container restarts.

The operator's side of it is operator/tokenservice/protocol/assignment.schema.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from token_server.errors import ApiError, bad_type, bad_value
from token_server.settings import SETTLED, Settings, SettingsError, default_name, read, read_flags

MOST_BYTES = 64 * 1024
MODEL_KEYS = {"source": str, "revision": str, "name": str, "trustRemoteCode": bool}


@dataclass(frozen=True)
class Assignment:
    """One TokenService's model. Two that are equal are the same assignment, brought twice."""

    service: str  # namespace/name, for the log
    model: Mapping[str, Any]
    args: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        return {"service": self.service, "model": dict(self.model), "args": list(self.args)}


def parse(document: Any) -> Assignment:
    """Raises ApiError (400), which names the field."""
    if not isinstance(document, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_type")
    for key in document:
        if key not in ("service", "model", "args"):
            raise ApiError(400, f"Unknown field '{key}'.", code="unknown_parameter", param=key)
    service, model, args = document.get("service"), document.get("model"), document.get("args", [])
    if not isinstance(service, str) or not service:
        raise bad_type("service", "namespace/name of the TokenService")
    if not isinstance(model, dict):
        raise bad_type("model", "an object")
    for key, value in model.items():
        if key not in MODEL_KEYS:
            raise ApiError(400, f"Unknown field 'model.{key}'.", code="unknown_parameter", param=f"model.{key}")
        if not isinstance(value, MODEL_KEYS[key]):
            raise bad_type(f"model.{key}", "true or false" if MODEL_KEYS[key] is bool else "a string")
    if not model.get("source"):
        raise bad_type("model.source", "hf://org/name or file:///path")
    if not isinstance(args, list) or not all(isinstance(each, str) for each in args):
        raise bad_type("args", "a list of strings")
    return Assignment(service, model, tuple(args))


def assigned(base: Settings, assignment: Assignment) -> Settings:
    """The settings of a warm server that has its model: as if it had been started with it.

    Raises ApiError (400) for a value that cannot be used, or a flag for what is settled when the server starts.
    """
    model = assignment.model
    try:
        source = read("model_source", model["source"], "it")
    except SettingsError as error:
        raise bad_value("model.source", str(error)) from None
    values = {
        "warm": False,
        "model_source": source,
        "model_revision": model.get("revision") or None,
        "trust_remote_code": model.get("trustRemoteCode", False),
    }
    if model.get("name"):
        values["model_name"] = model["name"]
    try:
        flags = read_flags(assignment.args, with_help=False)
    except SettingsError as error:
        raise bad_value("args", str(error)) from None
    for name, value in flags.items():
        if name in SETTLED and value != getattr(base, name):
            flag = "--" + name.replace("_", "-")
            raise bad_value("args", f"{flag} is settled when the server starts; this one has {getattr(base, name)!r}.")
    values.update({name: value for name, value in flags.items() if name not in SETTLED})
    values.setdefault("model_name", default_name(values["model_source"]))
    return dataclasses.replace(base, **values)


def believed(authorization: Optional[str], sha256: str) -> bool:
    """Whether the Authorization header's value is `Bearer TOKEN` with the token of that SHA-256."""
    scheme, _, token = (authorization or "").partition(" ")
    digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
    return hmac.compare_digest(digest, sha256) and scheme.lower() == "bearer"


def write(path: Path, assignment: Assignment) -> None:
    """Puts the assignment where the next start finds it, all of it or nothing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(assignment.document()), encoding="utf-8")
    beside.replace(path)


def sync(path: Path) -> None:
    """Returns when what `write` wrote survives the node's power cut. Raises OSError."""
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def stored(path: Path) -> Optional[Assignment]:
    """What was written by an earlier start; None if nothing was. Raises ValueError, one line, if it cannot be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {type(error).__name__}: the assignment cannot be read; delete the pod") from None
    try:
        return parse(document)
    except ApiError as error:
        raise ValueError(f"{path}: {error.message} Delete the pod") from None
