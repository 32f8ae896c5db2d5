"""WarmPools on a real API server, with the real scheduler and garbage collector.

The kubelet is a stand-in that says of every pod it is Ready; builds are written into the status of environments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenservice.api import names

from tests.apiserver.admission import policy
from tests.apiserver.conftest import Plane, Space
from tests.apiserver.test_service_environments import fake_build, make
from tests.support.api import Object, RefusedError
from tests.support.cluster import condition
from tests.support.operator_process import OperatorProcess
from tests.support.played_kubelet import NODE, TOLERATION, played
from tests.support.wait import eventually, holds
from tests.support.watch import Timeline

IMAGE = "registry.invalid/serving:1"
TEMPLATE: Object = {"spec": {"tolerations": [TOLERATION]}}
SERVICE, POOL = ("TokenService", "chat"), ("WarmPool", "nlp")
CHIP = "example.com/chip"
ONE_CHIP: Object = {
    "spec": {**TEMPLATE["spec"], "containers": [{"name": "server", "resources": {"limits": {CHIP: "1"}}}]}
}
PREBUILT: Object = {"image": {"reference": IMAGE}}


@pytest.fixture(scope="module")
def _kubelet(plane: Plane) -> Iterator[None]:
    with played(plane.api):
        yield


@contextlib.contextmanager
def chips(plane: Plane, count: int) -> Iterator[None]:
    """The node has so many chips."""

    def patch(value: str | None) -> None:
        plane.api.patch(
            "Node", None, NODE, {"status": {"capacity": {CHIP: value}, "allocatable": {CHIP: value}}}, "status"
        )

    patch(str(count))
    try:
        yield
    finally:
        patch(None)


@pytest.fixture
def pools(space: Space, _kubelet: None) -> Pools:
    return Pools(space)


class Pools:
    """Short ways to speak about the WarmPools of a namespace."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def apply(self, name: str = "nlp", **spec: Any) -> Object:
        full = {"environment": PREBUILT, "template": TEMPLATE, **spec}
        body = {"apiVersion": "tokenservice.dev/v1alpha1", "kind": "WarmPool", "metadata": {"name": name}, "spec": full}
        return self.space.api.apply(self.space.name, body)

    def pods(self, name: str = "nlp") -> list[Object]:
        found = self.space.api.list("Pod", self.space.name, labelSelector=f"tokenservice.dev/pool={name}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def says(self, reason: str, name: str = "nlp", *, kind: str = "Ready", seconds: float = 30.0) -> Object:
        def look() -> Object:
            found = self.space.there("WarmPool", name)
            told = condition(found, kind)
            assert told.get("reason") == reason, told
            assert told["observedGeneration"] == found["metadata"]["generation"], told
            return found

        return eventually(look, f"{kind} of {name} says {reason}", seconds=seconds)


BAD: list[tuple[Object, str]] = [
    ({"environment": {}}, "spec.environment: Invalid value"),
    ({"environment": {**PREBUILT, "ref": {"name": "x"}}}, "exactly one of ref (a CondaEnvironment) and image"),
    ({"environment": {"conda": {}}}, ".spec.environment.conda: field not declared in schema"),
    ({"replicas": -1}, "spec.replicas"),
    ({"replicas": 10_001}, "spec.replicas"),
    ({"preload": ["os.path"]}, "must be the name of an architecture such as LlamaForCausalLM"),
    ({"preload": ["A", "A"]}, ".spec.preload: duplicate entries"),
    ({"refill": {"maxPerSecond": 0}}, "spec.refill.maxPerSecond"),
    ({"api": {}}, "spec.api.keySecretRef: Required value"),
]


@pytest.mark.parametrize(("spec", "message"), BAD)
def test_what_the_schema_refuses(space: Space, spec: Object, message: str) -> None:
    with pytest.raises(RefusedError) as caught:
        Pools(space).apply(**spec)
    assert message in caught.value.message


def test_a_name_that_labels_cannot_have(space: Space) -> None:
    with pytest.raises(RefusedError, match=r"metadata\.name: must be a DNS label"):
        Pools(space).apply("1.nlp")


@pytest.mark.usefixtures("operator")
class TestWithTheOperator:
    def test_it_fills_scales_and_goes(self, plane: Plane, pools: Pools) -> None:
        space = pools.space
        pools.apply(replicas=2)
        status = pools.says("Warm")["status"]
        assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (2, 2, 2)
        assert [condition(space.there("WarmPool", "nlp"), kind)["status"] for kind in ("Ready", "Progressing")] == [
            "True",
            "False",
        ]
        plane.cluster.kubectl("scale", "-n", space.name, "twp/nlp", "--replicas=4")
        eventually(lambda: pools.says("Warm")["status"]["readyReplicas"] == 4, "four are warm")
        listed = plane.cluster.kubectl("get", "-n", space.name, "twp").stdout.splitlines()
        assert listed[0].split() == ["NAME", "READY", "REASON", "DESIRED", "WARM", "AGE"]
        assert listed[1].split()[:5] == ["nlp", "True", "Warm", "4", "4"]
        described = plane.cluster.kubectl("describe", "-n", space.name, "twp", "nlp").stdout
        assert "4 of 4 pods are warm" in described

        space.delete("Pod", pools.pods()[0]["metadata"]["name"])
        eventually(lambda: len(pools.pods()) == 4 and pools.says("Warm"), "what is taken away is replaced")
        space.patch("WarmPool", "nlp", {"spec": {"replicas": 1}})
        eventually(lambda: len(pools.pods()) == 1, "three go")
        space.delete("WarmPool", "nlp")
        # It learns of a new CRD when it looks for new kinds the next time, which it does every half minute.
        eventually(lambda: not pools.pods(), "the garbage collector takes the rest", seconds=90)

    def test_its_pods_are_in_no_service_and_no_budget(self, pools: Pools) -> None:
        pools.apply(replicas=1)
        pools.says("Warm")
        (pod,) = pools.pods()
        labels = pod["metadata"]["labels"]
        assert not {"tokenservice.dev/service", "tokenservice.dev/deployment"} & set(labels)
        assert not pod["spec"].get("automountServiceAccountToken", True)

    def test_a_change_of_the_environment_rolls_it(self, pools: Pools) -> None:
        space = pools.space
        pools.apply(replicas=4, environment={"ref": {"name": "nlp"}})
        pools.says("EnvironmentNotReady")
        assert "no CondaEnvironment nlp" in condition(space.there("WarmPool", "nlp"))["message"]
        make(space)
        fake_build(space, "nlp")
        status = pools.says("Warm")["status"]
        before = {pod["metadata"]["uid"] for pod in pools.pods()}

        newer = "registry.invalid/environments@sha256:" + "3" * 64
        watching = Timeline(space.api, "WarmPool", space.name)
        fake_build(space, "nlp", newer)

        def rolled() -> bool:
            images = {pod["spec"]["containers"][0]["image"] for pod in pools.pods()}
            return images == {newer} and bool(pools.says("Warm"))

        eventually(rolled, "all pods are new")
        assert not before & {pod["metadata"]["uid"] for pod in pools.pods()}
        assert pools.says("Complete", kind="Progressing")["status"]["environment"]["image"] == newer
        assert status["environment"]["image"] != newer
        fewest = min(state["status"]["readyReplicas"] for _, state in watching.states(lambda each: "status" in each))
        assert fewest >= 2, "a quarter at a time, and one more at most that is not seen yet"

    def test_an_environment_whose_pods_crash_leaves_the_others_warm(self, pools: Pools) -> None:
        pools.apply(replicas=4)
        pools.says("Warm")
        pools.apply(replicas=4, environment={"image": {"reference": "registry.invalid/bad:2"}})
        found = pools.says("CrashLoopBackOff")
        assert "cannot import name" in condition(found)["message"]
        assert condition(found, "Progressing")["status"] == "False"
        assert found["status"]["failures"][0]["container"] == "server"
        holds(lambda: pools.space.there("WarmPool", "nlp")["status"]["readyReplicas"] == 3, "three stay", seconds=3)
        pools.apply(replicas=4)
        pools.says("Warm")

    def test_it_gives_way_to_a_service_that_finds_no_room(self, plane: Plane, pools: Pools) -> None:
        space = pools.space
        watching = Timeline(space.api, "WarmPool", space.name)
        with chips(plane, 2):
            pools.apply(replicas=3, template=ONE_CHIP)
            pools.says("Unschedulable")
            eventually(lambda: space.there("WarmPool", "nlp")["status"]["readyReplicas"] == 2, "there are two chips")

            space.apply("chat", template=ONE_CHIP)
            space.ready("chat", "Serving")
            _, state = watching.first(lambda each: condition(each).get("reason") == "GivingWay", "the pool says so")
            words = condition(state)["message"]
            assert "of 3 pods are warm; 1 gives way to pod chat-" in words, words
            assert words.endswith(f"which is Unschedulable: Insufficient {CHIP}"), words

            def told() -> bool:
                found = [each for each in space.api.list("Event", space.name) if each["reason"] == "GivingWay"]
                return [(each["type"], each["regarding"]["name"]) for each in found] == [("Normal", "nlp")]

            eventually(told, "an event tells, once")
            pools.says("Unschedulable")
            eventually(lambda: len(pools.pods()) == 3, "it is filled again, as far as that goes")
            assert space.there("WarmPool", "nlp")["status"]["readyReplicas"] == 1

            space.patch("TokenService", "chat", {"spec": {"replicas": 3}})

            def shared() -> bool:
                found = [space.there(*each)["status"]["readyReplicas"] for each in (SERVICE, POOL)]
                return found == [2, 0]

            eventually(shared, "the service has both chips, and waits for a third")
            space.delete("TokenService", "chat")
            eventually(
                lambda: space.there("WarmPool", "nlp")["status"]["readyReplicas"] == 2,
                "the pool has them again",
                seconds=90,
            )

    def test_a_template_that_cannot_be_used(self, pools: Pools) -> None:
        pools.apply(replicas=1)
        pools.says("Warm")
        pools.apply(replicas=1, template={"spec": {**TEMPLATE["spec"], "nodeSelectors": {}}})
        found = pools.says("InvalidTemplate")
        assert (
            "spec.template.spec.nodeSelectors: unknown field; did you mean nodeSelector" in condition(found)["message"]
        )
        assert len(pools.pods()) == 1
        pools.apply(replicas=1, template={"metadata": {"labels": {"tokenservice.dev/pool": "other"}}})
        pools.says("InvalidTemplate")
        pools.apply(replicas=1)
        pools.says("Warm")

    def test_the_api_server_refuses_the_pods(self, pools: Pools) -> None:
        broken = {"spec": {"containers": [{"name": "server", "volumeMounts": [{"name": "no", "mountPath": "/x"}]}]}}
        pools.apply(replicas=1, template=broken)
        found = pools.says("Rejected")
        assert 'Not found: "no"' in condition(found)["message"]
        pools.apply(replicas=1)
        pools.says("Warm")

    def test_a_policy_lets_nobody_take_its_pods(self, plane: Plane, pools: Pools) -> None:
        space = pools.space
        pools.apply(replicas=1)
        pools.says("Warm")
        label = names.LABEL_CLAIM

        def refused() -> str:
            dry = ("label", "--dry-run=server", "-n", space.name, "pod", pools.pods()[0]["metadata"]["name"])
            return plane.cluster.kubectl(*dry, f"{label}=probe", check=False).stderr

        hands_off = "these pods are not to be taken"
        unclaimed = f"!has(object.metadata.labels) || !('{label}' in object.metadata.labels)"
        with policy(plane, space, "pods", unclaimed, hands_off, refused=refused):
            space.apply("chat", template=TEMPLATE, warmPool={"name": "nlp"})
            space.ready("chat", "Serving")
            told = condition(space.there("TokenService", "chat"), "WarmPoolReady")
            assert told["reason"] == "Rejected"
            assert hands_off in told["message"]
        assert len(pools.pods()) == 1

    def test_a_quota(self, pools: Pools) -> None:
        space = pools.space
        quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "1"}}}
        space.api.create("ResourceQuota", space.name, quota)
        eventually(lambda: "hard" in space.there("ResourceQuota", "few").get("status", {}), "the quota is in force")
        pools.apply(replicas=2)
        assert "exceeded quota: few" in condition(pools.says("Rejected"))["message"]
        assert len(pools.pods()) == 1
        space.delete("ResourceQuota", "few")
        space.patch("WarmPool", "nlp", {"metadata": {"annotations": {"tokenservice.dev/retry": "1"}}})
        pools.says("Warm")

    def test_at_rest_it_writes_nothing(self, plane: Plane, pools: Pools) -> None:
        pools.apply(replicas=3)
        pools.says("Warm")
        plane.silence(pools.space.name, seconds=2)
        mark = plane.audit.position()
        pools.apply(replicas=3)
        holds(
            lambda: not [each for each in plane.writes(mark) if each.namespace == pools.space.name],
            "an apply that changes nothing leads to no write",
            seconds=2,
        )


