"""Taking pods from a pool, from the edit to the end, against a stand-in that keeps what is written."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenservice.api import names
from tokenservice.api.v1alpha1 import TokenServiceStatus
from tokenservice.handover.assigner import Outcome
from tokenservice.handover.balance import HOLD_SECONDS, SETTLE_SECONDS
from tokenservice.kube.client import Resource
from tokenservice.kube.errors import ApiError
from tokenservice.kube.resources import PODS
from tokenservice.pods.refusal import RETRY_PASSING_SECONDS
from tokenservice.services import render
from tokenservice.services.controller import LATER_SECONDS, PATIENCE_SECONDS
from tokenservice.services.warm import COLD_SECONDS, PASSING_SECONDS

from tests.unit.services.builders import IMAGE, node
from tests.unit.services.standin_cluster import KEY, Cluster, CrashError
from tests.unit.services.standin_kubernetes import Kubernetes

POOL = {"warmPool": {"name": "nlp"}}
NEW: dict[str, Any] = {"environment": {"image": {"reference": "new:2"}}}


async def serving(
    replicas: int, policy: str = "Preferred", *, warm: int = 0, **spec: Any
) -> tuple[Cluster, Kubernetes]:
    """A TokenService with so many replicas, all of them the Deployment's, and a pool in which so many pods wait."""
    cluster = Cluster(replicas=replicas)
    kubernetes = Kubernetes(cluster)
    kubernetes.pool()
    await cluster.reconcile()
    kubernetes.controllers()
    kubernetes.start()
    kubernetes.controllers()
    await cluster.reconcile()
    cluster.want(replicas=replicas, warmPool={"name": "nlp", "policy": policy}, **spec)
    await cluster.reconcile()
    if replicas:
        assert cluster.says("Ready") == ("True", "Serving")
    kubernetes.warm(warm)
    cluster.events.clear()
    return cluster, kubernetes


def forbids(cluster: Cluster, label: str, code: int) -> list[str]:
    """From now on a policy lets no pod have the label. Returns the names of those that were to have it, in order."""
    refusal = ApiError(code, "Forbidden" if code == 403 else "Invalid", "policy hands-off denied the request")
    tried: list[str] = []

    def refuses(what: Resource, made: dict[str, Any]) -> ApiError | None:
        if what is not PODS or label not in made["metadata"]["labels"]:
            return None
        tried.append(made["metadata"]["name"])
        return refusal

    cluster.refuses = refuses
    return tried


def scale(cluster: Cluster, replicas: int, policy: str = "Preferred", **spec: Any) -> None:
    cluster.want(replicas=replicas, warmPool={"name": "nlp", "policy": policy}, **spec)


def asked(cluster: Cluster) -> int:
    """How many pods the Deployment is asked for."""
    found = cluster.look("deployments")
    assert found
    replicas: int = found["spec"]["replicas"]
    return replicas


def later(cluster: Cluster, seconds: float = SETTLE_SECONDS) -> None:
    cluster.now += timedelta(seconds=seconds)


def counts(cluster: Cluster) -> tuple[int, int, int, int]:
    """replicas, readyReplicas, updatedReplicas, warmReplicas"""
    found = cluster.service.status
    return found.replicas, found.ready_replicas, found.updated_replicas, found.warm_replicas


async def claimed(*, warm: int) -> tuple[Cluster, Kubernetes, str]:
    """Scaled from one to two: with the name of the pod that was taken, which has no model yet."""
    cluster, kubernetes = await serving(1, warm=warm)
    scale(cluster, 2)
    await cluster.reconcile()
    (name,) = kubernetes.claims
    return cluster, kubernetes, name


async def settle(cluster: Cluster, kubernetes: Kubernetes) -> None:
    """All that is to come comes, in time."""
    for _ in range(6):
        later(cluster)
        await cluster.reconcile()
        kubernetes.controllers()
        await cluster.reconcile()


async def test_from_an_edit_to_a_pod_of_the_deployment() -> None:
    cluster, kubernetes = await serving(1, warm=2)
    scale(cluster, 2)
    assert await cluster.reconcile() == ["patch pods", "status"]
    (name,) = kubernetes.claims
    assert (asked(cluster), len(kubernetes.waiting), cluster.hits, cluster.misses) == (1, 1, 1, [])
    assert {*cluster.pools_asked} == {("team", "nlp")}, "it is told"
    assert cluster.assigner.given[f"uid of {name}"]["service"] == "team/demo"
    assert counts(cluster) == (2, 1, 1, 1)
    assert cluster.says("Ready")[0] == "False"
    assert cluster.says("WarmPoolReady") == ("True", "Fits")
    assert name not in kubernetes.serving, "it has no model yet"

    kubernetes.loaded()
    assert await cluster.reconcile() == ["patch pods", "status"]
    assert name in kubernetes.serving
    assert counts(cluster) == (2, 2, 2, 1)
    assert cluster.says("Ready") == ("True", "Serving")
    assert cluster.says("Available") == ("True", "MinimumReplicasAvailable")
    assert cluster.says("Progressing") == ("False", "Complete")
    assert names.LABEL_DEPLOYMENT not in kubernetes.metadata(name)["labels"]
    result = await cluster.reconciler.reconcile(KEY)
    assert result.requeue_after == SETTLE_SECONDS

    later(cluster)
    assert "apply deployments" in await cluster.reconcile()
    assert (asked(cluster), kubernetes.claims) == (2, [name]), "not before the ReplicaSet has room"
    kubernetes.deployment()
    kubernetes.replica_sets()
    await cluster.reconcile()
    assert kubernetes.claims == []
    assert kubernetes.metadata(name)["annotations"][names.ANNOTATION_DELETION_COST] == "1000"
    kubernetes.controllers()
    assert await cluster.reconcile() == ["patch pods", "status"]
    metadata = kubernetes.metadata(name)
    assert [owner["kind"] for owner in metadata["ownerReferences"]] == ["ReplicaSet"]
    assert names.ANNOTATION_DELETION_COST not in metadata["annotations"]
    assert (len(kubernetes.deleted), len(kubernetes.serving)) == (1, 2)
    assert counts(cluster) == (2, 2, 2, 0)
    assert cluster.hits == 1, "no other was taken on the way"
    assert len(kubernetes.waiting) == 1


