"""Every reason of Ready, Available and Progressing, and when it is given."""

from __future__ import annotations

from typing import Any

import pytest
from tokenservice.api.meta import Condition, Deployment
from tokenservice.api.v1alpha1 import Failure
from tokenservice.handover.balance import Balance
from tokenservice.pods.refusal import Refusal
from tokenservice.services import amounts
from tokenservice.services.policies import Facts, conditions
from tokenservice.services.revisions import Wanted
from tokenservice.services.rollout import Step
from tokenservice.services.warm import Hand

from tests.unit.handover.builders import claim, loads, serves
from tests.unit.services.builders import deployment, service

CRASH = Failure(pod="demo-1", container="server", reason="CrashLoopBackOff", message="no model (exit code 1)")
PENDING = Failure(pod="demo-2", reason="Unschedulable", message="0/1 nodes are available")
QUOTA = Failure(reason="FailedCreate", message="exceeded quota")
REFUSED = Refusal("InvalidTemplate", "spec.template.spec.nodeselector: unknown field; did you mean nodeSelector?")
LATE = [
    {
        "type": "Progressing",
        "status": "False",
        "reason": "ProgressDeadlineExceeded",
        "message": 'ReplicaSet "demo-5d9" has timed out progressing.',
    }
]


UPDATE = Wanted("demo-2", 2, {}, None)
GOOD = Step(running="demo-2", update=UPDATE, good="demo-2", target=UPDATE)
"""The revision asked for runs and is good."""


def facts(
    live: Deployment | None,
    *failures: Failure,
    refusal: Refusal | None = None,
    outdated: bool = False,
    environment: tuple[str, str, str] | None = None,
    unbuilt: bool = False,
    step: Step = GOOD,
    hand: Hand | None = None,
    **spec: Any,
) -> dict[str, Condition]:
    made = conditions(
        Facts(
            service=service(**spec),
            refusal=refusal,
            deployment=live,
            failures=failures,
            outdated=outdated,
            environment=environment,
            unbuilt=unbuilt,
            step=step,
            hand=hand or Hand(0),
        )
    )
    between = ["EnvironmentReady"] if environment else []
    between += ["WarmPoolReady"] if hand and hand.verdict else []
    back = ["RolledBack"] if step.back else []
    assert [condition.type for condition in made] == ["Ready", *between, "Available", "Progressing", *back]
    return {condition.type: condition for condition in made}


BUILT = ("True", "Built", "CondaEnvironment nlp is built")
LOCKING = ("Unknown", "Locking", "a Job solves")
UNSOLVABLE = ("False", "Unsolvable", "numpy 2 is asked for\n  and numpy 1 as well")


def told(condition: Condition) -> tuple[str, str, str]:
    return condition.status, condition.reason, condition.message


