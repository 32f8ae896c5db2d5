"""Bringing images to nodes: which nodes, how many at a time, and what kubelets tell of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api import names
from tokenservice.api.meta import Pod
from tokenservice.nodes import prepull
from tokenservice.nodes.prepull import PARALLEL, Pulls, choose, labels, pulls
from tokenservice.services import revisions

from tests.unit.pods.builders import pod_schema
from tests.unit.services.builders import NOW, UID, children, node, pod, revision, service

SECONDS = 600
GIB = 1024**3
IMAGE = "registry.example.com/serving:2"
PULL_ERROR = f'failed to pull and unpack image "{IMAGE}": not found'
GONE = "The container could not be located when the pod was terminated"


# -- which nodes


def on(*nodes: str) -> list[Pod]:
    return [pod(f"demo-{i}", node=name) for i, name in enumerate(nodes)]


def test_nodes_with_pods_need_the_images_and_as_many_others_as_may_come_up_beside_them() -> None:
    nodes = [node(name) for name in "dcba"]
    assert choose(on("c"), nodes, {}, 0) == {"c": ""}
    assert choose(on("c"), nodes, {}, 1) == {"c": "", "a": ""}
    assert choose(on("c", "c"), nodes, {}, 2) == {"c": "", "a": "", "b": ""}
    assert choose(on("c"), nodes, {}, 9) == dict.fromkeys("abcd", "")
    assert choose([], nodes, {}, 1) == {"a": ""}


def test_a_pod_without_a_node_needs_none() -> None:
    assert choose([pod("demo-1")], [node("a")], {}, 0) == {}


def test_where_nodes_cannot_be_seen_those_with_pods_are_taken_as_they_are() -> None:
    assert choose(on("a", "b"), [], {"nodeSelector": {"zone": "x"}}, 5, 10**12) == {"a": "", "b": ""}


def test_a_node_that_has_left_the_cluster_is_left_out() -> None:
    assert choose(on("a", "gone"), [node("a")], {}, 0) == {"a": ""}
    assert choose(on("gone"), [node("a")], {}, 0) == {}


def test_a_node_with_pods_that_is_unfit_is_named_with_the_reason() -> None:
    nodes = [
        node("a", unschedulable=True),
        node("b", ready=False),
        node("c", pressure=True),
        node("d", allocatable={"ephemeral-storage": "100Gi"}),
        node("e"),
    ]
    assert choose(on(*"abcde"), nodes, {}, 0, 80 * 10**9) == {
        "a": "it is cordoned",
        "b": "it is not Ready",
        "c": "its disk is full (DiskPressure)",
        "d": "its disk is too small: 107 GB for images of about 240 GB",
        "e": "",
    }


def test_others_are_fit_and_would_take_the_pod() -> None:
    gpu = {"nvidia.com/gpu": "1"}
    nodes = [
        node("a", unschedulable=True, allocatable=gpu),
        node("b", pressure=True, allocatable=gpu),
        node("c"),
        node("d", allocatable=gpu, taints=[{"key": "team", "effect": "NoSchedule"}]),
        node("e", allocatable=gpu),
        node("f", allocatable={**gpu, "ephemeral-storage": "1Gi"}),
        node("g", allocatable=gpu),
    ]
    asked = {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}
    assert choose([], nodes, asked, 9, 10 * GIB) == {"e": "", "g": ""}
    assert choose(on("c"), nodes, asked, 1) == {"e": ""}, "nor do those with pods, if they would take no new one"


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)), st.integers(0, 25))
def test_no_node_is_chosen_that_there_is_not_and_no_more_others_than_may_come_up(
    hosts: set[int], there: set[int], surge: int
) -> None:
    found = choose(on(*(f"n{i}" for i in hosts)), [node(f"n{i}") for i in there], {}, surge)
    if not there:
        assert set(found) == {f"n{i}" for i in hosts}
        return
    assert {f"n{i}" for i in hosts & there} <= set(found) <= {f"n{i}" for i in there}
    assert len(found) - len(hosts & there) == min(surge, len(there - hosts))


# -- how far a node is


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(reason: str, code: int = 0, message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


RUNNING = {"running": {"startedAt": "2026-03-01T11:59:59Z"}}
CREATING = waiting("ContainerCreating")
DONE = ended("Completed")


def stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def pull(where: str, *states: dict[str, Any], age: float = 0, deleted: bool = False, **status: Any) -> Pod:
    statuses = [{"name": f"image-{i}", "state": state} for i, state in enumerate(states)]
    created = stamp(NOW - timedelta(seconds=age))
    return pod(
        f"demo-pull-{where}",
        created=created,
        deleted=deleted,
        node=where,
        labels=labels("demo", "1a2b3c4d5e"),
        containerStatuses=statuses,
        **{"phase": "Pending", **status},
    )


def told(*pods: Pod, wanted: Mapping[str, str] | None = None, **refused: str) -> Pulls:
    """What is told of node `n`, or of those that are wanted."""
    return pulls(wanted or {"n": ""}, pods, refused, NOW, seconds=SECONDS)


UNDER_WAY: dict[str, Pod] = {
    "nobody has looked at it yet": pull("n"),
    "being created": pull("n", CREATING),
    "waits for nothing that it tells": pull("n", waiting("")),
    "says nothing of its state": pull("n", {}),
    "initializing": pull("n", waiting("PodInitializing")),
    "one image of two is there": pull("n", DONE, CREATING),
    "one image of two is there, not able to run": pull("n", waiting("RunContainerError"), CREATING),
    "at the last moment": pull("n", CREATING, age=SECONDS),
}


@pytest.mark.parametrize("found", UNDER_WAY.values(), ids=UNDER_WAY)
def test_a_node_is_waited_for(found: Pod) -> None:
    assert told(found) == Pulls(waiting=("n",))


THERE: dict[str, Pod] = {
    "`true` ran": pull("n", DONE, phase="Succeeded"),
    "`true` runs": pull("n", RUNNING, phase="Running"),
    "both ran": pull("n", DONE, DONE, phase="Succeeded"),
    "there is no `true` in the image": pull(
        "n", waiting("RunContainerError", 'exec: "true": executable file not found in $PATH')
    ),
    "there is no `true` in the image, told later": pull(
        "n", ended("StartError", 128, 'exec: "true": executable file not found in $PATH'), phase="Failed"
    ),
    "the image is for another architecture": pull("n", ended("Error", 255), phase="Failed"),
    "the runtime refuses the container": pull("n", waiting("CreateContainerError", "no such device")),
    "the image runs as root, which it may not": pull(
        "n", waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")
    ),
    "it crashes": pull("n", waiting("CrashLoopBackOff", "back-off 10s restarting failed container")),
    "too little memory": pull("n", ended("OOMKilled", 137), phase="Failed"),
    "two images, each in its own way": pull("n", waiting("RunContainerError"), DONE),
    "long after its time": pull("n", DONE, age=10 * SECONDS, phase="Succeeded"),
    "evicted once they were there": pull("n", DONE, phase="Failed", reason="Evicted", message="low on memory"),
}


@pytest.mark.parametrize("found", THERE.values(), ids=THERE)
def test_a_node_has_the_images(found: Pod) -> None:
    assert told(found) == Pulls(done=("n",))


FAILED: dict[str, tuple[Pod, str]] = {
    "no such image": (pull("n", waiting("ErrImagePull", PULL_ERROR)), f"ImagePullBackOff: {PULL_ERROR}"),
    "no such image, later": (pull("n", waiting("ImagePullBackOff", PULL_ERROR)), f"ImagePullBackOff: {PULL_ERROR}"),
    "one image of two": (
        pull("n", DONE, waiting("ErrImagePull", PULL_ERROR)),
        f"ImagePullBackOff: {PULL_ERROR}",
    ),
    "one image of two, the other is under way": (
        pull("n", CREATING, waiting("ErrImagePull", PULL_ERROR)),
        f"ImagePullBackOff: {PULL_ERROR}",
    ),
    "no name of an image": (pull("n", waiting("InvalidImageName", "a::b")), "InvalidImageName: a::b"),
    "its registry is down": (pull("n", waiting("RegistryUnavailable", "503")), "RegistryUnavailable: 503"),
    "its signature is wrong": (
        pull("n", waiting("SignatureValidationFailed", "no key")),
        "SignatureValidationFailed: no key",
    ),
    "it must not pull": (pull("n", waiting("ErrImageNeverPull", "not present")), "ErrImageNeverPull: not present"),
    "a reason of a later version": (pull("n", waiting("Jammed", "\n  by a queue\nand more")), "Jammed: by a queue"),
    "evicted before anything began": (
        pull("n", phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage. "),
        "Evicted: The node was low on resource: ephemeral-storage.",
    ),
    "evicted while it pulls": (
        pull("n", CREATING, phase="Failed", reason="Evicted", message="The node was low on resource."),
        "Evicted: The node was low on resource.",
    ),
    # A kubelet that ends a pod calls each container ended that it has no other word of, also one that never began:
    # TerminatePod in kubernetes/pkg/kubelet/status/status_manager.go.
    "evicted while it pulls, as a kubelet tells it": (
        pull(
            "n",
            ended("ContainerStatusUnknown", 137, GONE),
            phase="Failed",
            reason="Evicted",
            message="The node was low on resource: ephemeral-storage.",
        ),
        "Evicted: The node was low on resource: ephemeral-storage.",
    ),
    "its own deadline came first, as a kubelet tells it": (
        pull(
            "n",
            DONE,
            ended("ContainerStatusUnknown", 137, GONE),
            phase="Failed",
            reason="DeadlineExceeded",
            message="Pod was active on the node longer than the specified deadline",
        ),
        "DeadlineExceeded: Pod was active on the node longer than the specified deadline",
    ),
    "its node refuses it": (
        pull("n", phase="Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu"),
        "OutOfcpu: Node didn't have enough resource: cpu",
    ),
    "it failed without a word": (pull("n", CREATING, phase="Failed"), "Failed"),
    "too old": (pull("n", CREATING, age=SECONDS + 1), "not there after 600 s"),
    "too old, never looked at": (pull("n", age=SECONDS + 1), "not there after 600 s"),
    "one image of two is there, too old": (pull("n", DONE, CREATING, age=SECONDS + 1), "not there after 600 s"),
}


@pytest.mark.parametrize(("found", "why"), FAILED.values(), ids=FAILED)
def test_a_node_has_no_images(found: Pod, why: str) -> None:
    assert told(found) == Pulls(failed=(("n", why),))


def test_a_failure_reads_the_same_through_all_its_phases() -> None:
    assert told(FAILED["no such image"][0]) == told(FAILED["no such image, later"][0])


def test_a_node_for_which_no_pod_can_be_made_has_failed() -> None:
    quota = 'pods "demo-pull-1" is forbidden: exceeded quota: team\nmore'
    assert told(n=quota) == Pulls(failed=(("n", 'pods "demo-pull-1" is forbidden: exceeded quota: team'),))


def test_an_unfit_node_gets_no_pod() -> None:
    assert told(wanted={"n": "it is cordoned"}) == Pulls(failed=(("n", "it is cordoned"),))


def test_what_is_under_way_goes_on_whatever_became_of_the_node() -> None:
    assert told(pull("n", CREATING), wanted={"n": "it is cordoned"}) == Pulls(waiting=("n",))
    assert told(pull("n", DONE), wanted={"n": "it is cordoned"}) == Pulls(done=("n",))
    assert told(pull("n", CREATING), n="exceeded quota") == Pulls(waiting=("n",))


def test_a_pod_that_is_being_deleted_does_not_count() -> None:
    assert told(pull("n", DONE, deleted=True)) == Pulls(todo=("n",))


def test_pods_on_nodes_that_do_not_need_the_images_any_more_do_not_count() -> None:
    assert told(pull("other", CREATING), pull("n", DONE)) == Pulls(done=("n",))


def test_nothing_is_to_do_where_no_node_needs_the_images() -> None:
    assert pulls({}, [pull("n", CREATING)], {}, NOW, seconds=SECONDS) == Pulls()
    assert Pulls().over


# -- how many at a time


def many(count: int) -> dict[str, str]:
    return {f"n{i:02}": "" for i in range(count)}


def test_four_nodes_pull_at_a_time_and_the_others_are_waited_for() -> None:
    first = told(wanted=many(6))
    assert first == Pulls(todo=("n00", "n01", "n02", "n03"), waiting=("n04", "n05"))
    made = [pull(name, CREATING) for name in first.todo]
    assert told(*made, wanted=many(6)) == Pulls(waiting=("n00", "n01", "n02", "n03", "n04", "n05"))
    made[1] = pull("n01", DONE)
    assert told(*made, wanted=many(6)) == Pulls(todo=("n04",), done=("n01",), waiting=("n00", "n02", "n03", "n05"))


def test_a_node_that_failed_makes_room_for_another() -> None:
    made = [
        pull("n00", waiting("ErrImagePull", "denied")),
        pull("n01", phase="Failed", reason="Evicted"),
        pull("n02", CREATING),
        pull("n03", CREATING),
    ]
    found = told(*made, wanted=many(7))
    assert found.todo == ("n04", "n05")
    assert found.waiting == ("n02", "n03", "n06")
    assert [name for name, _ in found.failed] == ["n00", "n01"]
    assert not found.over


def test_once_the_time_is_over_nothing_is_waited_for() -> None:
    made = [pull("n00", DONE, age=SECONDS + 1), pull("n01", CREATING)]
    found = told(*made, wanted=many(7))
    assert found.over
    assert found.done == ("n00",)
    assert [why for _, why in found.failed] == ["not there after 600 s"] * 6


FATES = st.tuples(
    st.sampled_from(["comes", "no true", "fails", "fails at first", "evicted", "hangs", "refused", "unfit"]),
    st.integers(1, 20),
)


@dataclass
class Cluster:
    """Kubelets that do with each pull what fate has for their node, some steps after it began."""

    fates: Mapping[str, tuple[str, int]]
    began: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def wanted(self) -> dict[str, str]:
        return {name: "it is cordoned" if fate == "unfit" else "" for name, (fate, _) in self.fates.items()}

    def make(self, name: str, step: int) -> None:
        assert name not in self.began
        if self.fates[name][0] == "refused":
            self.refused[name] = "exceeded quota"
        else:
            self.began[name] = step

    def pods(self, step: int, seconds: int) -> list[Pod]:
        return [self._pod(name, step - began, seconds) for name, began in self.began.items()]

    def _pod(self, name: str, steps: int, seconds: int) -> Pod:
        fate, after = self.fates[name]
        age = steps * seconds
        if fate == "fails at first" and steps < after:
            return pull(name, waiting("ErrImagePull", "denied"), age=age)
        if fate == "hangs" or steps < after:
            return pull(name, CREATING, age=age)
        if fate == "fails":
            return pull(name, waiting("ImagePullBackOff", "denied"), age=age)
        if fate == "evicted":
            return pull(name, age=age, phase="Failed", reason="Evicted")
        return pull(name, waiting("RunContainerError") if fate == "no true" else DONE, age=age)


def started(pods: list[Pod]) -> set[str]:
    """Nodes that pull: their pods are young and tell nothing."""
    return {item.spec.node_name for item in pods if told(item, wanted={item.spec.node_name: ""}).waiting}


@given(st.lists(FATES, max_size=14), st.sampled_from([30, 100, 300]))
def test_whatever_kubelets_do_it_is_over_in_time_and_at_most_four_pull_at_a_time(
    fates: list[tuple[str, int]], seconds: int
) -> None:
    cluster = Cluster({f"n{i:02}": fate for i, fate in enumerate(fates)})
    limit = SECONDS // seconds + 2
    step, found = 0, pulls(cluster.wanted, [], {}, NOW, seconds=SECONDS)
    while not found.over:
        assert step <= limit
        for name in found.todo:
            cluster.make(name, step)
        pods = cluster.pods(step, seconds)
        assert len(started(pods)) <= PARALLEL
        step += 1
        pods = cluster.pods(step, seconds)
        found = pulls(cluster.wanted, pods, cluster.refused, NOW, seconds=SECONDS)
        failed = [name for name, _ in found.failed]
        assert sorted([*found.todo, *found.done, *found.waiting, *failed]) == sorted(cluster.wanted)
        assert not set(found.todo) & {*cluster.began, *cluster.refused}
        assert f"of {len(fates)} nodes" in found.said
    failed = [name for name, _ in found.failed]
    for name, (fate, after) in cluster.fates.items():
        if fate in ("comes", "no true") and after * seconds <= SECONDS and len(fates) <= PARALLEL:
            assert name in found.done
        if fate in ("comes", "no true") and name in failed:
            assert dict(found.failed)[name] == "not there after 600 s"
        if fate in ("fails", "evicted", "hangs", "refused", "unfit"):
            assert name in failed


# -- what is said


SAID: dict[str, tuple[Pulls, str, bool]] = {
    "none needed": (Pulls(), "0 of 0 nodes have the new images", True),
    "to do": (Pulls(todo=("a",), waiting=("b",)), "0 of 2 nodes have the new images", False),
    "under way": (Pulls(done=("a",), waiting=("b", "c")), "1 of 3 nodes have the new images", False),
    "done": (Pulls(done=("a", "b")), "2 of 2 nodes have the new images", True),
    "one failed, one under way": (
        Pulls(waiting=("a",), failed=(("b", "it is cordoned"),)),
        "0 of 2 nodes have the new images; without: b (it is cordoned)",
        False,
    ),
    "over, some failed": (
        Pulls(done=("a",), failed=(("b", "it is cordoned"), ("c", "Evicted: disk"))),
        "1 of 3 nodes have the new images; without: b (it is cordoned), c (Evicted: disk)",
        True,
    ),
}


@pytest.mark.parametrize(("found", "said", "over"), SAID.values(), ids=SAID)
def test_how_far_it_is_in_words(found: Pulls, said: str, over: bool) -> None:
    assert found.said == said
    assert found.over is over


# -- the pod


METADATA = {
    "namespace": "team",
    "labels": labels("demo", "1a2b3c4d5e"),
    "ownerReferences": [names.owner("TokenService", "demo", UID)],
}


def rendered(**template: Any) -> dict[str, Any]:
    """The pod template of a TokenService with that `spec.template.spec`."""
    made = children(service(template={"spec": template} if template else None)).deployment
    assert made
    found: dict[str, Any] = made["spec"]["template"]
    return found


def made(template: dict[str, Any], name: str = "demo", where: str = "n1") -> dict[str, Any]:
    return prepull.pod(name, template, where, metadata=METADATA, seconds=SECONDS)


def images(found: dict[str, Any]) -> list[str]:
    return [container["image"] for container in found["spec"]["containers"]]


def test_the_pod_is_one_that_an_api_server_takes_and_the_operator_reads() -> None:
    found = made(rendered(nodeSelector={"zone": "a"}, imagePullSecrets=[{"name": "registry"}]))
    pod_schema().check({"spec": found["spec"]})
    read = msgspec.json.decode(msgspec.json.encode(found), type=Pod)
    assert read.spec.node_name == "n1"
    assert read.metadata.namespace == "team"
    assert read.metadata.labels == METADATA["labels"]
    assert read.metadata.controller
    assert read.metadata.controller.uid == UID


def test_the_pod_goes_to_its_node_and_ends_by_itself() -> None:
    spec = made(rendered())["spec"]
    assert spec["nodeName"] == "n1"
    assert spec["activeDeadlineSeconds"] == SECONDS
    assert spec["restartPolicy"] == "Never"
    assert spec["terminationGracePeriodSeconds"] == 0
    assert all(container["command"] == ["true"] for container in spec["containers"])


GREEDY: dict[str, Any] = {
    "nodeSelector": {"zone": "a"},
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "hostNetwork": True,
    "volumes": [{"name": "data", "hostPath": {"path": "/data"}}],
    "initContainers": [{"name": "fetch", "image": "fetch:1", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
    "containers": [
        {
            "name": "server",
            "resources": {"limits": {"nvidia.com/gpu": "8", "memory": "900Gi"}, "requests": {"cpu": "64"}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "env": [{"name": "A", "value": "b"}],
        }
    ],
}


def test_the_pod_takes_nothing_of_the_node_but_the_images() -> None:
    spec = made(rendered(**GREEDY))["spec"]
    assert not {"volumes", "hostNetwork", "nodeSelector", "affinity", "priorityClassName", "initContainers"} & set(spec)
    for container in spec["containers"]:
        assert not {"volumeMounts", "env", "envFrom", "ports", "args", "readinessProbe"} & set(container)
        asked = container["resources"]
        assert {name for part in asked.values() for name in part} == {"cpu", "memory"}
        assert asked["requests"] == {"cpu": "1m", "memory": "8Mi"}


def test_the_pod_may_pull_where_the_template_may() -> None:
    kept = {
        "imagePullSecrets": [{"name": "registry"}],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "serviceAccountName": "puller",
        "schedulerName": "other",
    }
    template = rendered(**kept)
    spec = made(template)["spec"]
    assert {key: spec[key] for key in kept} == kept
    assert spec["securityContext"] == template["spec"]["securityContext"]
    assert spec["automountServiceAccountToken"] is False


def test_what_the_template_does_not_say_is_not_there() -> None:
    spec = made({"spec": {"containers": [{"name": "server", "image": "a"}], "tolerations": None}})["spec"]
    assert not {"imagePullSecrets", "tolerations", "securityContext", "serviceAccountName"} & set(spec)


def test_every_image_comes_once() -> None:
    template = {
        "spec": {
            "initContainers": [{"name": "a", "image": "fetch:1"}, {"name": "b", "image": "serve:1"}],
            "containers": [
                {"name": "server", "image": "serve:1"},
                {"name": "proxy", "image": "proxy:1"},
                {"name": "other", "image": "proxy:1"},
                {"name": "injected"},
                {"name": "later", "image": ""},
            ],
        }
    }
    found = made(template)
    assert images(found) == ["fetch:1", "serve:1", "proxy:1"]
    assert [container["name"] for container in found["spec"]["containers"]] == ["image-0", "image-1", "image-2"]


def test_the_template_is_left_as_it_is() -> None:
    template = rendered(tolerations=[{"operator": "Exists"}])
    before = msgspec.json.encode(template)
    made(template)["spec"]["nodeName"] = "other"
    assert msgspec.json.encode(template) == before


# Of the Pod Security Standards, "restricted": what it forbids, with what "baseline" forbids before it.
# https://kubernetes.io/docs/concepts/security/pod-security-standards/
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
    "image",
}


def violations(spec: Mapping[str, Any]) -> set[str]:
    found = {key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)}
    found |= {f"volume {key}" for item in spec.get("volumes") or () for key in set(item) - {"name"} - VOLUMES}
    of_pod = spec.get("securityContext") or {}
    if of_pod.get("sysctls"):
        found.add("sysctls")
    for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
        own = container.get("securityContext") or {}
        both = {**of_pod, **own}
        capabilities = own.get("capabilities") or {}
        found |= {"hostPort" for port in container.get("ports") or () if port.get("hostPort")}
        found |= {key for key in ("privileged", "procMount", "seLinuxOptions", "windowsOptions") if both.get(key)}
        if own.get("allowPrivilegeEscalation") is not False:
            found.add("allowPrivilegeEscalation")
        if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
            found.add("capabilities")
        if both.get("runAsNonRoot") is not True:
            found.add("runAsNonRoot")
        if both.get("runAsUser") == 0:
            found.add("runAsUser")
        if (both.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            found.add("seccompProfile")
    return found


IN_ITS_CONTAINER = {
    "securityContext": None,
    "containers": [
        {
            "name": "server",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        }
    ],
}


@pytest.mark.parametrize(
    "template",
    [
        pytest.param({}, id="as it is rendered"),
        pytest.param({"securityContext": {"runAsUser": 1000, "fsGroup": 1000}}, id="with another user"),
        pytest.param(IN_ITS_CONTAINER, id="with the rules in its container in place of the pod"),
    ],
)
def test_where_pods_are_restricted_the_pod_comes_in_as_the_templates_do(template: dict[str, Any]) -> None:
    found = rendered(**template)
    assert violations(found["spec"]) == set()
    assert violations(made(found)["spec"]) == set()


def test_a_template_that_may_more_makes_a_pod_that_needs_no_more() -> None:
    found = rendered(**GREEDY)
    assert violations(found["spec"]) >= {"hostNetwork", "volume hostPath", "allowPrivilegeEscalation"}
    assert violations(made(found)["spec"]) == set()


# -- its name


SERVICES = st.from_regex(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
NODES = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,50}[a-z0-9])?", fullmatch=True)
REFERENCES = st.lists(st.from_regex(r"[a-z]{1,8}:[a-z0-9]{1,8}", fullmatch=True), min_size=1, max_size=3, unique=True)
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def of_images(*references: str) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": f"c{i}", "image": image} for i, image in enumerate(references)]}}


def name(service_name: str, where: str, *references: str) -> str:
    found: str = made(of_images(*references), service_name, where)["metadata"]["name"]
    return found


@given(SERVICES, NODES, REFERENCES)
def test_its_name_is_one_for_pods(service_name: str, where: str, references: list[str]) -> None:
    found = name(service_name, where, *references)
    assert DNS_LABEL.fullmatch(found)
    assert len(found) <= 63
    assert found.startswith(service_name[:30].rstrip("-"))
    assert found == name(service_name, where, *references)


@pytest.mark.parametrize("service_name", ["a", "a" * 63, "a" * 39 + "-" + "b" * 23, "a" + "-" * 61 + "b"])
def test_its_name_is_one_for_pods_however_long_that_of_the_service(service_name: str) -> None:
    found = name(service_name, "n1", "a:1")
    assert DNS_LABEL.fullmatch(found)
    assert len(found) <= 63


@given(st.sets(st.tuples(SERVICES, NODES, REFERENCES.map(tuple)), min_size=2, max_size=4))
def test_its_name_differs_by_service_and_node_and_images(keys: set[tuple[str, str, tuple[str, ...]]]) -> None:
    assert len({name(service_name, where, *references) for service_name, where, references in keys}) == len(keys)


def test_its_name_differs_between_services_whose_names_begin_alike() -> None:
    assert name("a" * 62 + "b", "n1", "a:1") != name("a" * 62 + "c", "n1", "a:1")
    assert name("demo", "n1", "a:1") != name("demo", "n2", "a:1")
    assert name("demo", "n1", "a:1") != name("demo", "n1", "a:2")
    assert name("demo", "n1", "a:1") != name("demo", "n1", "a:1", "b:1")


@given(SERVICES)
def test_its_labels_are_selected_by_no_service_and_no_deployment(service_name: str) -> None:
    found = labels(service_name, revisions.label(revision(service()).metadata.name))
    assert not {names.LABEL_SERVICE, names.LABEL_DEPLOYMENT, names.LABEL_INSTANCE} & set(found)
    assert found[names.LABEL_PRE_PULL] == service_name
    assert all(len(value) <= 63 and re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9_.]*", value) for value in found.values())
