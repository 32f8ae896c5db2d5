"""What is known of TokenServices, whatever the order in which it arrives."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.services.store import Store, decode, key_of

KEY = ("team", "demo")


def raw(version: int, uid: str = "u1", **spec: Any) -> dict[str, Any]:
    metadata = {"name": "demo", "namespace": "team", "uid": uid, "resourceVersion": str(version)}
    model = {"model": {"source": "hf://a/b"}, "environment": {"image": {"reference": "x"}}}
    return {"metadata": {**metadata, "managedFields": [{"fieldsV1": 1}]}, "spec": {**model, **spec}}


def test_an_older_version_does_not_come_back() -> None:
    store = Store()
    assert store.observe(decode(raw(9, replicas=2)))
    assert not store.observe(decode(raw(9, replicas=1)))
    assert not store.observe(decode(raw(8, replicas=1)))
    found = store.get(KEY)
    assert found
    assert found.spec.replicas == 2
    assert store.observe(decode(raw(10, replicas=3)))
    assert [service.spec.replicas for service in store] == [3]


def test_one_made_again_under_the_same_name_replaces_it() -> None:
    store = Store()
    store.observe(decode(raw(9)))
    assert store.observe(decode(raw(10, uid="u2")))
    store.remove(KEY)
    store.remove(KEY)
    assert (store.get(KEY), len(store)) == (None, 0)


def test_what_the_crd_does_not_know_is_skipped_and_what_is_wrong_is_named() -> None:
    assert key_of(raw(1)) == KEY
    assert decode({**raw(1, new=1), "kind": "TokenService"}).spec.replicas == 1
    with pytest.raises(msgspec.ValidationError, match=r"\$\.spec\.replicas"):
        decode(raw(1, replicas="many"))


def in_environment(version: int, name: str = "demo", **environment: Any) -> dict[str, Any]:
    made = raw(version, environment=environment)
    return {**made, "metadata": {**made["metadata"], "name": name}}


def test_who_runs_in_an_environment_follows_the_specs() -> None:
    store = Store()
    store.observe(decode(in_environment(1, ref={"name": "nlp"})))
    store.observe(decode(in_environment(2, name="nlp", conda={"dependencies": ["python"]})))
    store.observe(decode(in_environment(3, name="other")))
    assert sorted(store.users_of("team", "nlp")) == [("team", "demo"), ("team", "nlp")]
    assert store.users_of("another", "nlp") == store.users_of("team", "demo") == ()
    store.observe(decode(in_environment(4, ref={"name": "code"})))
    assert not store.observe(decode(in_environment(1, ref={"name": "nlp"})))
    assert (store.users_of("team", "nlp"), store.users_of("team", "code")) == ((("team", "nlp"),), (KEY,))
    store.observe(decode(in_environment(5, image={"reference": "x"})))
    store.remove(("team", "nlp"))
    assert store.users_of("team", "nlp") == store.users_of("team", "code") == ()


ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "ref a": {"ref": {"name": "a"}},
    "ref b": {"ref": {"name": "b"}},
    "conda": {"conda": {}},
    "image": {"image": {"reference": "x"}},
}
changes = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["gone", *ENVIRONMENTS]), st.booleans()),
    max_size=12,
)


@given(changes)
def test_the_users_of_an_environment_are_those_that_the_store_holds(happened: list[tuple[str, str, bool]]) -> None:
    store = Store()
    for version, (name, what, again) in enumerate(happened, start=1):
        if what == "gone":
            store.remove(("team", name))
        else:
            made = decode(in_environment(version, name, **ENVIRONMENTS[what]))
            uid = f"u{version}" if again else "u1"
            store.observe(msgspec.structs.replace(made, metadata=msgspec.structs.replace(made.metadata, uid=uid)))
    for environment_name in "abc":
        held = {("team", service.metadata.name) for service in store if service.environment_name == environment_name}
        assert set(store.users_of("team", environment_name)) == held


def with_pool(version: int, name: str = "demo", **pool: Any) -> dict[str, Any]:
    made = raw(version, **({"warmPool": pool} if pool else {}))
    return {**made, "metadata": {**made["metadata"], "name": name}}


def test_who_takes_pods_from_a_pool_follows_the_specs() -> None:
    store = Store()
    store.observe(decode(with_pool(1, name="nlp")))
    store.observe(decode(with_pool(2, name="demo")))
    store.observe(decode(with_pool(3, name="third")))
    assert store.takers_of("team", "nlp") == ()
    store.observe(decode(with_pool(4, name="demo", replicas=1)))
    store.observe(decode(taking(5, "third", "nlp")))
    store.observe(decode(with_pool(6, name="nlp", replicas=2)))
    assert sorted(store.takers_of("team", "nlp")) == [("team", "nlp"), ("team", "third")]
    assert store.takers_of("team", "demo") == (("team", "demo"),), "its own, of its own name"
    assert store.takers_of("other", "nlp") == ()
    store.observe(decode(taking(7, "third", "demo")))
    assert sorted(store.takers_of("team", "demo")) == [("team", "demo"), ("team", "third")]
    store.observe(decode(with_pool(8, name="third")))
    store.remove(("team", "demo"))
    assert store.takers_of("team", "demo") == ()


def taking(version: int, name: str, pool: str) -> dict[str, Any]:
    made = raw(version, warmPool={"name": pool})
    return {**made, "metadata": {**made["metadata"], "name": name}}
