"""Whether an object must be applied again: a hash of what we want, and the API server's record of what is still ours.

Nothing compares values. The API server defaults and normalises what it stores, so a comparison needs to know its
every habit; its own bookkeeping does not lie: when another writer changes or removes a field that we applied, the
field leaves our entry in `metadata.managedFields`. Source of the format: FieldsV1 in the Kubernetes API reference and
structured-merge-diff.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from tokenservice.api.meta import ManagedFieldsEntry, ObjectMeta
from tokenservice.api.names import ANNOTATION_APPLIED_HASH, OPERATOR

Manifest = Mapping[str, Any]

# What identifies the object or is kept by the server is not recorded as a field.
_UNTRACKED_ROOT = frozenset({"apiVersion", "kind"})
_UNTRACKED_METADATA = frozenset(
    {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink"}
)
# Keys of list elements that the server fills in where the manifest leaves them out; no other merge key has a default.
_DEFAULT_KEYS = {"protocol": "TCP"}

_canonical = msgspec.json.Encoder(order="deterministic")


def content_hash(desired: Manifest) -> str:
    """SHA-256 of the manifest's canonical JSON, without the annotation that holds this hash; 32 hexadecimal digits."""
    metadata = dict(desired.get("metadata") or {})
    annotations = {k: v for k, v in (metadata.pop("annotations", None) or {}).items() if k != ANNOTATION_APPLIED_HASH}
    if annotations:
        metadata["annotations"] = annotations
    return hashlib.sha256(_canonical.encode({**desired, "metadata": metadata})).hexdigest()[:32]


def with_hash(desired: Manifest) -> dict[str, Any]:
    """The manifest with its content hash in the annotation `tokenservice.dev/applied-hash`."""
    metadata = dict(desired.get("metadata") or {})
    metadata["annotations"] = {**(metadata.get("annotations") or {}), ANNOTATION_APPLIED_HASH: content_hash(desired)}
    return {**desired, "metadata": metadata}


def applied_hash(desired: Manifest) -> str | None:
    """The hash that `with_hash` wrote into the manifest."""
    found: str | None = ((desired.get("metadata") or {}).get("annotations") or {}).get(ANNOTATION_APPLIED_HASH)
    return found


def needs_apply(
    desired: Manifest,
    live: ObjectMeta | None,
    managed_fields: Sequence[ManagedFieldsEntry] | None = None,
    manager: str = OPERATOR,
) -> str | None:
    """Why the manifest must be applied, in words, or None if the cluster holds all of it.

    desired: a manifest from `with_hash`. live: the object's metadata, None if there is none. managed_fields: by
    default `live`'s.
    """
    if live is None:
        return "missing"
    wanted = applied_hash(desired)
    if wanted is None or live.annotations.get(ANNOTATION_APPLIED_HASH) != wanted:
        return "changed"
    owned = owned_fields(live.managed_fields if managed_fields is None else managed_fields, manager)
    if owned is None:
        return f"drift: nothing is owned by {manager}"
    return _owned(owned).verdict(wanted, desired)


def owned_fields(managed_fields: Sequence[ManagedFieldsEntry], manager: str = OPERATOR) -> bytes | None:
    """The FieldsV1 of what `manager` holds by server-side apply, as JSON; None without an entry."""
    for entry in managed_fields:
        if entry.manager == manager and entry.operation == "Apply" and not entry.subresource:
            return bytes(entry.fields_v1)
    return None


def keep_own_fields(
    managed_fields: Sequence[ManagedFieldsEntry], manager: str = OPERATOR
) -> tuple[ManagedFieldsEntry, ...]:
    """Only the entry that `owned_fields` reads, in memory shared by all equal entries.

    A decoded entry refers to the whole message that it came in; objects of one shape have equal entries, and a cache of
    thousands should hold that text once.
    """
    owned = owned_fields(managed_fields, manager)
    return () if owned is None else (_entry(owned, manager),)


