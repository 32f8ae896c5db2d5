"""The plan: what is applied, written and told, for what is found."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api import conditions as reasons
from tokenservice.api.meta import Condition, Deployment, Object, Pod
from tokenservice.api.v1alpha1 import EnvironmentStatus, TokenService, TokenServiceStatus
from tokenservice.pods.environment import runs_in
from tokenservice.pods.refusal import Refusal
from tokenservice.services import rollout
from tokenservice.services.plan import CHILDREN, Child, Plan, wanted
from tokenservice.services.snapshot import Snapshot

from tests.unit.services.builders import (
    BUILT,
    CONDA,
    IMAGE,
    NOW,
    OLDER,
    UID,
    child,
    children,
    deployment,
    environment,
    plan,
    pod,
    revision,
    service,
    snapshot,
    surroundings,
)

MISSING: dict[Child, str] = dict.fromkeys(CHILDREN[1:], "missing")
INVALID = Refusal("InvalidTemplate", "spec.template.spec.foo: unknown field")
REFUSALS = [
    INVALID,
    Refusal("Rejected", "a value is out of range"),
    Refusal("Rejected", "quota", passing=True),
    Refusal("NameConflict", "Service demo exists", passing=True),
]


def running(tokenservice: TokenService | None = None, **more: Any) -> Snapshot:
    """A snapshot in which everything exists and serves."""
    given: dict[str, Any] = {"deployment": deployment(), "service_object": child(), "budget": child(), **more}
    return snapshot(tokenservice, **given)


def after(before: Snapshot, made: Plan) -> Snapshot:
    """What the API server holds once the plan's status is written."""
    if made.status is None:
        return before
    stored = msgspec.json.decode(msgspec.json.encode(made.status), type=TokenServiceStatus)
    service = msgspec.structs.replace(before.service, status=stored)
    around = replace(before.surroundings, runs_in=runs_in(service, before.surroundings.used))
    return replace(before, service=service, surroundings=around)


def possible(found: Snapshot, changed: dict[Child, str]) -> dict[Child, str]:
    """Of the changes those of children that there should be."""
    step = rollout.step(found)
    return {child: why for child, why in changed.items() if wanted(found, child, step) is not None}


def ready(made: Plan) -> Condition:
    assert made.status
    found = made.status.condition("Ready")
    assert found
    return found


def test_a_new_service() -> None:
    found = snapshot()
    made = plan(found, MISSING)
    assert [(apply.child, apply.why, apply.force) for apply in made.applies] == [
        ("revision", "missing", False),
        ("deployment", "missing", False),
        ("service", "missing", False),
        ("budget", "missing", False),
    ]
    kinds = ["ControllerRevision", "Deployment", "Service", "PodDisruptionBudget"]
    assert [apply.manifest["kind"] for apply in made.applies] == kinds
    assert made.events == ()
    assert made.requeue_after is None
    assert made.status
    assert msgspec.structs.replace(made.status, conditions=()) == TokenServiceStatus(
        observed_generation=1,
        url="http://demo.team.svc.cluster.local/v1",
        selector="tokenservice.dev/service=demo",
        environment=EnvironmentStatus(image=IMAGE),
        update_revision=revision(service()).metadata.name,
    )
    assert [(c.type, c.status, c.reason) for c in made.status.conditions] == [
        ("Ready", "False", "Starting"),
        ("Available", "False", "MinimumReplicasUnavailable"),
        ("Progressing", "True", "Starting"),
    ]
    assert {c.last_transition_time for c in made.status.conditions} == {"2026-03-01T12:00:00Z"}


def test_it_serves() -> None:
    made = plan(running(), {})
    assert made.applies == ()
    assert (ready(made).status, ready(made).reason) == ("True", "Serving")
    assert [(event.type, event.reason, event.note) for event in made.events] == [
        ("Normal", "Serving", "1 of 1 replicas serve")
    ]


def test_only_what_differs_is_applied_and_taken_back_by_force() -> None:
    made = plan(running(), {"budget": "drift: spec.maxUnavailable"})
    assert [(apply.child, apply.why, apply.force) for apply in made.applies] == [
        ("budget", "drift: spec.maxUnavailable", True)
    ]