READY: dict[str, tuple[dict[str, Condition], tuple[str, str, str]]] = {
    "all serve": (facts(deployment()), ("True", "Serving", "1 of 1 replicas serve")),
    "none asked for": (
        facts(deployment(replicas=0), replicas=0),
        ("True", "ScaledToZero", "No replica is asked for"),
    ),
    "nothing there yet": (facts(None), ("False", "Starting", "0 of 1 replicas serve")),
    "first pod starts": (facts(deployment(available=0)), ("False", "Starting", "0 of 1 replicas serve")),
    "scaled up, some start": (
        facts(deployment(replicas=3, available=1), replicas=3),
        ("False", "Starting", "1 of 3 replicas serve"),
    ),
    "one of three is replaced": (
        facts(deployment(replicas=3, existing=2, updated=2, available=2), replicas=3),
        ("False", "Starting", "2 of 3 replicas serve"),
    ),
    "old pods serve still": (
        facts(deployment(replicas=2, existing=3, updated=1, available=2), replicas=2),
        ("False", "RollingOut", "2 of 2 replicas serve"),
    ),
    "a surplus is yet to go": (
        facts(deployment(replicas=1, existing=2, updated=1, available=2)),
        ("False", "RollingOut", "1 of 1 replicas serve"),
    ),
    "spec not observed": (
        facts(deployment(generation=2, observed=1)),
        ("False", "RollingOut", "1 of 1 replicas serve"),
    ),
    "spec not applied": (facts(deployment(), outdated=True), ("False", "RollingOut", "1 of 1 replicas serve")),
    "scale not applied": (facts(deployment(), replicas=3), ("False", "RollingOut", "1 of 3 replicas serve")),
    "Deployment is being deleted": (
        facts(deployment(deletionTimestamp="2026-03-01T12:00:00Z")),
        ("False", "RollingOut", "1 of 1 replicas serve"),
    ),
    "a container crashes": (
        facts(deployment(available=0), CRASH),
        ("False", "CrashLoopBackOff", "pod demo-1: container server: no model (exit code 1)"),
    ),
    "several fail": (
        facts(deployment(available=0), PENDING, CRASH, CRASH),
        ("False", "Unschedulable", "pod demo-2: 0/1 nodes are available (and 2 more, see status.failures)"),
    ),
    "no pod can be created": (facts(deployment(available=0), QUOTA), ("False", "FailedCreate", "exceeded quota")),
    "failures of leftovers do not matter": (facts(deployment(), CRASH), ("True", "Serving", "1 of 1 replicas serve")),
    "a failure says more than the deadline": (
        facts(deployment(available=0, conditions=LATE), CRASH),
        ("False", "CrashLoopBackOff", "pod demo-1: container server: no model (exit code 1)"),
    ),
    "too late": (
        facts(deployment(available=0, conditions=LATE)),
        (
            "False",
            "ProgressDeadlineExceeded",
            'No progress for 600 s: ReplicaSet "demo-5d9" has timed out progressing.',
        ),
    ),
    "too late, for the last spec": (
        facts(deployment(available=0, generation=2, observed=1, conditions=LATE)),
        ("False", "Starting", "0 of 1 replicas serve"),
    ),
    "paused in a rollout": (
        facts(deployment(replicas=2, updated=0), replicas=2, paused=True),
        ("False", "Paused", "spec.paused holds the rollout; 2 of 2 replicas serve"),
    ),
    "paused with nothing to roll out": (facts(deployment(), paused=True), ("True", "Serving", "1 of 1 replicas serve")),
    "paused while a pod fails": (
        facts(deployment(replicas=2, updated=0, available=1), PENDING, replicas=2, paused=True),
        ("False", "Unschedulable", "pod demo-2: 0/1 nodes are available"),
    ),
    "refused at first": (facts(None, refusal=REFUSED), ("False", "InvalidTemplate", REFUSED.message)),
    "refused later": (
        facts(deployment(), refusal=REFUSED),
        ("False", "InvalidTemplate", f"{REFUSED.message}; the last good spec keeps running"),
    ),
    "no image yet": (
        facts(None, environment=LOCKING, unbuilt=True),
        ("False", "EnvironmentNotReady", "Locking: a Job solves"),
    ),
    "never an image": (
        facts(None, environment=UNSOLVABLE, unbuilt=True, replicas=0),
        ("False", "EnvironmentNotReady", "Unsolvable: numpy 2 is asked for"),
    ),
    "no image, and refused": (
        facts(None, environment=LOCKING, unbuilt=True, refusal=REFUSED),
        ("False", "InvalidTemplate", REFUSED.message),
    ),
    "no image known, but everything serves": (
        facts(deployment(), environment=LOCKING, unbuilt=True),
        ("True", "Serving", "1 of 1 replicas serve"),
    ),
    "the environment changes": (facts(deployment(), environment=LOCKING), ("True", "Serving", "1 of 1 replicas serve")),
    "a change cannot be solved": (
        facts(deployment(), environment=UNSOLVABLE),
        ("True", "Serving", "1 of 1 replicas serve"),
    ),
    "a change cannot be solved, and pods fail": (
        facts(deployment(available=0), CRASH, environment=UNSOLVABLE),
        ("False", "CrashLoopBackOff", "pod demo-1: container server: no model (exit code 1)"),
    ),
    "a change cannot be solved, and it is scaled up": (
        facts(deployment(replicas=3, available=1), environment=UNSOLVABLE, replicas=3),
        ("False", "Starting", "1 of 3 replicas serve"),
    ),
    "built, and serving": (facts(deployment(), environment=BUILT), ("True", "Serving", "1 of 1 replicas serve")),
    "refused while a pod fails": (
        facts(deployment(available=0), CRASH, refusal=REFUSED),
        ("False", "InvalidTemplate", f"{REFUSED.message}; the last good spec keeps running"),
    ),
}


@pytest.mark.parametrize(("made", "expected"), READY.values(), ids=READY)
def test_ready(made: dict[str, Condition], expected: tuple[str, str, str]) -> None:
    assert told(made["Ready"]) == expected


