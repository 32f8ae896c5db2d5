"""The store: whatever order lists, events and answers to our own writes arrive in, it ends up as the server's state."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenservice.api.meta import Object, ObjectMeta
from tokenservice.kube.store import Store


def obj(name: str, version: int, owner: str = "o") -> Object:
    return Object(
        metadata=ObjectMeta(namespace="ns", name=name, resource_version=str(version), labels={"owner": owner})
    )


class Recorder:
    """on_change that holds itself to account: every `old` is what was last told as `new`."""

    def __init__(self) -> None:
        self.told: dict[str, int] = {}
        self.calls: list[tuple[int | None, int | None]] = []

    def __call__(self, old: Object | None, new: Object | None) -> None:
        assert old is not None or new is not None
        self.calls.append(tuple(int(o.metadata.resource_version) if o else None for o in (old, new)))  # type: ignore[arg-type]
        name = (new or old).metadata.name  # type: ignore[union-attr]
        if new is None:
            self.told.pop(name, None)
        else:
            self.told[name] = int(new.metadata.resource_version)


def listed(store: Store[Object], version: int, *objects: Object) -> None:
    store.begin_list(version)
    for item in objects:
        store.listed(item)
    store.end_list()


def owner(item: Object) -> str:
    return item.metadata.labels["owner"]


def test_a_second_list_tells_only_what_became_different() -> None:
    told = Recorder()
    store: Store[Object] = Store(told)
    listed(store, 10, obj("a", 1), obj("b", 2), obj("c", 3))
    told.calls.clear()
    listed(store, 20, obj("a", 1), obj("b", 15))
    assert sorted(told.calls, key=str) == sorted([(2, 15), (3, None)], key=str)


def test_the_answer_to_a_write_is_seen_at_once_and_its_event_is_no_news() -> None:
    told = Recorder()
    store: Store[Object] = Store(told)
    listed(store, 10)
    store.observe(obj("a", 11))
    assert store.get("ns", "a") is not None
    store.changed(obj("a", 11))
    assert told.calls == []
    store.changed(obj("a", 12))
    assert told.calls == [(11, 12)]


def test_a_late_answer_does_not_bring_back_what_was_deleted() -> None:
    store: Store[Object] = Store(Recorder())
    listed(store, 10)
    store.changed(obj("a", 11))
    store.deleted(("ns", "a"), 12)
    store.observe(obj("a", 11))
    assert store.get("ns", "a") is None
    store.observe(obj("a", 13))  # created again
    assert store.get("ns", "a") is not None


def test_a_late_answer_does_not_bring_back_what_a_list_did_not_show() -> None:
    store: Store[Object] = Store(Recorder())
    listed(store, 10)
    listed(store, 20)  # "a" was created at 11 and deleted at 12 while nobody watched
    store.observe(obj("a", 11))
    assert store.get("ns", "a") is None


def test_an_answer_that_arrives_while_a_list_comes_in() -> None:
    store: Store[Object] = Store(Recorder())
    listed(store, 10)
    store.begin_list(20)
    store.observe(obj("gone", 15))  # deleted before 20: the list does not show it
    store.observe(obj("new", 21))  # created after the list was made
    store.end_list()
    assert [item.metadata.name for item in store] == ["new"]


def test_a_deletion_that_we_have_written_past_is_ignored() -> None:
    store: Store[Object] = Store(Recorder())
    listed(store, 10, obj("a", 5))
    store.observe(obj("a", 13))  # created again by us
    store.deleted(("ns", "a"), 12)
    assert store.get("ns", "a") == obj("a", 13)


def test_a_server_restored_from_a_backup_is_believed() -> None:
    store: Store[Object] = Store(Recorder())
    listed(store, 1000, obj("a", 900), obj("b", 950))
    listed(store, 500, obj("a", 400))
    assert [(o.metadata.name, o.metadata.resource_version) for o in store] == [("a", "400")]
    store.changed(obj("a", 501))
    assert store.get("ns", "a") == obj("a", 501)


def test_index_follows() -> None:
    store: Store[Object] = Store(Recorder(), owner)
    listed(store, 10, obj("a", 1, "x"), obj("b", 2, "x"))
    assert {o.metadata.name for o in store.by_index("x")} == {"a", "b"}
    store.changed(obj("a", 11, "y"))
    store.deleted(("ns", "b"), 12)
    assert store.by_index("x") == ()
    assert store.by_index("y") == (obj("a", 11, "y"),)


def test_a_failing_handler_stops_nobody() -> None:
    def fail(old: Object | None, new: Object | None) -> None:
        raise RuntimeError

    store: Store[Object] = Store(fail)
    listed(store, 10, obj("a", 1), obj("b", 2))
    assert len(store) == 2


@dataclass
class Server:
    """State and history, with one counter of versions."""

    version: int = 10
    objects: dict[str, int] = field(default_factory=dict)
    history: list[tuple[int, str, str]] = field(default_factory=list)

    def put(self, name: str) -> int:
        self.version += 1
        self.objects[name] = self.version
        self.history.append((self.version, "put", name))
        return self.version

    def remove(self, name: str) -> None:
        self.version += 1
        del self.objects[name]
        self.history.append((self.version, "remove", name))


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["put", "own put", "remove", "deliver", "deliver all", "answer", "list", "slow list", "repeat"]
        ),
        st.sampled_from("abc"),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(ACTIONS)
def test_the_store_ends_up_as_the_server(actions: list[tuple[str, str]]) -> None:
    server, told = Server(), Recorder()
    store: Store[Object] = Store(told, owner)
    listed(store, server.version)
    sent = 0  # how much of the history the watch has delivered
    answers: list[Object] = []

    def deliver() -> None:
        nonlocal sent
        version, kind, name = server.history[sent]
        sent += 1
        if kind == "put":
            store.changed(obj(name, version))
        else:
            store.deleted(("ns", name), version)

    for action, name in actions:
        if action == "put":
            server.put(name)
        elif action == "own put":
            answers.append(obj(name, server.put(name)))
        elif action == "remove" and name in server.objects:
            server.remove(name)
        elif action == "deliver" and sent < len(server.history):
            deliver()
        elif action == "deliver all":
            while sent < len(server.history):
                deliver()
        elif action == "answer" and answers:
            store.observe(answers.pop(ord(name) % len(answers)))
        elif action == "list":
            listed(store, server.version, *(obj(n, v) for n, v in server.objects.items()))
            sent = len(server.history)
        elif action == "slow list":  # answers arrive and the server moves on while the list comes in
            snapshot, at, seen = dict(server.objects), server.version, len(server.history)
            store.begin_list(at)
            answers.append(obj(name, server.put(name)))
            while answers:
                store.observe(answers.pop())
            for n, v in snapshot.items():
                store.listed(obj(n, v))
            store.end_list()
            sent = seen
        elif action == "repeat" and sent:  # a watch from a bookmark before what has been delivered
            version, kind, old = server.history[sent - 1]
            if kind == "put":
                store.changed(obj(old, version))
            else:
                store.deleted(("ns", old), version)
        for held in store:  # never older than what has been delivered, never anything the server did not say
            assert (int(held.metadata.resource_version), "put", held.metadata.name) in server.history
    while sent < len(server.history):
        deliver()
    for answer in answers:
        store.observe(answer)
    state = {item.metadata.name: int(item.metadata.resource_version) for item in store}
    assert state == server.objects
    assert {item.metadata.name for item in store.by_index("o")} == set(state)
    # Whoever listens knows of every object that was not written by ourselves, and of every one that is gone.
    assert set(told.told) <= set(state)
