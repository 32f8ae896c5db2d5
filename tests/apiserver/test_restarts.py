"""What the operator does when it is stopped, killed, or not alone: nothing twice, and nothing without need."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.apiserver.conftest import SYSTEM, Plane, Space
from tests.support.audit import Write
from tests.support.operator_process import OperatorProcess
from tests.support.wait import eventually, holds

LEASE = "tokenservice-operator"
FAST_LEASE = ("--lease-duration-seconds=6", "--lease-renew-deadline-seconds=4", "--lease-retry-seconds=1")
"""So that tests of the Lease do not take the 15 s of the defaults."""


def fill(space: Space) -> None:
    """36 TokenServices in all kinds of states; waits until each is in the one where it stays.

    Right after a namespace was made its pods may be refused for a while, for want of a ServiceAccount.
    """
    good = {"spec": {"nodeSelector": {"gpu": "any"}, "tolerations": [{"operator": "Exists"}]}}
    gpu = {"limits": {"nvidia.com/gpu": 1}, "requests": {"cpu": "500m", "memory": "1Gi"}}
    rich = {"spec": {**good["spec"], "containers": [{"name": "server", "resources": gpu}]}}
    broken = {"spec": {"containers": [{"name": "server", "volumeMounts": [{"name": "no", "mountPath": "/x"}]}]}}
    for number in range(4):
        space.apply(f"failing-{number}")
        space.apply(f"template-{number}", template=rich, rollout={"maxSurge": "25%", "maxUnavailable": "10%"})
        space.apply(f"many-{number}", replicas=3, api={"keySecretRef": {"name": "keys"}})
        space.apply(f"zero-{number}", replicas=0, template=good)
        space.apply(f"paused-{number}", paused=True)
        space.apply(f"unknown-{number}", template={"spec": {"nodeSelectors": {}}})
        space.apply(f"refused-{number}", template=broken)
        space.apply(f"claim-{number}", model={"source": "pvc://models/a"}, engine={"args": ["--x=1"]})
        taken = {"metadata": {"name": f"taken-{number}"}, "spec": {"ports": [{"port": 80}]}}
        space.api.create("Service", space.name, taken)
        space.apply(f"taken-{number}", replicas=0)
    reasons = {
        "failing": "Unschedulable",
        "template": "Unschedulable",
        "many": "Unschedulable",
        "zero": "ScaledToZero",
        "paused": "Paused",
        "unknown": "InvalidTemplate",
        "refused": "InvalidTemplate",
        "claim": "Unschedulable",
        "taken": "NameConflict",
    }
    for kind, reason in reasons.items():
        for number in range(4):
            space.ready(f"{kind}-{number}", reason)


def objects(space: Space) -> dict[str, str]:
    """The resourceVersions of all that is the operator's, and what it belongs to."""
    kinds = ("TokenService", "Deployment", "Service", "PodDisruptionBudget")
    return {
        f"{kind}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for kind in kinds
        for item in space.api.list(kind, space.name)
    }


def test_a_restart_with_nothing_changed_writes_nothing_and_neither_does_waiting(
    plane: Plane, space: Space, operator: OperatorProcess
) -> None:
    fill(space)
    plane.silence(space.name, seconds=3)
    mark, before = plane.audit.position(), objects(space)

    # Idle: not a single write. bench-reconcile looks for longer.
    holds(lambda: nothing(within(space, plane.writes(mark))), "no writes while idle", seconds=5)

    assert operator.stop() == 0
    stopped_at = time.monotonic()
    operator.start()
    started_s = time.monotonic() - stopped_at
    eventually(lambda: operator.metric("controller_runtime_reconcile_total") >= 36, "each was looked at again")
    eventually(lambda: operator.metric("workqueue_depth") == 0, "and none is left")
    holds(lambda: nothing(within(space, successes(plane, mark))), "no writes after a restart", seconds=3)
    assert objects(space) == before
    assert started_s < 30


def within(space: Space, writes: list[Write]) -> list[Write]:
    """Those in the test's namespace. Namespaces of other tests may be on their way out, which takes writes."""
    return [write for write in writes if write.namespace == space.name]


def nothing(writes: list[Write]) -> bool:
    assert not writes, [f"{write}, at {write.at}" for write in writes]
    return True


