"""The cluster's own schema of a pod template: checks a partial template and merges it as kubectl would.

Source of the schema: the API server's OpenAPI v3 document of apps/v1, whose definitions carry
`x-kubernetes-patch-strategy` and `x-kubernetes-patch-merge-key`. Source of the merge's rules: Kubernetes'
strategic merge patch (sig-api-machinery/strategic-merge-patch.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from tokenservice.api.quantity import PATTERN as QUANTITY

PREFIX = "#/components/schemas/"
POD_TEMPLATE = "io.k8s.api.core.v1.PodTemplateSpec"
DIRECTIVE = "$patch"

# Keys of list elements that the API server fills in where they are left out; no other has a default.
_DEFAULT_KEYS = {"protocol": "TCP"}

Schema = Mapping[str, Any]


class InvalidTemplateError(ValueError):
    """A template cannot be used. The text begins with the path of the field and says what to write instead."""


class PodSchema:
    """Definitions reachable from PodTemplateSpec."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    @classmethod
    def from_openapi(cls, document: Mapping[str, Any]) -> PodSchema:
        """From the API server's OpenAPI v3 document of apps/v1; only what a pod template needs is kept.

        Raises:
            KeyError: the document has no PodTemplateSpec.

        """
        every = document["components"]["schemas"]
        kept: dict[str, Schema] = {}
        todo = [POD_TEMPLATE]
        while todo:
            name = todo.pop()
            if name not in kept:
                kept[name] = _without_text(every[name])
                todo += [ref.removeprefix(PREFIX) for ref in _references(every[name])]
        return cls(kept)

    def dump(self) -> dict[str, Any]:
        """The document that `from_openapi` takes, reduced to what is kept."""
        return {"components": {"schemas": dict(self._definitions)}}

    def check(self, template: Any, path: str = "spec.template") -> None:
        """Checks a partial template: field names, types, quantities, merge keys. `None` removes and always passes.

        Raises:
            InvalidTemplateError: names the first field that is wrong.

        """
        self._check(template, {"$ref": PREFIX + POD_TEMPLATE}, path)

    def merge(self, base: dict[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
        """`template` merged strategically over `base`; neither is changed. `template` must have passed `check`.

        Where kubectl's merge would make a pod that is refused, or lose something, this one does what was meant: a
        volume's source and a variable's content replace the old one; elements with several keys (ports by number and
        protocol) are told apart by all of them; a map that is deleted is gone, not empty. New elements follow the old
        ones, so that the container that serves stays the first.
        """
        merged = self._merge(base, template, {"$ref": PREFIX + POD_TEMPLATE})
        assert isinstance(merged, dict)  # noqa: S101 - two maps merge into a map
        return merged

    def _resolve(self, schema: Schema) -> tuple[Schema, str]:
        """The schema behind references, and the name of the definition it came from."""
        name = ""
        while True:
            if "$ref" in schema:
                name = schema["$ref"].removeprefix(PREFIX)
                schema = self._definitions[name]
            elif len(schema.get("allOf", ())) == 1:
                schema = {**{k: v for k, v in schema.items() if k != "allOf"}, **schema["allOf"][0]}
            else:
                return schema, name

    def _check(self, value: Any, schema: Schema, path: str) -> None:
        if value is None:
            return
        own, name = self._resolve(schema)
        if name.endswith(".Quantity"):
            _check_quantity(value, path)
        elif name.endswith(".IntOrString") or own.get("format") == "int-or-string":
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise InvalidTemplateError(f"{path}: must be a whole number or a string, not {_kind(value)}")
        elif "properties" in own:
            self._check_object(value, own["properties"], path)
        elif own.get("type") == "object":
            if not isinstance(value, Mapping):
                raise InvalidTemplateError(f"{path}: must be a map, not {_kind(value)}")
            if isinstance(own.get("additionalProperties"), Mapping):
                for key, item in value.items():
                    if key == DIRECTIVE:
                        _check_word(item, path)
                    else:
                        self._check(item, own["additionalProperties"], f"{path}[{key}]")
        elif own.get("type") == "array":
            self._check_list(value, schema, own, path)
        else:
            _check_scalar(value, own, path)

    def _check_object(self, value: Any, properties: Mapping[str, Schema], path: str) -> None:
        if not isinstance(value, Mapping):
            raise InvalidTemplateError(f"{path}: must be a map, not {_kind(value)}")
        for key, item in value.items():
            if key == DIRECTIVE:
                _check_word(item, path)
                continue
            if key not in properties:
                near = difflib.get_close_matches(key, list(properties), n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise InvalidTemplateError(f"{path}.{key}: unknown field{hint}")
            self._check(item, properties[key], f"{path}.{key}")

    def _check_list(self, value: Any, outer: Schema, own: Schema, path: str) -> None:
        if not isinstance(value, list):
            raise InvalidTemplateError(f"{path}: must be a list, not {_kind(value)}")
        key = _merge_key({**own, **outer})
        keys = _identity_keys({**own, **outer})
        seen: list[tuple[Any, ...]] = []
        for index, item in enumerate(value):
            self._check(item, own["items"], f"{path}[{index}]")
            if item is None:
                raise InvalidTemplateError(f"{path}[{index}]: is empty; write an element or take the line out")
            if not isinstance(item, Mapping):
                continue
            if DIRECTIVE in item:
                _check_directive(item, key, f"{path}[{index}]")
            elif key and item.get(key) is None:
                raise InvalidTemplateError(f"{path}[{index}].{key}: is needed, elements are merged by it")
            if keys and _directive(item) != "replace":
                identity = _identity(item, keys)
                if identity in seen:
                    raise InvalidTemplateError(f"{path}[{index}].{keys[0]}: {item[keys[0]]} is in the list twice")
                seen.append(identity)

    def _merge(self, base: Any, patch: Any, schema: Schema) -> Any:
        own, _ = self._resolve(schema)
        if isinstance(patch, Mapping) and isinstance(base, Mapping):
            return self._merge_map(base, patch, own)
        if isinstance(patch, list) and isinstance(base, list):
            return self._merge_list(base, patch, {**own, **schema})
        return _plain(patch)

    def _merge_map(self, base: Mapping[str, Any], patch: Mapping[str, Any], own: Schema) -> Any:
        if patch.get(DIRECTIVE) == "replace":
            return _plain(patch)
        merged = dict(base)
        properties = own.get("properties", {})
        for key, item in patch.items():
            if key == DIRECTIVE:
                continue
            if item is None or _directive(item) == "delete":
                merged.pop(key, None)
                continue
            below = properties.get(key) or own.get("additionalProperties") or {}
            merged[key] = self._merge(merged.get(key), item, below)
        return merged

    def _merge_list(self, base: list[Any], patch: list[Any], schema: Schema) -> list[Any]:
        strategy = schema.get("x-kubernetes-patch-strategy", "")
        if "merge" not in strategy or any(_directive(item) == "replace" for item in patch):
            plain: list[Any] = _plain(patch)
            return plain
        if _merge_key(schema) is None:
            return [*base, *(item for item in patch if item not in base)]
        keys = _identity_keys(schema)
        merged = list(base)
        for item in patch:
            identity = _identity(item, keys)
            at = next((i for i, old in enumerate(merged) if _identity(old, keys) == identity), None)
            if _directive(item) == "delete":
                merged = [old for old in merged if _identity(old, keys) != identity]
            elif at is None:
                merged.append(_plain(item))
            else:
                old = merged[at]
                if "retainKeys" in strategy or _is_union(item, old):
                    # Exactly one of the fields may be set (a volume's source, a variable's value): the patch's.
                    old = {name: old[name] for name in old if name in item or name in keys}
                merged[at] = self._merge(old, item, schema["items"])
        return merged


def _merge_key(schema: Schema) -> str | None:
    key = schema.get("x-kubernetes-patch-merge-key")
    return str(key) if key and "merge" in schema.get("x-kubernetes-patch-strategy", "") else None


def _identity_keys(schema: Schema) -> tuple[str, ...]:
    """The fields by which the elements of a list are told apart; the merge key first, none if nothing is merged."""
    key = _merge_key(schema)
    if key is None:
        return ()
    return (key, *(name for name in schema.get("x-kubernetes-list-map-keys", ()) if name != key))


def _identity(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(_DEFAULT_KEYS.get(key) if item.get(key) is None else item[key] for key in keys)


def _check_word(word: Any, path: str) -> None:
    if word not in ("replace", "delete", "merge"):
        raise InvalidTemplateError(f"{path}.{DIRECTIVE}: must be replace, delete or merge")


def _check_directive(item: Mapping[str, Any], key: str | None, path: str) -> None:
    """Whether `$patch` in an element of a list can be followed; `key`: by what the list is merged, if it is."""
    if key is None:
        raise InvalidTemplateError(f"{path}.{DIRECTIVE}: this list is replaced as a whole; write what it shall hold")
    if item[DIRECTIVE] == "replace" and len(item) > 1:
        raise InvalidTemplateError(
            f"{path}.{DIRECTIVE}: replace is for the whole list and stands in an element of its own"
        )
    if item[DIRECTIVE] != "replace" and item.get(key) is None:
        raise InvalidTemplateError(f"{path}.{key}: is needed to know which element is meant")


def _directive(item: Any) -> str | None:
    return item.get(DIRECTIVE) if isinstance(item, Mapping) else None


def _is_union(item: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether both name an environment variable's content, which may be `value` or `valueFrom` but not both."""
    given = {name for name in ("value", "valueFrom") if item.get(name) is not None}
    return bool(given) and bool({"value", "valueFrom"} & set(old))


def _plain(value: Any) -> Any:
    """`value` as it is created where there was nothing to merge with: no nulls, no directives."""
    if isinstance(value, Mapping):
        return {
            key: _plain(item)
            for key, item in value.items()
            if item is not None and key != DIRECTIVE and _directive(item) != "delete"
        }
    if isinstance(value, list):
        return [_plain(item) for item in value if _directive(item) not in ("delete", "replace")]
    return value


def _check_quantity(value: Any, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not QUANTITY.fullmatch(str(value)):
        raise InvalidTemplateError(f"{path}: {value!r} is not a quantity; write for example 1, 500m or 2Gi")


_WANTED = {"string": "a string", "boolean": "true or false", "integer": "a whole number", "number": "a number"}


def _check_scalar(value: Any, schema: Schema, path: str) -> None:
    wanted = schema.get("type")
    fits = {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
    }
    if wanted in fits and not fits[wanted]:
        hint = "; put it in quotes" if wanted == "string" and not isinstance(value, Mapping | list) else ""
        raise InvalidTemplateError(f"{path}: must be {_WANTED[wanted]}, not {_kind(value)}{hint}")
    bits = {"int32": 31, "int64": 63}.get(schema.get("format", ""))
    if wanted == "integer" and bits and not -(2**bits) <= value < 2**bits:  # the API server would store another number
        raise InvalidTemplateError(f"{path}: must be from {-(2**bits)} to {2**bits - 1}, not {value}")
    choices = schema.get("enum")
    if choices and value != "" and value not in choices:  # the API server takes "" for its default
        raise InvalidTemplateError(f"{path}: must be one of {', '.join(map(str, choices))}, not {value!r}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a string", int: "a number", float: "a fraction", list: "a list", dict: "a map"}
    return names.get(type(value), "something else")


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)


def _without_text(schema: Any, *, named: bool = False) -> Any:
    """Without descriptions and defaults, which are most of the bytes. `named`: the keys are names of fields."""
    if isinstance(schema, Mapping):
        return {
            key: _without_text(value, named=key == "properties" and not named)
            for key, value in schema.items()
            if named or key not in ("description", "default", "x-kubernetes-group-version-kind")
        }
    if isinstance(schema, list):
        return [_without_text(item) for item in schema]
    return schema
