"""The writes that take a pod from a pool to a Deployment, and what they make of a pod."""

from __future__ import annotations

from typing import Any

import msgspec
from tokenservice.api import names
from tokenservice.api.meta import Pod
from tokenservice.handover import patches
from tokenservice.handover.claim import Taker

from tests.support.merge_patch import merge_patch
from tests.unit.handover.builders import NOW, TAKER, as_pod, owner, warm_raw
from tests.unit.services.builders import children, service

REVISION = "0a1b2c3d4e"
TEMPLATE: dict[str, Any] = {
    "metadata": {
        "labels": {
            **names.child_labels("demo"),
            names.LABEL_DEPLOYMENT: "demo",
            names.LABEL_REVISION: REVISION,
            "team.example/of": "the service's template",
        },
        "annotations": {"team.example/scrape": "true"},
    },
    "spec": {"containers": [{"name": "server"}]},
}
OURS = owner("TokenService", "demo", TAKER.uid)
LOOSE = {**OURS, "controller": False, "blockOwnerDeletion": False}


def patched(raw: dict[str, Any], patch: patches.Patch) -> dict[str, Any]:
    """What the API server makes of it, which refuses to change what cannot be changed."""
    for field in ("uid", "resourceVersion"):
        assert patch["metadata"].get(field, raw["metadata"][field]) == raw["metadata"][field]
    made: dict[str, Any] = merge_patch(raw, patch)
    assert {**made, "metadata": {}} == {**raw, "metadata": {}}, "nothing but metadata"
    made["metadata"]["resourceVersion"] = str(int(raw["metadata"]["resourceVersion"]) + 1)
    return made


def claimed() -> dict[str, Any]:
    raw = warm_raw()
    return patched(raw, patches.claim(as_pod(raw), TAKER, REVISION, "nlp", NOW))


def serving() -> dict[str, Any]:
    raw = claimed()
    return patched(raw, patches.serve(as_pod(raw), TEMPLATE, {"weights": 0.25, "total": 0.5}, NOW))


def settled() -> dict[str, Any]:
    raw = serving()
    return patched(raw, patches.settle(as_pod(raw), TAKER, "hash-1"))


def test_a_claim() -> None:
    assert patches.claim(as_pod(warm_raw()), TAKER, REVISION, "nlp", NOW) == {
        "metadata": {
            "uid": "uid of nlp-1",
            "resourceVersion": "41",
            "labels": {names.LABEL_POOL: None, names.LABEL_CLAIM: "demo", names.LABEL_REVISION: REVISION},
            "annotations": {
                names.ANNOTATION_CLAIMED_AT: "2026-03-01T12:00:00.000Z",
                names.ANNOTATION_CLAIMED_FROM: "nlp",
            },
            "ownerReferences": [OURS],
        }
    }
    metadata = claimed()["metadata"]
    assert names.LABEL_POOL not in metadata["labels"], "the pool has it no more"
    assert metadata["ownerReferences"] == [OURS], "and does not take it with it"
    assert metadata["annotations"][names.ANNOTATION_NONCE] == "nonce-1", "its token is to be known"
    assert names.LABEL_SERVICE not in metadata["labels"]


def test_it_is_put_into_the_service() -> None:
    assert patches.serve(as_pod(claimed()), TEMPLATE, {"weights": 0.25}, NOW) == {
        "metadata": {
            "uid": "uid of nlp-1",
            "labels": {
                **names.child_labels("demo"),
                names.LABEL_REVISION: REVISION,
                "team.example/of": "the service's template",
            },
            "annotations": {
                "team.example/scrape": "true",
                names.ANNOTATION_SERVED_AT: "2026-03-01T12:00:00.000Z",
                names.ANNOTATION_STAGES: '{"weights":0.25}',
            },
        }
    }
    metadata = serving()["metadata"]
    assert metadata["labels"][names.LABEL_SERVICE] == metadata["labels"][names.LABEL_CLAIM] == "demo"
    assert names.LABEL_POOL not in metadata["labels"]
    assert names.LABEL_DEPLOYMENT not in metadata["labels"], "or the disruption budget would count it"
    assert metadata["ownerReferences"] == [OURS]