PROGRESSING: dict[str, tuple[dict[str, Condition], tuple[str, str]]] = {
    "done": (facts(deployment()), ("False", "Complete")),
    "scaled to zero": (facts(deployment(replicas=0), replicas=0), ("False", "Complete")),
    "done, and paused": (facts(deployment(), paused=True), ("False", "Complete")),
    "first start": (facts(None), ("True", "Starting")),
    "rollout": (facts(deployment(replicas=2, existing=3, updated=1), replicas=2), ("True", "RollingOut")),
    "a crash does not end it": (facts(deployment(available=0), CRASH), ("True", "Starting")),
    "too late": (facts(deployment(available=0, conditions=LATE), CRASH), ("False", "ProgressDeadlineExceeded")),
    "held": (facts(deployment(updated=0), paused=True), ("False", "Paused")),
    "refused": (facts(deployment(), refusal=REFUSED), ("False", "InvalidTemplate")),
    "not applied yet": (facts(deployment(), outdated=True), ("True", "RollingOut")),
    "no image yet": (facts(None, environment=LOCKING, unbuilt=True), ("True", "Locking")),
    "never an image": (facts(None, environment=UNSOLVABLE, unbuilt=True), ("False", "EnvironmentNotReady")),
    "the environment changes": (facts(deployment(), environment=LOCKING), ("True", "Locking")),
    "a change cannot be solved": (facts(deployment(), environment=UNSOLVABLE), ("False", "EnvironmentNotReady")),
    "a change cannot be solved, during a rollout": (
        facts(deployment(replicas=2, existing=3, updated=1), environment=UNSOLVABLE, replicas=2),
        ("True", "RollingOut"),
    ),
    "built, and rolled out": (facts(deployment(), environment=BUILT), ("False", "Complete")),
    "built, and being rolled out": (facts(deployment(), outdated=True, environment=BUILT), ("True", "RollingOut")),
}


def test_why_nothing_is_under_way_says_what_goes_on_running() -> None:
    message = facts(deployment(), environment=UNSOLVABLE)["Progressing"].message
    assert message == "Unsolvable: numpy 2 is asked for; what runs keeps the image it has"


@pytest.mark.parametrize(("made", "expected"), PROGRESSING.values(), ids=PROGRESSING)
def test_progressing(made: dict[str, Condition], expected: tuple[str, str]) -> None:
    assert told(made["Progressing"])[:2] == expected


@pytest.mark.parametrize(
    ("replicas", "available", "rollout", "expected"),
    [
        (1, 1, {}, ("True", "1 replicas serve, 1 are needed")),
        (1, 0, {}, ("False", "0 replicas serve, 1 are needed")),
        (0, 0, {}, ("True", "0 replicas serve, 0 are needed")),
        (4, 3, {}, ("False", "3 replicas serve, 4 are needed")),
        (4, 3, {"maxUnavailable": 1}, ("True", "3 replicas serve, 3 are needed")),
        (4, 3, {"maxUnavailable": "25%"}, ("True", "3 replicas serve, 3 are needed")),
        (7, 5, {"maxUnavailable": "25%"}, ("False", "5 replicas serve, 6 are needed")),  # rounded down to one
        (4, 0, {"maxUnavailable": "100%"}, ("False", "0 replicas serve, 1 are needed")),
        (4, 1, {"maxUnavailable": 9}, ("True", "1 replicas serve, 1 are needed")),
        # 10 % of 4 is none; without a surge the Deployment takes one pod down all the same
        (4, 3, {"maxUnavailable": "10%", "maxSurge": 0}, ("True", "3 replicas serve, 3 are needed")),
    ],
)
def test_available(replicas: int, available: int, rollout: dict[str, Any], expected: tuple[str, str]) -> None:
    made = facts(deployment(replicas=replicas, available=available), replicas=replicas, rollout=rollout)["Available"]
    reason = "MinimumReplicasAvailable" if expected[0] == "True" else "MinimumReplicasUnavailable"
    assert told(made) == (expected[0], reason, expected[1])


def test_available_counts_pods_of_any_version() -> None:
    made = facts(deployment(replicas=2, updated=0, available=2), replicas=2, refusal=REFUSED)
    assert made["Available"].status == "True"


def test_a_long_message_keeps_where_the_cause_and_how_many() -> None:
    words = "x" * 990 + " cause (exit code 1)"
    long = Failure(pod="p" * 253, container="c" * 63, reason="CrashLoopBackOff", message=words)
    message = facts(deployment(available=0), long, CRASH)["Ready"].message
    assert len(message.encode()) <= 1024
    assert message.startswith("pod ppp")
    assert message.endswith("cause (exit code 1) (and 1 more, see status.failures)")


