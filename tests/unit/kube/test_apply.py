"""When an object must be applied again: against what a real API server recorded, and by property."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api.meta import ManagedFieldsEntry, ObjectMeta
from tokenservice.api.names import ANNOTATION_APPLIED_HASH, OPERATOR
from tokenservice.kube.apply import content_hash, keep_own_fields, lost_fields, needs_apply, with_hash

# Written by capture_managed_fields.py from a real API server.
CAPTURED = json.loads((Path(__file__).parent / "data" / "managed_fields.json").read_text())


@pytest.mark.parametrize("case", CAPTURED["cases"], ids=lambda case: str(case["name"]))
def test_captured_from_a_real_api_server(case: dict[str, Any]) -> None:
    live = msgspec.json.decode(json.dumps(case["live"]), type=ObjectMeta)
    reason = needs_apply(CAPTURED["manifests"][case["desired"]], live)
    drift = case["drift"]
    assert reason == (drift if drift in {None, "changed"} else f"drift: {drift}")


def test_captures_are_of_the_version_we_support() -> None:
    assert CAPTURED["kubernetes"].startswith("v1.37.")
    assert len(CAPTURED["cases"]) >= 40


def test_missing_and_changed() -> None:
    desired = with_hash({"metadata": {"name": "a"}, "spec": {"x": 1}})
    assert needs_apply(desired, None) == "missing"
    assert needs_apply(desired, ObjectMeta(name="a")) == "changed"
    live = ObjectMeta(name="a", annotations={ANNOTATION_APPLIED_HASH: content_hash(desired)})
    assert needs_apply(desired, live) == f"drift: nothing is owned by {OPERATOR}"
    assert needs_apply({"metadata": {"name": "a"}}, live) == "changed"  # without a hash nothing can be said


def entry(
    fields: object, *, manager: str = OPERATOR, operation: str = "Apply", subresource: str = ""
) -> ManagedFieldsEntry:
    raw = msgspec.Raw(msgspec.json.encode(fields))
    return ManagedFieldsEntry(manager=manager, operation=operation, subresource=subresource, fields_v1=raw)


def test_only_what_our_manager_applied_counts() -> None:
    desired = with_hash({"metadata": {"name": "a"}, "spec": {"x": 1}})
    annotations = dict(desired["metadata"]["annotations"])
    fields = {"f:metadata": {"f:annotations": {f"f:{ANNOTATION_APPLIED_HASH}": {}}}, "f:spec": {"f:x": {}}}
    for wrong in (
        entry(fields, manager="kubectl"),
        entry(fields, operation="Update"),
        entry(fields, subresource="status"),
    ):
        assert needs_apply(desired, ObjectMeta(annotations=annotations, managed_fields=(wrong,))) is not None
        both = (wrong, entry(fields))
        assert needs_apply(desired, ObjectMeta(annotations=annotations, managed_fields=both)) is None
        assert needs_apply(desired, ObjectMeta(annotations=annotations), both) is None
        assert keep_own_fields(both) == (entry(fields),)
    assert keep_own_fields((entry(fields, manager="x"),)) == ()


def test_the_protocol_of_a_port_is_tcp_unless_said() -> None:
    udp = {'k:{"port":53,"protocol":"UDP"}': {".": {}, "f:port": {}, "f:protocol": {}}}
    desired = {"ports": [{"port": 53}, {"port": 53, "protocol": "UDP"}]}
    assert lost_fields(desired, {"f:ports": udp}) == "ports[port=53]"
    tcp = {'k:{"port":53,"protocol":"TCP"}': {".": {}, "f:port": {}}}
    assert lost_fields(desired, {"f:ports": {**udp, **tcp}}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), JSON, max_size=5))
def test_the_hash_is_of_the_content(spec: dict[str, Any]) -> None:
    desired = {"metadata": {"name": "a"}, "spec": spec}
    hashed = with_hash(desired)
    assert content_hash(hashed) == content_hash(desired) == hashed["metadata"]["annotations"][ANNOTATION_APPLIED_HASH]
    assert with_hash(hashed) == hashed
    assert "annotations" not in desired["metadata"]  # what is given is not touched
    reordered = {"spec": dict(reversed(spec.items())), "metadata": {"annotations": {}, "name": "a"}}
    assert content_hash(reordered) == content_hash(desired)
    assert content_hash({**desired, "spec": {**spec, "more": 1}}) != content_hash(desired) or spec.get("more") == 1


# Manifests with what structured-merge-diff knows: maps, keyed lists, sets, scalars, atomic values.
SCALAR = st.integers(0, 9) | st.text("ab", max_size=3) | st.booleans()
NAME = st.text("abc./-", min_size=1, max_size=4)


def typed(depth: int) -> st.SearchStrategy[tuple[Any, dict[str, Any]]]:
    """A value, and the FieldsV1 that the API server would record for it."""
    leaf = st.tuples(SCALAR | st.lists(SCALAR, min_size=1, max_size=2), st.just({}))
    if depth == 0:
        return leaf
    below = typed(depth - 1)

    def as_map(items: dict[str, tuple[Any, Any]]) -> tuple[Any, dict[str, Any]]:
        return {k: v for k, (v, _) in items.items()}, {f"f:{k}": f for k, (_, f) in items.items()}

    def as_list(items: dict[str, tuple[Any, Any]]) -> tuple[Any, dict[str, Any]]:
        value = [{"name": k, "value": v} for k, (v, _) in items.items()]
        fields = {f"k:{json.dumps({'name': k})}": {".": {}, "f:name": {}, "f:value": f} for k, (_, f) in items.items()}
        return value, fields

    def as_set(items: list[str]) -> tuple[Any, dict[str, Any]]:
        return items, {f"v:{json.dumps(item)}": {} for item in items}

    nested = st.dictionaries(NAME, below, min_size=1, max_size=3)
    return (
        leaf
        | nested.map(as_map)
        | nested.map(as_list)
        | st.lists(NAME, min_size=1, max_size=3, unique=True).map(as_set)
    )


def paths(fields: dict[str, Any], at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, below in fields.items():
        if key != ".":
            found += [(*at, key), *paths(below, (*at, key))]
    return found


@given(st.dictionaries(NAME, typed(3), min_size=1, max_size=3), st.data())
def test_a_field_that_is_no_longer_ours_is_found_wherever_it_is(
    root: dict[str, tuple[Any, Any]], data: st.DataObject
) -> None:
    desired = {"spec": {k: v for k, (v, _) in root.items()}}
    owned = {"f:spec": {f"f:{k}": f for k, (_, f) in root.items()}}
    assert lost_fields(desired, owned) is None
    # Another writer takes one over: it leaves our set, and so do the maps that held nothing else.
    taken = data.draw(st.sampled_from(paths(owned)))
    less = copy.deepcopy(owned)
    trail: list[dict[str, Any]] = [less]
    for key in taken[:-1]:
        trail.append(trail[-1][key])
    for place, key in zip(reversed(trail), reversed(taken), strict=True):
        del place[key]
        if place:
            break
    assert lost_fields(desired, less) is not None
    # What others own besides is none of our business.
    more = copy.deepcopy(owned)
    more["f:spec"]["f:theirs"] = {}
    assert lost_fields(desired, more) is None