async def test_what_nobody_waits_for_comes_when_nobody_waits() -> None:
    """The pod is taken, given its model and its requests; the status comes later."""
    cluster, kubernetes = await serving(1, warm=2)
    scale(cluster, 2)
    cluster.hurry = True
    for what in ("the claim", "the requests"):
        cluster.writes.clear()
        result = await cluster.reconciler.reconcile(KEY)
        assert (cluster.writes, result.requeue_after) == (["patch pods"], LATER_SECONDS), what
        assert cluster.assigner.given
        kubernetes.loaded()
    assert cluster.says("Ready") == ("True", "Serving")
    assert counts(cluster) == (1, 1, 1, 0)
    for _ in range(10):
        await cluster.reconciler.reconcile(KEY)
        assert "status" not in cluster.writes, "others wait still"
        later(cluster, PATIENCE_SECONDS / 10)
    await cluster.reconciler.reconcile(KEY)
    assert "status" in cluster.writes, "it has waited for long enough"
    assert counts(cluster) == (2, 2, 2, 1)
    cluster.writes.clear()
    scale(cluster, 1)
    result = await cluster.reconciler.reconcile(KEY)
    assert "status" not in cluster.writes, "and the next one waits again"
    assert result.requeue_after == LATER_SECONDS


async def test_a_cold_pod_is_asked_for_at_once_however_many_wait_for_warm_ones() -> None:
    cluster, _ = await serving(1, warm=1)
    scale(cluster, 3)
    cluster.hurry = True
    cluster.writes.clear()
    await cluster.reconciler.reconcile(KEY)
    assert cluster.writes == ["patch pods", "apply deployments"]
    assert asked(cluster) == 2


async def test_who_uses_no_pool_is_told_of_at_once() -> None:
    cluster = Cluster(replicas=0)
    cluster.hurry = True
    assert "status" in await cluster.reconcile()


async def test_which_revision_is_good_is_told_at_once() -> None:
    """If the next one fails, nothing else tells which to go back to."""
    cluster, kubernetes = await serving(1)
    before = cluster.service.status.last_good_revision
    scale(cluster, 1, **NEW)
    cluster.hurry = True
    for _ in range(6):
        await cluster.reconciler.reconcile(KEY)
        kubernetes.controllers()
        kubernetes.start()
    assert cluster.service.status.last_good_revision not in ("", before)