def test_labels_of_the_pools_template_do_not_come_along() -> None:
    raw = claimed()
    raw["metadata"]["labels"] |= {"team.example/pool": "only the pool's", "security.istio.io/tlsMode": "istio"}
    raw["metadata"]["annotations"][names.ANNOTATION_POOL_LABELS] = "team.example/gone,team.example/of,team.example/pool"
    found = patches.serve(as_pod(raw), TEMPLATE, {}, NOW)["metadata"]["labels"]
    assert found["team.example/pool"] is None
    as_they_are = {names.LABEL_CLAIM, names.LABEL_SHAPE, "security.istio.io/tlsMode", "team.example/gone"}
    assert as_they_are.isdisjoint(found)


def test_labels_of_a_pool_that_were_not_noted() -> None:
    raw = claimed()
    raw["metadata"]["labels"]["team.example/pool"] = "whose it is, nobody knows"
    del raw["metadata"]["annotations"][names.ANNOTATION_POOL_LABELS]
    found = patches.serve(as_pod(raw), TEMPLATE, {}, NOW)["metadata"]["labels"]
    assert found["team.example/pool"] is None
    assert {names.LABEL_CLAIM, names.LABEL_SHAPE}.isdisjoint(found), "as they are"


def test_a_template_as_it_is_rendered() -> None:
    made = children(service()).deployment
    assert made
    raw = claimed()
    found = patched(raw, patches.serve(as_pod(raw), made["spec"]["template"], {}, NOW))["metadata"]["labels"]
    assert found.items() >= names.child_labels("demo").items()
    assert names.LABEL_DEPLOYMENT not in found


def test_it_settles() -> None:
    assert patches.settle(as_pod(serving()), TAKER, "hash-1") == {
        "metadata": {
            "uid": "uid of nlp-1",
            "labels": {names.LABEL_DEPLOYMENT: "demo", "pod-template-hash": "hash-1", names.LABEL_CLAIM: None},
            "annotations": {names.ANNOTATION_DELETION_COST: "1000"},
            "ownerReferences": [LOOSE],
        }
    }
    raw = settled()
    labels = raw["metadata"]["labels"]
    assert labels.items() >= {**TEMPLATE["metadata"]["labels"], "pod-template-hash": "hash-1"}.items()
    assert names.LABEL_CLAIM not in labels
    assert as_pod(raw).metadata.controller is None, "for the ReplicaSet to take"
    assert as_pod(raw).metadata.owner_references, "it is nobody's without one"


def test_it_is_one_like_the_others_in_the_end() -> None:
    adopted = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "demo-1", "uid": "set", "controller": True}
    raw = settled()
    raw["metadata"]["ownerReferences"] = [LOOSE, adopted]
    found = patches.finish(as_pod(raw), TAKER)
    assert found["metadata"].pop("ownerReferences") == [{"$patch": "delete", "uid": TAKER.uid}]
    left = patched(raw, found)["metadata"]
    assert left["labels"] == {**TEMPLATE["metadata"]["labels"], "pod-template-hash": "hash-1"}
    assert left["annotations"] == {
        **{"team.example/note": "the pool's template", "team.example/scrape": "true"},
        names.ANNOTATION_SERVED_AT: "2026-03-01T12:00:00.000Z",
        names.ANNOTATION_STAGES: '{"weights":0.25,"total":0.5}',
    }
    assert found["metadata"]["uid"] == "uid of nlp-1"


def test_the_first_write_alone_asks_for_a_version() -> None:
    """Later ones may follow a kubelet's, which has nothing to do with them."""
    raw = claimed()
    pod = as_pod(raw)
    later = [patches.serve(pod, TEMPLATE, {}, NOW), patches.settle(pod, TAKER, "h"), patches.finish(pod, TAKER)]
    for each in (*later, patches.nothing(pod)):
        assert "resourceVersion" not in each["metadata"]
        assert each["metadata"]["uid"] == "uid of nlp-1"


def test_nothing() -> None:
    raw = claimed()
    assert merge_patch(raw, patches.nothing(as_pod(raw))) == raw


def test_two_takers_ask_for_the_same_version() -> None:
    pod = as_pod(warm_raw())
    made = [patches.claim(pod, Taker("team", name, name), REVISION, "nlp", NOW)["metadata"] for name in ("a", "b")]
    assert made[0]["resourceVersion"] == made[1]["resourceVersion"] == "41"
    assert made[0]["ownerReferences"] != made[1]["ownerReferences"]


def test_patches_are_json() -> None:
    pod: Pod = as_pod(claimed())
    for each in (patches.claim(pod, TAKER, REVISION, "nlp", NOW), patches.serve(pod, TEMPLATE, {"total": 1.0}, NOW)):
        assert msgspec.json.decode(msgspec.json.encode(each)) == each
