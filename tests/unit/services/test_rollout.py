"""Rollouts from the edit to the end, against a stand-in that keeps what is applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tokenservice import protocol
from tokenservice.api import names
from tokenservice.api.meta import ControllerRevision, stamp
from tokenservice.api.v1alpha1 import TokenServiceStatus
from tokenservice.kube.errors import ApiError
from tokenservice.services import revisions
from tokenservice.services.revisions import KEPT

from tests.unit.services.builders import BUILT, CONDA, OLDER, UID, environment, node
from tests.unit.services.standin_cluster import INLINE, KEY, PROGRESS, Cluster

OLD: dict[str, Any] = {"environment": {"image": {"reference": "old:1"}}}
NEW: dict[str, Any] = {"environment": {"image": {"reference": "new:2"}}}
OTHER: dict[str, Any] = {"environment": {"image": {"reference": "other:3"}}}
MENDED = BUILT.replace("1" * 64, "2" * 64)
CRASHED = {
    "containerStatuses": [
        {
            "name": "server",
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "cannot import torch"}},
        }
    ]
}


def by_image(cluster: Cluster) -> dict[str, ControllerRevision]:
    found = cluster.caches.revisions.by_index("team/demo")
    return {str(revisions.image(revision)): revision for revision in found}


def name_of(cluster: Cluster, image: str) -> str:
    return by_image(cluster)[image].metadata.name


def deployed(cluster: Cluster) -> Mapping[str, Any]:
    found = cluster.look("deployments")
    assert found
    return found


def pulling(cluster: Cluster) -> list[str]:
    return [
        raw["spec"]["nodeName"]
        for (plural, _), raw in cluster.objects.items()
        if plural == "pods" and names.LABEL_PRE_PULL in raw["metadata"]["labels"]
    ]


def pulled(cluster: Cluster, **status: Any) -> None:
    """The pods that bring images have done so; or are as `status` says."""
    done = {"containerStatuses": [{"name": "image-0", "state": {"terminated": {"exitCode": 0}}}]}
    for (plural, _), raw in cluster.objects.items():
        if plural == "pods" and names.LABEL_PRE_PULL in raw["metadata"]["labels"]:
            raw["status"] = status or done


async def good(**rollout: Any) -> Cluster:
    """A TokenService whose first revision is good."""
    cluster = Cluster(**OLD)
    cluster.rollout = {"prePull": False, **rollout}
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    assert cluster.service.status.last_good_revision == name_of(cluster, "old:1")
    cluster.events.clear()
    return cluster


def observed(cluster: Cluster) -> None:
    """The Deployment's controller has seen what it was told."""
    deployed(cluster)["status"]["observedGeneration"] = deployed(cluster)["metadata"]["generation"]


def crash(cluster: Cluster) -> None:
    """A pod of the newest template crashes, beside the one that serves, and that has lasted for too long."""
    cluster.late()
    cluster.put_pod("new-1", deployed(cluster)["spec"]["template"]["metadata"]["labels"], ready=False, **CRASHED)


def retry(cluster: Cluster) -> None:
    known = cluster.service
    annotated = msgspec.structs.replace(known.metadata, annotations={names.ANNOTATION_RETRY: "1"})
    cluster.keep(msgspec.structs.replace(known, metadata=annotated))


async def in_doubt(cluster: Cluster) -> None:
    """A new pod is Ready beside the old one, and has given no token for 2 s: that holds the rollout."""
    old = dict(cluster.objects["pods", "demo-1-0"])
    cluster.want(**NEW)
    await cluster.reconcile()
    cluster.verdict = "busy"
    cluster.serve(replicas=2, updatedReplicas=1, readyReplicas=2, availableReplicas=1, conditions=[])
    cluster.objects["pods", "demo-1-0"] = old
    await cluster.reconcile()
    cluster.now += timedelta(seconds=2)
    await cluster.reconcile()
    assert deployed(cluster)["spec"]["paused"] is True


async def rolled_back() -> Cluster:
    cluster = await good()
    cluster.want(**NEW)
    await cluster.reconcile()
    crash(cluster)
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    assert cluster.says("RolledBack") == ("True", "CrashLoopBackOff")
    return cluster


async def test_a_first_revision_is_good_once_its_pods_serve_and_have_given_a_token() -> None:
    cluster = Cluster(**OLD)
    await cluster.reconcile()
    assert cluster.service.status.last_good_revision is None
    assert "minReadySeconds" not in deployed(cluster)["spec"]
    cluster.verdict = "busy"
    cluster.serve()
    await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "Serving")
    assert cluster.says("Progressing") == ("True", "Verifying")
    assert cluster.service.status.last_good_revision is None
    cluster.verdict = "right"
    cluster.now += timedelta(seconds=2)
    assert await cluster.reconcile() == ["status"]
    assert cluster.says("Progressing") == ("False", "Complete")
    status = cluster.service.status
    assert status.last_good_revision == status.current_revision == status.update_revision == name_of(cluster, "old:1")
    assert cluster.events == [("Normal", "Serving")], "nothing of the stages: there is nothing that they could break"