async def test_another_number_of_replicas_is_no_other_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering it takes longer than everything else that an edit of the replicas needs."""
    cluster, kubernetes = await serving(1)
    rendered: list[int] = []
    children = render.children
    monkeypatch.setattr(render, "children", lambda *given: rendered.append(1) or children(*given))
    for replicas in (3, 0, 2):
        scale(cluster, replicas)
        await cluster.reconcile()
        kubernetes.controllers()
        kubernetes.start()
        kubernetes.controllers()
        await cluster.reconcile()
        assert asked(cluster) == replicas
    assert rendered == []
    scale(cluster, 2, **NEW)
    await cluster.reconcile()
    assert rendered == [1]


async def test_ready_stays_so_while_a_model_loads_but_not_for_long() -> None:
    cluster, kubernetes = await serving(0, warm=2)
    scale(cluster, 1)
    assert (await cluster.reconciler.reconcile(KEY)).requeue_after == PASSING_SECONDS
    assert cluster.says("Ready") == ("True", "ScaledToZero")
    kubernetes.loaded()
    await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "Serving")
    assert [reason for _, reason in cluster.events] == ["Serving"]

    scale(cluster, 2)
    await cluster.reconciler.reconcile(KEY)
    later(cluster, PASSING_SECONDS)
    await cluster.reconciler.reconcile(KEY)
    assert cluster.says("Ready") == ("False", "Starting")
    kubernetes.loaded()
    await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "Serving")


async def test_ready_stays_so_while_a_pod_settles() -> None:
    cluster, kubernetes = await serving(1, warm=3)
    scale(cluster, 3)
    await cluster.reconcile()
    kubernetes.loaded()
    await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "Serving")
    cluster.events.clear()
    looks: list[Callable[[], None]] = [
        lambda: later(cluster),
        kubernetes.deployment,
        kubernetes.replica_sets,
        kubernetes.tell,
        lambda: None,
        kubernetes.replica_sets,
        kubernetes.deployment,
        kubernetes.tell,
    ]
    for look in looks:
        look()
        await cluster.reconcile()
        assert (cluster.says("Ready"), cluster.says("Available")[0]) == (("True", "Serving"), "True")
        assert cluster.service.status.ready_replicas >= 3
        assert len(kubernetes.serving) == 3
    assert (kubernetes.claims, counts(cluster), asked(cluster)) == ([], (3, 3, 3, 0), 3)
    assert cluster.events == []
    assert cluster.hits == 2
    for name in kubernetes.serving:
        assert names.ANNOTATION_CLAIMED_FROM not in kubernetes.metadata(name).get("annotations", {})


async def test_the_first_replica_of_all_is_a_warm_one() -> None:
    cluster = Cluster(replicas=1, **POOL)
    kubernetes = Kubernetes(cluster)
    kubernetes.pool()
    (name,) = kubernetes.warm()
    await cluster.reconcile()
    assert (kubernetes.claims, asked(cluster)) == ([name], 0)
    kubernetes.loaded()
    await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "Serving")
    kubernetes.controllers()
    await settle(cluster, kubernetes)
    assert (kubernetes.serving, kubernetes.claims, asked(cluster)) == ([name], [], 1)
    assert cluster.service.status.last_good_revision


@pytest.mark.parametrize("policy", ["Preferred", "Required", "Never"])
async def test_without_a_warm_pod(policy: str) -> None:
    cluster, kubernetes = await serving(1, policy)
    scale(cluster, 3, policy)
    await cluster.reconcile()
    assert asked(cluster) == (1 if policy == "Required" else 3)
    expected = {"Required": ("False", "WaitingForWarmPod"), "Preferred": ("False", "RollingOut")}.get(policy)
    if policy == "Never":
        assert cluster.service.status.condition("WarmPoolReady") is None
    else:
        assert cluster.says("Ready") == expected
    kubernetes.controllers()
    await cluster.reconcile()
    assert cluster.misses == ([] if policy == "Never" else ["Empty", "Empty"])
    assert cluster.warm_pods.waiting_for(("team", "nlp")) == (() if policy == "Never" else (KEY,))
    kubernetes.warm(5)
    await cluster.reconcile()
    assert len(kubernetes.claims) == (0 if policy == "Never" else 2)
    assert cluster.warm_pods.waiting_for(("team", "nlp")) == ()
    kubernetes.loaded()
    await cluster.reconcile()
    kubernetes.controllers()
    await settle(cluster, kubernetes)
    kubernetes.start()
    kubernetes.controllers()
    await cluster.reconcile()
    assert (len(kubernetes.serving), kubernetes.claims, asked(cluster)) == (3, [], 3)
    assert len(kubernetes.waiting) == (5 if policy == "Never" else 3)
    assert cluster.says("Ready") == ("True", "Serving")


async def test_what_another_pod_does_not_fit() -> None:
    cluster, kubernetes = await serving(1)
    kubernetes.pool(image="another:1")
    kubernetes.warm(3)
    scale(cluster, 2)
    await cluster.reconcile()
    assert (kubernetes.claims, asked(cluster)) == ([], 2)
    assert cluster.says("WarmPoolReady") == ("False", "ShapeMismatch")
    kubernetes.controllers()
    await cluster.reconcile()
    assert cluster.misses == ["ShapeMismatch"]
    found = cluster.service.status.condition("WarmPoolReady")
    assert found
    assert "image" in found.message


async def test_a_pool_that_is_not_there_and_one_that_is_not_known_yet() -> None:
    cluster, kubernetes = await serving(1, "Required")
    spec = cluster.pool_specs.pop("nlp")
    scale(cluster, 2, "Required")
    await cluster.reconcile()
    assert cluster.says("WarmPoolReady") == ("Unknown", "Filling")
    pool = cluster.pools.pop("nlp")
    await cluster.reconcile()
    assert cluster.says("WarmPoolReady") == ("False", "NotFound")
    assert cluster.says("Ready") == ("False", "WaitingForWarmPod")
    cluster.pools["nlp"], cluster.pool_specs["nlp"] = pool, spec
    kubernetes.warm()
    await cluster.reconcile()
    assert len(kubernetes.claims) == 1


async def test_pods_on_a_cordoned_node_are_left_alone() -> None:
    cluster, kubernetes = await serving(1, warm=1)
    cluster.nodes = (node("node-1", unschedulable=True),)
    scale(cluster, 2)
    await cluster.reconcile()
    assert (kubernetes.claims, asked(cluster)) == ([], 2)


# -- others are faster


async def test_another_pod_is_taken_where_somebody_was_faster() -> None:
    cluster, kubernetes = await serving(1, warm=2)
    first, second = kubernetes.waiting

    def faster(name: str) -> None:
        cluster.before_patch = None
        metadata = kubernetes.metadata(name)
        labels = {key: value for key, value in metadata["labels"].items() if key != names.LABEL_POOL}
        owner = [names.owner("TokenService", "chat", "another service")]
        kubernetes.say(name)
        cluster.objects["pods", name]["metadata"] |= {
            "labels": {**labels, names.LABEL_CLAIM: "chat"},
            "ownerReferences": owner,
        }

    cluster.before_patch = faster
    scale(cluster, 2)
    await cluster.reconcile()
    labels = [kubernetes.metadata(name)["labels"][names.LABEL_CLAIM] for name in (first, second)]
    assert labels == ["chat", "demo"]
    assert (asked(cluster), cluster.hits, cluster.misses) == (1, 1, [])


@pytest.mark.parametrize("policy", ["Preferred", "Required"])
async def test_a_write_that_has_nothing_to_do_with_it_is_no_reason_to_go_without(policy: str) -> None:
    """Such as the kubelet's: of what it changed, nothing would have the service looked at again."""
    cluster, kubernetes = await serving(1, policy, warm=1)

    def kubelet(name: str) -> None:
        cluster.before_patch = None
        kubernetes.say(name, message="nothing new")

    cluster.before_patch = kubelet
    # The cache lags behind: it goes on showing the pod as it was, until it is told.
    stale = {key: dict(raw) for key, raw in cluster.objects.items() if key[0] == "pods"}
    Lagging.install(cluster, stale)
    scale(cluster, 2, policy)
    await cluster.reconcile()
    assert len(kubernetes.claims) == 1
    assert (asked(cluster), cluster.misses) == (1, [])


async def test_a_pod_that_is_gone_is_not_tried_again() -> None:
    cluster, kubernetes = await serving(1, warm=1)
    stale = {key: dict(raw) for key, raw in cluster.objects.items() if key[0] == "pods"}
    Lagging.install(cluster, stale)
    del cluster.objects["pods", kubernetes.waiting[0]]
    scale(cluster, 2)
    await cluster.reconcile()
    assert (kubernetes.claims, asked(cluster), cluster.hits) == ([], 2, 0)


async def test_an_answer_that_was_lost_is_found_again() -> None:
    """The client sends a patch again whose answer it did not get, and is told of a conflict with itself."""
    cluster, kubernetes = await serving(1, warm=3)

    def lost(name: str) -> None:
        cluster.before_patch = None
        metadata = kubernetes.metadata(name)
        labels = {key: value for key, value in metadata["labels"].items() if key != names.LABEL_POOL}
        label = kubernetes.metadata("demo-1")["labels"][names.LABEL_REVISION]
        kubernetes.say(name)
        cluster.objects["pods", name]["metadata"] |= {
            "labels": {**labels, names.LABEL_CLAIM: "demo", names.LABEL_REVISION: label},
            "ownerReferences": [names.owner("TokenService", "demo", cluster.service.metadata.uid)],
        }

    cluster.before_patch = lost
    scale(cluster, 2)
    await cluster.reconcile()
    assert (len(kubernetes.claims), len(kubernetes.waiting)) == (1, 2)


