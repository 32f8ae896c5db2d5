"""Revisions: what makes one, which of those that exist is asked for, and what is kept of them."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api import names
from tokenservice.api.meta import ControllerRevision, ObjectMeta, RevisionData, Struct, stamp
from tokenservice.api.v1alpha1 import EnvironmentStatus, TokenService
from tokenservice.kube.apply import content_hash
from tokenservice.services import revisions
from tokenservice.services.revisions import KEPT, STABLE_SECONDS, Failed, Wanted

from tests.unit.services.builders import (
    BUILT,
    CONDA,
    IMAGE,
    NOW,
    children,
    environment,
    revision,
    service,
    surroundings,
)

RUNS_IN = EnvironmentStatus(image=IMAGE)
SECRET = {"name": "hub"}


def received(annotations: dict[str, str] | None = None, **spec: Any) -> TokenService:
    """The TokenService as the API server sends it: as text, from which every value is made anew."""
    raw = {
        "metadata": {"name": "demo", "namespace": "team", "uid": "1-2-3", "annotations": annotations or {}},
        "spec": {"model": {"source": "hf://org/tiny"}, "environment": {"image": {"reference": IMAGE}}, **spec},
    }
    return msgspec.json.decode(msgspec.json.encode(raw), type=TokenService)


def model(**fields: Any) -> dict[str, Any]:
    return {"source": "hf://org/tiny", **fields}


# -- inputs


def inputs(tokenservice: TokenService, runs_in: EnvironmentStatus = RUNS_IN) -> dict[str, Any]:
    return revisions.inputs(tokenservice, runs_in)


def test_what_pods_are_made_from() -> None:
    found = inputs(
        received(
            model=model(revision="v1"),
            engine={"args": ["--dtype=bfloat16"]},
            api={"keySecretRef": {"name": "keys"}},
            template={"spec": {"nodeSelector": {"zone": "a"}}},
        ),
        EnvironmentStatus(image=IMAGE, conda_env="serve"),
    )
    assert json.loads(msgspec.json.encode(found)) == {
        "model": {"source": "hf://org/tiny", "revision": "v1"},
        "engine": {"args": ["--dtype=bfloat16"]},
        "api": {"keySecretRef": {"name": "keys"}},
        "template": {"spec": {"nodeSelector": {"zone": "a"}}},
        "image": IMAGE,
        "condaEnv": "serve",
    }


def test_what_says_nothing_is_left_out() -> None:
    assert inputs(received()) == {"model": {"source": "hf://org/tiny"}, "image": IMAGE}


SAME: dict[str, dict[str, Any]] = {
    "replicas": {"replicas": 7},
    "no replica": {"replicas": 0},
    "paused": {"paused": True},
    "rollout": {
        "rollout": {
            "maxSurge": "50%",
            "maxUnavailable": 1,
            "prePull": False,
            "progressDeadlineSeconds": 30,
            "onFailure": "Pause",
        }
    },
    "another environment that leads to the same image": {"environment": {"ref": {"name": "nlp"}}},
    "an empty template": {"template": {}},
    "a template of nothing": {"template": None},
    "a retry": {"annotations": {names.ANNOTATION_RETRY: "1"}},
    "the default engine": {"engine": {}},
    "the default engine by its name": {"engine": {"name": "transformers", "args": []}},
    "the model's defaults": {"model": model(trustRemoteCode=False, revision=None, authSecretRef=None)},
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_pods_are_not_made_from_changes_no_revision(change: dict[str, Any]) -> None:
    assert inputs(received(**change)) == inputs(received())


def test_a_default_that_is_written_out_changes_no_revision() -> None:
    short, long = (received(model=model(authSecretRef=ref)) for ref in (SECRET, {**SECRET, "key": "token"}))
    assert inputs(short) == inputs(long)


def test_hash_and_lock_of_the_environment_change_no_revision() -> None:
    built = EnvironmentStatus(image=IMAGE, hash="sha256:hash", lock_digest="sha256:lock")
    assert inputs(received(), built) == inputs(received())


OTHER: dict[str, dict[str, Any]] = {
    "model": {"model": model(source="hf://org/other")},
    "model's revision": {"model": model(revision="v2")},
    "model's name": {"model": model(name="small")},
    "model's secret": {"model": model(authSecretRef=SECRET)},
    "model's code": {"model": model(trustRemoteCode=True)},
    "engine": {"engine": {"args": ["--dtype=float32"]}},
    "api": {"api": {"keySecretRef": {"name": "keys"}}},
    "template": {"template": {"spec": {"nodeSelector": {"zone": "a"}}}},
    "template, a null": {"template": {"spec": {"securityContext": None}}},
}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_what_pods_are_made_from_makes_another_revision(change: dict[str, Any]) -> None:
    found = inputs(received(**change))
    assert found != inputs(received())
    assert wanted(received(**change)).name != wanted(received()).name


@pytest.mark.parametrize(
    "runs_in", [EnvironmentStatus(image=BUILT), EnvironmentStatus(image=IMAGE, conda_env="base")], ids=["image", "name"]
)
def test_what_pods_run_in_makes_another_revision(runs_in: EnvironmentStatus) -> None:
    assert inputs(received(), runs_in) != inputs(received())
    assert wanted(received(), runs_in=runs_in).name != wanted(received()).name


# -- asked


REPEATED: dict[str, dict[str, Any]] = {
    "replicas": {"replicas": 7},
    "paused": {"paused": True},
    "what to do after a failure": {"rollout": {"onFailure": "Pause"}},
    "the rollout's defaults": {"rollout": {}},
    "a default": {"rollout": {"prePull": True, "maxSurge": 1}},
    "all defaults": {
        "engine": {"name": "transformers", "args": []},
        "model": model(trustRemoteCode=False),
        "replicas": 1,
        "rollout": {
            "maxSurge": 1,
            "maxUnavailable": 0,
            "prePull": True,
            "progressDeadlineSeconds": 600,
            "onFailure": "Rollback",
        },
        "paused": False,
    },
    "another annotation": {"annotations": {"example.com/a": "b"}},
    "environment": {"environment": {"image": {"reference": "registry.example.com/serving:2"}}},
    "environment, another kind": {"environment": {"ref": {"name": "nlp"}}},
    "environment, inline": {"environment": {"conda": CONDA}},
}


@pytest.mark.parametrize("change", REPEATED.values(), ids=REPEATED)
def test_the_same_is_asked_for(change: dict[str, Any]) -> None:
    assert revisions.asked(received(**change)) == revisions.asked(received())


ANEW: dict[str, dict[str, Any]] = {
    **OTHER,
    "surge": {"rollout": {"maxSurge": 2}},
    "unavailable": {"rollout": {"maxUnavailable": 1}},
    "without pre-pull": {"rollout": {"prePull": False}},
    "more time": {"rollout": {"progressDeadlineSeconds": 1200}},
    "retry": {"annotations": {names.ANNOTATION_RETRY: "1"}},
    "retry again": {"annotations": {names.ANNOTATION_RETRY: "2"}},
}


@pytest.mark.parametrize("change", ANEW.values(), ids=ANEW)
def test_something_else_is_asked_for(change: dict[str, Any]) -> None:
    assert revisions.asked(received(**change)) != revisions.asked(received())


def test_each_change_asks_for_something_of_its_own() -> None:
    assert len({revisions.asked(received(**change)) for change in ANEW.values()}) == len(ANEW)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers()), st.integers(0, 9), st.booleans())
def test_what_is_asked_for_does_not_depend_on_the_order_of_its_fields(
    labels: dict[str, int], replicas: int, paused: bool
) -> None:
    ways = [dict(items) for items in (labels.items(), reversed(labels.items()))]
    found = [
        received(template={"metadata": {"annotations": way}}, replicas=replicas, paused=paused and not index)
        for index, way in enumerate(ways)
    ]
    assert revisions.asked(found[0]) == revisions.asked(found[1])


# -- the revision that is wanted


def template(tokenservice: TokenService, runs_in: EnvironmentStatus = RUNS_IN) -> dict[str, Any]:
    """A pod template of the parts that matter here."""
    return {
        "metadata": {"labels": {names.LABEL_SERVICE: tokenservice.metadata.name}},
        "spec": {"containers": [{"name": "server", "image": runs_in.image, "args": [*tokenservice.spec.engine.args]}]},
    }


def wanted(
    tokenservice: TokenService,
    *history: ControllerRevision,
    made_of: dict[str, Any] | None = None,
    rendered: dict[str, Any] | None = None,
    runs_in: EnvironmentStatus = RUNS_IN,
) -> Wanted:
    return revisions.wanted(
        tokenservice,
        history,
        inputs(tokenservice, runs_in) if made_of is None else made_of,
        template(tokenservice, runs_in) if rendered is None else rendered,
        runs_in,
    )


def stored(found: Wanted, number: int | None = None, **annotations: str) -> ControllerRevision:
    """The ControllerRevision, as the API server sends it once it was created."""
    assert found.manifest
    raw = copy.deepcopy(found.manifest)
    raw["metadata"]["annotations"] = annotations
    raw["revision"] = raw["revision"] if number is None else number
    return msgspec.json.decode(json.dumps(raw, indent=1), type=ControllerRevision)


def test_the_first_revision_is_made() -> None:
    found = wanted(received())
    assert found.number == 1
    assert found.name.startswith("demo-")
    assert found.environment == RUNS_IN
    assert found.failed is None
    label = revisions.label(found.name)
    assert found.template["metadata"]["labels"] == {names.LABEL_SERVICE: "demo", names.LABEL_REVISION: label}
    assert found.template["spec"] == template(received())["spec"]
    assert found.manifest
    assert found.manifest["metadata"]["name"] == found.name
    assert found.manifest["metadata"]["labels"] == names.child_labels("demo")
    made = stored(found)
    assert (made.metadata.namespace, made.revision) == ("team", 1)
    assert made.metadata.controller
    assert made.metadata.controller.uid == "1-2-3"


def test_what_was_rendered_is_left_as_it_is() -> None:
    rendered = template(received())
    before = copy.deepcopy(rendered)
    wanted(received(), rendered=rendered)
    assert rendered == before


def test_a_revision_is_found_again_once_it_is_stored() -> None:
    made = wanted(received())
    found = wanted(received(), stored(made))
    assert found == replace(made, manifest=None)


@pytest.mark.parametrize(
    "spec",
    [{}, {"environment": {"conda": CONDA}}, {"template": {"spec": {"overhead": {"cpu": 0.5}, "nodeSelector": None}}}],
    ids=str,
)
def test_a_revision_as_it_is_rendered_is_found_again(spec: dict[str, Any]) -> None:
    tokenservice = service(**spec)
    around = [environment("demo")]
    if "conda" in spec.get("environment", {}):
        around = [environment("demo", uid=tokenservice.metadata.uid)]
    made = children(tokenservice, *around)
    runs_in = surroundings(tokenservice, *around).runs_in
    assert made.deployment
    assert runs_in
    known = revision(tokenservice, *around)
    found = revisions.wanted(tokenservice, [known], made.inputs, made.deployment["spec"]["template"], runs_in)
    assert (found.name, found.manifest, found.environment) == (known.metadata.name, None, runs_in)
    assert revisions.image(known) == runs_in.image


def test_a_newer_operator_that_renders_differently_goes_on_with_the_template_that_is_stored() -> None:
    made = wanted(received())
    newer = template(received())
    newer["spec"]["containers"][0]["env"] = [{"name": "NEW", "value": "1"}]
    found = wanted(received(), stored(made), rendered=newer)
    assert found.manifest is None
    assert found.template == made.template


def test_other_inputs_that_are_rendered_to_the_same_make_no_revision() -> None:
    made = wanted(received())
    found = wanted(received(), stored(made), made_of={**inputs(received()), "dtype": "auto"})
    assert (found.name, found.manifest, found.template) == (made.name, None, made.template)


def test_of_several_that_match_the_newest_is_taken() -> None:
    tokenservice = received()
    by_inputs = wanted(tokenservice, rendered={"metadata": {"labels": {}}, "spec": {"old": True}})
    by_template = wanted(tokenservice, made_of={"other": True})
    for first, second in ((by_inputs, by_template), (by_template, by_inputs)):
        history = [stored(first, 3), stored(second, 8), stored(wanted(received(engine={"args": ["x"]})), 9)]
        for order in (history, history[::-1]):
            assert (wanted(tokenservice, *order).name, wanted(tokenservice, *order).number) == (second.name, 8)


def test_none_that_matches_makes_a_new_one_with_the_next_number() -> None:
    history = [stored(wanted(received(engine={"args": [str(number)]})), number) for number in (4, 11, 2)]
    found = wanted(received(), *history)
    assert found.manifest
    assert found.number == found.manifest["revision"] == 12


def test_names_are_the_same_every_time_and_differ_by_service() -> None:
    mine = received()
    metadata = [
        mine.metadata,
        msgspec.structs.replace(mine.metadata, uid="4-5-6"),  # made again: what is left of the one before is adopted
        msgspec.structs.replace(mine.metadata, name="demo2"),
    ]
    first, again, other = (wanted(msgspec.structs.replace(mine, metadata=item)).name for item in metadata)
    assert first == again != other
    # The same spec keeps its name whatever was there before it, so that two operators make one object.
    assert wanted(mine, stored(wanted(received(engine={"args": ["x"]})))).name == first


def test_a_pods_label_is_short_however_long_the_name_is() -> None:
    long = msgspec.structs.replace(received(), metadata=ObjectMeta(name="a" * 53 + "-" + "b" * 9, uid="1"))
    found = wanted(long)
    assert len(found.name) > 63
    assert found.template["metadata"]["labels"][names.LABEL_REVISION] == found.name[-10:]


def test_an_existing_one_is_read_whole() -> None:
    failed = Failed("CrashLoopBackOff", "no model", "2026-03-01T12:00:00Z", "0123456789")
    runs_in = EnvironmentStatus(image=BUILT, hash="sha256:hash", lock_digest="sha256:lock")
    made = wanted(received(), runs_in=runs_in)
    known = stored(made, 5, **revisions.mark(failed)["metadata"]["annotations"])
    assert revisions.of(known) == replace(made, manifest=None, number=5, failed=failed)
    assert revisions.image(known) == BUILT


def test_a_revision_without_data_can_be_read() -> None:
    empty = ControllerRevision(metadata=ObjectMeta(name="demo-1"))
    assert revisions.image(empty) is None
    assert revisions.of(empty) == Wanted("demo-1", 0, {}, None)
    assert wanted(received(), empty).manifest


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    # What stands in a spec has come as UTF-8 JSON.
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), JSON, max_size=4), st.integers(0, 99))
def test_whatever_a_template_says_a_revision_is_found_again(spec: dict[str, Any], number: int) -> None:
    tokenservice = received(template={"spec": spec})
    rendered = {"metadata": {"labels": {"a": "b"}}, "spec": spec}
    made = wanted(tokenservice, rendered=rendered)
    known = stored(made, number)
    for how in ({"made_of": {"other": True}}, {"rendered": {"metadata": {"labels": {}}}}):
        found = wanted(tokenservice, known, **{"rendered": rendered, **how})
        assert (found.name, found.number, found.manifest) == (made.name, number, None)
    turned = dict(reversed(inputs(tokenservice).items()))
    assert wanted(tokenservice, known, made_of=turned, rendered={}).manifest is None


# -- what becomes of it


FAILURES = st.builds(Failed, *(st.text(st.characters(codec="utf-8")) for _ in range(4)))


def patched(known: ControllerRevision, patch: dict[str, Any]) -> ControllerRevision:
    """What the API server makes of a merge patch with annotations and a number."""
    annotations = {**known.metadata.annotations, **patch["metadata"]["annotations"]}
    kept = {key: value for key, value in annotations.items() if value is not None}
    metadata = msgspec.structs.replace(known.metadata, annotations=kept)
    return msgspec.structs.replace(known, metadata=metadata, revision=patch.get("revision", known.revision))


@given(FAILURES, st.integers(2, 10**6))
def test_a_failure_is_written_and_read_and_taken_back(failed: Failed, number: int) -> None:
    known = stored(wanted(received()), 1, **{"example.com/a": "b"})
    assert revisions.failed(known) is None
    marked = patched(known, json.loads(json.dumps(revisions.mark(failed))))
    assert revisions.failed(marked) == failed
    assert (marked.revision, marked.metadata.annotations["example.com/a"]) == (1, "b")
    again = patched(marked, json.loads(json.dumps(revisions.again(number, NOW))))
    assert revisions.failed(again) is None
    assert (again.revision, again.metadata.annotations["example.com/a"]) == (number, "b")
    assert (revisions.asked_at(again), revisions.of(again).since) == (NOW, NOW)
    assert again.data == known.data


CREATED = "2026-03-01T09:00:00Z"
STAMPS: dict[str, tuple[str | None, str]] = {
    "none": (None, CREATED),
    "as it was asked for again": ("2026-03-01T10:00:00Z", "2026-03-01T10:00:00Z"),
    "of another zone": ("2026-03-01T12:00:00+02:00", "2026-03-01T10:00:00Z"),
    "empty": ("", CREATED),
    "text": ("yesterday", CREATED),
}


@pytest.mark.parametrize(("text", "expected"), STAMPS.values(), ids=STAMPS)
def test_when_a_revision_was_asked_for_last(text: str | None, expected: str) -> None:
    annotations = {} if text is None else {names.ANNOTATION_ASKED_AT: text}
    found = revisions.asked_at(
        ControllerRevision(metadata=ObjectMeta(creation_timestamp=CREATED, annotations=annotations))
    )
    assert found == datetime.fromisoformat(expected)


@pytest.mark.parametrize("text", ["2026-03-01", "2026-03-01T12:00:00", "20260301"])
def test_a_time_without_a_zone_can_be_compared_with_others(text: str) -> None:
    metadata = ObjectMeta(creation_timestamp=CREATED, annotations={names.ANNOTATION_ASKED_AT: text})
    found = revisions.asked_at(ControllerRevision(metadata=metadata))
    assert found is not None
    assert found <= NOW


@given(st.datetimes(timezones=st.timezones(), min_value=datetime(1970, 1, 3), max_value=datetime(9000, 1, 1)))
def test_a_stamp_tells_the_second(when: datetime) -> None:
    text = stamp(when)
    assert text.endswith("Z")
    assert timedelta(0) <= when - datetime.fromisoformat(text) < timedelta(seconds=1)


def test_one_that_nobody_controls_is_adopted() -> None:
    patch = json.loads(json.dumps(revisions.adoption(received())))
    metadata = msgspec.convert(patch["metadata"], ObjectMeta)
    assert metadata.controller
    assert (metadata.controller.kind, metadata.controller.uid) == ("TokenService", "1-2-3")
    assert set(patch["metadata"]) == {"ownerReferences"}


UNREADABLE = {
    "empty": "",
    "text": "it failed",
    "half of it": '{"reason":"CrashLoopBackOff","mess',
    "null": "null",
    "a list": "[]",
    "a field is missing": '{"reason":"a","message":"b","at":"c"}',
    "a field is of another kind": '{"reason":"a","message":1,"at":"c","asked":"d"}',
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_an_annotation_that_cannot_be_read_says_nothing(text: str) -> None:
    assert revisions.failed(stored(wanted(received()), **{names.ANNOTATION_FAILED: text})) is None


def test_fields_of_a_later_version_are_passed_over() -> None:
    text = '{"reason":"a","message":"b","at":"c","asked":"d","more":[1]}'
    known = stored(wanted(received()), **{names.ANNOTATION_FAILED: text})
    assert revisions.failed(known) == Failed("a", "b", "c", "d")


@given(st.text(max_size=40))
def test_whatever_people_write_there_can_be_read(text: str) -> None:
    metadata = ObjectMeta(annotations={names.ANNOTATION_FAILED: text})
    assert revisions.failed(ControllerRevision(metadata=metadata)) is None


# -- the Deployment


def base(**spec: Any) -> dict[str, Any]:
    made = children(service(**spec)).deployment
    assert made
    return made


TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}


def test_the_deployment_has_the_template_of_the_revision_and_its_name() -> None:
    known = base(replicas=3)
    before = copy.deepcopy(known)
    found = revisions.deployment(known, Wanted("demo-1", 1, TEMPLATE, None), hold=False, replicas=2)
    assert known == before
    assert found["spec"] == {**known["spec"], "template": TEMPLATE, "replicas": 2}
    assert found["metadata"]["name"] == "demo"
    assert found["metadata"]["ownerReferences"] == known["metadata"]["ownerReferences"]
    assert found["metadata"]["annotations"] == {
        names.ANNOTATION_REVISION: "demo-1",
        names.ANNOTATION_APPLIED_HASH: content_hash(found),
    }


def test_annotations_that_are_there_stay() -> None:
    known = base()
    known["metadata"]["annotations"] = {"example.com/a": "b"}
    found = revisions.deployment(known, Wanted("demo-1", 1, TEMPLATE, None), hold=False, replicas=2)
    assert (
        found["metadata"]["annotations"].items() >= {"example.com/a": "b", names.ANNOTATION_REVISION: "demo-1"}.items()
    )


@pytest.mark.parametrize(("number", "seconds"), [(1, None), (2, STABLE_SECONDS), (3, STABLE_SECONDS)])
def test_pods_of_later_revisions_have_to_stay_ready_before_they_count(number: int, seconds: int | None) -> None:
    found = revisions.deployment(base(), Wanted("demo-1", number, TEMPLATE, None), hold=False, replicas=2)
    assert found["spec"].get("minReadySeconds") == seconds


@pytest.mark.parametrize("deadline", [1, 2, STABLE_SECONDS, STABLE_SECONDS + 1, 600])
def test_pods_have_to_stay_ready_for_less_than_the_deadline_as_the_api_asks_for(deadline: int) -> None:
    known = base(rollout={"progressDeadlineSeconds": deadline})
    spec = revisions.deployment(known, Wanted("demo-2", 2, TEMPLATE, None), hold=False, replicas=2)["spec"]
    assert 0 <= spec["minReadySeconds"] < spec["progressDeadlineSeconds"] == deadline


@pytest.mark.parametrize(
    ("spec", "hold", "paused"),
    [({}, False, None), ({}, True, True), ({"paused": True}, False, True), ({"paused": True}, True, True)],
)
def test_a_rollout_that_is_held_is_paused(spec: dict[str, Any], hold: bool, paused: bool | None) -> None:
    found = revisions.deployment(base(**spec), Wanted("demo-1", 1, TEMPLATE, None), hold=hold, replicas=2)
    assert found["spec"].get("paused") is paused


def test_whatever_differs_is_applied() -> None:
    made = [
        revisions.deployment(base(), Wanted(name, number, found, None), hold=hold, replicas=2)
        for name, number, found, hold in [
            ("demo-1", 1, TEMPLATE, False),
            ("demo-2", 1, TEMPLATE, False),
            ("demo-1", 2, TEMPLATE, False),
            ("demo-1", 1, {**TEMPLATE, "spec": {}}, False),
            ("demo-1", 1, TEMPLATE, True),
        ]
    ]
    assert len({found["metadata"]["annotations"][names.ANNOTATION_APPLIED_HASH] for found in made}) == len(made)


# -- which are kept


def numbered(*numbers: int) -> list[ControllerRevision]:
    return [ControllerRevision(metadata=ObjectMeta(name=f"demo-{n}"), revision=n) for n in numbers]


def dropped(numbers: list[int], *used: int) -> list[int]:
    found = revisions.superfluous(numbered(*numbers), (f"demo-{n}" for n in used))
    return sorted(item.revision for item in found)


def test_the_oldest_beyond_ten_are_dropped() -> None:
    assert dropped([]) == []
    assert dropped([*range(1, KEPT + 1)]) == []
    assert dropped([*range(1, KEPT + 3)]) == [1, 2]
    assert dropped([*range(KEPT + 2, 0, -1)]) == [1, 2]


def test_those_in_use_are_kept_however_old_they_are() -> None:
    assert dropped([*range(1, KEPT + 3)], 1) == [2, 3]
    assert dropped([*range(1, KEPT + 3)], 1, KEPT + 2) == [2, 3]
    assert dropped([*range(1, KEPT + 3)], *range(1, KEPT + 2)) == [KEPT + 2]
    assert dropped([*range(1, KEPT + 3)], *range(1, KEPT + 3)) == []


def test_names_of_revisions_that_there_are_not_make_no_difference() -> None:
    known = numbered(*range(1, KEPT + 3))
    assert revisions.superfluous(known, [None, "gone"]) == revisions.superfluous(known, [])


@given(st.lists(st.integers(1, 60), unique=True, max_size=40), st.sets(st.integers(1, 60), max_size=15))
def test_ten_are_kept_and_all_those_in_use(numbers: list[int], used: set[int]) -> None:
    gone = set(dropped(numbers, *used))
    kept = set(numbers) - gone
    assert used & set(numbers) <= kept
    assert len(kept) == max(min(len(numbers), KEPT), len(used & set(numbers)))
    assert all(old < new for old in gone for new in kept - used)
    assert dropped(sorted(kept), *used) == []


# -- what is kept in memory


class Borrowing(Struct, frozen=True, kw_only=True):
    """What decoding does by itself."""

    inputs: msgspec.Raw = msgspec.Raw(b"{}")


class Around(Struct, frozen=True, kw_only=True):
    data: RevisionData | None = None
    borrowed: Borrowing | None = None


def test_a_decoded_revision_does_not_keep_the_message_that_it_came_in() -> None:
    parts = {"inputs": {"model": {"source": "a  b"}}, "template": [1, {"b": None}], "environment": {"image": "c"}}
    padding = "x" * 100_000
    message = json.dumps({"padding": padding, "data": parts}).encode()
    before = sys.getrefcount(message)
    found = msgspec.json.decode(message, type=Around).data
    assert found
    assert sys.getrefcount(message) == before
    for name, value in parts.items():
        assert bytes(getattr(found, name)) == json.dumps(value).encode()
    # That this can be seen at all:
    other = json.dumps({"padding": padding, "borrowed": parts}).encode()
    before = sys.getrefcount(other)
    borrowed = msgspec.json.decode(other, type=Around).borrowed
    assert borrowed
    assert sys.getrefcount(other) > before


def test_a_revision_without_data_has_empty_ones() -> None:
    found = msgspec.json.decode(b'{"metadata":{"name":"demo-1"},"revision":3}', type=ControllerRevision)
    assert found.data == RevisionData()
    assert [bytes(part) for part in (found.data.inputs, found.data.template, found.data.environment)] == [
        b"{}",
        b"{}",
        b"null",
    ]