async def test_pods_must_have_been_ready_for_a_moment() -> None:
    cluster = Cluster(**OLD)
    await cluster.reconcile()
    cluster.serve()
    pod = cluster.objects["pods", "demo-1-0"]
    pod["status"]["conditions"][0]["lastTransitionTime"] = "2026-03-01T11:59:58Z"
    await cluster.reconcile()
    assert cluster.says("Progressing") == ("True", "Verifying")
    assert (await cluster.reconciler.reconcile(KEY)).requeue_after == 3
    cluster.now += timedelta(seconds=3)
    await cluster.reconcile()
    assert cluster.says("Progressing") == ("False", "Complete")


async def test_from_an_edit_to_the_last_good_revision() -> None:
    cluster = await good(prePull=True)
    cluster.nodes = (node("node-1"), node("node-2"), node("full", pressure=True))
    cluster.want(**NEW)
    assert await cluster.reconcile() == ["apply controllerrevisions", "create pods", "create pods", "status"]
    assert cluster.image == "old:1"
    assert pulling(cluster) == ["node-1", "node-2"]
    assert cluster.says("Ready") == ("False", "PrePulling")
    assert cluster.says("Available")[0] == "True"
    pulled(cluster)
    assert await cluster.reconcile() == ["apply deployments", "delete pods", "delete pods", "status"]
    assert cluster.image == "new:2"
    assert deployed(cluster)["spec"]["minReadySeconds"] == 5
    status = cluster.service.status
    assert (status.current_revision, status.update_revision) == (name_of(cluster, "old:1"), name_of(cluster, "new:2"))
    assert status.last_good_revision == name_of(cluster, "old:1")
    assert cluster.says("Progressing") == ("True", "RollingOut")
    cluster.now += timedelta(seconds=7)
    cluster.serve()
    assert await cluster.reconcile() == ["status", "status"]
    status = cluster.service.status
    assert status.last_good_revision == status.current_revision == status.update_revision == name_of(cluster, "new:2")
    assert cluster.says("Ready") == ("True", "Serving")
    assert [reason for _, reason in cluster.events] == ["PrePulling", "RollingOut", "Verifying", "Serving", "Complete"]
    assert {kind for kind, _ in cluster.events} == {"Normal"}
    assert cluster.stages == ["verify", "pre-pull", "update", "verify"]
    assert cluster.service.status.condition("RolledBack") is None
    cluster.restarted()
    assert await cluster.reconcile() == []


async def test_a_change_that_needs_no_other_image_brings_none() -> None:
    cluster = await good(prePull=True)
    cluster.want(**OLD, engine={"args": ["--max-batch", "4"]})
    assert "create pods" not in await cluster.reconcile()
    assert cluster.says("Progressing") == ("True", "RollingOut")