# -- what goes wrong with a claimed pod


@pytest.mark.parametrize("reason", ["LoadFailed", "AssignmentRefused", "Unreachable", "ProgressDeadlineExceeded"])
@pytest.mark.parametrize("policy", ["Preferred", "Required"])
async def test_a_revision_that_warm_pods_cannot_be_given(reason: str, policy: str) -> None:
    cluster, kubernetes = await serving(1, policy, warm=3)
    scale(cluster, 2, policy)
    await cluster.reconcile()
    kubernetes.came(Outcome("refused", reason, "no config.json"))
    await cluster.reconcile()
    assert (kubernetes.claims, len(kubernetes.waiting), len(kubernetes.serving)) == ([], 2, 1), "it has been told why"
    assert asked(cluster) == (1 if policy == "Required" else 2)
    assert cluster.says("WarmPoolReady") == ("False", reason)
    cluster.restarted()
    await cluster.reconcile()
    assert kubernetes.claims == []
    assert cluster.says("WarmPoolReady") == ("False", reason)
    if policy == "Preferred":
        kubernetes.controllers()
        await cluster.reconcile()
        assert cluster.misses == [reason]
        kubernetes.start()
        kubernetes.controllers()
        await cluster.reconcile()
        assert cluster.says("Ready") == ("True", "Serving")
    else:
        assert cluster.says("Ready") == ("False", "WaitingForWarmPod")
        assert (await cluster.reconciler.reconcile(KEY)).requeue_after == COLD_SECONDS
    later(cluster, COLD_SECONDS)
    await cluster.reconcile()
    assert cluster.says("WarmPoolReady") == ("True", "Fits")
    assert len(kubernetes.claims) == (1 if policy == "Required" else 0)


@pytest.mark.parametrize("code", [403, 422])
@pytest.mark.parametrize("policy", ["Preferred", "Required"])
@pytest.mark.parametrize("label", [names.LABEL_CLAIM, names.LABEL_SERVICE], ids=["taken", "sent requests"])
async def test_what_the_api_server_refuses(label: str, policy: str, code: int) -> None:
    """An admission policy that lets nobody take a pod out of its pool, or put it into a Service."""
    cluster = Cluster(replicas=0)
    kubernetes = Kubernetes(cluster)
    kubernetes.pool()
    kubernetes.warm(3)
    forbids(cluster, label, code)
    scale(cluster, 2, policy)
    kubernetes.loaded()
    for _ in range(3):
        await cluster.reconcile()
        kubernetes.loaded()
    assert cluster.look("services"), "nothing else waits for it"
    found = cluster.service.status.condition("WarmPoolReady")
    assert found
    assert (found.status, found.reason) == ("False", "Rejected")
    assert "policy hands-off denied the request" in found.message
    assert kubernetes.claims == []
    assert asked(cluster) == (0 if policy == "Required" else 2)
    assert len(kubernetes.waiting) >= 1, "the pool is not used up by it"
    assert found.message.endswith("in a minute")
    cluster.refuses = None
    cluster.restarted()
    later(cluster, RETRY_PASSING_SECONDS)
    await cluster.reconcile()
    assert cluster.says("WarmPoolReady") == ("True", "Fits")
    assert bool(kubernetes.claims) == (policy == "Required")


@pytest.mark.parametrize("code", [403, 422])
@pytest.mark.parametrize("label", [names.LABEL_DEPLOYMENT, names.LABEL_CLAIM], ids=["settles", "is adopted"])
async def test_what_is_refused_later_holds_nothing_up(label: str, code: int) -> None:
    cluster, kubernetes, name = await claimed(warm=1)
    if label == names.LABEL_CLAIM:
        orphaned(cluster)
        cluster.restarted()
    else:
        kubernetes.loaded()
        await cluster.reconcile()
        later(cluster)
        await cluster.reconcile()
        kubernetes.controllers()
    tried = forbids(cluster, label, code)
    for number in range(3):
        scale(cluster, 2, rollout={"prePull": False, "progressDeadlineSeconds": 600 + number})
        await cluster.reconcile()
        kubernetes.controllers()
        assert cluster.service.status.observed_generation == cluster.service.metadata.generation
        tried.clear()
        again = (await cluster.reconciler.reconcile(KEY)).requeue_after
        assert again is not None
        assert 0.0 < again <= RETRY_PASSING_SECONDS
        assert name in tried, "again, each time"
    assert name in kubernetes.claims
    cluster.refuses = None
    kubernetes.loaded()
    await settle(cluster, kubernetes)
    assert (len(kubernetes.serving), kubernetes.claims) == (2, [])


async def test_a_refused_child_does_not_use_the_pool_up() -> None:
    """Its model does not load, and a policy lets no Deployment be made: what was found out is kept all the same."""
    cluster = Cluster(replicas=0)
    kubernetes = Kubernetes(cluster)
    kubernetes.pool()
    kubernetes.warm(4)
    cluster.refusals["deployments"] = ApiError(403, "Forbidden", "no Deployments here")
    scale(cluster, 1)
    for _ in range(4):
        await cluster.reconciler.reconcile(KEY)
        kubernetes.came(Outcome("refused", "LoadFailed", "no config.json"))
    assert (kubernetes.claims, len(kubernetes.waiting)) == ([], 3)
    assert cluster.says("Ready") == ("False", "Rejected")


async def test_a_refusal_is_forgotten_with_its_time() -> None:
    cluster, kubernetes = await serving(1, "Required", warm=1)
    forbids(cluster, names.LABEL_CLAIM, 403)
    scale(cluster, 2, "Required")
    await cluster.reconcile()
    assert cluster.says("WarmPoolReady") == ("False", "Rejected")
    cluster.refuses = None
    later(cluster, RETRY_PASSING_SECONDS)
    await cluster.reconcile()
    assert len(kubernetes.claims) == 1


