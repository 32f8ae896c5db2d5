"""The plan for one CondaEnvironment: what is done in each situation, and what is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api.environments import CondaEnvironment, CondaEnvironmentStatus
from tokenservice.api.events import Event
from tokenservice.api.jobs import BuildRequest, JobResult, LockRequest
from tokenservice.api.meta import Pod
from tokenservice.environments.attempts import Attempt
from tokenservice.environments.needs import (
    Lock,
    Need,
    build_hash,
    build_need,
    identity,
    job_name,
    known_lock,
    lock_need,
    with_cuda,
)
from tokenservice.environments.plan import DISABLED, Create, Delete, Plan, needed, plan
from tokenservice.environments.snapshot import Refusal, Snapshot
from tokenservice.environments.spec import HASH_VERSION, Canonical

from tests.unit.environments.standin_jobs import (
    NOW,
    SPEC,
    at,
    build_result,
    digest,
    environment,
    form,
    job,
    lock_result,
    pod,
    problem,
)

FAILED = ("Failed", "PodFailurePolicy", -20.0)
GAVE_UP = ("Failed", "BackoffLimitExceeded", -20.0)


def snapshot(made: CondaEnvironment, **more: Any) -> Snapshot:
    return Snapshot(**{"environment": made, "canonical": form(made), "now": NOW, **more})


def with_results(shot: Snapshot, **results: JobResult | Pod | None) -> Snapshot:
    """With a Job for each need of the stages named: `lock=...`, `build=...`; None for one that goes on."""
    for stage, result in results.items():
        need = next(need for need in needed(shot) if need.stage == stage)
        pods = (result,) if isinstance(result, Pod) else (pod(result),)
        ended = None
        if isinstance(result, JobResult):
            ended = (
                FAILED
                if result.problem and result.problem.terminal
                else GAVE_UP
                if result.problem
                else ("Complete", "", -20.0)
            )
        shot = replace(shot, attempts={**shot.attempts, need.hash: Attempt(job(need, ended=ended), pods)})
    return shot


def says(step: Plan | CondaEnvironmentStatus, kind: str) -> tuple[str, str]:
    status = step.status if isinstance(step, Plan) else step
    assert status is not None
    condition = status.condition(kind)
    assert condition is not None
    return condition.status, condition.reason


def after(shot: Snapshot, step: Plan) -> CondaEnvironment:
    status = step.status or shot.environment.status
    return msgspec.structs.replace(shot.environment, status=status)


def built(spec: dict[str, Any] | None = None, text: str = "a", **more: Any) -> CondaEnvironment:
    """An environment for which everything was done."""
    made = environment(spec, **more)
    shot = with_results(snapshot(made), lock=lock_result(text))
    shot = with_results(shot, build=build_result(text))
    return after(shot, plan(shot))


def edited(made: CondaEnvironment, **changes: Any) -> CondaEnvironment:
    metadata = msgspec.structs.replace(made.metadata, generation=made.metadata.generation + 1)
    return msgspec.structs.replace(made, metadata=metadata, spec={**made.spec, **changes})


def test_a_new_one_is_locked() -> None:
    step = plan(snapshot(environment()))
    (create,) = step.actions
    assert isinstance(create, Create)
    assert isinstance(create.need.request, LockRequest)
    assert create.need.request.environment["dependencies"] == ["python=3.11"]
    assert step.wants == {create.need.hash}
    assert says(step, "Locked") == ("Unknown", "Locking")
    assert says(step, "Built") == ("Unknown", "WaitingForLock")
    assert says(step, "Ready") == ("False", "Locking")
    assert step.events == ()


def test_while_it_is_locked_nothing_is_done() -> None:
    shot = with_results(snapshot(environment()), lock=None)
    step = plan(shot)
    assert step.actions == ()
    assert says(step, "Locked") == ("Unknown", "Locking")
    assert step.status is not None
    assert "lock-" in step.status.conditions[0].message


def test_what_is_locked_is_built() -> None:
    shot = with_results(snapshot(environment()), lock=lock_result())
    step = plan(shot)
    (create,) = step.actions
    assert isinstance(create, Create)
    assert isinstance(create.need.request, BuildRequest)
    assert create.need.request.lock == f"r/e@{digest('lock a')}"
    assert (says(step, "Locked"), says(step, "Built")) == (("True", "Locked"), ("Unknown", "Building"))
    assert step.status is not None
    assert (step.status.lock_digest, step.status.packages) == (digest("packages a"), 7)
    assert step.status.hash == shot.canonical.hash  # type: ignore[union-attr]
    assert step.status.hash_version == HASH_VERSION
    assert step.status.image is None
    assert step.events == (Event("Normal", "Locked", f"{digest('packages a')}, 7 packages"),)
    assert [(item.stage, item.began) for item in step.finished] == [("lock", at(-30))]


def test_what_is_built_is_ready() -> None:
    shot = with_results(snapshot(environment()), lock=lock_result())
    step = plan(with_results(shot, build=build_result()))
    assert step.actions == ()
    assert step.status is not None
    image = f"localhost:30500/e@{digest('image a')}"
    assert step.status.image == image
    assert step.status.base == "docker.io/base@sha256:1"
    assert step.status.bytes is not None
    assert (step.status.bytes.total, step.status.bytes.pushed, step.status.bytes.shared) == (100, 40, 60)
    assert [item.image for item in step.status.history] == [image]
    assert (says(step, "Built"), says(step, "Ready")) == (("True", "Built"), ("True", "Built"))
    assert step.events[-1] == Event("Normal", "Built", image)
    assert step.wants == {need.hash for need in needed(with_results(shot, build=build_result()))}


def test_what_stands_is_left_alone() -> None:
    step = plan(snapshot(built()))
    assert step == Plan()


def test_an_invalid_edit_says_all_that_is_wrong_and_keeps_the_image() -> None:
    made = edited(built(), dependencies=["python=3.11", {"pip": ["fastapi=0.95", "-e ."]}])
    step = plan(snapshot(made))
    assert step.actions == ()
    assert says(step, "Locked") == ("False", "InvalidEnvironment")
    assert says(step, "Ready") == ("False", "InvalidEnvironment")
    assert step.status is not None
    assert step.status.image == made.status.image
    locked = step.status.condition("Locked")
    assert locked is not None
    assert "pip[0]" in locked.message
    assert "pip[1]" in locked.message
    (event,) = step.events
    assert (event.type, event.reason) == ("Warning", "InvalidEnvironment")


def test_an_unsolvable_edit_tells_why_and_keeps_the_image() -> None:
    explanation = "torch 2.1 needs python <3.12\n" + "  and so on\n" * 500
    made = edited(built(), dependencies=["python=3.12", "torch=2.1"])
    shot = with_results(snapshot(made), lock=problem("Unsolvable", explanation))
    step = plan(shot)
    assert step.actions == ()
    assert says(step, "Locked") == ("False", "Unsolvable")
    assert step.status is not None
    locked, ready = step.status.condition("Locked"), step.status.condition("Ready")
    assert locked is not None
    assert ready is not None
    assert locked.message == explanation.strip()
    assert ready.message == "torch 2.1 needs python <3.12"
    assert step.status.image == made.status.image
    assert step.status.lock == made.status.lock
    assert step.events == (Event("Warning", "Unsolvable", "torch 2.1 needs python <3.12"),)
    assert step.requeue_after == 3600 - 20


def test_a_very_long_explanation_is_cut_at_30_kib() -> None:
    shot = with_results(snapshot(environment()), lock=problem("Unsolvable", "because " * 10_000))
    step = plan(shot)
    assert step.status is not None
    assert len(step.status.conditions[0].message.encode()) <= 30 << 10
    assert len(step.status.conditions[0].message.encode()) > 29 << 10


@pytest.mark.parametrize(
    ("what", "seconds", "again"),
    [("Unsolvable", 3590, False), ("Unsolvable", 3610, True), ("RegistryFull", 50, False), ("RegistryFull", 70, True)],
)
def test_when_what_failed_is_tried_again(what: Any, seconds: float, again: bool) -> None:
    shot = with_results(snapshot(environment()), lock=problem(what))
    step = plan(replace(shot, now=NOW + timedelta(seconds=seconds - 20)))
    assert [type(action) for action in step.actions] == ([Delete] if again else [])
    assert says(step, "Locked") == ("False", what)


def test_what_may_pass_stands_in_the_status_until_there_is_something_new_to_say() -> None:
    failing = with_results(snapshot(environment()), lock=problem("ChannelUnavailable", "no answer"))
    made = after(failing, plan(failing))
    for shot in (snapshot(made), with_results(snapshot(made), lock=None)):
        step = plan(shot)
        assert step.status is None
        assert step.events == ()
    healed = plan(with_results(snapshot(made), lock=lock_result()))
    assert says(healed, "Locked") == ("True", "Locked")
    assert says(plan(snapshot(edited(made, dependencies=["python=3.12"]))), "Locked") == ("Unknown", "Locking")


def test_the_kubelets_words_come_and_go() -> None:
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    stuck = pod(containerStatuses=[{"name": "job", "state": state}])
    shot = with_results(snapshot(environment()), lock=stuck)
    step = plan(shot)
    assert says(step, "Locked") == ("False", "ImagePullBackOff")
    assert [event.note for event in step.events] == ["not found"]
    healed = plan(with_results(snapshot(after(shot, step)), lock=None))
    assert says(healed, "Locked") == ("Unknown", "Locking")
    assert healed.events == ()


def test_a_job_that_gets_no_pod_says_why_and_is_looked_at_again() -> None:
    shot = snapshot(environment())
    (need,) = needed(shot)
    refused = replace(shot, attempts={need.hash: Attempt(job(need), refused="exceeded quota: small")})
    step = plan(refused)
    assert says(step, "Locked") == ("False", "FailedCreate")
    assert step.requeue_after == 10


def test_a_job_that_the_api_server_takes_not_is_tried_again_after_a_minute() -> None:
    shot = snapshot(environment())
    (need,) = needed(shot)
    refused = replace(shot, refusals={need.hash: Refusal("exceeded quota: jobs", NOW - timedelta(seconds=20))})
    step = plan(refused)
    assert (step.actions, step.requeue_after) == ((), 40)
    assert says(step, "Locked") == ("False", "Rejected")
    assert step.status is not None
    assert "exceeded quota: jobs" in step.status.conditions[0].message
    later = plan(replace(refused, now=NOW + timedelta(seconds=60)))
    assert [type(action) for action in later.actions] == [Create]


def test_without_a_template_it_says_what_the_owner_must_do() -> None:
    step = plan(snapshot(environment(), enabled=False))
    assert step.actions == ()
    assert says(step, "Locked") == ("False", "BuilderDisabled")
    assert step.status is not None
    assert step.status.conditions[0].message == DISABLED
    assert plan(snapshot(built(), enabled=False)) == Plan(), "what is built stays"


def test_nothing_is_begun_while_images_are_collected() -> None:
    step = plan(snapshot(environment(), collecting=True))
    assert step.actions == ()
    assert step.requeue_after == 10
    assert says(step, "Locked") == ("Unknown", "Locking")


def test_a_result_that_is_gone_is_made_again() -> None:
    shot = snapshot(environment())
    (need,) = needed(shot)
    lost = replace(shot, attempts={need.hash: Attempt(job(need, ended=("Complete", "", -20)))})
    step = plan(lost)
    assert [type(action) for action in step.actions] == [Delete]
    assert says(step, "Locked") == ("Unknown", "Locking")
    going = replace(shot, attempts={need.hash: Attempt(job(need, deleted=True))})
    assert plan(going).actions == ()


def test_one_that_is_being_deleted_is_left_alone() -> None:
    assert plan(snapshot(environment(deleted=True))) == Plan()
    assert needed(snapshot(environment(deleted=True))) == ()


# -- what is the same, and what is not


def test_the_same_lock_after_an_edit_builds_nothing() -> None:
    made = edited(built(), dependencies=["python=3.11", "pip"])
    shot = with_results(snapshot(made), lock=lock_result())
    step = plan(shot)
    assert step.actions == ()
    assert step.status is not None
    assert (step.status.image, step.status.history) == (made.status.image, made.status.history)
    assert says(step, "Ready") == ("True", "Built")
    assert step.status.hash != made.status.hash


@pytest.mark.parametrize("change", [{"baseImage": "docker.io/library/debian:13"}, {"variables": {"A": "1"}}])
def test_another_base_or_variable_is_another_image(change: dict[str, Any]) -> None:
    made = edited(built(), **change)
    shot = snapshot(made)
    if "variables" in change:
        shot = with_results(shot, lock=lock_result())
    step = plan(shot)
    (create,) = step.actions
    assert isinstance(create, Create)
    assert create.need.stage == "build"
    assert step.status is not None
    assert step.status.image == made.status.image
    assert says(step, "Ready") == ("False", "Building")


def test_another_name_changes_nothing() -> None:
    step = plan(snapshot(edited(built(), name="other")))
    assert step.actions == ()
    assert step.status is not None
    assert says(step, "Ready") == ("True", "Built")


def test_back_to_what_was_built_needs_no_job() -> None:
    made = built()
    away = edited(made, dependencies=["python=3.12"])
    shot = with_results(snapshot(away), lock=problem("Unsolvable"))
    back = edited(after(shot, plan(shot)), dependencies=SPEC["dependencies"])
    step = plan(snapshot(back))
    assert step.actions == ()
    assert says(step, "Ready") == ("True", "Built")


@pytest.mark.parametrize(("keep", "images"), [({}, "4321"), ({"keep_images": 1}, "43"), ({"keep_images": 0}, "4")])
def test_history_keeps_the_last_few_and_the_current_one(keep: dict[str, int], images: str) -> None:
    made = built(text="0")
    for text in "1234":
        made = edited(made, dependencies=[f"python=3.{text}"])
        shot = with_results(snapshot(made, **keep), lock=lock_result(text))
        shot = with_results(shot, build=build_result(text))
        step = plan(shot)
        assert step.trimmed is (int(text) >= len(images))
        made = after(shot, step)
    kept = [item.image[-64:] for item in made.status.history]
    assert kept == [digest(f"image {text}")[-64:] for text in images]


def test_another_hash_algorithm_rolls_nothing() -> None:
    made = built()
    status = msgspec.structs.replace(made.status, hash="sha256:as it was counted once", hash_version=HASH_VERSION - 1)
    older = msgspec.structs.replace(made, status=status)
    step = plan(snapshot(older))
    assert step.actions == ()
    assert step.status is not None
    assert (step.status.hash, step.status.hash_version) == (made.status.hash, HASH_VERSION)
    changed = plan(snapshot(edited(older, dependencies=["python=3.12"])))
    assert [type(action) for action in changed.actions] == [Create]


@pytest.mark.parametrize(
    ("spec", "hashes"),
    [
        (SPEC, ("61ea43f0534b0d1e7c7610623dd240ae", "e7930e37a81155dcd713cd04db43c02e")),
        (
            {**SPEC, "baseImage": "debian:12-slim", "variables": {"A": "1"}, "platform": "linux-aarch64"},
            ("7b1cb4f0e252c68b3d8ec96946d0619a", "669b1c72c901b36743bd13e524ee6ef3"),
        ),
    ],
)
def test_without_a_schedule_the_hashes_are_what_they_always_were(spec: dict[str, Any], hashes: tuple[str, str]) -> None:
    """Others would build every environment anew, with an update of the operator."""
    made = environment(spec)
    canonical, lock = form(made), Lock(digest("packages a"), "r/e@sha256:1", 7)
    assert isinstance(canonical, Canonical)
    assert snapshot(made).began is None
    assert (build_hash(made, canonical, lock, None), build_need(made, canonical, lock, None).hash) == hashes


def test_who_needs_the_same_shares_a_job_and_who_does_not_has_another() -> None:
    def need(made: CondaEnvironment) -> Need:
        canonical = form(made)
        assert isinstance(canonical, Canonical)
        return lock_need(made, canonical)

    first = need(environment())
    assert (
        need(environment({"dependencies": ["python=3.11"], "channels": ["conda-forge"], "name": "x"}, name="b")).hash
        == first.hash
    )
    others = [
        environment({**SPEC, "dependencies": ["python=3.12"]}),
        environment({**SPEC, "platform": "linux-aarch64"}),
        environment({**SPEC, "virtualPackages": {"cuda": "12.4"}}),
        environment({**SPEC, "excludeNewer": "2026-01-01T00:00:00Z"}),
        environment({**SPEC, "lock": "r/e@sha256:" + "0" * 64}),
        environment(retry="1"),
        edited(built(), dependencies=["python=3.11", "pip"]),
    ]
    assert len({first.hash, *(need(other).hash for other in others)}) == len(others) + 1
    assert isinstance(first.request, LockRequest)
    names = {job_name(first, with_cuda(first.request, found)) for found in (None, "12.4", "12.2")}
    assert len(names) == 3
    assert all(len(name) == len("lock-") + 16 for name in names)
    given = need(environment({**SPEC, "virtualPackages": {"cuda": "11.8"}}))
    assert isinstance(given.request, LockRequest)
    assert with_cuda(given.request, "12.4") == given.request


def test_the_previous_lock_is_preferred_unless_one_is_given() -> None:
    made = edited(built(), dependencies=["python=3.12"])
    (need,) = needed(snapshot(made))
    assert isinstance(need.request, LockRequest)
    assert need.request.previous == f"r/e@{digest('lock a')}"
    given = f"r/e@sha256:{'0' * 64}"
    (need,) = needed(snapshot(edited(made, lock=given)))
    assert isinstance(need.request, LockRequest)
    assert (need.request.previous, need.request.lock) == (None, given)


def test_the_hash_is_the_canonical_forms_unless_the_resource_says_more() -> None:
    plain = form(environment())
    assert isinstance(plain, Canonical)
    assert identity(environment(), plain) == plain.hash
    assert identity(environment({**SPEC, "platform": "linux-64", "virtualPackages": {}}), plain) == plain.hash
    assert identity(environment({**SPEC, "virtualPackages": {"cuda": "12"}}), plain) != plain.hash


# -- a schedule of rebuilds

MONTHLY = {**SPEC, "rebuild": {"schedule": "@monthly"}}
APRIL = datetime(2026, 4, 1, tzinfo=NOW.tzinfo)


def test_at_each_firing_it_is_built_again_of_the_same_lock() -> None:
    made = built(MONTHLY)
    assert plan(snapshot(made, now=APRIL - timedelta(seconds=1))).actions == ()
    step = plan(snapshot(made, now=APRIL))
    (create,) = step.actions
    assert isinstance(create, Create)
    assert create.need.stage == "build"
    assert isinstance(create.need.request, BuildRequest)
    assert create.need.request.lock == made.status.lock
    assert step.status is not None
    assert (step.status.image, step.status.build_hash) == (made.status.image, made.status.build_hash)
    assert (says(step, "Locked"), says(step, "Built")) == (("True", "Locked"), ("Unknown", "Building"))


def test_firings_that_nobody_saw_are_made_up_for_once() -> None:
    made = built(MONTHLY)
    shot = with_results(snapshot(made, now=APRIL + timedelta(days=100)), build=build_result("b"))
    made = after(shot, plan(shot))
    assert made.status.image == build_result("b").build.image  # type: ignore[union-attr]
    assert plan(replace(shot, environment=made, attempts={})).actions == ()


@pytest.mark.parametrize(
    ("seconds", "wait"), [(-86400.0, 3600.0), (-3600.0, 3600.0), (-90.5, 90.5), (0.0, 3600.0), (-1e-6, 1e-6)]
)
def test_it_is_looked_at_again_at_the_next_firing_and_once_an_hour(seconds: float, wait: float) -> None:
    step = plan(snapshot(built(MONTHLY), now=APRIL + timedelta(seconds=seconds)))
    assert step.requeue_after == pytest.approx(wait)


def test_a_schedule_for_what_was_built_since_it_would_have_fired_builds_nothing_yet() -> None:
    made = edited(built(), rebuild={"schedule": "@monthly"})
    step = plan(snapshot(made))
    assert (step.actions, step.requeue_after) == ((), 3600.0)
    assert step.status is not None
    assert says(step, "Ready") == ("True", "Built")
    made = msgspec.structs.replace(made, status=step.status)
    assert [type(action) for action in plan(snapshot(made, now=APRIL)).actions] == [Create]


def test_a_schedule_for_what_was_built_long_ago_builds_at_once() -> None:
    made = edited(built(), rebuild={"schedule": "@monthly"})
    assert [type(action) for action in plan(snapshot(made, now=APRIL + timedelta(days=9))).actions] == [Create]


@pytest.mark.parametrize("schedule", ["@fortnightly", "0 0 31 2 *", 3])
def test_a_schedule_that_is_none_is_told_and_keeps_the_image(schedule: Any) -> None:
    made = edited(built(), rebuild={"schedule": schedule})
    step = plan(snapshot(made))
    assert (step.actions, step.requeue_after) == ((), None)
    assert says(step, "Locked") == ("False", "InvalidEnvironment")
    assert step.status is not None
    assert step.status.image == made.status.image
    assert step.status.conditions[0].message.startswith("rebuild.schedule ")


def test_a_rebuild_that_fails_keeps_the_image_and_the_next_firing_tries_again() -> None:
    shot = with_results(snapshot(built(MONTHLY), now=APRIL), build=problem("InvalidEnvironment", "no such base"))
    step = plan(shot)
    assert says(step, "Ready") == ("False", "InvalidEnvironment")
    assert step.status is not None
    assert step.status.image == shot.environment.status.image
    later = plan(replace(shot, environment=after(shot, step), now=APRIL + timedelta(days=30)))
    assert [type(action) for action in later.actions] == [Create]


def test_other_times_of_a_schedule_are_other_jobs() -> None:
    lock = Lock(digest("packages a"), "r/e@sha256:1", 7)

    def need(schedule: str, now: datetime) -> str:
        shot = snapshot(environment({**SPEC, "rebuild": {"schedule": schedule}}), now=now)
        assert isinstance(shot.canonical, Canonical)
        return build_need(shot.environment, shot.canonical, lock, shot.began).hash

    assert need("@monthly", NOW) == need("@monthly", NOW + timedelta(days=30)) == need("0 0 1 * *", NOW)
    assert len({need("@monthly", NOW), need("@monthly", APRIL), need("@hourly", NOW)}) == 3


# -- properties

RESULTS = st.sampled_from(
    [
        None,
        lock_result(),
        build_result(),
        problem("Unsolvable", "x"),
        problem("DiskFull", "y"),
        JobResult(),
    ]
)
ENDS = st.sampled_from(
    [None, ("Complete", "", -20.0), ("Complete", "", -1.0), FAILED, GAVE_UP, ("Failed", "DeadlineExceeded", -7200.0)]
)
SPECS = st.sampled_from(
    [
        SPEC,
        {**SPEC, "dependencies": ["python=3.12"]},
        {**SPEC, "variables": {"A": "1"}},
        {**SPEC, "baseImage": "debian"},
        {**SPEC, "rebuild": {"schedule": "@monthly"}},
        {**SPEC, "rebuild": {"schedule": "30 12 * * *"}},
        {"dependencies": "nonsense"},
    ]
)
BEFORE = st.sampled_from(
    [
        environment(),
        built(),
        built(text="b"),
        built({**SPEC, "dependencies": ["python=3.12"]}),
        built({**SPEC, "rebuild": {"schedule": "30 12 * * *"}}),
    ]
)
TIMES = st.sampled_from([NOW, NOW + timedelta(hours=1)])


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    made = edited(draw(BEFORE))
    made = msgspec.structs.replace(made, spec=draw(SPECS))
    shot = snapshot(made, now=draw(TIMES), enabled=draw(st.booleans()), collecting=draw(st.booleans()))
    for _ in range(2):
        for need in needed(shot):
            if need.hash in shot.attempts or not draw(st.booleans()):
                continue
            pods = tuple(pod(draw(RESULTS), name=f"p{n}", created=n - 20) for n in range(draw(st.integers(0, 2))))
            attempt = Attempt(job(need, ended=draw(ENDS), deleted=draw(st.booleans())), pods)
            shot = replace(shot, attempts={**shot.attempts, need.hash: attempt})
    return shot


def carried_out(shot: Snapshot, step: Plan) -> Snapshot:
    """The world once the plan's actions are done and its status is written."""
    attempts = dict(shot.attempts)
    for action in step.actions:
        if isinstance(action, Create):
            attempts[action.need.hash] = Attempt(job(action.need, created=0))
        else:
            gone = action.job
            attempts = {key: value for key, value in attempts.items() if value.job is not gone}
    return replace(shot, environment=after(shot, step), attempts=attempts)