@pytest.mark.parametrize(
    "status",
    [
        {"containerStatuses": [{"name": "image-0", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
        {"phase": "Failed", "reason": "Evicted", "message": "disk"},
    ],
)
async def test_a_node_without_the_image_is_named_and_holds_nothing_up(status: dict[str, Any]) -> None:
    cluster = await good(prePull=True)
    cluster.want(**NEW)
    await cluster.reconcile()
    pulled(cluster, **status)
    assert "apply deployments" in await cluster.reconcile()
    assert ("Warning", "PrePullFailed") in cluster.events
    assert pulling(cluster) == []


async def test_a_pull_that_never_ends_is_waited_for_until_the_deadline() -> None:
    cluster = await good(prePull=True, progressDeadlineSeconds=30)
    cluster.want(**NEW)
    await cluster.reconcile()
    wait = (await cluster.reconciler.reconcile(KEY)).requeue_after
    assert wait
    cluster.now += timedelta(seconds=wait - 2)
    await cluster.reconcile()
    assert cluster.image == "old:1"
    cluster.now += timedelta(seconds=2)
    await cluster.reconcile()
    assert cluster.image == "new:2"


async def test_pods_that_may_not_be_made_hold_nothing_up() -> None:
    cluster = await good(prePull=True)
    cluster.refusals["pods"] = ApiError(403, "Forbidden", "exceeded quota")
    cluster.want(**NEW)
    await cluster.reconcile()
    assert cluster.image == "new:2"
    assert ("Warning", "PrePullFailed") in cluster.events


async def test_past_the_deadline_the_last_good_revision_takes_its_place() -> None:
    cluster = await good()
    cluster.want(**NEW)
    await cluster.reconcile()
    assert cluster.image == "new:2"
    crash(cluster)
    assert await cluster.reconcile() == ["patch controllerrevisions", "apply deployments", "status"]
    assert cluster.image == "old:1"
    assert cluster.says("Progressing") == ("True", "RollingBack")
    cluster.serve()
    assert await cluster.reconcile() == ["status"]
    assert cluster.says("RolledBack") == ("True", "CrashLoopBackOff")
    condition = cluster.service.status.condition("RolledBack")
    assert condition
    assert "pod new-1: container server: cannot import torch (exit code 1)" in condition.message
    assert cluster.says("Ready") == ("False", "RolledBack")
    assert cluster.says("Available")[0] == "True"
    assert cluster.says("Progressing") == ("False", "RolledBack")
    status = cluster.service.status
    assert (status.update_revision, status.current_revision) == (name_of(cluster, "new:2"), name_of(cluster, "old:1"))
    assert status.environment
    assert status.environment.image == "old:1"
    assert [reason for _, reason in cluster.events] == ["RollingOut", "RolledBack", "RollingBack"]
    assert cluster.rollbacks == 1
    cluster.now += timedelta(days=2)
    cluster.restarted()
    assert await cluster.reconcile() == [], "it is not tried again"
    cluster.want(**NEW, replicas=3)
    await cluster.reconcile()
    assert cluster.image == "old:1", "nor when it is scaled"
    assert deployed(cluster)["spec"]["replicas"] == 3


async def test_ready_pods_that_answer_wrongly_give_way_at_once() -> None:
    cluster = await good()
    cluster.want(**NEW)
    await cluster.reconcile()
    cluster.verdict = "wrong"
    labels = deployed(cluster)["spec"]["template"]["metadata"]["labels"]
    counts = {"replicas": 2, "updatedReplicas": 1, "readyReplicas": 2, "availableReplicas": 1}
    old = [raw for (plural, _), raw in cluster.objects.items() if plural == "pods"]
    cluster.serve(**counts)
    cluster.objects["pods", "old"] = old[0]
    cluster.put_pod("demo-2-0", labels)
    for _ in range(4):
        assert cluster.image == "new:2"
        await cluster.reconcile()
        observed(cluster)
        cluster.now += timedelta(seconds=1)
    assert cluster.asked >= 3
    assert cluster.image == "old:1"
    assert cluster.says("RolledBack") == ("True", "VerificationFailed")
    assert "answers GET /verifyz with HTTP 500" in str(cluster.service.status.condition("RolledBack"))


async def test_pods_that_are_there_and_then_die_give_way() -> None:
    cluster = await good(progressDeadlineSeconds=60)
    cluster.want(**NEW)
    await cluster.reconcile()
    cluster.serve()
    cluster.drop_pods()
    labels = deployed(cluster)["spec"]["template"]["metadata"]["labels"]
    cluster.put_pod("demo-2-0", labels, ready=False, **CRASHED)
    deployed(cluster)["status"].update(readyReplicas=0, availableReplicas=0)
    await cluster.reconcile()
    assert cluster.image == "new:2"
    wait = (await cluster.reconciler.reconcile(KEY)).requeue_after
    assert wait == 60
    cluster.now += timedelta(seconds=60)
    await cluster.reconcile()
    assert cluster.image == "old:1"
    assert cluster.says("RolledBack") == ("True", "CrashLoopBackOff")


async def test_pods_that_never_find_the_time_to_answer_give_way_at_the_deadline() -> None:
    cluster = await good(progressDeadlineSeconds=60)
    cluster.want(**NEW)
    await cluster.reconcile()
    cluster.serve()
    cluster.verdict = "busy"
    for _ in range(59):
        await cluster.reconcile()
        cluster.now += timedelta(seconds=1)
    assert cluster.says("Progressing") == ("True", "Verifying")
    cluster.now += timedelta(seconds=1)
    await cluster.reconcile()
    assert cluster.image == "old:1"


async def test_pods_that_cannot_be_reached_count_by_being_ready() -> None:
    cluster = await good()
    cluster.verdict = "unreachable"
    cluster.want(**NEW)
    await cluster.reconcile()
    cluster.serve()
    for _ in range(3):
        assert cluster.service.status.last_good_revision == name_of(cluster, "old:1")
        await cluster.reconcile()
        cluster.now += timedelta(seconds=1)
    assert cluster.service.status.last_good_revision == name_of(cluster, "new:2")


async def test_a_first_revision_that_fails_has_nothing_to_go_back_to_and_is_tried_on() -> None:
    cluster = Cluster(**OLD)
    await cluster.reconcile()
    cluster.late()
    deployed(cluster)["status"].update(replicas=1, readyReplicas=0, availableReplicas=0)
    await cluster.reconcile()
    assert cluster.says("Ready") == ("False", "ProgressDeadlineExceeded")
    condition = cluster.service.status.condition("Progressing")
    assert condition
    assert condition.message.endswith("no revision was good before, so there is nothing to go back to")
    assert by_image(cluster)["old:1"].metadata.annotations == {}
    cluster.serve()
    await cluster.reconcile()
    assert cluster.service.status.last_good_revision


async def test_on_failure_pause_holds_the_rollout_until_it_is_asked_for_again() -> None:
    cluster = await good(onFailure="Pause")
    cluster.want(**NEW)
    await cluster.reconcile()
    crash(cluster)
    assert await cluster.reconcile() == ["patch controllerrevisions", "apply deployments", "status"]
    assert cluster.image == "new:2"
    assert deployed(cluster)["spec"]["paused"] is True
    crash(cluster)
    await cluster.reconcile()
    assert cluster.says("Ready") == ("False", "CrashLoopBackOff")
    assert "its rollout is held (spec.rollout.onFailure)" in str(cluster.service.status.condition("Ready"))
    assert cluster.service.status.condition("RolledBack") is None
    assert cluster.rollbacks == 0
    cluster.now += timedelta(seconds=5)
    cluster.want(**NEW, model={"source": "hf://org/other"})
    await cluster.reconcile()
    assert "paused" not in deployed(cluster)["spec"]
    cluster.serve()
    await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "Serving")


async def test_from_pause_to_rollback_it_goes_back_at_once() -> None:
    cluster = await good(onFailure="Pause")
    cluster.want(**NEW)
    await cluster.reconcile()
    crash(cluster)
    await cluster.reconcile()
    cluster.rollout = {"prePull": False, "onFailure": "Rollback"}
    cluster.want(**NEW)
    await cluster.reconcile()
    assert cluster.image == "old:1"


@pytest.mark.parametrize(
    "again",
    [
        retry,
        lambda cluster: cluster.want(**NEW, rollout={"prePull": False, "progressDeadlineSeconds": 1200}),
    ],
    ids=["annotation", "longer deadline"],
)
async def test_what_failed_is_tried_again_when_asked_for(again: Callable[[Cluster], None]) -> None:
    cluster = await rolled_back()
    cluster.now += timedelta(seconds=90)
    again(cluster)
    await cluster.reconcile()
    assert cluster.image == "new:2"
    assert cluster.service.status.condition("RolledBack") is None
    cluster.now += timedelta(seconds=90)
    crash(cluster)
    await cluster.reconcile()
    assert cluster.image == "old:1", "it may fail again"
    cluster.serve()
    await cluster.reconcile()
    assert cluster.says("RolledBack") == ("True", "CrashLoopBackOff")
    assert cluster.rollbacks == 2


async def test_what_was_asked_for_again_and_is_good_stays_so_whatever_becomes_of_the_asking() -> None:
    cluster = await rolled_back()
    cluster.now += timedelta(seconds=90)
    retry(cluster)
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "Serving")
    cluster.want(**NEW)  # without the annotation
    await cluster.reconcile()
    assert cluster.image == "new:2"
    assert cluster.says("Ready") == ("True", "Serving")


async def test_while_the_environment_is_mended_what_failed_is_not_tried_again() -> None:
    cluster = Cluster(environment=INLINE)
    await cluster.reconcile()
    cluster.built("demo", OLDER)
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    cluster.want(environment={"conda": {**CONDA, "dependencies": ["python=3.12"]}})
    await cluster.reconcile()
    cluster.built("demo", BUILT)
    await cluster.reconcile()
    crash(cluster)
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    assert cluster.image == OLDER
    cluster.want(environment={"conda": {**CONDA, "dependencies": ["python=3.13"]}})
    await cluster.reconcile()
    assert cluster.says("EnvironmentReady") == ("Unknown", "Locking")
    assert cluster.image == OLDER
    cluster.built("demo", MENDED)
    await cluster.reconcile()
    assert cluster.image == MENDED


async def test_a_deadline_that_another_revision_missed_is_not_this_ones() -> None:
    """A Deployment that goes back to a template that it knows keeps saying so until there is progress."""
    cluster = await good(onFailure="Pause")
    cluster.want(**OTHER)
    await cluster.reconcile()
    cluster.want(**NEW)
    await cluster.reconcile()
    crash(cluster)
    await cluster.reconcile()
    assert cluster.says("Ready") == ("False", "CrashLoopBackOff")
    cluster.now += timedelta(seconds=700)
    cluster.want(**OTHER)
    await cluster.reconcile()
    stale = deployed(cluster)["status"]
    stale["observedGeneration"] = deployed(cluster)["metadata"]["generation"]
    assert stale["conditions"][0]["reason"] == "ProgressDeadlineExceeded"
    labels = deployed(cluster)["spec"]["template"]["metadata"]["labels"]
    cluster.put_pod("other-1", labels, ready=False)
    await cluster.reconcile()
    assert cluster.says("Progressing") == ("True", "RollingOut")
    assert by_image(cluster)["other:3"].metadata.annotations.keys() == {names.ANNOTATION_ASKED_AT}
    cluster.now += timedelta(seconds=600)
    await cluster.reconcile()
    assert names.ANNOTATION_FAILED in by_image(cluster)["other:3"].metadata.annotations, "it has a time of its own"


async def test_scaling_is_no_rollout() -> None:
    cluster = await good()
    cluster.want(**OLD, replicas=3)
    assert await cluster.reconcile() == ["apply deployments", "status"]
    cluster.serve()
    await cluster.reconcile()
    assert "RollingOut" not in [reason for _, reason in cluster.events]
    assert cluster.stages == ["verify"]


async def test_a_short_deadline_leaves_time_to_be_ready_in() -> None:
    cluster = await good(progressDeadlineSeconds=3)
    cluster.want(**NEW)
    await cluster.reconcile()
    assert deployed(cluster)["spec"]["minReadySeconds"] == 2


async def test_revisions_that_nobody_controls_any_more_are_adopted() -> None:
    cluster = await good()
    raw = cluster.objects["controllerrevisions", name_of(cluster, "old:1")]
    raw["metadata"]["ownerReferences"] = []
    assert await cluster.reconcile() == ["patch controllerrevisions"]
    raw = cluster.objects["controllerrevisions", name_of(cluster, "old:1")]
    assert raw["metadata"]["ownerReferences"][0]["uid"] == cluster.service.metadata.uid


async def test_a_server_that_hangs_takes_no_other_pods_place() -> None:
    cluster = await good(progressDeadlineSeconds=60)
    await in_doubt(cluster)
    deployed(cluster)["status"]["conditions"] = [{**PROGRESS, "status": "Unknown", "reason": "DeploymentPaused"}]
    for _ in range(7):
        observed(cluster)
        await cluster.reconcile()
        cluster.now += timedelta(seconds=10)
    assert cluster.image == "old:1"
    assert "paused" not in deployed(cluster)["spec"]


async def test_a_slow_first_token_holds_the_rollout_until_it_is_there() -> None:
    cluster = await good()
    await in_doubt(cluster)
    cluster.verdict = "right"
    observed(cluster)
    await cluster.reconcile()
    assert "paused" not in deployed(cluster)["spec"]


async def test_what_is_held_stays_so_while_the_images_of_what_mends_it_come() -> None:
    cluster = await good(onFailure="Pause", prePull=True)
    cluster.want(**NEW)
    await cluster.reconcile()
    pulled(cluster)
    await cluster.reconcile()
    crash(cluster)
    await cluster.reconcile()
    assert deployed(cluster)["spec"]["paused"] is True
    cluster.want(**OTHER)
    await cluster.reconcile()
    assert deployed(cluster)["spec"]["paused"] is True
    pulled(cluster)
    await cluster.reconcile()
    assert cluster.image == "other:3"
    assert "paused" not in deployed(cluster)["spec"]


async def test_refused_pods_of_a_pre_pull_need_no_second_look() -> None:
    cluster = await good(prePull=True)
    cluster.refusals["pods"] = ApiError(403, "Forbidden", "exceeded quota")
    cluster.want(**NEW)
    assert (await cluster.reconciler.reconcile(KEY)).requeue_after == 0.0


async def test_a_server_that_dies_of_every_request_is_not_good() -> None:
    cluster = await good()
    cluster.want(**NEW)
    await cluster.reconcile()
    cluster.verdict = "unreachable"
    for restart in range(5):
        cluster.serve()
        again = {"containerStatuses": [{"name": "server", "restartCount": restart, "state": {"running": {}}}]}
        for (plural, _), raw in cluster.objects.items():
            if plural == "pods":
                raw["metadata"]["uid"] = "the same"
                raw["status"].update(again)
        await cluster.reconcile()
        cluster.now += timedelta(seconds=30)
    assert cluster.service.status.last_good_revision == name_of(cluster, "old:1")


async def test_without_its_status_what_runs_stays() -> None:
    cluster = await rolled_back()
    cluster.keep(msgspec.structs.replace(cluster.service, status=TokenServiceStatus()))
    await cluster.reconcile()
    assert cluster.image == "old:1"
    assert cluster.service.status.last_good_revision == name_of(cluster, "old:1")


async def test_without_anything_to_go_back_to_what_failed_is_tried_on() -> None:
    cluster = await rolled_back()
    del cluster.objects["controllerrevisions", name_of(cluster, "old:1")]
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "Serving")
    assert cluster.service.status.last_good_revision == name_of(cluster, "new:2")