def test_a_spec_that_is_not_applied_yet_is_not_ready() -> None:
    serving = after(running(), plan(running(), {}))
    spec: dict[str, Any] = {"environment": {"image": {"reference": "other:2"}}, "rollout": {"prePull": False}}
    changed = service(status=serving.service.status, generation=2, **spec)
    around = surroundings(changed)
    made = plan(
        replace(serving, service=changed, children=children(changed), surroundings=around), {"deployment": "changed"}
    )
    assert (ready(made).status, ready(made).reason, ready(made).observed_generation) == ("False", "RollingOut", 2)
    assert [(event.type, event.reason) for event in made.events] == [("Normal", "RollingOut")]


def test_a_service_on_its_way_out_is_left_to_the_garbage_collector() -> None:
    for refusal in (None, *REFUSALS):
        made = plan(snapshot(service(deleted=True), refusal=refusal), {} if refusal else MISSING)
        assert made == Plan(applies=(), leftover=None, unwanted=None, status=None, events=(), requeue_after=None)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.reason)
@pytest.mark.parametrize("exists", [True, False])
def test_a_refusal_applies_nothing(refusal: Refusal, exists: bool) -> None:
    found = running(refusal=refusal) if exists else snapshot(refusal=refusal)
    made = plan(found, {})
    assert made.applies == ()
    assert (ready(made).status, ready(made).reason) == ("False", refusal.reason)
    assert [(event.type, event.reason) for event in made.events] == [("Warning", refusal.reason)]
    assert made.requeue_after == (60 if refusal.passing else 3600)


def test_a_refused_spec_leaves_the_image_that_runs_in_the_status() -> None:
    serving = after(running(), plan(running(), {})).service
    changed = service(status=serving.status, generation=2, environment={"image": {"reference": "other:2"}})
    made = plan(running(changed, refusal=INVALID), {})
    assert made.status
    assert made.status.environment == EnvironmentStatus(image=IMAGE)
    assert made.status.ready_replicas == 1
    nothing_runs = plan(snapshot(refusal=INVALID), {})
    assert nothing_runs.status
    assert nothing_runs.status.environment is None


@pytest.mark.parametrize(
    ("taken", "whose"),
    [
        (
            {"deployment": deployment(uid=None)},
            "Deployment demo exists and is controlled by nobody",
        ),
        (
            {"service_object": child(uid="other", owner="demo")},
            "Service demo exists and is controlled by TokenService demo (uid other)",
        ),
        (
            {"budget": child(uid="other", kind="Widget", owner="w")},
            "PodDisruptionBudget demo exists and is controlled by Widget w (uid other)",
        ),
    ],
)
def test_what_belongs_to_others_is_left_alone(taken: dict[str, Deployment | Object], whose: str) -> None:
    made = plan(running(**taken), MISSING)
    assert made.applies == ()
    assert ready(made).reason == "NameConflict"
    assert ready(made).message.startswith(f"{whose}; it is left alone")


def test_with_a_taken_name_others_pods_and_counts_are_not_ours() -> None:
    failing = pod(phase="Pending", reason="Evicted")
    made = plan(running(deployment=deployment(uid="other", replicas=5), pods=(failing,)), {})
    assert made.status
    assert (made.status.replicas, made.status.ready_replicas, made.status.failures) == (0, 0, ())
    assert made.status.environment is None


def test_counts_and_failures_are_the_deployments_and_the_pods() -> None:
    failing = pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}])
    live = deployment(replicas=2, existing=3, updated=2, available=1)
    made = plan(running(service(replicas=2), deployment=live, pods=(failing,)), {})
    assert made.status
    assert (made.status.replicas, made.status.updated_replicas, made.status.ready_replicas) == (3, 2, 1)
    assert [failure.reason for failure in made.status.failures] == ["Unschedulable"]


def test_failures_vanish_once_everything_serves() -> None:
    stray = pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}])
    made = plan(running(pods=(stray,)), {})
    assert made.status
    assert made.status.failures == ()


def with_ready(status: str, reason: str) -> TokenService:
    condition = Condition(type="Ready", status=status, reason=reason, last_transition_time="2026-01-01T00:00:00Z")
    return service(status=TokenServiceStatus(conditions=(condition,)))