def successes(plane: Plane, mark: int) -> list[Write]:
    """Writes of the operator that changed something, or might have.

    A name that is taken is asked for again after a restart, since objects of others are not watched; and the API
    server's refusal of a template is not remembered anywhere but in its answer. Both are refused again.
    """
    return [write for write in plane.writes(mark) if write.code < 400]


def test_killed_in_the_middle_of_fifty_it_goes_on_where_it_was(plane: Plane, space: Space, alone: None) -> None:
    operator = plane.operator(*FAST_LEASE)
    operator.start()
    names = [f"llm-{number}" for number in range(50)]
    with ThreadPoolExecutor(8) as pool:
        applied = [pool.submit(space.apply, name, replicas=0) for name in names]
        eventually(lambda: len(space.api.list("Deployment", space.name)) >= 10, "some are made", every=0.01)
        operator.kill()
        made = len(space.api.list("Deployment", space.name))
        for one in applied:
            one.result()
    assert made < len(names), "killed too late to show anything"
    operator.start()  # after the Lease of the one that was killed has run out
    for name in names:
        space.ready(name, "ScaledToZero", seconds=60)
    for kind in ("Deployment", "Service", "PodDisruptionBudget"):
        assert sorted(item["metadata"]["name"] for item in space.api.list(kind, space.name)) == sorted(names)
    plane.silence(space.name)
    assert operator.stop() == 0
    assert not operator.surprises()


@pytest.fixture
def pair(plane: Plane, alone: None) -> Iterator[tuple[OperatorProcess, OperatorProcess]]:
    """Two operators, of which the first leads."""
    first, second = plane.operator(*FAST_LEASE), plane.operator(*FAST_LEASE)
    first.start()
    second.spawn()
    eventually(lambda: second.get("/readyz")[0] == 200, "the second is ready to take over")
    yield first, second
    for one in (first, second):
        if one.running:
            assert one.stop() == 0  # which gives the Lease back to the next test
        assert not one.surprises()


def test_of_two_operators_one_works_and_the_other_takes_over(
    plane: Plane, space: Space, pair: tuple[OperatorProcess, OperatorProcess]
) -> None:
    first, second = pair
    leads = "leader_election_master_status"
    assert (first.metric(leads), second.metric(leads)) == (1, 0)
    space.apply("one", replicas=0)
    space.ready("one", "ScaledToZero")
    assert not second.says("applied")

    first.kill()
    killed_at = time.monotonic()
    space.apply("two", replicas=0)
    space.ready("two", "ScaledToZero", seconds=60)
    assert time.monotonic() - killed_at < 20
    assert second.metric(leads) == 1

    # Told to stop, a leader gives the Lease back: the next one need not wait until it runs out.
    assert second.stop() == 0
    assert not plane.api.get("Lease", SYSTEM, LEASE)["spec"]["holderIdentity"]


def test_who_loses_the_lease_ends(plane: Plane, space: Space, pair: tuple[OperatorProcess, OperatorProcess]) -> None:
    first, second = pair
    plane.api.patch("Lease", SYSTEM, LEASE, {"spec": {"holderIdentity": "somebody-else"}})
    assert first.wait(15) == 1
    [line] = first.says("lease lost")
    assert "somebody-else" in line["error"]
    # Nobody renews for that somebody, so that the second leads in the end.
    eventually(second.reconciles, "the second takes over", seconds=30)
    space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero")


def test_a_leader_that_was_suspended_ends_before_it_writes(
    plane: Plane, space: Space, pair: tuple[OperatorProcess, OperatorProcess]
) -> None:
    """As a virtual machine that is paused and goes on: by then another leads."""
    first, second = pair
    first.signal(signal.SIGSTOP)
    eventually(second.reconciles, "the second takes over", seconds=30)
    space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero")
    plane.silence(space.name)
    mark = plane.audit.position()
    first.signal(signal.SIGCONT)
    assert first.wait(15) == 1
    assert first.says("lease lost")
    assert not within(space, plane.writes(mark))


def test_a_second_operator_of_the_same_port_says_so(plane: Plane, operator: OperatorProcess) -> None:
    other = plane.operator()
    other.port = operator.port
    other.spawn()
    assert other.wait() == 1
    assert "choose another --http-port" in other.text()