def test_conditions_say_which_generation_they_describe() -> None:
    made = conditions(
        Facts(service=service(generation=7), refusal=None, deployment=deployment(), failures=(), step=GOOD)
    )
    assert {condition.observed_generation for condition in made} == {7}


@pytest.mark.parametrize(
    ("value", "replicas", "pods"), [(0, 5, 0), (2, 5, 2), ("0%", 5, 0), ("25%", 3, 0), ("25%", 4, 1), ("100%", 4, 4)]
)
def test_a_percentage_is_rounded_down(value: int | str, replicas: int, pods: int) -> None:
    assert amounts.pods(value, replicas) == pods


# -- pods of a pool

FITS = ("True", "Fits", "pods of WarmPool nlp fit")
EMPTY = ("False", "NotFound", "no WarmPool nlp\nin this namespace")


def test_replicas_that_came_from_a_pool_count() -> None:
    hand = Hand(1, (serves("a"), serves("b")), verdict=FITS)
    found = facts(deployment(replicas=1), hand=hand, replicas=3)
    assert (found["Ready"].status, found["Ready"].message) == ("True", "3 of 3 replicas serve")
    assert found["Available"].message == "3 replicas serve, 3 are needed"
    assert (found["Progressing"].status, found["Progressing"].reason) == ("False", "Complete")
    assert (found["WarmPoolReady"].status, found["WarmPoolReady"].reason) == ("True", "Fits")


def test_replicas_without_a_model_do_not_count() -> None:
    for missing in (loads("b"), claim("b", served=9, ready=False), claim("b", served=9, lost=True)):
        found = facts(deployment(replicas=1), hand=Hand(1, (serves("a"), missing)), replicas=3)
        assert (found["Ready"].status, found["Ready"].message) == ("False", "2 of 3 replicas serve")
        assert found["Available"].status == "False"


def test_a_deployment_that_is_being_scaled_for_a_claim_changes_nothing() -> None:
    hand = Hand(2, (serves("a"), serves("b")))
    for observed, existing in ((0, 1), (1, 1), (1, 2)):
        live = deployment(replicas=2, observed=observed, existing=existing, updated=existing, available=1)
        found = facts(live, hand=hand, replicas=3)
        assert (found["Ready"].status, found["Available"].status) == ("True", "True")


def test_nor_does_a_pod_that_was_handed_over_and_is_not_counted_yet() -> None:
    live = deployment(replicas=2, available=1)
    found = facts(live, hand=Hand(2, ready=2, settling=1), replicas=2)
    assert (found["Ready"].status, found["Available"].status) == ("True", "True")
    found = facts(live, hand=Hand(2, ready=2), replicas=2)
    assert (found["Ready"].status, found["Available"].status) == ("False", "False"), "else the Deployment tells"


def test_replicas_of_two_revisions_are_not_all_of_the_newest() -> None:
    hand = Hand(3, (serves("a"),))
    live = deployment(replicas=3, existing=4, updated=1, available=3)
    step = Step(running="demo-2", update=UPDATE, good="demo-1", target=UPDATE, left=True)
    assert facts(live, hand=hand, step=step, replicas=3)["Ready"].status == "False"
    assert facts(deployment(replicas=3), hand=hand, outdated=True, replicas=3)["Ready"].status == "False"


def test_replicas_that_wait_for_a_warm_pod() -> None:
    hand = Hand(1, (serves("a"),), balance=Balance(1, missed=2, short=2), verdict=EMPTY)
    found = facts(deployment(replicas=1), hand=hand, replicas=4)
    for kind in ("Ready", "Progressing"):
        assert (found[kind].status, found[kind].reason) == ("False", "WaitingForWarmPod")
    assert found["Ready"].message == (
        "2 of 4 replicas serve; 2 wait for a warm pod (spec.warmPool.policy: Required): no WarmPool nlp"
    )
    assert found["WarmPoolReady"].reason == "NotFound"
    found = facts(deployment(replicas=1), hand=Hand(1, balance=Balance(1, short=1), verdict=FITS), replicas=2)
    assert found["Ready"].message.endswith("(spec.warmPool.policy: Required)")


def test_a_pod_that_fails_is_told_before_one_that_is_waited_for() -> None:
    hand = Hand(1, balance=Balance(1, missed=1, short=1))
    assert facts(deployment(replicas=1), CRASH, hand=hand, replicas=2)["Ready"].reason == "CrashLoopBackOff"