UNSCHEDULABLE = pod(
    phase="Pending",
    conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "full"}],
)


@pytest.mark.parametrize(
    ("before", "found", "expected"),
    [
        (None, {"deployment": deployment(available=0)}, None),
        (("False", "Starting"), {"deployment": deployment(available=0)}, None),
        (("False", "Starting"), {}, ("Normal", "Serving")),
        (("True", "Serving"), {}, None),
        (("True", "Serving"), {"deployment": deployment(available=0)}, ("Normal", "Starting")),
        (("False", "CrashLoopBackOff"), {"deployment": deployment(available=0)}, None),
        (
            ("False", "Starting"),
            {"deployment": deployment(available=0), "pods": (UNSCHEDULABLE,)},
            ("Warning", "Unschedulable"),
        ),
        (("False", "Unschedulable"), {"deployment": deployment(available=0), "pods": (UNSCHEDULABLE,)}, None),
        (("True", "Serving"), {"refusal": INVALID}, ("Warning", "InvalidTemplate")),
    ],
)
def test_an_event_for_a_change_that_matters(
    before: tuple[str, str] | None, found: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    made = plan(running(with_ready(*before) if before else service(), **found), {})
    assert [(event.type, event.reason) for event in made.events] == ([expected] if expected else [])


def test_a_pause_is_no_warning() -> None:
    paused = service(paused=True, status=with_ready("True", "Serving").status)
    made = plan(running(paused, deployment=deployment(updated=0)), {})
    assert [(event.type, event.reason) for event in made.events] == [("Normal", "Paused")]


def test_the_time_of_a_transition_moves_with_the_status_alone() -> None:
    def times(made: Plan) -> dict[str, str | None]:
        assert made.status
        return {condition.type: condition.last_transition_time for condition in made.status.conditions}

    starting = running(deployment=deployment(available=0))
    first = after(starting, plan(starting, {}))
    failing = plan(replace(first, pods=(UNSCHEDULABLE,), now=NOW + timedelta(minutes=1)), {})
    assert ready(failing).reason == "Unschedulable"
    assert set(times(failing).values()) == {"2026-03-01T12:00:00Z"}
    serving = plan(replace(running(), service=first.service, now=NOW + timedelta(minutes=2)), {})
    assert set(times(serving).values()) == {"2026-03-01T12:02:00Z"}


def test_a_type_of_condition_that_is_no_longer_known_goes() -> None:
    old = Condition(type="Old", status="True", last_transition_time="2025-01-01T00:00:00Z")
    merged = reasons.merge([old], [Condition(type="Ready", status="True")], NOW)
    assert [condition.type for condition in merged] == ["Ready"]


REF: dict[str, Any] = {"ref": {"name": "nlp"}}
RAN = EnvironmentStatus(image=OLDER, hash="sha256:older", lock_digest="sha256:older")
ENVIRONMENT: dict[Child, str] = {"environment": "missing"}


def with_environment(spec: dict[str, Any], reason: str = "Built", ran: EnvironmentStatus | None = RAN) -> TokenService:
    """A TokenService that serves, and whose EnvironmentReady was as `reason` says."""
    ready = Condition(type="Ready", status="True", reason="Serving", last_transition_time="2026-03-01T11:00:00Z")
    status = "True" if reason == "Built" else "False"
    environment_ready = Condition(type="EnvironmentReady", status=status, reason=reason)
    known = TokenServiceStatus(observed_generation=1, environment=ran, conditions=(ready, environment_ready))
    return service(environment=spec, status=known)


def told(made: Plan, kind: str) -> tuple[str, str]:
    assert made.status
    found = made.status.condition(kind)
    assert found
    return found.status, found.reason


def test_an_inline_environment_is_made_first_and_the_rest_needs_no_image() -> None:
    found = snapshot(service(environment={"conda": CONDA}))
    made = plan(found, possible(found, {**ENVIRONMENT, **MISSING}))
    assert [(apply.child, apply.force) for apply in made.applies] == [
        ("environment", False),
        ("service", False),
        ("budget", False),
    ]
    assert made.applies[0].manifest["kind"] == "CondaEnvironment"
    assert told(made, "Ready") == ("False", "EnvironmentNotReady")
    assert told(made, "EnvironmentReady") == ("Unknown", "Locking")
    assert told(made, "Progressing") == ("True", "Locking")
    assert made.events == ()
    assert made.requeue_after is None
    assert made.status
    assert made.status.environment is None


def test_once_it_is_built_the_deployment_is_made() -> None:
    found = snapshot(service(environment=REF), around=(environment(),), service_object=child(), budget=child())
    made = plan(found, {"deployment": "missing"})
    [apply] = made.applies
    assert apply.manifest["spec"]["template"]["spec"]["containers"][0]["image"] == BUILT
    assert told(made, "EnvironmentReady") == ("True", "Built")
    assert [(event.type, event.reason) for event in made.events] == [("Normal", "Built")]
    assert made.status
    assert made.status.environment == EnvironmentStatus(image=BUILT, hash="sha256:hash", lock_digest="sha256:newest")


@pytest.mark.parametrize("reason", ["Locking", "Building", "Unsolvable"])
@pytest.mark.parametrize("kept", [OLDER, None])
def test_while_a_change_is_not_built_what_serves_keeps_its_image(reason: str, kept: str | None) -> None:
    found = running(with_environment(REF), around=(environment(reason=reason, image=kept),))
    assert not isinstance(found.children, Refusal)
    assert found.children.deployment
    assert found.children.deployment["spec"]["template"]["spec"]["containers"][0]["image"] == OLDER
    made = plan(found, {})
    assert made.applies == ()
    assert told(made, "Ready") == ("True", "Serving")
    assert told(made, "EnvironmentReady") == ("False" if reason == "Unsolvable" else "Unknown", reason)
    assert made.status
    assert made.status.environment == RAN
    warned = [("Warning", reason)] if reason == "Unsolvable" else []
    assert [(event.type, event.reason) for event in made.events] == warned


def test_a_solvers_explanation_is_whole_in_the_condition_and_its_first_line_an_event() -> None:
    explanation = "numpy 2 is asked for\n" + "  and numpy 1 as well\n" * 4000
    found = running(with_environment(REF), around=(environment(reason="Unsolvable", message=explanation),))
    made = plan(found, {})
    assert made.status
    condition = made.status.condition("EnvironmentReady")
    assert condition
    assert len(condition.message.encode()) == 30 << 10
    assert explanation.startswith(condition.message.strip("…"))
    assert [event.note for event in made.events] == ["numpy 2 is asked for"]
    progressing = made.status.condition("Progressing")
    assert progressing
    assert len(progressing.message) < 100


def test_the_event_of_a_missing_image_is_the_environments() -> None:
    before = TokenServiceStatus(observed_generation=1)
    failing = environment(reason="UnknownPackage", message="nunpy is nowhere")
    made = plan(snapshot(service(environment=REF, status=before), around=(failing,)), {})
    assert told(made, "Ready") == ("False", "EnvironmentNotReady")
    assert [(event.type, event.reason, event.note) for event in made.events] == [
        ("Warning", "UnknownPackage", "nunpy is nowhere")
    ]


def test_an_environment_of_that_name_of_somebody_elses_is_left_alone_and_the_rest_goes_on() -> None:
    found = running(with_environment({"conda": CONDA}), around=(environment("demo"),))
    made = plan(found, {**ENVIRONMENT, "deployment": "changed"})
    assert [apply.child for apply in made.applies] == ["deployment"]
    assert made.applies[0].manifest["spec"]["template"]["spec"]["containers"][0]["image"] == OLDER
    assert told(made, "EnvironmentReady") == ("False", "NameConflict")
    [event] = made.events[:1]
    assert event.note.startswith("CondaEnvironment demo exists and is controlled by nobody; it is left alone")
    assert made.requeue_after == 60


def test_a_refused_template_does_not_hold_up_the_environment() -> None:
    found = snapshot(service(environment={"conda": CONDA}), refusal=INVALID)
    made = plan(found, ENVIRONMENT)
    assert [apply.child for apply in made.applies] == ["environment"]
    assert ready(made).reason == "InvalidTemplate"


MINE = environment("demo", uid=UID, image=OLDER)
SWITCHED: dict[str, tuple[Snapshot, bool]] = {
    "to an image, rolled out": (running(with_environment({"image": {"reference": IMAGE}}), around=(MINE,)), True),
    "to an image, rolling out": (
        running(
            with_environment({"image": {"reference": IMAGE}}),
            around=(MINE,),
            deployment=deployment(replicas=1, updated=0),
        ),
        False,
    ),
    "to an environment, rolled out": (running(with_environment(REF), around=(MINE, environment())), True),
    "to an environment that is not built": (
        running(with_environment(REF), around=(MINE, environment(reason="Locking"))),
        False,
    ),
    "to an environment that is not there": (running(with_environment(REF), around=(MINE,)), False),
    "to itself": (running(with_environment({"ref": {"name": "demo"}}), around=(MINE,)), False),
    "not at all": (running(with_environment({"conda": CONDA}), around=(MINE,)), False),
    "while somebody else runs in it": (
        running(with_environment({"image": {"reference": IMAGE}}), around=(MINE,), others=1),
        False,
    ),
    "while its template is refused": (
        running(with_environment({"image": {"reference": IMAGE}}), around=(MINE,), refusal=INVALID),
        False,
    ),
    "away from what is being deleted": (
        running(
            with_environment({"image": {"reference": IMAGE}}),
            around=(environment("demo", uid=UID, deletionTimestamp="2026-03-01T11:00:00Z"),),
        ),
        False,
    ),
    "beside somebody else's of that name": (
        running(with_environment({"image": {"reference": IMAGE}}), around=(environment("demo", uid="other"),)),
        False,
    ),
    "beside one that nobody controls": (
        running(with_environment({"image": {"reference": IMAGE}}), around=(environment("demo"),)),
        False,
    ),
}


@pytest.mark.parametrize(("found", "goes"), SWITCHED.values(), ids=SWITCHED)
def test_an_inline_environment_goes_once_nothing_runs_from_it(found: Snapshot, goes: bool) -> None:
    made = plan(found, {})
    assert (made.leftover is not None) is goes
    if found.surroundings.shared:
        assert made.requeue_after == 60


def test_with_a_prebuilt_image_again_environment_ready_goes() -> None:
    made = plan(running(with_environment({"image": {"reference": IMAGE}})), {})
    assert made.status
    assert made.status.condition("EnvironmentReady") is None
    assert made.status.environment == EnvironmentStatus(image=IMAGE)


pods: st.SearchStrategy[Pod] = st.builds(
    lambda name, phase, ready, waiting, terminated, deleted: pod(
        name,
        phase=phase,
        deleted=deleted,
        conditions=[{"type": "Ready", "status": ready}],
        containerStatuses=[
            {
                "name": "server",
                "state": {"waiting": {"reason": waiting}} if waiting else {},
                "lastState": {"terminated": {"exitCode": 1, "reason": terminated}} if terminated else {},
            }
        ],
    ),
    st.sampled_from(["demo-1", "demo-2"]),
    st.sampled_from(["Pending", "Running", "Failed"]),
    st.sampled_from(["True", "False"]),
    st.sampled_from(["", "CrashLoopBackOff", "ErrImagePull", "ContainerCreating"]),
    st.sampled_from(["", "Error", "OOMKilled"]),
    st.booleans(),
)
small = st.integers(0, 3)
uids = st.sampled_from(["11111111-2222-3333-4444-555555555555", "other", None])
deployments = st.builds(
    lambda replicas, existing, updated, available, observed, uid: deployment(
        replicas=replicas,
        existing=existing,
        updated=updated,
        available=available,
        observed=observed,
        uid=uid,
        generation=2,
    ),
    small,
    small,
    small,
    small,
    st.integers(1, 2),
    uids,
)
objects = st.builds(lambda uid: child(uid=uid), uids)
SPECS: list[dict[str, Any]] = [
    {"image": {"reference": IMAGE}},
    {"image": {"reference": IMAGE, "condaEnv": "nlp"}},
    {"ref": {"name": "nlp"}},
    {"ref": {"name": "demo"}},
    {"conda": CONDA},
]
services = st.builds(
    lambda replicas, paused, deleted, spec, before: service(
        replicas=replicas,
        paused=paused,
        deleted=deleted,
        environment=spec,
        status=TokenServiceStatus(environment=before),
    ),
    small,
    st.booleans(),
    st.booleans(),
    st.sampled_from(SPECS),
    st.sampled_from([None, EnvironmentStatus(image=OLDER), EnvironmentStatus(image=IMAGE, conda_env="nlp")]),
)
environments = st.builds(
    environment,
    st.sampled_from(["nlp", "demo"]),
    reason=st.sampled_from(["Built", "Locking", "Building", "Unsolvable"]),
    image=st.sampled_from([None, OLDER]),
    observed=st.integers(0, 1),
    uid=uids,
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    return snapshot(
        draw(services),
        refusal=draw(st.none() | st.sampled_from(REFUSALS)),
        deployment=draw(st.none() | deployments),
        service_object=draw(st.none() | objects),
        budget=draw(st.none() | objects),
        pods=tuple(draw(st.lists(pods, max_size=3, unique_by=lambda item: item.metadata.name))),
        around=tuple(draw(st.lists(environments, max_size=2, unique_by=lambda item: item.metadata.name))),
        environment_refusal=draw(st.none() | st.sampled_from(REFUSALS)),
        others=draw(st.integers(0, 1)),
    )


changes = st.dictionaries(st.sampled_from(CHILDREN), st.sampled_from(["missing", "changed", "drift: spec"]))


@given(found=snapshots(), changed=changes)
def test_a_plan_is_a_function_of_what_is(found: Snapshot, changed: dict[Child, str]) -> None:
    assert plan(found, changed) == plan(found, changed)
    reversed_pods = replace(found, pods=tuple(reversed(found.pods)))
    assert plan(reversed_pods, changed) == plan(found, changed)


@given(found=snapshots(), changed=changes)
def test_the_same_again_writes_and_tells_nothing(found: Snapshot, changed: dict[Child, str]) -> None:
    changed = possible(found, changed)
    again = plan(replace(after(found, plan(found, changed)), now=NOW + timedelta(days=1)), changed)
    assert again.status is None
    assert again.events == ()


@given(found=snapshots(), changed=changes)
def test_what_every_plan_holds_to(found: Snapshot, changed: dict[Child, str]) -> None:
    changed = possible(found, changed)
    made = plan(found, changed)
    if found.service.metadata.deletion_timestamp:
        assert made == Plan((), None, None, None, (), None)
        return
    condition = ready(made)
    environment_ready = made.status.condition("EnvironmentReady") if made.status else None
    assert (environment_ready is None) == (found.service.environment_name is None)
    applied = {apply.child for apply in made.applies}
    if isinstance(found.children, Refusal) or condition.reason == "NameConflict":
        assert applied <= {"environment"}
        assert condition.status == "False"
        assert made.requeue_after
    else:
        assert applied - {"environment"} == set(changed) - {"environment"}
    if found.surroundings.refusal or (environment_ready and environment_ready.reason == "NameConflict"):
        assert "environment" not in applied
    else:
        assert ("environment" in applied) == ("environment" in changed)
    if condition.status == "True":
        assert found.deployment
        assert "deployment" not in changed
        live = found.deployment
        assert live.status.observed_generation == live.metadata.generation
        assert live.status.available_replicas == live.status.updated_replicas == found.service.spec.replicas
    if made.leftover:
        # Deleted is only what was made for this service, and what neither it nor another needs.
        assert made.leftover == found.surroundings.own
        assert made.leftover.metadata.controller
        assert made.leftover.metadata.controller.uid == found.service.metadata.uid
        assert found.service.environment_name != made.leftover.metadata.name
        assert not found.surroundings.shared
        assert condition.status == "True"
    assert made.status
    assert made.status.observed_generation == found.service.metadata.generation
    for apply in made.applies:
        exists = {
            "environment": found.surroundings.own,
            "revision": None,
            "deployment": found.deployment,
            "service": found.service_object,
            "budget": found.budget,
        }
        assert apply.force == (exists[apply.child] is not None)