async def test_a_pod_that_is_ready_again_and_again_and_dies_each_time_fails_in_the_end() -> None:
    cluster = await good()
    cluster.want(**NEW)
    await cluster.reconcile()
    labels = deployed(cluster)["spec"]["template"]["metadata"]["labels"]
    born = stamp(cluster.now)
    for number in range(8):
        up = number % 2
        observed(cluster)
        counts = {"replicas": 2, "updatedReplicas": 1, "readyReplicas": 1 + up, "availableReplicas": 1}
        progress = {**PROGRESS, "reason": "ReplicaSetUpdated", "lastUpdateTime": stamp(cluster.now)}
        deployed(cluster)["status"].update(counts, conditions=[progress])
        died = {"name": "server", "restartCount": number, "lastState": {"terminated": {"exitCode": 1}}}
        cluster.put_pod("new-1", labels, ready=bool(up), containerStatuses=[died])
        pod = cluster.objects["pods", "new-1"]
        pod["metadata"]["creationTimestamp"] = born
        pod["status"]["conditions"][0]["lastTransitionTime"] = stamp(cluster.now)
        await cluster.reconciler.reconcile(KEY)
        cluster.now += timedelta(seconds=3 if up else 290)
    assert cluster.image == "old:1"


async def test_a_pod_of_a_pool_has_its_time_from_when_it_serves() -> None:
    """Of a revision that had no replica for long; the pod was there before it."""
    cluster = await good(progressDeadlineSeconds=60)
    cluster.want(**NEW)
    await cluster.reconcile()
    observed(cluster)
    deployed(cluster)["status"]["conditions"] = [{**PROGRESS, "lastUpdateTime": stamp(cluster.now)}]
    cluster.now += timedelta(hours=1)
    labels = deployed(cluster)["spec"]["template"]["metadata"]["labels"]
    cluster.put_pod("new-1", labels, ready=False)
    metadata = cluster.objects["pods", "new-1"]["metadata"]
    metadata["creationTimestamp"] = stamp(cluster.now - timedelta(hours=2))
    metadata["annotations"] = {names.ANNOTATION_SERVED_AT: stamp(cluster.now)}
    for seconds in (0, 59):
        cluster.now += timedelta(seconds=seconds)
        await cluster.reconciler.reconcile(KEY)
        assert cluster.image == "new:2"
    cluster.now += timedelta(seconds=1)
    await cluster.reconcile()
    assert cluster.image == "old:1"


