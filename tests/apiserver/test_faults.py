"""Reconciling goes on through faults of the API server and the network, and nothing is done twice.

Faults that cannot be had on demand are caused by a stand-in for a bad network, tests/support/faulty_proxy.py, between
the operator and the real API server; restarts of the API server and of etcd are real.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apiserver.conftest import SYSTEM, Plane, Space
from tests.support.faulty_proxy import Asked, Fault, FaultyProxy
from tests.support.wait import eventually, holds

CHILDREN = ("Deployment", "Service", "PodDisruptionBudget")
WATCHED = (
    *(
        "tokenservices",
        "condaenvironments",
        "warmpools",
        "controllerrevisions",
        "deployments",
        "services",
        "poddisruptionbudgets",
    ),
    *("pods", "nodes"),
)


@pytest.fixture
def faulty(plane: Plane, proxy: FaultyProxy, proxied: Path, alone: None) -> Iterator[FaultyProxy]:
    """The proxy, with an operator behind it that must survive what the test does."""
    operator = plane.operator(kubeconfig=proxied)
    operator.start()
    pid = operator.pid
    # One that is still on its way to the API server would not be cut, and no fault would strike it for minutes.
    eventually(lambda: proxy.watched() == set(WATCHED), "every watch is open")
    yield proxy
    proxy.heal()
    assert operator.running, f"the operator ended: {operator.text()[-2000:]}"
    assert operator.pid == pid
    assert operator.stop() == 0
    assert not operator.surprises()


def is_whole(space: Space, name: str, image: str = "registry.invalid/serving:1") -> bool:
    """Whether the service has each of its children as it should be, and a status."""
    space.ready(name, "ScaledToZero", seconds=0)
    deployment = space.there("Deployment", name)
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == image
    assert space.there("Service", name)["spec"]["selector"] == {"tokenservice.dev/service": name}
    assert space.there("PodDisruptionBudget", name)["spec"]["maxUnavailable"] == 1
    return True


def goes_on(space: Space, name: str = "after") -> None:
    """Everything works: a new service is made, drift is undone, a new spec is carried out."""
    space.apply(name, replicas=0)
    eventually(lambda: is_whole(space, name), f"{name} is made")
    space.patch("Service", name, {"spec": {"selector": {"tokenservice.dev/service": "x"}}})
    space.apply(name, image="registry.invalid/serving:2", replicas=0)
    eventually(lambda: is_whole(space, name, "registry.invalid/serving:2"), f"{name} is put right")


def nothing_twice(space: Space, *names: str) -> None:
    for kind in CHILDREN:
        assert sorted(item["metadata"]["name"] for item in space.api.list(kind, space.name)) == sorted(names)


ANSWERS = {
    "too many requests": Fault("status", "patch|create", code=429, reason="TooManyRequests", retry_after=1, times=8),
    "no server behind a balancer": Fault("status", code=503, reason="ServiceUnavailable", times=8),
    "internal errors": Fault("status", "patch|create|get", code=500, reason="InternalError", times=8),
    "conflicts": Fault("status", "patch", code=409, reason="Conflict", times=8),
    "time-outs of the server": Fault("status", "patch|create", code=504, reason="Timeout", times=8),
    "answers that are lost": Fault("lost", "patch|create", times=8),
    "answers that break off": Fault("torn", "patch|create", times=8),
    "no right for a while": Fault("status", "patch", "deployments", code=401, reason="Unauthorized", times=2),
}


def test_writes_that_fail_are_tried_again(faulty: FaultyProxy, space: Space) -> None:
    names = []
    for number, (what, fault) in enumerate(ANSWERS.items()):
        faulty.inject(fault)
        several = [f"llm-{number}-{letter}" for letter in "abc"]
        names += several
        for name in several:
            space.apply(name, replicas=0)
        for name in several:
            eventually(lambda name=name: is_whole(space, name), f"{name} in spite of {what}", seconds=40)
        assert fault.hits > 0, what
        faulty.heal()
    nothing_twice(space, *names)
    for name in names:
        reasons = [event["reason"] for event in space.events(name)]
        assert len(reasons) == len(set(reasons)), "no event twice"


def test_a_request_that_hangs_holds_up_nobody_else(faulty: FaultyProxy, space: Space) -> None:
    fault = faulty.inject(Fault("hang", "patch", "deployments"))
    space.apply("stuck", replicas=0)
    eventually(lambda: fault.hits, "it hangs")
    at = time.monotonic()
    for number in range(20):
        space.apply(f"llm-{number}", replicas=0)
    for number in range(20):
        eventually(lambda number=number: is_whole(space, f"llm-{number}"), "the others")
    assert time.monotonic() - at < 15
    eventually(lambda: is_whole(space, "stuck"), "given up after 30 s and tried again", seconds=45)


def lists(proxy: FaultyProxy, mark: int) -> set[str]:
    return {request.resource for request in proxy.since(mark, lambda request: request.verb == "list")}


def test_watches_that_break_go_on(faulty: FaultyProxy, space: Space) -> None:
    space.apply("before", replicas=0)
    eventually(lambda: is_whole(space, "before"), "all is well")
    for _ in range(3):
        faulty.cut_watches()
        space.patch("Service", "before", {"spec": {"selector": {"tokenservice.dev/service": "x"}}})
        eventually(lambda: is_whole(space, "before"), "drift of meanwhile is undone")
        eventually(lambda: faulty.watched() == set(WATCHED), "every watch is back")
    goes_on(space)
    nothing_twice(space, "before", "after")


def test_watches_that_are_too_old_begin_anew(faulty: FaultyProxy, space: Space) -> None:
    """410 Gone, both as an event in the stream and as the answer; and an event of another error."""
    space.apply("before", replicas=0)
    eventually(lambda: is_whole(space, "before"), "all is well")
    for fault in (
        *(Fault("event", "watch", resource, code=410, reason="Expired") for resource in WATCHED),
        *(Fault("status", "watch", resource, code=410, reason="Expired") for resource in WATCHED),
        *(Fault("event", "watch", resource, code=500) for resource in WATCHED),
    ):
        faulty.inject(fault)
    mark = len(faulty.requests)
    faulty.cut_watches()
    space.apply("before", image="registry.invalid/serving:2", replicas=0)
    eventually(lambda: is_whole(space, "before", "registry.invalid/serving:2"), "news of meanwhile arrive")
    eventually(lambda: lists(faulty, mark) == set(WATCHED), "everything is listed again")
    goes_on(space)
    nothing_twice(space, "before", "after")


def test_lists_and_watches_that_are_refused_for_a_while(faulty: FaultyProxy, space: Space) -> None:
    """As during an upgrade of the API server, or while somebody mends roles."""
    faults = [
        faulty.inject(Fault("status", "watch|list", resource, code=code))
        for code in (404, 403, 500, 401)
        for resource in WATCHED
    ]
    faulty.cut_watches()
    space.apply("before", replicas=0)
    eventually(lambda: all(fault.hits for fault in faults), "every kind is struck by each", seconds=60)
    eventually(lambda: is_whole(space, "before"), "what was applied meanwhile", seconds=60)
    goes_on(space)
    nothing_twice(space, "before", "after")


def test_what_is_deleted_while_nobody_watches_stays_deleted(faulty: FaultyProxy, plane: Plane, space: Space) -> None:
    for name in ("gone", "again", "stays"):
        space.apply(name, replicas=0)
        eventually(lambda name=name: is_whole(space, name), "all is well")
    blind = faulty.inject(Fault("status", "watch|list", "tokenservices", code=503, times=10_000))
    faulty.cut_watches()
    eventually(lambda: blind.hits, "the operator does not see TokenServices")
    for name in ("gone", "again"):
        space.delete("TokenService", name)
    for kind in CHILDREN:
        eventually(lambda kind=kind: not space.get(kind, "gone"), f"no {kind} is left")
    holds(lambda: not space.get("Deployment", "gone"), "nor comes back", seconds=2)
    space.apply("again", replicas=0, image="registry.invalid/serving:2")
    faulty.heal()
    eventually(lambda: is_whole(space, "again", "registry.invalid/serving:2"), "the new one", seconds=60)
    goes_on(space)
    nothing_twice(space, "again", "stays", "after")
    owner = space.there("TokenService", "again")["metadata"]["uid"]
    assert [item["uid"] for item in space.there("Deployment", "again")["metadata"]["ownerReferences"]] == [owner]


def test_a_network_that_swallows_everything_ends_the_leader(
    plane: Plane, proxy: FaultyProxy, proxied: Path, space: Space, alone: None
) -> None:
    """It cannot renew its Lease, and another might lead by now. Its pod is started again and goes on."""
    flags = ("--lease-duration-seconds=6", "--lease-renew-deadline-seconds=4", "--lease-retry-seconds=1")
    operator = plane.operator(*flags, kubeconfig=proxied)
    operator.start()
    space.apply("before", replicas=0)
    eventually(lambda: is_whole(space, "before"), "all is well")
    proxy.freeze()
    frozen_at = time.monotonic()
    assert operator.wait(30) == 1
    assert time.monotonic() - frozen_at < 12
    [line] = operator.says("lease lost")
    assert "could not be renewed for 4 s" in line["error"]
    proxy.heal()
    operator.start()
    goes_on(space)
    nothing_twice(space, "before", "after")
    assert operator.stop() == 0


@pytest.mark.parametrize("component", ["kube-apiserver", "etcd"])
def test_a_restart_of_the_control_plane(plane: Plane, space: Space, alone: None, component: str) -> None:
    """With a Lease that outlasts it, however slow the machine; the next test is about one that does not."""
    flags = ("--lease-duration-seconds=100", "--lease-renew-deadline-seconds=90")
    operator = plane.operator(*flags)
    operator.start()
    space.apply("before", replicas=0)
    eventually(lambda: is_whole(space, "before"), "all is well")
    plane.control("restart", component)
    space.patch("Service", "before", {"spec": {"selector": {"tokenservice.dev/service": "x"}}})
    eventually(lambda: is_whole(space, "before"), "drift is undone", seconds=60)
    goes_on(space)
    nothing_twice(space, "before", "after")
    assert operator.stop() == 0
    assert not operator.surprises()


def test_an_api_server_that_is_away_for_longer_than_the_lease(plane: Plane, space: Space, alone: None) -> None:
    """The leader ends, is started again by its pod, and waits for the API server."""
    flags = ("--lease-duration-seconds=6", "--lease-renew-deadline-seconds=4", "--lease-retry-seconds=1")
    operator = plane.operator(*flags)
    operator.start()
    space.apply("before", replicas=0)
    eventually(lambda: is_whole(space, "before"), "all is well")
    plane.control("stop", "kube-apiserver")
    try:
        assert operator.wait(30) == 1
        operator.spawn()
        eventually(lambda: operator.says("Waiting to lead"), "it waits")
    finally:
        plane.control("start", "kube-apiserver")
    goes_on(space)
    nothing_twice(space, "before", "after")
    assert plane.api.get("Lease", SYSTEM, "tokenservice-operator")
    assert operator.stop() == 0
    assert not operator.surprises()


def test_the_proxy_names_requests_as_roles_do() -> None:
    """The stand-in itself: without this, a fault might never strike."""
    from tests.support.faulty_proxy import asked

    path = "/apis/apps/v1/namespaces/a/deployments/llm?fieldManager=x"
    assert asked("PATCH", path) == Asked("patch", "apps", "deployments", "a", "llm", path)
    assert asked("GET", "/api/v1/pods?limit=500").verb == "list"
    assert asked("GET", "/api/v1/pods?watch=true").verb == "watch"
    assert asked("PATCH", "/apis/tokenservice.dev/v1alpha1/namespaces/a/tokenservices/b/status").resource == (
        "tokenservices/status"
    )
    assert asked("GET", "/openapi/v3/apis/apps/v1").resource == ""
