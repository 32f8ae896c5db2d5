"""WarmPools from the first look to the last, against a stand-in for the API server."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenservice.api import names
from tokenservice.handover import tokens
from tokenservice.handover.tally import CALM_SECONDS
from tokenservice.kube.errors import ApiError
from tokenservice.pools.controller import HURRIED_PER_SECOND, HURRIED_SECONDS

from tests.unit.pools.builders import KEY, Cluster, CrashError, template, waiting_pod, warm_pool
from tests.unit.services.builders import BUILT, OLDER, environment, node

REF: dict[str, Any] = {"environment": {"ref": {"name": "nlp"}}}


def server(cluster: Cluster, name: str) -> dict[str, Any]:
    (found,) = cluster.pods[name]["spec"]["containers"]
    return {**found, "env": {each["name"]: each.get("value") for each in found["env"]}}


async def test_a_pool_fills_and_becomes_ready() -> None:
    cluster = Cluster(replicas=3)
    assert await cluster.reconcile() == ["create"] * 3 + ["status"]
    assert cluster.names == ["nlp-1", "nlp-2", "nlp-3"]
    assert (cluster.says(), cluster.says("Progressing")) == (("False", "Filling"), ("True", "Filling"))
    cluster.warm("nlp-2")
    await cluster.reconcile()
    assert cluster.pool
    assert (cluster.pool.status.replicas, cluster.pool.status.ready_replicas) == (3, 1)
    cluster.warm()
    await cluster.reconcile()
    assert (cluster.says(), cluster.says("Progressing")) == (("True", "Warm"), ("False", "Complete"))
    assert cluster.pool.status.selector == "tokenservice.dev/pool=nlp"
    assert cluster.events == [("Normal", "Warm")]


async def test_every_pod_has_a_token_of_its_own() -> None:
    cluster = Cluster(replicas=2, preload=["MistralForCausalLM", "LlamaForCausalLM"])
    await cluster.reconcile()
    digests = set()
    for name in cluster.names:
        annotations, told = cluster.pods[name]["metadata"]["annotations"], server(cluster, name)["env"]
        token = tokens.token(b"k" * 32, "team", name, annotations[names.ANNOTATION_NONCE])
        assert told["TOKEN_SERVER_ASSIGN_TOKEN_SHA256"] == tokens.digest(token)
        assert token not in str(cluster.pods[name])
        assert told["TOKEN_SERVER_WARM"] == "true"
        assert told["TOKEN_SERVER_PRELOAD"] == "LlamaForCausalLM,MistralForCausalLM"
        assert not [each for each in told if "MODEL" in each]
        digests.add(told["TOKEN_SERVER_ASSIGN_TOKEN_SHA256"])
    assert len(digests) == 2


async def test_it_fills_at_its_rate() -> None:
    cluster = Cluster(replicas=7, refill={"maxPerSecond": 2})
    made = []
    for _ in range(4):
        await cluster.reconcile(settle=False)
        made.append(len(cluster.pods))
        cluster.wait(1)
    assert made == [2, 4, 6, 7]


async def test_it_fills_slowly_while_many_wait_for_pods() -> None:
    cluster = Cluster(replicas=100, refill={"maxPerSecond": 1000})
    cluster.hurry = True
    for _ in range(20):
        cluster.tally.taken(KEY, cluster.now - timedelta(seconds=CALM_SECONDS - 0.01))
        result = await cluster.reconciler.reconcile(KEY)
        assert result.requeue_after == HURRIED_SECONDS
        cluster.wait(0.1)
    assert len(cluster.pods) == pytest.approx(HURRIED_PER_SECOND * (1 + 1.9), abs=1), (
        "a second's worth, and then so many"
    )
    cluster.hurry = False
    cluster.wait(CALM_SECONDS)
    await cluster.reconcile(settle=False)
    assert len(cluster.pods) == 100


async def test_in_a_namespace_that_goes_one_pod_is_tried() -> None:
    cluster = Cluster(replicas=20, refill={"maxPerSecond": 100})
    cluster.refusal = ApiError(403, "Forbidden", "because it is being terminated")
    for tries in (20, 21, 22):
        with pytest.raises(ApiError):
            await cluster.reconciler.reconcile(KEY)
        assert cluster.tries == tries
        assert cluster.says() == ("False", "Filling"), "nothing is told of what is about to be gone"


async def test_scaling() -> None:
    cluster = Cluster(replicas=3)
    await cluster.reconcile()
    cluster.warm()
    cluster.want(replicas=1)
    assert (await cluster.reconcile()).count("delete") == 2
    assert len(cluster.pods) == 1
    cluster.want(replicas=0)
    await cluster.reconcile()
    assert (cluster.pods, cluster.says()) == ({}, ("True", "ScaledToZero"))


async def test_a_pod_that_is_taken_away_is_replaced() -> None:
    cluster = Cluster(replicas=2)
    await cluster.reconcile()
    cluster.warm()
    await cluster.reconcile()
    del cluster.pods["nlp-1"]["metadata"]["labels"][names.LABEL_POOL]  # claimed
    cluster.look()
    await cluster.reconcile()
    assert cluster.names == ["nlp-1", "nlp-2", "nlp-3"], "and keeps its name"


async def test_a_pod_that_was_taken_is_made_anew_once_it_has_its_model() -> None:
    cluster = Cluster(replicas=3)
    await cluster.reconcile()
    cluster.warm()
    await cluster.reconcile()
    del cluster.pods["nlp-1"]["metadata"]["labels"][names.LABEL_POOL]
    del cluster.pods["nlp-2"]  # lost
    cluster.tally.taken(KEY, cluster.now)
    cluster.look()
    await cluster.reconcile(settle=False)
    assert cluster.names == ["nlp-1", "nlp-2", "nlp-3"], "what is lost is made at once"
    assert cluster.says() == ("False", "Filling")
    cluster.wait(CALM_SECONDS / 2)
    assert (await cluster.reconciler.reconcile(KEY)).requeue_after == CALM_SECONDS / 2
    cluster.wait(CALM_SECONDS / 2)
    await cluster.reconcile(settle=False)
    assert cluster.names == ["nlp-1", "nlp-2", "nlp-3", "nlp-4"]


async def test_a_change_rolls_and_old_pods_outlive_new_ones_that_fail() -> None:
    cluster = Cluster(replicas=4)
    await cluster.reconcile()
    cluster.warm()
    await cluster.reconcile()
    cluster.want(replicas=4, environment={"image": {"reference": "registry.example.com/serving:2"}})
    assert (await cluster.reconcile()).count("delete") == 1
    assert cluster.says("Progressing") == ("True", "Rolling")
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    cluster.say("nlp-5", phase="Pending", containerStatuses=[{"name": "server", "state": waiting}])
    assert "delete" not in await cluster.reconcile()
    assert cluster.says() == cluster.says("Progressing") == ("False", "ImagePullBackOff")
    assert ("Warning", "ImagePullBackOff") in cluster.events
    for _ in range(4):
        cluster.warm()
        await cluster.reconcile()
    assert cluster.says() == ("True", "Warm")
    assert {server(cluster, name)["image"] for name in cluster.pods} == {"registry.example.com/serving:2"}


async def test_what_changes_no_pod_rolls_nothing() -> None:
    cluster = Cluster(replicas=2, preload=["A", "B"])
    await cluster.reconcile()
    before = cluster.names
    cluster.want(replicas=2, preload=["B", "A"], refill={"maxPerSecond": 5})
    assert await cluster.reconcile() == ["status"]
    cluster.restarted()
    assert await cluster.reconcile() == []
    assert cluster.names == before


async def test_another_key_replaces_pods_whose_token_nobody_knows() -> None:
    cluster = Cluster(replicas=1)
    await cluster.reconcile()
    cluster.warm()
    cluster.restarted(key=b"another key, also of 32 bytes...")
    await cluster.reconcile()
    assert cluster.names == ["nlp-2"]


async def test_an_environment_that_is_built_later() -> None:
    cluster = Cluster(replicas=2, **REF)
    await cluster.reconcile()
    assert (cluster.pods, cluster.says(), cluster.says("EnvironmentReady")) == (
        {},
        ("False", "EnvironmentNotReady"),
        ("False", "NotFound"),
    )
    cluster.environments["nlp"] = environment("nlp", reason="Building")
    await cluster.reconcile()
    assert cluster.says("Progressing") == ("True", "Building")
    cluster.environments["nlp"] = environment("nlp")
    await cluster.reconcile()
    assert [server(cluster, name)["image"] for name in cluster.names] == [BUILT, BUILT]
    cluster.warm()
    cluster.environments["nlp"] = environment("nlp", reason="Unsolvable", image=BUILT)
    await cluster.reconcile()
    assert cluster.says() == ("True", "Warm"), "what there is stays warm"
    assert cluster.says("EnvironmentReady") == ("False", "Unsolvable")
    cluster.environments["nlp"] = environment("nlp", image=OLDER)
    await cluster.reconcile()
    assert len({server(cluster, name)["image"] for name in cluster.names}) == 2, "it rolls"


async def test_a_template_that_cannot_be_used_loses_nothing() -> None:
    cluster = Cluster(replicas=2)
    await cluster.reconcile()
    cluster.warm()
    await cluster.reconcile()
    cluster.want(replicas=2, template={"spec": {"nodeselector": {}}})
    await cluster.reconcile()
    assert (cluster.says(), len(cluster.pods)) == (("False", "InvalidTemplate"), 2)
    assert cluster.pool
    assert "nodeSelector" in (cluster.pool.status.conditions[0].message)
    cluster.want(replicas=1, template={"spec": {"nodeselector": {}}})
    await cluster.reconcile()
    assert len(cluster.pods) == 1, "scaling down needs no template"
    cluster.want(replicas=2)
    await cluster.reconcile()
    cluster.warm()
    await cluster.reconcile()
    assert cluster.says() == ("True", "Warm")


async def test_a_quota_is_told_and_tried_again() -> None:
    cluster = Cluster(replicas=1)
    cluster.refusal = ApiError(403, "Forbidden", "exceeded quota: pods")
    await cluster.reconcile()
    assert cluster.says() == ("False", "Rejected")
    assert ("Warning", "Rejected") in cluster.events
    result = await cluster.reconciler.reconcile(KEY)
    assert result.requeue_after == 60
    cluster.refusal = None
    cluster.wait(2)
    await cluster.reconcile()  # something happened
    assert len(cluster.pods) == 1


async def test_after_a_refusal_one_pod_is_tried_first() -> None:
    cluster = Cluster(replicas=5)
    cluster.refusal = ApiError(403, "Forbidden", "exceeded quota: pods")
    await cluster.reconcile()
    cluster.wait(60)
    cluster.refusal = None
    await cluster.reconcile(settle=False)
    assert len(cluster.pods) == 1
    await cluster.reconcile()
    assert len(cluster.pods) == 5


async def test_what_is_lost_is_told_also_while_nothing_can_be_made() -> None:
    cluster = Cluster(replicas=2)
    await cluster.reconcile()
    cluster.warm()
    await cluster.reconcile()
    cluster.pods.clear()
    cluster.look()
    cluster.broken = True
    cluster.wait(2)
    with pytest.raises(ApiError, match="failed calling webhook"):
        await cluster.reconcile(settle=False)
    assert cluster.pool
    assert (cluster.pool.status.ready_replicas, cluster.says()[0]) == (0, "False")


async def test_a_refused_revision_is_not_rolled_to_and_counts_as_what_it_is() -> None:
    cluster = Cluster(replicas=4)
    await cluster.reconcile()
    cluster.warm()
    await cluster.reconcile()
    cluster.refusal = ApiError(422, "Invalid", "no such volume")
    cluster.want(replicas=4, environment={"image": {"reference": "registry.example.com/serving:2"}})
    await cluster.reconcile()
    assert cluster.pool
    assert (len(cluster.pods), cluster.pool.status.updated_replicas) == (3, 0)
    assert cluster.says() == ("False", "Rejected")


async def test_a_pod_that_cannot_be_scheduled_is_waited_for() -> None:
    cluster = Cluster(replicas=1)
    await cluster.reconcile()
    lacking = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: no GPU"}
    cluster.say("nlp-1", phase="Pending", conditions=[lacking])
    await cluster.reconcile()
    cluster.wait(3600)
    await cluster.reconcile()
    assert (cluster.names, cluster.says()) == (["nlp-1"], ("False", "Unschedulable"))


async def full(replicas: int = 3, on: int | None = None) -> Cluster:
    """A pool whose pods hold a GPU each, so many of them (or all) on a node, warm."""
    cluster = Cluster(replicas=replicas, template=template(gpu="1"))
    cluster.nodes = (node("node-1", allocatable={"nvidia.com/gpu": "8"}),)
    await cluster.reconcile()
    cluster.schedule("node-1", *cluster.names[:on])
    await cluster.reconcile()
    cluster.events.clear()
    return cluster


def said(cluster: Cluster) -> str:
    assert cluster.pool
    found = cluster.pool.status.condition("Ready")
    assert found
    return found.message


async def test_it_gives_way_to_a_pod_that_finds_no_room_and_is_filled_again() -> None:
    cluster = await full()
    cluster.waiting = (waiting_pod(),)
    assert await cluster.reconcile() == ["delete", "status"]
    assert cluster.names == ["nlp-2", "nlp-3"], "of three that are alike the first name goes"
    assert cluster.says() == ("False", "GivingWay")
    assert cluster.says("Progressing") == ("True", "GivingWay")
    words = "1 gives way to pod chat-1, which is Unschedulable: Insufficient nvidia.com/gpu"
    assert said(cluster) == f"2 of 3 pods are warm; {words}"
    assert cluster.events == [("Normal", "GivingWay")]
    for _ in range(3):
        cluster.wait(10)
        assert await cluster.reconcile() == [], "it waits with the pod"
    cluster.waiting = ()
    assert await cluster.reconcile() == ["create", "status"]
    cluster.schedule("node-1", "nlp-1")
    await cluster.reconcile()
    assert cluster.says() == ("True", "Warm")
    assert cluster.events == [("Normal", "GivingWay"), ("Normal", "Warm")]


async def test_a_pod_that_waits_for_something_else_gets_nothing() -> None:
    cluster = await full()
    cluster.waiting = (waiting_pod(says="0/1 nodes are available: 1 node(s) had untolerated taint {a: b}."),)
    assert await cluster.reconcile() == []
    cluster.waiting = (waiting_pod(nodeSelector={"kind": "big"}),)
    assert await cluster.reconcile() == []


async def test_a_pool_that_is_larger_than_the_cluster_gives_way_all_the_same() -> None:
    """Three are asked for, there are two GPUs: the third must not take what is given."""
    cluster = await full(on=2)
    cluster.waiting = (waiting_pod(),)
    await cluster.reconcile()
    assert cluster.names == ["nlp-2"]
    assert "1 of 3 pods are warm; 1 gives way to pod chat-1" in said(cluster)
    cluster.waiting = ()
    await cluster.reconcile()
    assert len(cluster.names) == 3


async def test_several_wait() -> None:
    cluster = await full()
    cluster.waiting = (waiting_pod("chat-2"), waiting_pod("chat-1"))
    await cluster.reconcile()
    assert cluster.names == ["nlp-3"]
    assert "; 2 give way to pod chat-1 (and to 1 more), which is Unschedulable: " in said(cluster)
    cluster.waiting = (waiting_pod("chat-2"),)
    assert "create" not in await cluster.reconcile(), "a new pod could take what the other waits for"
    cluster.wait(31)
    assert (await cluster.reconcile()).count("create") == 1


async def test_what_cannot_be_deleted_goes_with_the_next_try() -> None:
    cluster = await full()
    cluster.waiting = (waiting_pod(),)
    cluster.deletes = False
    with pytest.raises(ApiError, match="no deletions today"):
        await cluster.reconcile(settle=False)
    cluster.deletes = True
    cluster.wait(3600)
    await cluster.reconcile()
    assert cluster.names == ["nlp-2", "nlp-3"], "the same one, and no other"


async def test_an_operator_that_starts_again_gives_one_more_at_most() -> None:
    cluster = await full()
    cluster.waiting = (waiting_pod(),)
    await cluster.reconcile()
    cluster.restarted()
    await cluster.reconcile()
    assert cluster.names == ["nlp-3"]
    cluster.wait(31)
    await cluster.reconcile()
    assert len(cluster.names) == 2, "and its place is filled, once the first pod had time"


async def test_one_pool_of_a_namespace_gives_way() -> None:
    cluster = await full()
    cluster.siblings["alpha"] = warm_pool(name="alpha", uid="other", replicas=1, template=template(gpu="1"))
    await cluster.reconcile(key=("team", "alpha"))
    cluster.schedule("node-1", "alpha-1")
    await cluster.reconcile(key=("team", "alpha"))
    cluster.waiting = (waiting_pod(),)
    assert await cluster.reconcile(settle=False) == []
    assert await cluster.reconcile(key=("team", "alpha")) == ["delete", "status"]
    assert await cluster.reconcile() == []
    assert cluster.says() == ("True", "Warm")


async def test_a_broken_template_keeps_nobody_waiting() -> None:
    cluster = await full()
    cluster.want(replicas=3, template={"spec": {"nodeselector": {}}})
    cluster.waiting = (waiting_pod(),)
    await cluster.reconcile()
    assert (cluster.says(), len(cluster.names)) == (("False", "InvalidTemplate"), 2)


async def test_pods_on_a_cordoned_node_are_not_warm() -> None:
    cluster = Cluster(replicas=1)
    await cluster.reconcile()
    cluster.pods["nlp-1"]["spec"]["nodeName"] = "node-1"
    cluster.warm()
    cluster.nodes = (node("node-1", unschedulable=True),)
    await cluster.reconcile()
    assert (cluster.says(), cluster.names) == (("False", "Filling"), ["nlp-1"])


async def test_a_lost_answer_makes_no_pod_too_many() -> None:
    cluster = Cluster(replicas=2)
    cluster.unanswered = 1
    with pytest.raises(ApiError):
        await cluster.reconcile(settle=False)
    for _ in range(30):
        await cluster.reconcile(settle=False)
        cluster.wait(1)
    assert (cluster.names, cluster.most) == (["nlp-1", "nlp-2"], 2), "although no watch tells of one of them"


async def test_a_name_that_somebody_else_has_is_left_alone() -> None:
    cluster = Cluster(replicas=1)
    foreign: dict[str, Any] = {"metadata": {"name": "nlp-1", "labels": {}}, "spec": {}}
    cluster.pods["nlp-1"] = foreign
    await cluster.reconcile()
    assert cluster.names == ["nlp-1", "nlp-2"]
    assert cluster.pods["nlp-1"] == foreign


async def test_a_pool_that_is_gone() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.pool = None
    assert await cluster.reconcile() == []


async def test_a_pool_made_again_takes_over_no_pods() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.pool = warm_pool(uid="another")
    await cluster.reconcile()
    assert cluster.names == ["nlp-1", "nlp-2"], "the garbage collector takes the first"


async def test_in_a_burst_numbers_are_written_once_a_second() -> None:
    cluster = Cluster(replicas=20, refill={"maxPerSecond": 100})
    await cluster.reconcile()
    cluster.writes.clear()
    for number in range(1, 20):
        cluster.warm(f"nlp-{number}")
        cluster.wait(0.01)
        await cluster.reconciler.reconcile(KEY)
    assert cluster.writes.count("status") <= 1
    await cluster.reconcile()
    assert cluster.pool
    assert cluster.pool.status.ready_replicas == 19


async def test_what_its_pods_are_made_from_is_told_and_who_takes_them_is_asked() -> None:
    cluster = Cluster(replicas=1, **REF)
    assert cluster.reconciler.spec(*KEY) is None
    await cluster.reconcile()
    assert cluster.reconciler.spec(*KEY) is None, "there is no image"
    cluster.environments["nlp"] = environment("nlp")
    asked = len(cluster.made)
    await cluster.reconcile()
    spec = cluster.reconciler.spec(*KEY)
    assert spec
    assert spec["containers"][0]["image"] == BUILT
    assert len(cluster.made) == asked + 1
    cluster.want(replicas=2, **REF)
    await cluster.reconcile()
    cluster.want(replicas=2, template={"spec": {"nodeselector": {}}}, **REF)
    await cluster.reconcile()
    assert cluster.reconciler.spec(*KEY) is None, "and nobody knows whether any would fit"
    asked = len(cluster.made)
    await cluster.reconcile()
    assert (len(cluster.made), {*cluster.made}) == (asked, {KEY})
    cluster.pool = None
    await cluster.reconcile()
    assert cluster.reconciler.spec(*KEY) is None


async def test_a_pod_that_has_just_been_claimed_is_not_deleted() -> None:
    cluster = Cluster(replicas=2)
    await cluster.reconcile()
    cluster.warm()
    await cluster.reconcile()
    for raw in cluster.pods.values():
        raw["metadata"]["resourceVersion"] = "1"
    cluster.look()
    claimed = cluster.pods["nlp-1"]
    labels = {key: value for key, value in claimed["metadata"]["labels"].items() if key != names.LABEL_POOL}
    cluster.pods["nlp-1"] = {**claimed, "metadata": {**claimed["metadata"], "labels": labels, "resourceVersion": "2"}}
    cluster.want(replicas=0)
    with pytest.raises(ApiError, match="Conflict"):
        await cluster.reconcile(settle=False)
    assert "nlp-1" in cluster.pods
    cluster.look()
    await cluster.reconcile()
    assert cluster.names == ["nlp-1"]


def changes(seed: int) -> list[Callable[[Cluster], None]]:
    dice = random.Random(seed)
    images = [f"registry.example.com/serving:{number}" for number in (1, 2)]

    def want(cluster: Cluster) -> None:
        cluster.want(replicas=dice.randint(0, 6), environment={"image": {"reference": dice.choice(images)}})

    def lose(cluster: Cluster) -> None:
        if cluster.pods:
            del cluster.pods[dice.choice(cluster.names)]
            cluster.look()

    def warm(cluster: Cluster) -> None:
        cluster.warm()

    return [dice.choice([want, lose, warm, warm]) for _ in range(8)]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 6))
async def test_a_crash_after_any_write_is_harmless(seed: int, crash_at: int) -> None:
    cluster = Cluster(replicas=3)
    await cluster.reconcile()
    for change in changes(seed):
        change(cluster)
        assert cluster.pool
        limit = max(len(cluster.pods), cluster.pool.spec.replicas)
        cluster.most, cluster.crash_at = 0, crash_at
        cluster.writes.clear()
        try:
            await cluster.reconcile(settle=False)
        except CrashError:
            cluster.restarted()
        cluster.crash_at = None
        for _ in range(12):
            await cluster.reconcile()
            cluster.warm()
        await cluster.reconcile()
        assert cluster.most <= limit, "too many"
        assert len(cluster.pods) == cluster.pool.spec.replicas
        assert cluster.says()[0] == "True"