async def late_pod(*, restarts: int, died: float | None, token: bool = False) -> str | None:
    """The image that is left when a pod of a long rollout is not Ready, which has died so often and so long ago."""
    cluster = await good(progressDeadlineSeconds=600)
    cluster.want(replicas=6, **NEW)
    await cluster.reconcile()
    labels = deployed(cluster)["spec"]["template"]["metadata"]["labels"]
    observed(cluster)
    counts = {"replicas": 7, "updatedReplicas": 4, "readyReplicas": 6, "availableReplicas": 6}
    cluster.put_pod("new-1", labels, ready=token)
    pod = cluster.objects["pods", "new-1"]
    pod["metadata"]["creationTimestamp"] = stamp(cluster.now)
    if token:
        await cluster.reconciler.reconcile(KEY)
    cluster.now += timedelta(minutes=11)
    ended = {} if died is None else {"finishedAt": stamp(cluster.now - timedelta(seconds=died))}
    last = {"lastState": {"terminated": {"exitCode": 137, **ended}}} if restarts else {}
    pod["status"]["containerStatuses"] = [{"name": "server", "restartCount": restarts, "state": {}, **last}]
    fell = stamp(cluster.now - timedelta(seconds=5))
    pod["status"]["conditions"] = [{"type": "Ready", "status": "False", "lastTransitionTime": fell}]
    reason = "DeploymentPaused" if token else "ReplicaSetUpdated"
    progress = {**PROGRESS, "reason": reason, "lastUpdateTime": stamp(cluster.now - timedelta(seconds=5))}
    deployed(cluster)["status"].update(counts, conditions=[progress])
    observed(cluster)
    await cluster.reconciler.reconcile(KEY)
    await cluster.reconciler.reconcile(KEY)
    return cluster.image


