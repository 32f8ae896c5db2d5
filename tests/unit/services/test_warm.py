"""What is done about a TokenService's claimed pods: one look at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tokenservice.api import names
from tokenservice.api.conditions import Verdict
from tokenservice.api.meta import ControllerRevision, Deployment, OwnerReference, Pod, stamp
from tokenservice.handover.assigner import Outcome
from tokenservice.handover.claim import Claim
from tokenservice.runtime.metrics import MISSES
from tokenservice.services import revisions, rollout
from tokenservice.services.snapshot import Snapshot
from tokenservice.services.warm import COLD_SECONDS, EMPTY, Cold, Hand, Pooled, fit, hand, mark, replaced

from tests.unit.pools.builders import warm_pool
from tests.unit.services.builders import NOW, UID, children, deployment, pod, revision, running, service, snapshot
from tests.unit.services.standin_kubernetes import rendered

FITS: Verdict = ("True", "Fits", "pods of WarmPool nlp fit")
DIFFER: Verdict = ("False", "ShapeMismatch", "pods of WarmPool nlp do not fit: spec.priority")
SERVES = Outcome("serves", stages={"total": 0.5})
BAD = Outcome("refused", "LoadFailed", "no config.json")
UNFIT = Outcome("unfit", "AssignmentRefused", "HTTP 409: taken")
SPEC: dict[str, Any] = {"replicas": 3, "warmPool": {"name": "nlp"}}
REVISION = revision(service(**SPEC))
LABEL = revisions.label(REVISION.metadata.name)
HASH = {names.LABEL_SERVICE: "demo", names.LABEL_DEPLOYMENT: "demo", names.LABEL_REVISION: LABEL}
READY = [{"type": "Ready", "status": "True", "lastTransitionTime": stamp(NOW - timedelta(seconds=60))}]


def claimed(name: str = "nlp-1", *, served: float | None = None, revision: str = LABEL, **more: Any) -> Claim:
    found = pod(name, labels={names.LABEL_CLAIM: "demo", names.LABEL_REVISION: revision}, conditions=READY)
    annotations = {names.ANNOTATION_KEY: "key", names.ANNOTATION_NONCE: "n"}
    owner = msgspec.convert(names.owner("TokenService", "demo", UID), OwnerReference)
    metadata = msgspec.structs.replace(found.metadata, annotations=annotations, owner_references=(owner,))
    known: dict[str, Any] = {"at": NOW - timedelta(seconds=9), "ready": True, "failing": None, "lost": False, **more}
    since = None if served is None else NOW - timedelta(seconds=served)
    return Claim(msgspec.structs.replace(found, metadata=metadata), revision, served=since, **known)


def cold_pod(name: str, *, ready: bool = False, begun: bool = False, **meta: Any) -> Pod:
    """One of the Deployment's."""
    status: dict[str, Any] = {"conditions": READY if ready else []}
    if ready or begun:
        status["containerStatuses"] = [{"name": "server", "state": {"running": {}}}]
    found = pod(name, labels=HASH, node="node-1", **status)
    return msgspec.structs.replace(found, metadata=msgspec.structs.replace(found.metadata, **meta))


