"""New replicas out of a WarmPool, on a real kubelet: each use of it, and what goes wrong with them.

The server is a stand-in that keeps token_server's contract (standin_server/README.md) and needs IMPORT_SECONDS to get
warm, as imports do. With real torch it is test_torch.py's test_scaled_up_from_a_pool.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.client import Client
from tests.e2e.conftest import LEAVES_LOST_NODES, RELEASE, SECOND_NODE, SYSTEM
from tests.support.api import Api, Object
from tests.support.cluster import Cluster, condition, localcluster
from tests.support.space import Space, container
from tests.support.wait import eventually
from tests.support.watch import Timeline

IMPORT_SECONDS = 15
TEMPLATE: Object = {
    "spec": {
        "containers": [{"name": "server", "env": [{"name": "STANDIN_IMPORT_SECONDS", "value": str(IMPORT_SECONDS)}]}]
    }
}
SOON_SECONDS = 5.0
"""Within which a warm pod serves, also on a busy machine; cold ones take longer than IMPORT_SECONDS."""
POOL, SERVICE = "warm", "chat"
COST = "controller.kubernetes.io/pod-deletion-cost"


class Team:
    """A namespace with a WarmPool, and a TokenService that takes pods from it."""

    def __init__(self, space: Space, image: str) -> None:
        self.space = space
        self.image = image

    def pool(self, **spec: Any) -> None:
        full = {"environment": {"image": {"reference": self.image}}, "template": TEMPLATE, "replicas": 2, **spec}
        kind = {"apiVersion": "tokenservice.dev/v1alpha1", "kind": "WarmPool"}
        self.space.api.apply(self.space.name, {**kind, "metadata": {"name": POOL}, "spec": full})
        self.full(full["replicas"])

    def full(self, replicas: int = 2) -> None:
        def look() -> bool:
            status = self.space.there("WarmPool", POOL).get("status", {})
            assert status.get("readyReplicas") == status.get("updatedReplicas") == replicas, status
            return True

        eventually(look, "the pool is full", seconds=IMPORT_SECONDS + 60)

    def service(self, name: str = SERVICE, **spec: Any) -> None:
        full = {"template": TEMPLATE, "warmPool": {"name": POOL}, "model": {"source": "file:///opt/standin"}, **spec}
        self.space.apply(name, self.image, **full)

    def serves(self, replicas: int, *, seconds: float = 60.0) -> list[Object]:
        """The pods, once so many serve, each the Deployment's like any other."""

        def look() -> list[Object]:
            service = self.space.there("TokenService", SERVICE)
            assert condition(service).get("reason") == "Serving", service.get("status")
            assert service["status"]["warmReplicas"] == 0
            assert self.space.there("Deployment", SERVICE)["spec"]["replicas"] == replicas
            pods = self.space.pods(SERVICE)
            assert len(pods) == replicas
            for pod in pods:
                metadata = pod["metadata"]
                assert [owner["kind"] for owner in metadata.get("ownerReferences", [])] == ["ReplicaSet"]
                assert COST not in metadata.get("annotations", {})
            return pods

        return eventually(look, f"{replicas} replicas are the Deployment's", seconds=seconds)

    def claimed(self) -> list[Object]:
        found = self.space.api.list("Pod", self.space.name, labelSelector=f"tokenservice.dev/claim={SERVICE}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


@pytest.fixture
def team(space: Space, standin_image: str) -> Team:
    return Team(space, standin_image)


def names_of(pods: list[Object]) -> set[str]:
    return {str(pod["metadata"]["name"]) for pod in pods}


def from_pool(pods: list[Object]) -> set[str]:
    return {name for name in names_of(pods) if name.startswith(f"{POOL}-")}


def test_scaled_up(team: Team, client: Client, api: Api) -> None:
    """The first replica comes from the pool, too; none is lost on the way from the pool to the Deployment."""
    team.pool(replicas=3)
    begun = time.monotonic()
    team.service(replicas=1)
    service = team.space.ready(SERVICE)
    assert time.monotonic() - begun < IMPORT_SECONDS
    url = client.reach(service)
    assert from_pool(team.serves(1))
    team.full(3)
    slices = Timeline(api, "EndpointSlice", team.space.name)

    def endpoints(count: int) -> float:
        def there(found: Object) -> bool:
            ready = [each for each in found.get("endpoints") or () if each["conditions"].get("ready")]
            return found["metadata"]["labels"].get("kubernetes.io/service-name") == SERVICE and len(ready) == count

        return slices.first(there, f"{count} endpoints")[0]

    endpoints(1)
    with client.asking_steadily(url, "standin") as report:
        begun = time.monotonic()
        team.space.patch(SERVICE, replicas=3)
        assert endpoints(3) - begun < SOON_SECONDS
        pods = team.serves(3)
        assert len(from_pool(pods)) == 3, "those that were claimed are those that stay"
        budget = eventually(
            lambda: team.space.there("PodDisruptionBudget", SERVICE)["status"]["expectedPods"] == 3, "it counts right"
        )
        assert budget
    assert not report.failures, "\n".join(report.failures)
    start = team.space.there("TokenService", SERVICE)["status"]["lastStart"]
    assert start["path"] == "Warm"
    assert start["seconds"] < SOON_SECONDS
    assert {"claim", "weights"} <= {stage for stage, seconds in start["stages"].items() if seconds is not None}
    team.full(3)

    team.space.patch(SERVICE, replicas=1)
    assert len(team.serves(1)) == 1


def test_a_lost_replica(team: Team, api: Api) -> None:
    """A warm pod takes its place at once, and the cold one that the ReplicaSet has begun goes again."""
    team.pool()
    team.service(replicas=2)
    before = team.serves(2)
    team.full()
    pods = Timeline(api, "Pod", team.space.name)
    lost = before[0]["metadata"]["name"]
    pods.first(lambda pod: pod["metadata"]["name"] == lost, "the pod is watched")
    begun = time.monotonic()
    api.delete("Pod", team.space.name, lost)

    def another(pod: Object) -> bool:
        labels = pod["metadata"]["labels"]
        return labels.get("tokenservice.dev/service") == SERVICE and pod["metadata"]["name"] in new

    new = {f"{POOL}-{number}" for number in range(1, 9)} - names_of(before)
    when, _ = pods.first(another, "a warm pod serves in its place")
    assert when - begun < SOON_SECONDS
    after = team.serves(2)
    assert len(from_pool(after) & new) == 1
    assert names_of(before[1:]) < names_of(after)


def test_a_rollout(team: Team, client: Client) -> None:
    """Its surge comes from the pool, pod by pod; nothing is lost."""
    team.pool()
    team.service(replicas=2)
    url = client.reach(team.space.ready(SERVICE))
    before = names_of(team.serves(2))
    team.full()
    with client.asking_steadily(url, "standin") as report:
        team.space.patch(SERVICE, engine={"args": ["--version-text", "new"]})
        team.space.good(SERVICE, seconds=120)
        after = team.serves(2)
    assert len(from_pool(after)) == 2
    assert not names_of(after) & before
    assert not report.failures, "\n".join(report.failures)
    assert "new" in report.versions


def test_without_a_warm_pod(team: Team) -> None:
    """Preferred starts cold at once, Required waits and says so, what does not fit is told by its field."""
    team.pool(replicas=0)
    team.service(replicas=1, warmPool={"name": POOL, "policy": "Required"})
    waiting = team.space.says(SERVICE, "WaitingForWarmPod")
    assert "1 wait for a warm pod" in condition(waiting)["message"]
    assert team.space.pods(SERVICE) == []
    team.space.api.patch("WarmPool", team.space.name, POOL, {"spec": {"replicas": 1}})
    team.serves(1, seconds=IMPORT_SECONDS + 60)

    team.space.api.patch("WarmPool", team.space.name, POOL, {"spec": {"replicas": 0}})
    eventually(
        lambda: not team.space.api.list("Pod", team.space.name, labelSelector=f"tokenservice.dev/pool={POOL}"), "empty"
    )
    team.space.patch(SERVICE, replicas=2, warmPool={"name": POOL, "policy": "Preferred"})
    eventually(lambda: team.space.there("Deployment", SERVICE)["spec"]["replicas"] == 2, "a cold one starts", seconds=5)

    team.space.api.patch("WarmPool", team.space.name, POOL, {"spec": {"template": {"spec": {"hostname": "other"}}}})
    told = team.space.condition(SERVICE, "WarmPoolReady", "ShapeMismatch")
    assert "spec.hostname" in told["message"]
    team.space.patch(SERVICE, warmPool={"name": "nowhere"})
    team.space.condition(SERVICE, "WarmPoolReady", "NotFound")
    team.serves(2, seconds=IMPORT_SECONDS + 60)


@pytest.mark.parametrize(
    ("resources", "bad", "good", "words"),
    [
        ({}, {"model": {"source": "hf://acme/broken"}}, {"model": {"source": "file:///opt/standin"}}, "broken"),
        (
            {"limits": {"memory": "256Mi"}},
            {"engine": {"args": ["--allocate-mib", "512"]}},
            {"engine": {"args": []}},
            "more memory than its limit allows",
        ),
    ],
    ids=["damaged", "too large for its memory"],
)
def test_a_model_that_cannot_be_loaded(team: Team, resources: Object, bad: Object, good: Object, words: str) -> None:
    """One warm pod finds that out; the pool is not used up by it, and what serves goes on serving."""
    template = copy.deepcopy(TEMPLATE)
    template["spec"]["containers"][0]["resources"] = resources
    team.pool(template=template)
    team.service(replicas=1, template=template)
    before = team.space.uids(SERVICE) if team.serves(1) else set()
    team.full()
    team.space.patch(SERVICE, **bad)
    told = team.space.condition(SERVICE, "WarmPoolReady", "LoadFailed")
    assert words in told["message"]
    assert before <= team.space.uids(SERVICE)
    team.full()
    assert team.claimed() == []
    team.space.patch(SERVICE, **good)
    team.space.ready(SERVICE)
    assert team.space.uids(SERVICE) == before


def test_a_node_that_is_lost_under_a_claim(team: Team, cluster: Cluster, second_node: Callable[[], None]) -> None:
    """While the model loads there: the replicas that are wanted serve in the end, on the node that is left."""
    spread: Object = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"tokenservice.dev/pool": POOL}},
    }
    template = copy.deepcopy(TEMPLATE)
    template["spec"].update(topologySpreadConstraints=[spread], tolerations=LEAVES_LOST_NODES)
    team.pool(template=template)
    team.service(replicas=2, template=template, model={"source": "hf://acme/slow"})
    claimed = eventually(lambda: (found := team.claimed()) and len(found) == 2 and found, "both are taken", seconds=10)
    assert {pod["spec"]["nodeName"] for pod in claimed} == {cluster.facts["nodes"][0]["name"], SECOND_NODE}
    assert not any("tokenservice.dev/service" in pod["metadata"]["labels"] for pod in claimed), "they load"
    second_node()
    # The node is missed after some 50 s.
    left = team.serves(2, seconds=240)
    assert {pod["spec"]["nodeName"] for pod in left} == {cluster.facts["nodes"][0]["name"]}
    assert team.claimed() == []