async def test_one_death_late_in_a_long_rollout_is_no_failure() -> None:
    assert await late_pod(restarts=1, died=5) == "new:2"
    assert await late_pod(restarts=2, died=599) == "new:2"
    assert await late_pod(restarts=1, died=600) == "old:1"
    assert await late_pod(restarts=3, died=5) == "old:1"
    assert await late_pod(restarts=1, died=None) == "old:1"


async def test_a_pod_that_has_given_a_token_may_be_unready_for_a_while() -> None:
    assert await late_pod(restarts=0, died=None, token=True) == "new:2"


async def test_a_deadline_missed_while_images_came_is_not_that_of_what_comes() -> None:
    cluster = await good(prePull=True)
    for spec in (OTHER, NEW):
        cluster.want(**spec)
        await cluster.reconcile()
        pulled(cluster)
        await cluster.reconcile()
        cluster.now += timedelta(seconds=7)
    cluster.want(**OTHER)
    await cluster.reconcile()
    cluster.now += timedelta(seconds=100)
    cluster.late()
    stale = deployed(cluster)["status"]
    await cluster.reconcile()
    pulled(cluster)
    await cluster.reconcile()
    assert cluster.image == "other:3"
    stale.update(updatedReplicas=0)
    observed(cluster)
    cluster.now += timedelta(seconds=1)
    await cluster.reconcile()
    assert cluster.image == "other:3"