def seen(
    *claims: Claim,
    pods: Sequence[Pod] = (),
    deployed: Deployment | None = None,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> Snapshot:
    made = service(**{**SPEC, **spec})
    past: ControllerRevision = REVISION
    if annotations:
        metadata = msgspec.structs.replace(past.metadata, annotations=annotations)
        past = msgspec.structs.replace(past, metadata=metadata)
    status = msgspec.structs.replace(made.status, last_good_revision=past.metadata.name)
    live = running(deployed or deployment(replicas=1), past)
    return snapshot(
        msgspec.structs.replace(made, status=status),
        deployment=live,
        history=(past,),
        pods=tuple(pods),
        claims=claims,
    )


def look(
    found: Snapshot,
    outcomes: dict[str, Outcome] | None = None,
    *,
    fits: Verdict | None = FITS,
    waiting: int = 0,
    lost: Sequence[str] = (),
) -> Hand:
    return hand(
        found,
        rollout.step(found),
        outcomes={f"uid of {name}": outcome for name, outcome in (outcomes or {}).items()},
        key_id="key",
        lost=lost.__contains__,
        warm=lambda count: tuple(pod(f"w{number}") for number in range(min(count, waiting))),
        fits=fits,
    )


def of(found: Sequence[Claim]) -> list[str]:
    return [each.pod.metadata.name for each in found]


def dropped(found: Hand) -> list[tuple[str, str]]:
    return [(each.metadata.name, why) for each, why in found.drop]


ONE = (cold_pod("demo-1", ready=True),)


def test_a_claimed_pod_is_given_its_model_and_put_into_the_service() -> None:
    found = look(seen(claimed("a"), claimed("b"), pods=ONE), {"b": SERVES})
    assert (of(found.assign), [(each.pod.metadata.name, stages) for each, stages in found.serve]) == (
        ["a"],
        [("b", {"total": 0.5})],
    )
    assert (found.drop, found.cold, found.deployed, found.revision) == ((), None, 1, LABEL)
    assert found.acts
    assert not look(seen(claimed("a"), claimed("b"), pods=ONE)).acts, "who gives it will tell"


def test_one_that_serves_is_left_alone() -> None:
    found = look(seen(claimed("a", served=1), claimed("b", served=2), pods=ONE))
    assert (found.assign, found.serve, found.drop, found.serving, found.acts) == ((), (), (), 2, False)
    assert found.requeue_after == 3


DROPPED: dict[str, tuple[dict[str, Any], Outcome | None, str | None, bool]] = {
    "of another revision": ({"revision": "old"}, None, "of another revision", False),
    "of another revision, serving": ({"revision": "old", "served": 30}, None, "of another revision", False),
    "on a lost node": ({"lost": True, "ready": False}, None, "its node does not answer", False),
    "on a lost node, and bad": ({"lost": True, "ready": False, "failing": "x"}, BAD, "its node does not answer", False),
    "ended": ({"ended": True, "ready": False, "failing": "Evicted"}, None, "it has ended", False),
    "refused": ({}, BAD, "no config.json", True),
    "refused, serving": ({"served": 1}, BAD, None, False),
    "unfit": ({}, UNFIT, "HTTP 409: taken", False),
    "unfit, and it died": ({"failing": "exit code 1"}, UNFIT, "HTTP 409: taken", False),
    "died": ({"ready": False, "failing": "exit code 1"}, None, "exit code 1", True),
    "died, without a word": ({"ready": False, "failing": ""}, None, "its container ended", True),
    "died once it had its model": ({"ready": False, "failing": "exit code 1"}, SERVES, None, False),
    "died once it served": ({"ready": False, "failing": "exit code 1", "served": 9}, None, None, False),
    "well": ({}, None, None, False),
}


@pytest.mark.parametrize(("how", "outcome", "why", "cold"), DROPPED.values(), ids=DROPPED)
def test_what_is_dropped(how: dict[str, Any], outcome: Outcome | None, why: str | None, cold: bool) -> None:
    found = look(seen(claimed("a", **how), pods=ONE), {"a": outcome} if outcome else {})
    assert dropped(found) == ([("a", why)] if why else [])
    assert of(found.claims) == ([] if why else ["a"])
    assert (found.cold is not None) is cold
    assert len(found.assign) == (outcome is None and why is None and "served" not in how)


def test_one_whose_token_was_made_with_another_key() -> None:
    def older(found: Claim) -> Claim:
        metadata = msgspec.structs.replace(found.pod.metadata, annotations={names.ANNOTATION_KEY: "old"})
        return replace(found, pod=msgspec.structs.replace(found.pod, metadata=metadata))

    found = look(seen(older(claimed("a")), older(claimed("b", served=1)), pods=ONE))
    assert dropped(found) == [("a", "its token is not known")]


def test_those_that_are_too_many() -> None:
    found = look(seen(claimed("a", served=9), claimed("b", served=3), claimed("c"), pods=ONE, replicas=2))
    assert dropped(found) == [("b", "one too many"), ("c", "one too many")]
    assert of(found.assign) == []


# -- a revision that goes without warm pods


def test_what_is_written_on_a_revision() -> None:
    found = look(seen(claimed("a"), pods=ONE), {"a": BAD})
    assert found.cold == Cold("LoadFailed", "no config.json", stamp(NOW), revisions.asked(service(**SPEC)))
    assert found.deployed == 3, "cold ones begin at once"
    assert found.verdict
    assert found.verdict[:2] == ("False", "LoadFailed")
    assert names.ANNOTATION_RETRY in found.verdict[2]
    assert found.miss == "LoadFailed"
    written = mark(found.cold)["metadata"]["annotations"]
    assert msgspec.json.decode(written[names.ANNOTATION_COLD], type=Cold) == found.cold


def test_a_long_story_is_cut() -> None:
    found = look(seen(claimed("a"), pods=ONE), {"a": Outcome("refused", "LoadFailed", "x" * 5000)})
    assert found.cold
    assert len(found.cold.message.encode()) <= 512


def cold_since(seconds: float, **how: Any) -> dict[str, str]:
    asked = revisions.asked(service(**SPEC))
    said = Cold("Unreachable", "port 8001", stamp(NOW - timedelta(seconds=seconds)), asked)
    return {names.ANNOTATION_COLD: msgspec.json.encode(msgspec.structs.replace(said, **how)).decode()}


@pytest.mark.parametrize(
    ("annotations", "cold"),
    [
        (cold_since(0), True),
        (cold_since(COLD_SECONDS - 1), True),
        (cold_since(COLD_SECONDS), False),
        (cold_since(0, asked="something else"), False),
        (cold_since(0, at="yesterday"), False),
        (cold_since(0, at=""), False),
        (cold_since(0, at="2026-03-01T12:00:00"), False),
        ({names.ANNOTATION_COLD: "{"}, False),
        ({names.ANNOTATION_COLD: ""}, False),
    ],
)
def test_for_how_long_it_goes_without(annotations: dict[str, str], cold: bool) -> None:
    found = look(seen(pods=ONE, annotations=annotations), waiting=9)
    assert found.deployed == (3 if cold else 1)
    assert len(found.balance.take) == (0 if cold else 2)
    assert found.verdict
    assert found.verdict[1] == ("Unreachable" if cold else "Fits")


def test_the_end_of_it_is_waited_for_where_something_is_missing() -> None:
    required = {"warmPool": {"name": "nlp", "policy": "Required"}}
    asked = revisions.asked(service(**{**SPEC, **required}))
    annotations = cold_since(100, asked=asked)
    assert look(seen(pods=ONE, annotations=annotations, **required)).requeue_after == COLD_SECONDS - 100
    assert look(seen(pods=ONE, annotations=annotations, replicas=1, **required)).requeue_after is None


# -- numbers


def test_which_pods_a_warm_one_is_ahead_of() -> None:
    three = deployment(replicas=3, available=1)
    pods = [*ONE, cold_pod("demo-2"), cold_pod("demo-3", begun=True)]
    assert len(look(seen(pods=pods, deployed=three), waiting=9).balance.take) == 1
    on_lost = look(seen(pods=pods, deployed=three), waiting=9, lost=["node-1"])
    assert len(on_lost.balance.take) == 2, "one that began on a node that is lost, too"
    gone = [*ONE, cold_pod("demo-2", deletion_timestamp=stamp(NOW)), cold_pod("demo-3", begun=True)]
    assert len(look(seen(pods=gone, deployed=three), waiting=9).balance.take) == 0


def test_nothing_is_taken_from_a_pool_that_does_not_fit() -> None:
    for fits in (DIFFER, None, ("Unknown", "Filling", "")):
        found = look(seen(pods=ONE), fits=fits, waiting=9)
        assert (found.balance.take, found.deployed, found.verdict) == ((), 3, fits)
    assert look(seen(pods=ONE, warmPool=None), fits=None, waiting=9).balance.missed == 0


def test_why_a_pod_is_missed() -> None:
    assert look(seen(pods=ONE)).miss == EMPTY
    assert look(seen(pods=ONE), fits=DIFFER).miss == "ShapeMismatch"
    assert look(seen(pods=ONE)).waits
    assert not look(seen(pods=ONE), waiting=2).waits


def test_without_a_revision_nothing_is_taken_and_nothing_given_up() -> None:
    found = seen(claimed("a", revision="old"), claimed("b", ended=True), pods=ONE)
    made = hand(
        found, rollout.Step(), outcomes={}, key_id="key", lost=lambda _: True, warm=lambda _: (ONE[0],), fits=FITS
    )
    assert (made.deployed, of(made.claims), made.drop, made.balance.take) == (1, ["a", "b"], (), ())


# -- pods that have settled

CAME = {names.ANNOTATION_CLAIMED_FROM: "nlp", names.ANNOTATION_DELETION_COST: "1000"}


def came(name: str, *, adopted: bool = True, **annotations: str) -> Pod:
    found = cold_pod(name, ready=True, annotations={**CAME, **annotations})
    owners = [{"kind": "ReplicaSet", "name": "r", "uid": "r", "controller": True}] if adopted else []
    raw = msgspec.to_builtins(found)
    raw["metadata"]["ownerReferences"] = owners
    return msgspec.convert(raw, Pod)


def finished(*pods: Pod, **live: Any) -> list[str]:
    found = look(seen(pods=pods, deployed=deployment(**live), replicas=live["replicas"]))
    return [each.metadata.name for each in found.finish]


def test_one_that_has_settled_becomes_like_the_others() -> None:
    assert finished(came("a"), *ONE, replicas=2) == ["a"]
    assert finished(came("a", adopted=False), *ONE, replicas=2) == [], "its ReplicaSet has not taken it in"
    assert finished(came("a"), *ONE, cold_pod("c"), replicas=2) == [], "one of three is about to go"
    assert finished(came("a"), *ONE, replicas=2, available=1) == [], "the Deployment does not count it yet"
    assert finished(came("a"), *ONE, replicas=2, existing=3) == [], "the Deployment counts one still that is gone"
    assert finished(came("a"), *ONE, replicas=2, observed=0) == [], "the Deployment's numbers are of another size"
    assert finished(came("a"), cold_pod("c"), replicas=2, available=1) == ["a"], "another one is not Ready"
    assert finished(came("a", **{names.ANNOTATION_DELETION_COST: "7"}), *ONE, replicas=2) == [], "somebody's own"
    assert finished(*ONE, replicas=1) == []


def test_one_that_settles_counts_although_the_deployment_has_not_said_so() -> None:
    found = look(seen(pods=[came("a"), *ONE], deployed=deployment(replicas=2, available=1), replicas=2))
    assert (found.settling, found.ready, found.counted(1)) == (1, 2, 2)
    quiet = look(seen(pods=[*ONE], deployed=deployment(replicas=1), replicas=1))
    assert (quiet.settling, quiet.counted(0)) == (0, 0), "then the Deployment alone tells"


# -- whether a pool's pods fit


def pooled(**spec: Any) -> Pooled:
    pool = warm_pool(**spec)
    return Pooled("nlp", pool, rendered(pool).template["spec"])


def template(**spec: Any) -> Any:
    made = children(service(**spec)).deployment
    assert made
    return made["spec"]["template"]


def test_whether_it_fits() -> None:
    assert fit(pooled(), template()) == FITS
    assert fit(pooled(preload=["A"]), template(model={"source": "hf://a/b"}, engine={"args": ["--x"]}))[0] == "True"
    found = fit(pooled(), template(template={"spec": {"priorityClassName": "high"}}))
    assert found[:2] == ("False", "ShapeMismatch")
    assert "priorityClassName" in found[2]
    assert fit(Pooled("nlp"), template())[:2] == ("False", "NotFound")
    assert fit(Pooled("nlp", warm_pool()), template())[:2] == ("Unknown", "Filling")


def test_every_reason_has_its_series() -> None:
    made = [fit(Pooled("nlp"), template()), fit(Pooled("nlp", warm_pool()), template()), DIFFER]
    assert {EMPTY, *(each[1] for each in made)} <= {*MISSES}


def test_when_it_is_worked_out_anew() -> None:
    known = pooled()
    assert known.same(Pooled("nlp", warm_pool(replicas=9), known.spec)), "a pool that was scaled"
    assert not known.same(Pooled("nlp", None, None))
    assert not known.same(pooled())
    assert not known.same(Pooled("other", known.pool, known.spec))


MADE: dict[str, tuple[list[float], list[float], list[float], int]] = {
    # seconds ago: cold pods were made, handed-over ones were claimed, claims were made; how many cold ones are to go
    "none was handed over": ([9], [], [9], 0),
    "it is about to go": ([9], [8], [], 1),
    "it is gone": ([], [8], [], 0),
    "it is gone, and the next one is there": ([1], [8], [], 0),
    "it is there, and so is the next one": ([9, 1], [8], [], 1),
    "the other's claim is on its way": ([9], [8], [8], 0),
    "two of two are about to go": ([9, 9], [8, 8], [], 2),
    "one of two is gone, and the next one is there": ([9, 1], [8], [8], 0),
    "the API server's clock is ahead": ([7], [8], [], 1),
}


@pytest.mark.parametrize(("made", "handed", "claims", "expected"), MADE.values(), ids=MADE)
def test_cold_pods_that_are_about_to_go(
    made: list[float], handed: list[float], claims: list[float], expected: int
) -> None:
    def ago(seconds: float) -> str:
        return stamp(NOW - timedelta(seconds=seconds))

    cold = [pod(f"cold-{number}", created=ago(seconds)) for number, seconds in enumerate(made)]
    warm = [pod(f"nlp-{number}") for number, _ in enumerate(handed)]
    for each, seconds in zip(warm, handed, strict=True):
        each.metadata.annotations[names.ANNOTATION_CLAIMED_AT] = ago(seconds)
    mine = [replace(claimed(f"nlp-c{number}"), at=NOW - timedelta(seconds=at)) for number, at in enumerate(claims)]
    assert replaced(cold, warm, mine, NOW) == expected