def test_what_a_deleted_service_leaves_behind(team: Team, api: Api) -> None:
    """While the models of its claimed pods load: another service of its name has them in the end."""
    team.pool()
    spec: Object = {"replicas": 2, "model": {"source": "hf://acme/slow"}}
    team.service(**spec)
    claimed = eventually(lambda: (found := team.claimed()) and len(found) == 2 and found, "both are taken", seconds=10)
    api.delete("TokenService", team.space.name, SERVICE, propagation="Orphan")
    eventually(lambda: team.space.get("TokenService", SERVICE) is None, "it is gone")
    assert not any(pod["metadata"].get("ownerReferences") for pod in team.claimed()), "nobody owns them"
    team.service(**spec)
    assert names_of(team.serves(2)) == names_of(claimed)
    assert team.claimed() == []


def test_what_goes_wrong_under_a_claim(team: Team, cluster: Cluster, api: Api) -> None:
    """Its pool is deleted, its server dies, the operator dies: the replicas that are wanted serve in the end."""
    team.pool()
    team.service(replicas=1)
    team.serves(1)
    team.full()
    pods = Timeline(api, "Pod", team.space.name)
    team.space.patch(SERVICE, model={"source": "hf://acme/slow"}, replicas=2)
    _, taken = pods.first(
        lambda pod: pod["metadata"]["labels"].get("tokenservice.dev/claim") == SERVICE, "a pod is claimed"
    )
    identity = container(taken)["containerID"].removeprefix("containerd://")
    cluster.kubectl("-n", SYSTEM, "delete", "pod", "--force", "--selector", "app.kubernetes.io/component=manager")
    api.delete("WarmPool", team.space.name, POOL)
    kill = ("ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", identity)
    localcluster("exec", "--name", cluster.name, "--", *kill)
    cluster.kubectl("-n", SYSTEM, "rollout", "status", "deployment", RELEASE, "--timeout=120s")
    team.space.good(SERVICE, seconds=180)
    team.serves(2)
    assert team.claimed() == []
    every = [pod for pod in api.list("Pod", team.space.name) if "deletionTimestamp" not in pod["metadata"]]
    assert names_of(every) == names_of(team.space.pods(SERVICE)), "nothing is left"


def test_a_pool_of_its_own(team: Team) -> None:
    """It has the service's name and shape, belongs to it, and goes when nobody asks for it any more."""
    team.service(replicas=1, warmPool={"replicas": 1})
    found = eventually(lambda: team.space.get("WarmPool", SERVICE), "the pool is there")
    assert found["metadata"]["ownerReferences"][0]["kind"] == "TokenService"
    team.space.condition(SERVICE, "WarmPoolReady", "Fits")

    def warm() -> bool:
        return bool(team.space.there("WarmPool", SERVICE).get("status", {}).get("readyReplicas") == 1)

    eventually(warm, "its pod is warm", seconds=IMPORT_SECONDS + 60)
    team.serves(1, seconds=IMPORT_SECONDS + 60)
    begun = time.monotonic()
    team.space.patch(SERVICE, replicas=2)
    team.space.ready(SERVICE)
    assert time.monotonic() - begun < IMPORT_SECONDS
    team.serves(2)
    team.space.patch(SERVICE, warmPool=None)
    eventually(lambda: team.space.get("WarmPool", SERVICE) is None, "the pool is gone")
    team.serves(2)