@pytest.mark.parametrize("how", ["retry", "edit"])
async def test_it_is_tried_again_when_somebody_asks_for_it(how: str) -> None:
    """As docs/troubleshooting.md says."""
    cluster, kubernetes = await serving(1, "Required", warm=3)
    scale(cluster, 2, "Required")
    await cluster.reconcile()
    kubernetes.came(Outcome("refused", "LoadFailed", "the hub does not answer"))
    await cluster.reconcile()
    assert kubernetes.claims == []
    scale(cluster, 3, "Required")
    await cluster.reconcile()
    assert kubernetes.claims == [], "scaling asks for nothing else"
    if how == "retry":
        known = cluster.service
        annotated = msgspec.structs.replace(known.metadata, annotations={names.ANNOTATION_RETRY: "1"})
        cluster.keep(msgspec.structs.replace(known, metadata=annotated))
    else:
        scale(cluster, 3, "Required", rollout={"maxSurge": 2, "prePull": False})
    await cluster.reconcile()
    assert cluster.says("WarmPoolReady") == ("True", "Fits")
    assert len(kubernetes.claims) == 2


async def test_a_pod_that_cannot_be_used_gives_way_to_another() -> None:
    cluster, kubernetes, first = await claimed(warm=2)
    kubernetes.came(Outcome("unfit", "AssignmentRefused", "HTTP 409: taken"))
    await cluster.reconcile()
    assert ("pods", first) not in cluster.objects
    assert (len(kubernetes.claims), asked(cluster)) == (1, 1)
    assert cluster.says("WarmPoolReady") == ("True", "Fits"), "another one will do"


async def test_a_container_that_ends_while_its_model_loads() -> None:
    cluster, kubernetes, name = await claimed(warm=2)
    kubernetes.ready(name, ready=False)
    died = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    kubernetes.say(name, containerStatuses=[{"name": "server", "ready": False, "state": died}])
    await cluster.reconcile()
    assert (kubernetes.claims, asked(cluster)) == ([], 2)
    found = cluster.service.status.condition("WarmPoolReady")
    assert found
    assert "used more memory" in found.message