def lost_fields(desired: Manifest, owned: Mapping[str, Any]) -> str | None:
    """The path of the first field of `desired` that the FieldsV1 set `owned` lacks, or None."""
    return _lost_in_root(desired, owned)


@lru_cache(maxsize=1024)
def _entry(owned: bytes, manager: str) -> ManagedFieldsEntry:
    return ManagedFieldsEntry(manager=manager, operation="Apply", fields_v1=msgspec.Raw(owned))


class _Owned:
    """A set of owned fields, which objects of one shape share, and what it said about manifests, by their hash."""

    def __init__(self, fields: bytes) -> None:
        self._fields: Mapping[str, Any] = msgspec.json.decode(fields)
        self._verdicts: dict[str, str | None] = {}

    def verdict(self, wanted: str, desired: Manifest) -> str | None:
        if wanted not in self._verdicts:
            if len(self._verdicts) >= _VERDICTS:
                self._verdicts.clear()
            lost = _lost_in_root(desired, self._fields)
            self._verdicts[wanted] = None if lost is None else f"drift: {lost}"
        return self._verdicts[wanted]


_owned = lru_cache(maxsize=1024)(_Owned)
_VERDICTS = 8192


def _lost_in_root(desired: Manifest, owned: Mapping[str, Any]) -> str | None:
    for key, value in desired.items():
        if key in _UNTRACKED_ROOT:
            continue
        if key == "metadata":
            tracked = {k: v for k, v in value.items() if k not in _UNTRACKED_METADATA}
            if not tracked:
                continue
            value = tracked
        lost = _lost_in_field(key, value, owned, "")
        if lost is not None:
            return lost
    return None


def _lost_in_field(key: str, value: Any, owned: Mapping[str, Any], path: str) -> str | None:
    if value is None:  # null says "not set": nothing to own
        return None
    below = owned.get(f"f:{key}")
    dotted = f"{path}.{key}" if path else key
    path = f"{path}[{key}]" if "." in key or "/" in key else dotted
    if below is None:
        # An empty list of elements with keys owns nothing and is not recorded; an empty map or atomic list is.
        return None if value == [] else path
    return _lost(value, below, path)


def _lost(value: Any, owned: Mapping[str, Any], path: str) -> str | None:
    if not owned:  # a leaf: a scalar, or an atomic map or list, owned with all that is in it
        return None
    if isinstance(value, Mapping):
        for key, item in value.items():
            lost = _lost_in_field(key, item, owned, path)
            if lost is not None:
                return lost
        return None
    if isinstance(value, list | tuple):
        return _lost_in_list(value, owned, path)
    return None


def _lost_in_list(elements: Sequence[Any], owned: Mapping[str, Any], path: str) -> str | None:
    keyed = [(msgspec.json.decode(name[2:]), below) for name, below in owned.items() if name.startswith("k:")]
    values = [msgspec.json.decode(name[2:]) for name in owned if name.startswith("v:")]
    for element in elements:
        if not isinstance(element, Mapping):
            if element not in values:
                return f"{path}[{element}]"
            continue
        below = next((below for keys, below in keyed if _matches(element, keys)), None)
        if below is None:
            return f"{path}[{_describe(element, keyed)}]"
        lost = _lost(element, below, f"{path}[{_describe(element, keyed)}]")
        if lost is not None:
            return lost
    return None


def _matches(element: Mapping[str, Any], keys: Mapping[str, Any]) -> bool:
    return all(element.get(name, _DEFAULT_KEYS.get(name, wanted)) == wanted for name, wanted in keys.items())


def _describe(element: Mapping[str, Any], keyed: Sequence[tuple[Mapping[str, Any], Any]]) -> str:
    names = (
        keyed[0][0]
        if keyed
        else [name for name in ("name", "containerPort", "port", "mountPath", "uid") if name in element]
    )
    return ",".join(f"{name}={element[name]}" for name in names if name in element)
