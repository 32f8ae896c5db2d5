"""What pods and Deployments say of themselves, as a real kubelet writes it, and what is told to users."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api.meta import Pod
from tokenservice.api.v1alpha1 import Failure
from tokenservice.pods.failures import pod_failures
from tokenservice.services.failures import failures

from tests.unit.services.builders import deployment, pod

TRACE = "token-server: cannot load hf://org/tiny: 401 Unauthorized; the token is wrong or missing"


def container(name: str = "server", **status: Any) -> dict[str, Any]:
    return {"name": name, "ready": False, "restartCount": 0, "state": {}, "lastState": {}, **status}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int = 1, reason: str = "Error", message: str = TRACE, **more: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, **more}}


RUNNING = {"running": {"startedAt": "2026-03-01T11:00:00Z"}}
BACK_OFF = waiting(
    "CrashLoopBackOff",
    "back-off 20s restarting failed container=server pod=demo-1_team(8d9f0f2a-1f5c-4d5b-8a0e-0c1d2e3f4a5b)",
)
NOT_READY = [
    {"type": "PodScheduled", "status": "True"},
    {"type": "Initialized", "status": "True"},
    {"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
]
PULL_ERROR = (
    'failed to pull and unpack image "registry.example.com/nope:1": failed to resolve image: '
    "registry.example.com/nope:1: not found"
)


def one(*, init: list[dict[str, Any]] | None = None, **status: Any) -> list[Failure]:
    raw = pod(
        phase="Pending", conditions=NOT_READY, initContainerStatuses=init or [], containerStatuses=[container(**status)]
    )
    return pod_failures(raw)


CASES: dict[str, tuple[dict[str, Any], tuple[str, str] | None]] = {
    "being created": ({"state": waiting("ContainerCreating")}, None),
    "waits for init containers": ({"state": waiting("PodInitializing")}, None),
    "runs, not ready yet": ({"state": RUNNING}, None),
    "pull failed": ({"state": waiting("ErrImagePull", PULL_ERROR)}, ("ImagePullBackOff", PULL_ERROR)),
    "waits to pull again": (
        {
            "state": waiting(
                "ImagePullBackOff", f'Back-off pulling image "registry.example.com/nope:1": ErrImagePull: {PULL_ERROR}'
            )
        },
        ("ImagePullBackOff", PULL_ERROR),
    ),
    "waits to pull again, older kubelet": (
        {"state": waiting("ImagePullBackOff", 'Back-off pulling image "registry.example.com/nope:1"')},
        ("ImagePullBackOff", 'Back-off pulling image "registry.example.com/nope:1"'),
    ),
    "no such image name": (
        {"state": waiting("InvalidImageName", 'Failed to apply default image tag "a::b"')},
        ("InvalidImageName", 'Failed to apply default image tag "a::b"'),
    ),
    "Secret missing": (
        {"state": waiting("CreateContainerConfigError", 'secret "hub-token" not found')},
        ("CreateContainerConfigError", 'secret "hub-token" not found'),
    ),
    "first crash": ({"state": ended()}, ("CrashLoopBackOff", f"{TRACE} (exit code 1)")),
    "running again": (
        {"state": RUNNING, "lastState": ended(), "restartCount": 1},
        ("CrashLoopBackOff", f"{TRACE} (exit code 1)"),
    ),
    "crashed again": (
        {"state": ended(), "lastState": ended(), "restartCount": 1},
        ("CrashLoopBackOff", f"{TRACE} (exit code 1)"),
    ),
    "backs off": (
        {"state": BACK_OFF, "lastState": ended(), "restartCount": 2},
        ("CrashLoopBackOff", f"{TRACE} (exit code 1)"),
    ),
    "backs off, the record of the crash is gone": (
        {"state": waiting("CrashLoopBackOff", "back-off"), "restartCount": 2},
        ("CrashLoopBackOff", "back-off"),
    ),
    "crashed without a word": ({"state": ended(message="")}, ("CrashLoopBackOff", "exit code 1")),
    "killed by a signal": (
        {"state": ended(code=139, message="", signal=11)},
        ("CrashLoopBackOff", "killed by signal 11"),
    ),
    "ended by itself": (
        {"state": ended(code=0, reason="Completed", message="")},
        ("CrashLoopBackOff", "exit code 0"),
    ),
    "ended by itself, started again": (
        {"state": RUNNING, "lastState": ended(code=0, reason="Completed", message=""), "restartCount": 1},
        ("CrashLoopBackOff", "exit code 0"),
    ),
    "out of memory": (
        {"state": ended(code=137, reason="OOMKilled", message="")},
        ("OOMKilled", "used more memory than its limit allows (exit code 137)"),
    ),
    "out of memory, backs off": (
        {"state": BACK_OFF, "lastState": ended(code=137, reason="OOMKilled", message=""), "restartCount": 3},
        ("OOMKilled", "used more memory than its limit allows (exit code 137)"),
    ),
    "cannot be started": (
        {"state": waiting("RunContainerError", 'exec: "token-server": executable file not found in $PATH')},
        ("RunContainerError", 'exec: "token-server": executable file not found in $PATH'),
    ),
    "cannot be started, backs off": (
        {
            "state": BACK_OFF,
            "lastState": ended(128, "StartError", 'exec: "token-server": executable file not found in $PATH'),
            "restartCount": 1,
        },
        ("RunContainerError", 'exec: "token-server": executable file not found in $PATH'),
    ),
    "crashed once, ready now": (
        {"state": RUNNING, "lastState": ended(), "restartCount": 1, "ready": True},
        None,
    ),
}


@pytest.mark.parametrize(("status", "expected"), CASES.values(), ids=CASES)
def test_a_container(status: dict[str, Any], expected: tuple[str, str] | None) -> None:
    found = one(**status)
    assert [(failure.pod, failure.container, failure.reason, failure.message) for failure in found] == (
        [] if expected is None else [("demo-1", "server", *expected)]
    )


@pytest.mark.parametrize(
    "phases",
    [
        pytest.param(["first crash", "running again", "crashed again", "backs off"], id="crash loop"),
        pytest.param(["pull failed", "waits to pull again"], id="image"),
        pytest.param(["out of memory", "out of memory, backs off"], id="memory"),
        pytest.param(["cannot be started", "cannot be started, backs off"], id="no such program"),
        pytest.param(["ended by itself", "ended by itself, started again"], id="exit 0"),
    ],
)
def test_one_cause_reads_the_same_through_all_its_phases(phases: list[str]) -> None:
    assert len({tuple(one(**CASES[phase][0])) for phase in phases}) == 1


def test_a_crash_is_told_by_its_last_lines() -> None:
    traceback = "\n".join(f"  File line {i}" for i in range(200)) + "\nMemoryError: cannot allocate 14.0 GiB"
    [failure] = one(state=ended(message=traceback))
    assert failure.message.startswith("…")
    assert failure.message.endswith("MemoryError: cannot allocate 14.0 GiB (exit code 1)")
    assert len(failure.message.encode()) <= 1024


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ({"state": ended(0, "Completed", ""), "ready": True}, None),
        ({"state": ended(0, "Completed", "")}, None),
        ({"state": ended(0, "Completed", ""), "restartCount": 1, "lastState": ended(), "ready": True}, None),
        ({"state": RUNNING}, None),
        ({"state": ended(2, message="no such bucket")}, ("CrashLoopBackOff", "no such bucket (exit code 2)")),
        (
            {"state": BACK_OFF, "lastState": ended(2, message="no such bucket"), "restartCount": 1},
            ("CrashLoopBackOff", "no such bucket (exit code 2)"),
        ),
        ({"state": waiting("ErrImagePull", "denied")}, ("ImagePullBackOff", "denied")),
    ],
)
def test_an_init_container(init: dict[str, Any], expected: tuple[str, str] | None) -> None:
    found = one(init=[container("fetch", **init)], state=waiting("PodInitializing"))
    assert [(failure.container, failure.reason, failure.message) for failure in found] == (
        [] if expected is None else [("fetch", *expected)]
    )


def test_a_sidecar_that_fails_is_named() -> None:
    raw = pod(
        phase="Running",
        conditions=NOT_READY,
        containerStatuses=[container(state=RUNNING, ready=True), container("proxy", state=ended(message="port taken"))],
    )
    assert pod_failures(raw) == [
        Failure(pod="demo-1", container="proxy", reason="CrashLoopBackOff", message="port taken (exit code 1)")
    ]


@pytest.mark.parametrize("reason", ["Unschedulable", "SchedulingGated"])
def test_a_pod_without_a_node(reason: str) -> None:
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. no new claims to deallocate."
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    assert pod_failures(pod(phase="Pending", conditions=[condition])) == [
        Failure(pod="demo-1", reason=reason, message=message)
    ]


def test_a_pod_that_is_not_scheduled_yet_has_no_failure() -> None:
    assert pod_failures(pod(phase="Pending")) == []
    assert pod_failures(pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "False"}])) == []


def evicted(name: str = "demo-0", *, at: str = "2026-03-01T11:30:00Z", **more: Any) -> Pod:
    return pod(
        name,
        phase="Failed",
        reason="Evicted",
        message="The node was low on resource: memory. ",
        conditions=[{"type": "Ready", "status": "False", "reason": "PodFailed", "lastTransitionTime": at}],
        **more,
    )


EVICTED = Failure(pod="demo-0", reason="Evicted", message="The node was low on resource: memory.")


def test_an_evicted_pod_counts_until_its_replacement_runs() -> None:
    pending = pod("demo-2", created="2026-03-01T11:30:01Z", phase="Pending")
    running = pod("demo-2", created="2026-03-01T11:30:01Z", phase="Running", conditions=NOT_READY)
    sibling = pod("demo-3", created="2026-03-01T11:00:00Z", phase="Running", conditions=NOT_READY)
    assert failures([evicted(), pending], None) == (EVICTED,)
    assert failures([evicted(), sibling], None) == (EVICTED,)
    assert failures([evicted(), running], None) == ()


def test_what_is_alive_comes_before_what_ended() -> None:
    alive = pod(
        "demo-9", phase="Pending", conditions=NOT_READY, containerStatuses=[container(state=waiting("ErrImagePull"))]
    )
    assert [failure.reason for failure in failures([evicted(), alive], None)] == ["ImagePullBackOff", "Evicted"]


def test_a_pod_that_its_node_refuses_has_no_times_of_its_own() -> None:
    refused = pod("demo-0", phase="Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu")
    later = pod("demo-2", created="2026-03-01T11:00:01Z", phase="Running", conditions=NOT_READY)
    assert [failure.reason for failure in failures([refused], None)] == ["OutOfcpu"]
    assert failures([refused, later], None) == ()


def test_a_pod_on_a_lost_node() -> None:
    lost = pod(
        phase="Running",
        reason="NodeLost",
        message="Node n1 which was running pod demo-1 is unresponsive",
        conditions=NOT_READY,
        containerStatuses=[container(state=RUNNING, ready=True)],
    )
    assert [failure.reason for failure in pod_failures(lost)] == ["NodeLost"]


def test_pods_that_are_ready_or_leave_have_none() -> None:
    ready = [{"type": "Ready", "status": "True"}]
    assert (
        failures(
            [pod(phase="Running", conditions=ready, containerStatuses=[container(state=RUNNING, ready=True)])], None
        )
        == ()
    )
    leaving = pod(phase="Running", deleted=True, conditions=NOT_READY, containerStatuses=[container(state=ended(143))])
    assert failures([leaving], None) == ()


QUOTA = {
    "type": "ReplicaFailure",
    "status": "True",
    "reason": "FailedCreate",
    "message": 'pods "demo-5d9-x" is forbidden: exceeded quota: team, requested: cpu=4, used: cpu=8, limited: cpu=10',
}


def test_pods_that_cannot_be_created_come_last() -> None:
    blocked = deployment(conditions=[QUOTA, {"type": "ReplicaFailure", "status": "False", "reason": "FailedCreate"}])
    assert failures([], blocked) == (Failure(reason="FailedCreate", message=QUOTA["message"]),)
    pending = pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}])
    assert [failure.reason for failure in failures([pending], blocked)] == ["Unschedulable", "FailedCreate"]


def test_ten_at_most_sorted_by_pod_whatever_their_order() -> None:
    pods = [
        pod(f"demo-{i:02}", phase="Pending", conditions=NOT_READY, containerStatuses=[container(state=ended())])
        for i in range(14)
    ]
    found = failures(reversed(pods), deployment(conditions=[QUOTA]))
    assert [failure.pod for failure in found] == [f"demo-{i:02}" for i in range(10)]


texts = st.one_of(st.just(""), st.text(max_size=2000))
states = st.fixed_dictionaries(
    {},
    optional={
        "waiting": st.fixed_dictionaries({"reason": texts, "message": texts}),
        "running": st.just({}),
        "terminated": st.fixed_dictionaries(
            {"exitCode": st.integers(0, 255), "reason": texts, "message": texts, "signal": st.integers(0, 64)}
        ),
    },
)
statuses = st.lists(
    st.fixed_dictionaries(
        {"name": texts, "ready": st.booleans(), "restartCount": st.integers(0, 3), "state": states, "lastState": states}
    ),
    max_size=3,
)


@given(
    status=st.fixed_dictionaries(
        {"phase": texts, "reason": texts, "initContainerStatuses": statuses, "containerStatuses": statuses}
    )
)
def test_no_state_of_a_pod_is_too_strange(status: dict[str, Any]) -> None:
    for failure in failures([pod(**status)], None):
        assert failure.reason
        assert len(failure.message.encode()) <= 1024
        assert msgspec.to_builtins(failure)["pod"] == "demo-1"