async def test_a_busy_moment_after_the_operator_was_away_is_no_failure() -> None:
    cluster = await good()
    cluster.want(**NEW)
    await cluster.reconcile()
    cluster.serve()
    cluster.restarted()
    cluster.now += timedelta(hours=1)
    cluster.verdict = "busy"
    for _ in range(4):
        await cluster.reconcile()
        cluster.now += timedelta(seconds=1)
    assert cluster.image == "new:2"
    cluster.verdict = "right"
    cluster.now += timedelta(seconds=10)
    await cluster.reconcile()
    assert cluster.service.status.last_good_revision == name_of(cluster, "new:2")


async def test_pods_that_cannot_be_made_when_it_is_tried_again_fail_it_again() -> None:
    cluster = await rolled_back()
    cluster.now += timedelta(seconds=90)
    retry(cluster)
    await cluster.reconcile()
    assert cluster.image == "new:2"
    observed(cluster)
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
    before = {**PROGRESS, "lastUpdateTime": stamp(cluster.now - timedelta(seconds=60))}
    refused["lastTransitionTime"] = stamp(cluster.now)
    deployed(cluster)["status"].update(updatedReplicas=0, conditions=[before, refused])
    wait = (await cluster.reconciler.reconcile(KEY)).requeue_after
    assert wait == 600
    cluster.now += timedelta(seconds=wait)
    await cluster.reconcile()
    assert cluster.image == "old:1"
    assert cluster.says("RolledBack") == ("True", "FailedCreate")


@pytest.mark.parametrize("reason", ["Locking", "Unsolvable"])
async def test_half_an_edit_is_not_rolled_out(reason: str) -> None:
    cluster = Cluster(environment=INLINE)
    await cluster.reconcile()
    cluster.built("demo", OLDER)
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    changed = {"conda": {**CONDA, "dependencies": ["python=3.12"]}}
    cluster.want(environment=changed, engine={"args": ["--needs-the-new-package"]})
    await cluster.reconcile()
    if reason != "Locking":
        found = environment("demo", reason=reason, image=OLDER, uid=UID, generation=2, observed=2)
        raw = cluster.objects["condaenvironments", "demo"]
        raw["status"] = {**msgspec.to_builtins(found.status), "observedGeneration": raw["metadata"]["generation"]}
        await cluster.reconcile()
        assert cluster.says("EnvironmentReady") == ("False", reason)
    assert "args" not in deployed(cluster)["spec"]["template"]["spec"]["containers"][0]
    assert cluster.says("Available")[0] == "True"
    cluster.built("demo")
    await cluster.reconcile()
    assert deployed(cluster)["spec"]["template"]["spec"]["containers"][0]["args"] == ["--needs-the-new-package"]
    assert cluster.image == BUILT


async def test_scaling_what_was_rolled_back_is_no_rolling_back() -> None:
    cluster = await rolled_back()
    cluster.events.clear()
    cluster.want(**NEW, replicas=3)
    await cluster.reconcile()
    assert cluster.says("Progressing") == ("False", "RolledBack")
    assert cluster.events == []


async def test_back_to_what_runs_ends_at_once() -> None:
    cluster = await good(prePull=True)
    cluster.want(**NEW)
    await cluster.reconcile()
    pulled(cluster)
    await cluster.reconcile()
    cluster.late()
    cluster.want(**OLD)
    assert await cluster.reconcile() == ["patch controllerrevisions", "apply deployments", "status"]
    assert cluster.image == "old:1"
    assert pulling(cluster) == []
    cluster.serve()
    asked = cluster.asked
    await cluster.reconcile()
    assert cluster.asked == asked, "it was good before"
    assert cluster.says("Progressing") == ("False", "Complete")
    assert by_image(cluster)["old:1"].revision == 3


async def test_back_after_a_rollback_is_to_what_runs() -> None:
    cluster = await rolled_back()
    cluster.want(**OLD)
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "Serving")
    assert cluster.service.status.condition("RolledBack") is None
    cluster.want(**NEW)
    await cluster.reconcile()
    assert cluster.image == "new:2", "asked for anew, it is tried anew"


async def test_a_second_change_in_the_middle_ends_in_the_newest() -> None:
    cluster = await good(prePull=True)
    cluster.want(**NEW)
    await cluster.reconcile()
    cluster.want(**OTHER)
    await cluster.reconcile()
    assert cluster.image == "old:1"
    assert len(pulling(cluster)) == 1, "what the first change brought is not waited for"
    pulled(cluster)
    await cluster.reconcile()
    assert cluster.image == "other:3"
    cluster.serve()
    await cluster.reconcile()
    assert cluster.service.status.last_good_revision == name_of(cluster, "other:3")
    assert by_image(cluster)["new:2"].metadata.annotations == {}