@pytest.mark.parametrize("loaded", [False, True])
async def test_a_claimed_pod_that_ended_for_good_is_replaced_and_not_left_behind(loaded: bool) -> None:
    cluster, kubernetes, name = await claimed(warm=2)
    if loaded:
        kubernetes.loaded()
        await cluster.reconcile()
    kubernetes.ready(name, ready=False)
    kubernetes.say(name, phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    await cluster.reconcile()
    assert ("pods", name) not in cluster.objects
    assert len(kubernetes.claims) == 1
    assert cluster.says("WarmPoolReady") == ("True", "Fits"), "the model has nothing to do with it"


async def test_a_claimed_pod_on_a_lost_node_is_replaced() -> None:
    cluster, kubernetes, name = await claimed(warm=1)
    cluster.nodes = (node("node-1", ready=False),)
    await cluster.reconcile()
    assert (kubernetes.claims, asked(cluster)) == ([], 2)
    assert ("pods", name) not in cluster.objects


async def test_another_pod_of_that_name_is_left_alone() -> None:
    """A claimed pod is deleted by somebody, and the pool makes one with its name, before the watch has told."""
    cluster, kubernetes, name = await claimed(warm=1)
    kubernetes.loaded()
    Lagging.install(cluster, {key: dict(raw) for key, raw in cluster.objects.items() if key[0] == "pods"})
    kubernetes.loaded(f"uid of {name}")
    pool = {key: value for key, value in kubernetes.metadata(name)["labels"].items() if key != names.LABEL_CLAIM}
    metadata = {**kubernetes.metadata(name), "uid": "another", "labels": {**pool, names.LABEL_POOL: "nlp"}}
    cluster.objects["pods", name] = {**cluster.objects["pods", name], "metadata": metadata}
    await cluster.reconciler.reconcile(KEY)
    assert kubernetes.metadata(name) == metadata


async def test_a_key_that_is_another_one_now() -> None:
    cluster, kubernetes, name = await claimed(warm=1)
    annotations = kubernetes.metadata(name)["annotations"]
    cluster.objects["pods", name]["metadata"]["annotations"] = {**annotations, names.ANNOTATION_KEY: "old"}
    await cluster.reconcile()
    assert (kubernetes.claims, asked(cluster)) == ([], 2)


# -- lost pods of the Deployment


async def test_a_warm_pod_is_ahead_of_the_one_that_replaces_a_lost_one() -> None:
    cluster, kubernetes = await serving(3, warm=3)
    del cluster.objects["pods", kubernetes.serving[0]]
    kubernetes.controllers()
    await cluster.reconcile()
    assert len(kubernetes.claims) == 1
    kubernetes.loaded()
    await cluster.reconcile()
    assert (len(kubernetes.serving), asked(cluster)) == (3, 3)
    assert cluster.says("Ready") == ("True", "Serving")
    await settle(cluster, kubernetes)
    assert (len(kubernetes.serving), kubernetes.claims, cluster.hits) == (3, [], 1)
    assert len(kubernetes.waiting) == 2


async def test_a_cold_pod_that_was_faster_makes_the_claim_one_too_many() -> None:
    cluster, kubernetes = await serving(2, warm=1)
    del cluster.objects["pods", kubernetes.serving[0]]
    kubernetes.controllers()
    await cluster.reconcile()
    kubernetes.start()
    kubernetes.controllers()
    await cluster.reconcile()
    assert (len(kubernetes.serving), kubernetes.claims) == (2, [])
    await settle(cluster, kubernetes)
    assert (len(kubernetes.serving), cluster.hits) == (2, 1)


async def test_a_quota_that_the_claimed_pod_uses_up() -> None:
    """The ReplicaSet cannot begin a pod, and need not."""
    cluster, kubernetes = await serving(1, warm=1)
    scale(cluster, 2)
    await cluster.reconcile()
    kubernetes.loaded()
    await cluster.reconcile()
    later(cluster)
    await cluster.reconcile()
    kubernetes.deployment()
    await cluster.reconcile()
    assert kubernetes.claims == []
    kubernetes.controllers()
    await cluster.reconcile()
    assert (len(kubernetes.serving), kubernetes.deleted) == (2, [])
    assert cluster.says("Ready") == ("True", "Serving")


# -- scaled down, and away


@pytest.mark.parametrize("replicas", [0, 1, 2, 3])
async def test_scaled_down_while_claims_load_serve_and_settle(replicas: int) -> None:
    for stage in range(5):
        cluster, kubernetes = await serving(2, warm=3)
        scale(cluster, 4)
        await cluster.reconcile()
        if stage > 0:
            kubernetes.loaded(f"uid of {kubernetes.claims[1]}")
            await cluster.reconcile()
        if stage > 1:
            later(cluster)
            await cluster.reconcile()
        if stage > 2:
            kubernetes.deployment()
            kubernetes.replica_sets()
        if stage > 3:
            await cluster.reconcile()
        before = len(kubernetes.serving)
        scale(cluster, replicas)
        await cluster.reconcile()
        kubernetes.controllers()
        assert len(kubernetes.serving) >= min(before, replicas), "what serves is given up last"
        await cluster.reconcile()
        assert len(kubernetes.serving) == min(before, replicas)
        kubernetes.loaded()
        await settle(cluster, kubernetes)
        kubernetes.start()
        await settle(cluster, kubernetes)
        assert (len(kubernetes.serving), kubernetes.claims, asked(cluster)) == (replicas, [], replicas)
        assert len(kubernetes.waiting) == 1, "no other was taken"


async def test_a_deployment_that_is_deleted_and_leaves_its_pods_is_made_for_them() -> None:
    """kubectl delete deployment --cascade=orphan: made again with none, it would have them deleted."""
    cluster, kubernetes = await serving(2, warm=3)
    del cluster.objects["deployments", "demo"]
    await cluster.reconcile()
    assert (asked(cluster), kubernetes.claims) == (2, [])


def orphaned(cluster: Cluster) -> None:
    """kubectl delete tokenservice --cascade=orphan, and another one of the name."""
    for raw in cluster.objects.values():
        raw["metadata"]["ownerReferences"] = [
            owner for owner in raw["metadata"].get("ownerReferences", ()) if owner["kind"] != "TokenService"
        ]
    known = cluster.service
    metadata = msgspec.structs.replace(known.metadata, uid="another", generation=1)
    cluster.keep(msgspec.structs.replace(known, metadata=metadata, status=TokenServiceStatus()))


@pytest.mark.parametrize("loaded", [False, True], ids=["while they load", "while they serve"])
async def test_claims_that_a_deleted_tokenservice_has_left_behind_are_its_successors(loaded: bool) -> None:
    cluster, kubernetes, name = await claimed(warm=2)
    if loaded:
        kubernetes.loaded()
        await cluster.reconcile()
    orphaned(cluster)
    cluster.restarted()
    await cluster.reconcile()
    (owner,) = kubernetes.metadata(name)["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("another", True)
    kubernetes.loaded()
    await settle(cluster, kubernetes)
    assert (len(kubernetes.serving), kubernetes.claims, len(kubernetes.waiting)) == (2, [], 1)
    assert name in kubernetes.serving
    assert cluster.says("Ready") == ("True", "Serving")


async def test_claims_of_a_tokenservice_that_is_being_deleted_stay_orphans(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch has told of what the garbage collector did, and not of the deletion yet."""
    cluster, kubernetes, name = await claimed(warm=2)
    kubernetes.metadata(name)["ownerReferences"] = []
    metadata = {**msgspec.to_builtins(cluster.service.metadata), "deletionTimestamp": "2026-03-01T12:00:00Z"}

    async def get(*_: object) -> bytes:
        return msgspec.json.encode({"metadata": metadata})

    monkeypatch.setattr(cluster, "get", get)
    cluster.writes.clear()
    await cluster.reconciler.reconcile(KEY)
    assert cluster.writes == []
    monkeypatch.undo()
    await cluster.reconcile()
    assert kubernetes.metadata(name)["ownerReferences"], "it was not, after all"


async def test_a_pool_that_is_named_no_more() -> None:
    """What was taken serves, and settles; no other is taken."""
    cluster, kubernetes = await serving(1, warm=2)
    scale(cluster, 2)
    await cluster.reconcile()
    cluster.want(replicas=2)
    await cluster.reconcile()
    kubernetes.loaded()
    await settle(cluster, kubernetes)
    assert (len(kubernetes.serving), kubernetes.claims, len(kubernetes.waiting)) == (2, [], 1)
    assert cluster.service.status.condition("WarmPoolReady") is None


# -- another revision


async def test_another_revision_while_claims_load() -> None:
    cluster, kubernetes = await serving(1, warm=2)
    scale(cluster, 2)
    await cluster.reconcile()
    scale(cluster, 2, **NEW)
    await cluster.reconcile()
    assert (kubernetes.claims, asked(cluster), cluster.image) == ([], 2, "new:2"), "nobody misses it"
    assert len(kubernetes.serving) == 1
    assert cluster.says("WarmPoolReady") == ("False", "ShapeMismatch")


async def test_another_revision_while_claims_serve() -> None:
    cluster, kubernetes = await serving(1, warm=2)
    scale(cluster, 2)
    await cluster.reconcile()
    kubernetes.loaded()
    await cluster.reconcile()
    scale(cluster, 2, **NEW)
    await cluster.reconcile()
    assert (asked(cluster), cluster.image, len(kubernetes.serving)) == (2, IMAGE, 2), "first it settles"
    kubernetes.controllers()
    await cluster.reconcile()
    kubernetes.controllers()
    await cluster.reconcile()
    assert (kubernetes.claims, cluster.image, len(kubernetes.serving)) == ([], "new:2", 2)


async def test_another_revision_waits_no_longer_than_that_takes() -> None:
    cluster, kubernetes = await serving(1, warm=2)
    cluster.dated = True
    scale(cluster, 2)
    await cluster.reconcile()
    kubernetes.loaded()
    await cluster.reconcile()
    scale(cluster, 2, **NEW)
    await cluster.reconcile()
    wait = (await cluster.reconciler.reconcile(KEY)).requeue_after
    assert wait == HOLD_SECONDS, "nothing else may ever tell"
    later(cluster, wait)
    await cluster.reconcile()
    assert cluster.image == "new:2"


async def test_back_to_what_was_good_while_claims_of_the_newer_one_serve() -> None:
    cluster, kubernetes = await serving(1)
    kubernetes.pool(image="new:2")
    scale(cluster, 1, **NEW)
    await cluster.reconcile()
    for _ in range(3):
        kubernetes.controllers()
        kubernetes.start()
        kubernetes.controllers()
    cluster.verdict = "busy"  # it has not proven good yet
    kubernetes.warm(2)
    scale(cluster, 3, **NEW)
    await cluster.reconcile()
    kubernetes.loaded()
    await cluster.reconcile()
    assert len(kubernetes.serving) == 3
    scale(cluster, 3)
    await cluster.reconcile()
    assert len(kubernetes.serving) == 3, "they settle first, and then go as others come"
    for _ in range(3):
        kubernetes.controllers()
        await cluster.reconcile()
        assert len(kubernetes.serving) == 3
    assert (cluster.image, kubernetes.claims) == (IMAGE, [])


async def test_new_pods_of_a_rollout_are_warm_ones() -> None:
    cluster, kubernetes = await serving(2, warm=3)
    old = kubernetes.serving
    kubernetes.pool(image="new:2")
    scale(cluster, 2, **NEW)
    await cluster.reconcile()
    fresh = kubernetes.warm(4)
    for _ in range(40):
        kubernetes.deployment()
        kubernetes.replica_sets()
        await cluster.reconcile()
        kubernetes.tell()
        await cluster.reconcile()
        kubernetes.loaded()
        await cluster.reconcile()
        assert len(kubernetes.serving) >= 2
        later(cluster, 1)
    assert set(kubernetes.serving) <= {*fresh}
    assert not set(kubernetes.serving) & {*old}
    assert (len(kubernetes.serving), kubernetes.claims, cluster.hits) == (2, [], 2), "one for each"
    assert cluster.says("Ready") == ("True", "Serving")
    assert cluster.service.status.last_good_revision == cluster.service.status.update_revision


async def handed_over(replicas: int, *, surge: int) -> tuple[Cluster, Kubernetes]:
    """Amid a rollout with a warm pod more than its surge: one of the claimed pods has settled, the others load."""
    cluster, kubernetes = await serving(replicas)
    kubernetes.surge = surge
    kubernetes.pool(image="new:2")
    kubernetes.warm(surge + 1)
    scale(cluster, replicas, **NEW)
    await cluster.reconcile()
    kubernetes.controllers()
    await cluster.reconcile()
    assert len(kubernetes.claims) == surge
    fast = kubernetes.claims[0]
    kubernetes.loaded(f"uid of {fast}")
    await cluster.reconcile()
    later(cluster)
    await cluster.reconcile()
    assert (fast in kubernetes.claims, len(kubernetes.waiting)) == (False, 1)
    return cluster, kubernetes


def begins_the_next(kubernetes: Kubernetes) -> None:
    """What is one too many goes, and the rollout goes on, all before anybody has looked."""
    for _ in range(2):
        kubernetes.replica_sets()
        kubernetes.deployment()
    kubernetes.replica_sets()


async def test_the_next_new_pod_of_a_rollout_may_be_there_before_a_look_at_the_last() -> None:
    cluster, kubernetes = await handed_over(2, surge=1)
    assert kubernetes.claims == []
    later(cluster, 0.1)
    await cluster.reconcile()
    assert len(kubernetes.waiting) == 1, "and the cold one in whose place it has is about to go"
    begins_the_next(kubernetes)
    assert len(kubernetes.deleted) == 2, "that one, and one of the old ones"
    await cluster.reconcile()
    assert (len(kubernetes.claims), kubernetes.waiting) == (1, [])


async def test_the_next_new_pod_while_another_ones_warm_pod_loads() -> None:
    cluster, kubernetes = await handed_over(4, surge=2)
    begins_the_next(kubernetes)
    await cluster.reconcile()
    assert (len(kubernetes.claims), kubernetes.waiting) == (2, [])


# -- in any order


class Life:
    """Edits, losses and crashes between looks of all who take part, in any order."""

    def __init__(self, seed: int, cluster: Cluster, kubernetes: Kubernetes, policy: str) -> None:
        self.random = random.Random(seed)
        self.cluster, self.kubernetes, self.policy = cluster, kubernetes, policy
        self.replicas, self.image = 2, IMAGE

    def edit(self) -> None:
        self.replicas = self.random.choice([0, 1, 2, 3, 4])
        scale(self.cluster, self.replicas, self.policy, environment={"image": {"reference": self.image}})

    def change(self) -> None:
        self.image = self.random.choice([IMAGE, "new:2"])
        self.kubernetes.pool(image=self.image)
        for name in self.kubernetes.waiting:  # the pool rolls
            del self.cluster.objects["pods", name]
        self.edit()

    def lose(self) -> None:
        names_ = [name for (plural, name) in self.cluster.objects if plural == "pods"]
        if names_:
            del self.cluster.objects["pods", self.random.choice(names_)]

    def refill(self) -> None:
        if len(self.kubernetes.waiting) < 2:
            self.kubernetes.warm()

    def fail(self) -> None:
        self.kubernetes.came(Outcome("unfit", "AssignmentRefused", "no"))

    def later(self) -> None:
        later(self.cluster, self.random.choice([1, SETTLE_SECONDS]))

    async def happens(self, what: str) -> None:
        if what == "crash":
            self.cluster.crash_at, self.cluster.crash_early = self.random.choice([1, 2, 3]), self.random.random() < 0.5
        elif hasattr(self, what):
            getattr(self, what)()
        else:
            getattr(self.kubernetes, what)()
        if self.random.random() < 0.3 and what != "crash":
            return
        self.cluster.writes.clear()
        try:
            await self.cluster.reconciler.reconcile(KEY)
        except CrashError:
            self.cluster.crash_at = None
            self.cluster.restarted()
        self.cluster.crash_at = None
        self.whole()

    def whole(self) -> None:
        kubernetes = self.kubernetes
        for name in kubernetes.pods():
            metadata = kubernetes.metadata(name)
            assert metadata["ownerReferences"], "nobody's"
            found = {names.LABEL_POOL, names.LABEL_CLAIM, names.LABEL_DEPLOYMENT} & metadata["labels"].keys()
            assert len(found) == 1, "in one place at a time"

    async def rest(self) -> None:
        for _ in range(12):
            for what in ("deployment", "replica_sets", "start", "tell", "loaded", "refill", "controllers"):
                getattr(self.kubernetes, what, getattr(self, what, None))()
                await self.cluster.reconcile()
            later(self.cluster)


HAPPENS = (
    "deployment",
    "replica_sets",
    "tell",
    "start",
    "loaded",
    "refill",
    "later",
    "controllers",
    "loaded",
    "refill",
)


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.sampled_from(["Preferred", "Required"]), st.booleans())
async def test_whatever_happens_all_is_as_asked_for_in_the_end(seed: int, policy: str, rolls: bool) -> None:
    cluster, kubernetes = await serving(2, policy, warm=2)
    life = Life(seed, cluster, kubernetes, policy)
    kubernetes.surge = life.random.choice([1, 2, 3])
    changes = ("edit", "lose", "crash", "fail", *(("change",) if rolls else ()))
    for _ in range(40):
        await life.happens(life.random.choice((*HAPPENS, *HAPPENS, *changes)))
    await life.rest()
    assert (len(kubernetes.serving), kubernetes.claims, asked(cluster)) == (life.replicas, [], life.replicas)
    assert len(kubernetes.pods(names.LABEL_SERVICE)) == life.replicas, "and no other is left"
    assert cluster.image == life.image
    assert cluster.says("Ready")[0] == "True"
    for name in kubernetes.serving:
        assert names.ANNOTATION_DELETION_COST not in kubernetes.metadata(name).get("annotations", {})
        assert [owner["kind"] for owner in kubernetes.metadata(name)["ownerReferences"]] == ["ReplicaSet"]


# -- crashes


async def life(crash_at: int | None, *, early: bool, policy: str) -> tuple[Cluster, Kubernetes, int, int]:
    """Scaled up by two with two warm pods, and down by one; the operator dies at that write of each step."""
    cluster, kubernetes = await serving(1, policy, warm=2)
    cluster.crash_early = early

    def lowered() -> None:
        scale(cluster, 2, policy)

    steps: list[Callable[[], None]] = [
        lambda: scale(cluster, 3, policy),
        lambda: None,
        lambda: later(cluster),
        kubernetes.deployment,
        kubernetes.replica_sets,
        kubernetes.tell,
        kubernetes.controllers,
        lowered,
        kubernetes.controllers,
        lambda: later(cluster),
    ]

    def loading(step: Callable[[], None]) -> Callable[[], None]:
        """Each begins with the models there that were given in the one before, if only again after a crash."""
        return lambda: (kubernetes.loaded(), step())[1]

    def whole() -> None:
        owners = [
            raw["metadata"]["ownerReferences"] for (plural, _), raw in cluster.objects.items() if plural == "pods"
        ]
        assert all(owners), "nobody's"
        assert len(kubernetes.waiting) + len(kubernetes.claims) + len(kubernetes.pods("pod-template-hash")) == len(
            owners
        )
        assert not {*kubernetes.pods(names.LABEL_CLAIM)} & {*kubernetes.pods(names.LABEL_DEPLOYMENT)}
        assert cluster.hits <= 2
        assert len(kubernetes.serving) >= 1

    crashes, most = await cluster.live(map(loading, steps), crash_at, whole)
    kubernetes.loaded()
    await settle(cluster, kubernetes)
    whole()
    return cluster, kubernetes, crashes, most


@pytest.mark.parametrize("early", [False, True], ids=["answer lost", "write lost"])
@pytest.mark.parametrize("policy", ["Preferred", "Required"])
async def test_a_crash_at_any_write_is_made_up_for(policy: str, early: bool) -> None:
    told, calm, _, most = await life(None, early=early, policy=policy)
    assert (len(calm.serving), calm.claims, asked(told)) == (2, [], 2)
    assert most >= 3
    for crash_at in range(1, most + 1):
        cluster, kubernetes, crashes, _ = await life(crash_at, early=early, policy=policy)
        assert crashes
        assert (len(kubernetes.serving), kubernetes.claims, asked(cluster)) == (2, [], 2)
        assert kubernetes.waiting == calm.waiting
        assert counts(cluster) == counts(told)
        assert cluster.says("Ready") == ("True", "Serving")


class Lagging:
    """A cache of pods that shows those of a test until it is told of others by answers."""

    def __init__(self, cluster: Cluster, stale: dict[tuple[str, str], dict[str, Any]]) -> None:
        self._cluster, self._stale, self._behind = cluster, stale, cluster.caches.pods

    @classmethod
    def install(cls, cluster: Cluster, stale: dict[tuple[str, str], dict[str, Any]]) -> None:
        lagging = cls(cluster, stale)
        cluster.caches = replace(cluster.caches, pods=lagging)
        cluster.around = replace(cluster.around, pods=lagging)
        cluster.restarted()

    def _shown(self, look: Callable[[], Any]) -> Any:
        objects = self._cluster.objects
        others = {key: raw for key, raw in objects.items() if key[0] != "pods"}
        self._cluster.objects = {**others, **self._stale}
        try:
            return look()
        finally:
            self._cluster.objects = objects

    def get(self, namespace: str, name: str) -> Any:
        return self._shown(lambda: self._behind.get(namespace, name))

    def by_index(self, key: str) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self._shown(lambda: self._behind.by_index(key))
        return found

    def decode(self, data: bytes) -> Any:
        return self._behind.decode(data)

    def observe(self, obj: Any) -> None:
        key = "pods", obj.metadata.name
        if key in self._cluster.objects:
            self._stale[key] = self._cluster.objects[key]
        else:
            self._stale.pop(key, None)
