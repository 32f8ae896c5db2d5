"""Whether a warm pod can serve a TokenService: whether both have the same shape.

The shape is the PodSpec, as rendered, without what an assignment brings (model and arguments) and without what makes a
server a warm one. Everything else of a running pod cannot be changed any more: image, resources, volumes, Secrets,
priority, tolerations. Pure functions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tokenservice import protocol
from tokenservice.api import names

PodSpec = Mapping[str, Any]

ASSIGNMENT_VOLUME = "assignment"

BROUGHT = frozenset(
    {
        protocol.VAR_MODEL_SOURCE,
        protocol.VAR_MODEL_REVISION,
        protocol.VAR_MODEL_NAME,
        protocol.VAR_TRUST_REMOTE_CODE,
    }
)
"""Variables whose values come with an assignment."""
WARM = frozenset({protocol.VAR_WARM, protocol.VAR_PRELOAD, protocol.VAR_ASSIGN_TOKEN_SHA256})
"""Variables of a warm server alone."""

_DIGITS = 16
_ORDERED = frozenset({"initContainers"})
"""Lists whose order says something although their elements have names."""
_KEYS = ("name", "mountPath", "devicePath", "containerPort", "topologyKey", "ip")
"""By the first of these that they have, elements of a list are told apart, as Kubernetes' merge keys do."""
_SHOWN = 60
"""Characters of a value that are shown of a difference."""

_canonical = msgspec.json.Encoder(order="deterministic")


def shape(spec: PodSpec) -> str:
    """A hash of the shape, short enough for a label."""
    return hashlib.sha256(_canonical.encode(normal(spec))).hexdigest()[:_DIGITS]


def normal(spec: PodSpec) -> dict[str, Any]:
    """What of a PodSpec makes its shape. Lists whose elements have keys become mappings: their order says nothing."""
    found = {key: value for key, value in spec.items() if key not in ("containers", "volumes")}
    found["containers"] = [
        _server(container) if container.get("name") == names.CONTAINER else container
        for container in spec.get("containers") or ()
    ]
    found["volumes"] = [
        volume
        for volume in spec.get("volumes") or ()
        if not (volume["name"] == ASSIGNMENT_VOLUME and "emptyDir" in volume)
    ]
    normalised: dict[str, Any] = _keyed(found)
    return normalised


def difference(pool: PodSpec, service: PodSpec) -> str | None:
    """Where the shapes differ, in words that name the field: the first place of several; None if they are the same.

    Values of variables are not told, nor anything of what only one of the two has: they may be secrets.
    """
    ours, theirs = normal(pool), normal(service)
    return next(_differences("spec", ours, theirs), None)


def _server(container: Mapping[str, Any]) -> dict[str, Any]:
    """The container that serves, without what is brought and what is warm."""
    found = {key: value for key, value in container.items() if key != "args"}
    left_out: tuple[tuple[str, str, frozenset[Any]], ...] = (
        ("env", "name", BROUGHT | WARM),
        ("ports", "containerPort", frozenset({protocol.ASSIGN_PORT})),
        ("volumeMounts", "mountPath", frozenset({protocol.ASSIGNMENT_MOUNT})),
    )
    for items, key, values in left_out:
        if items in found:
            found[items] = [item for item in found[items] or () if item.get(key) not in values]
    return found


def _keyed(value: Any) -> Any:
    """The value without what is empty, keyed lists as mappings."""
    if isinstance(value, Mapping):
        made = {key: [*item] if key in _ORDERED and item else _keyed(item) for key, item in value.items()}
        return {key: item for key, item in made.items() if item not in (None, {}, [])}
    if not isinstance(value, list | tuple):
        return value
    key = _key(value)
    if key is None:
        return [_keyed(item) for item in value]
    return {f"[{item[key]}]": _keyed(item) for item in value}


def _key(items: list[Any] | tuple[Any, ...]) -> str | None:
    """The key by which the elements of a list are told apart; None if there is none, or two have the same."""
    if not items or not all(isinstance(item, Mapping) for item in items):
        return None
    for key in _KEYS:
        if all(key in item for item in items) and len({item[key] for item in items}) == len(items):
            return key
    return None


def _differences(path: str, pool: Any, service: Any) -> Iterator[str]:
    if pool == service:
        return
    if isinstance(pool, Mapping) and isinstance(service, Mapping):
        for key in sorted({*pool, *service}):
            below = f"{path}{key}" if key.startswith("[") else f"{path}.{key}"
            yield from _differences(below, pool.get(key), service.get(key))
        return
    if pool is None or service is None:
        yield f"{path}: only the {'TokenService' if pool is None else 'pool'} has it"
    elif ".env[" in path:
        yield f"{path}: the pool has another value than the TokenService"  # which may be a secret
    else:
        yield f"{path}: the pool has {_said(pool)}, the TokenService {_said(service)}"


def _said(value: Any) -> str:
    text = re.sub(r"\s+", " ", value if isinstance(value, str) else msgspec.json.encode(value).decode())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