async def test_a_pause_holds_at_any_point() -> None:
    cluster = await good(prePull=True)
    cluster.want(**NEW)
    await cluster.reconcile()
    cluster.want(**NEW, paused=True)
    pulled(cluster)
    await cluster.reconcile()
    assert cluster.image == "old:1"
    assert cluster.says("Ready") == ("False", "Paused")
    cluster.want(**NEW, paused=True, replicas=2)
    await cluster.reconcile()
    assert deployed(cluster)["spec"]["replicas"] == 2, "scaling goes on"
    cluster.want(**NEW, replicas=2)
    await cluster.reconcile()
    pulled(cluster)
    await cluster.reconcile()
    assert cluster.image == "new:2"
    crash(cluster)
    cluster.want(**NEW, replicas=2, paused=True)
    await cluster.reconcile()
    crash(cluster)
    await cluster.reconcile()
    assert cluster.image == "new:2", "it fails, and stays"
    assert deployed(cluster)["spec"]["paused"] is True


async def test_scaled_to_zero_nothing_is_verified_and_nothing_fails() -> None:
    cluster = await good(progressDeadlineSeconds=120)
    cluster.want(**NEW, replicas=0)
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "ScaledToZero")
    assert cluster.says("Progressing") == ("False", "Complete")
    assert cluster.service.status.last_good_revision == name_of(cluster, "old:1")
    cluster.now += timedelta(days=1)
    cluster.want(**NEW, replicas=1)
    await cluster.reconcile()
    deployed(cluster)["status"].update(observedGeneration=deployed(cluster)["metadata"]["generation"], replicas=1)
    cluster.put_pod("new-1", deployed(cluster)["spec"]["template"]["metadata"]["labels"], ready=False)
    await cluster.reconcile()
    assert cluster.image == "new:2", "its pods get their time"
    cluster.serve()
    await cluster.reconcile()
    assert cluster.service.status.last_good_revision == name_of(cluster, "new:2")


async def test_another_version_of_the_operator_rolls_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = await good()
    monkeypatch.setattr(protocol, "DRAIN_DELAY_SECONDS", 9)
    cluster.restarted()
    before = deployed(cluster)["spec"]["template"]
    await cluster.reconcile()
    assert deployed(cluster)["spec"]["template"] == before
    cluster.want(**NEW)
    await cluster.reconcile()
    env = deployed(cluster)["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": protocol.VAR_DRAIN_DELAY_SECONDS, "value": "9"} in env, "the next change brings it"


async def test_of_the_history_the_newest_are_kept() -> None:
    cluster = await good()
    for number in range(KEPT + 5):
        cluster.want(environment={"image": {"reference": f"image:{number}"}})
        await cluster.reconcile()
        if number < 2:
            cluster.serve()
            await cluster.reconcile()
    found = by_image(cluster)
    assert len(found) == KEPT
    assert "image:1" in found, "the last good one stays"
    assert f"image:{KEPT + 4}" in found
    assert "old:1" not in found


async def test_revisions_that_somebody_deletes_are_made_again_and_nothing_rolls() -> None:
    cluster = await good()
    template = deployed(cluster)["spec"]["template"]
    for key in [key for key in cluster.objects if key[0] == "controllerrevisions"]:
        del cluster.objects[key]
    await cluster.reconcile()
    assert deployed(cluster)["spec"]["template"] == template
    assert cluster.service.status.last_good_revision == name_of(cluster, "old:1")


async def life(crash_at: int | None, fails: bool) -> tuple[Cluster, int, int]:
    """A rollout, or one with its rollback; the operator dies at the write of that number of every step."""
    cluster = await good(prePull=True)
    steps: list[Callable[[], None]] = [
        lambda: cluster.want(**NEW),
        lambda: pulled(cluster),
        (lambda: crash(cluster)) if fails else cluster.serve,
        cluster.serve,
        lambda: cluster.want(**OTHER),
        lambda: pulled(cluster),
        cluster.serve,
    ]

    def whole() -> None:
        assert cluster.image in ("old:1", "new:2", "other:3")

    crashes, most = await cluster.live(steps, crash_at, whole)
    return cluster, crashes, most


@pytest.mark.parametrize("fails", [False, True], ids=["rollout", "rollback"])
async def test_a_crash_at_any_write_is_made_up_for(fails: bool) -> None:
    told, _, most = await life(None, fails)
    assert most >= 3
    for crash_at in range(1, most + 1):
        cluster, crashes, _ = await life(crash_at, fails)
        assert crashes
        assert {key: raw.get("spec") for key, raw in cluster.objects.items()} == {
            key: raw.get("spec") for key, raw in told.objects.items()
        }
        assert cluster.service.status == told.service.status