def test_a_restart_keeps_the_pods_and_another_key_replaces_them(
    plane: Plane, pools: Pools, alone: None, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 48)
    one = plane.operator(f"--token-key-file={key}")
    one.start()
    pools.apply(replicas=2)
    pools.says("Warm")
    before = {pod["metadata"]["uid"] for pod in pools.pods()}
    assert one.stop() == 0
    one.start()
    plane.silence(pools.space.name, seconds=2)
    assert {pod["metadata"]["uid"] for pod in pools.pods()} == before
    assert one.stop() == 0

    key.write_text("n" * 48)
    one.start()

    def replaced() -> bool:
        return not before & {pod["metadata"]["uid"] for pod in pools.pods()} and bool(pools.says("Warm"))

    eventually(replaced, "pods whose token nobody knows any more are replaced")
    assert not one.surprises()
    assert one.stop() == 0

    key.write_text("too short")
    one.spawn()
    assert one.wait() == 1
    assert "must have 32 at least" in one.text()


def test_killed_again_and_again_it_never_makes_too_many(
    plane: Plane, pools: Pools, alone: None, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 48)
    lease = ("--lease-duration-seconds=3", "--lease-renew-deadline-seconds=2", "--lease-retry-seconds=1")
    operator: OperatorProcess = plane.operator(f"--token-key-file={key}", *lease)
    replicas = 60
    watching = Timeline(plane.api, "Pod", pools.space.name)
    pools.apply(replicas=replicas, refill={"maxPerSecond": 20})
    for _ in range(3):
        operator.start()
        had = len(pools.pods())
        eventually(lambda had=had: len(pools.pods()) > had + 2, "some more are made", every=0.01)
        operator.kill()
    operator.start()
    eventually(
        lambda: pools.says("Warm", seconds=60)["status"]["readyReplicas"] == replicas, "all are warm", seconds=90
    )
    made = {state["metadata"]["uid"] for _, state in watching.states(lambda _: True)}
    assert len(made) == replicas, "not one pod was made that had to be deleted again"
    assert operator.stop() == 0
