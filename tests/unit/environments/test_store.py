"""The CondaEnvironments known to the operator, and who waits for which Job."""

from __future__ import annotations

from typing import Any

import msgspec
from tokenservice.api.environments import CondaEnvironment
from tokenservice.environments.store import Store, read

KEY = ("team", "nlp")


def raw(version: int = 1, uid: str = "u1", name: str = "nlp") -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "managedFields": [
                {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {}}},
                {"manager": "tokenservice-operator", "operation": "Apply", "fieldsV1": {"f:spec": {"f:lock": {}}}},
                {"manager": "tokenservice-operator", "operation": "Update", "subresource": "status"},
            ],
        },
        "spec": {"dependencies": ["python", {"pip": ["x"]}], "unknown": 1},
    }


def known(*arguments: Any, **more: Any) -> CondaEnvironment:
    return read(msgspec.json.encode(raw(*arguments, **more)))


def test_reading_keeps_our_own_managed_fields_and_the_spec_as_it_stands() -> None:
    found = known()
    (kept,) = found.metadata.managed_fields
    assert bytes(kept.fields_v1) == b'{"f:spec":{"f:lock":{}}}'
    assert found.spec == raw()["spec"]


def test_only_what_is_newer_is_kept_and_told() -> None:
    told: list[tuple[str, str]] = []

    def version(made: CondaEnvironment | None) -> str:
        return made.metadata.resource_version if made else "-"

    store = Store(lambda old, new: told.append((version(old), version(new))))
    assert store.observe(known(5))
    assert not store.observe(known(5))
    assert not store.observe(known(4))
    assert store.observe(known(6))
    assert store.observe(known(3, uid="another of that name"))
    store.remove(KEY)
    store.remove(KEY)
    assert told == [("-", "5"), ("5", "6"), ("6", "3"), ("3", "-")]
    assert (len(store), store.get(*KEY)) == (0, None)


def test_who_waits_for_a_job_is_known() -> None:
    store = Store()
    for name in ("nlp", "code"):
        store.observe(known(name=name))
    assert store.wanted is None, "nobody was looked at"
    assert not store.want(KEY, frozenset({"a", "b"}))
    assert store.wanted is None
    assert not store.want(("team", "code"), frozenset({"b"}))
    assert store.wanted == {"a", "b"}
    assert set(store.waiting_for("b")) == {KEY, ("team", "code")}
    assert store.waiting_for("c") == ()
    assert store.want(KEY, frozenset({"b"})), "a is no longer waited for"
    assert not store.want(KEY, frozenset({"b", "c"}))
    store.remove(("team", "code"))
    assert store.wanted == {"b", "c"}
    assert store.waiting_for("b") == (KEY,)
    store.remove(KEY)
    assert store.wanted == frozenset()