@given(snapshots())
def test_a_plan_that_is_carried_out_leaves_nothing_to_do(shot: Snapshot) -> None:
    step = plan(shot)
    again = carried_out(shot, step)
    if any(isinstance(action, Delete) for action in step.actions):
        second = plan(again)  # what was deleted is made again, or not wanted any more
        assert all(isinstance(action, Create) for action in second.actions)
        again = carried_out(again, second)
    final = plan(again)
    assert final.actions == ()
    settled = carried_out(again, final)  # only the name of the new Job may be news
    assert plan(settled).status is None
    assert plan(settled).events == ()


@given(snapshots())
def test_any_state_in_between_leads_to_the_same_end(shot: Snapshot) -> None:
    """A crash after each write: of the actions, in their order, and then of the status."""
    step = plan(shot)
    whole = carried_out(shot, step)
    for done in range(len(step.actions) + 1):
        partial = carried_out(shot, replace(step, actions=step.actions[:done], status=None))
        resumed = carried_out(partial, plan(partial))
        assert settle(resumed) == settle(whole)


@given(snapshots())
def test_no_image_and_no_lock_is_ever_lost(shot: Snapshot) -> None:
    before, status = shot.environment.status, plan(shot).status
    if status is None:
        return
    if before.image:
        assert status.image is not None
        assert before.image in {item.image for item in status.history}
    assert (status.image is None) == (status.build_hash is None)
    ready, canonical = status.condition("Ready"), shot.canonical
    assert ready is not None
    if ready.status == "True":
        assert isinstance(canonical, Canonical)
        lock = known_lock(after(shot, plan(shot)), canonical)
        assert lock is not None
        # A schedule that was asked for after the build takes it as it is.
        assert status.build_hash in {
            build_hash(shot.environment, canonical, lock, began) for began in (shot.began, None)
        }


def settle(shot: Snapshot) -> tuple[frozenset[str], CondaEnvironmentStatus]:
    """The Jobs and what was made at the end; why an earlier Job failed may have gone with it, untold."""
    for _ in range(4):
        step = plan(shot)
        shot = carried_out(shot, step)
    names = frozenset(attempt.job.metadata.name for attempt in shot.attempts.values())
    return names, msgspec.structs.replace(shot.environment.status, conditions=())
