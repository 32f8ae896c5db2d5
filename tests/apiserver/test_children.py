"""What becomes of a TokenService: its children, what is put back when somebody changes it, and what is left alone."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.apiserver.conftest import Plane, Space
from tests.support.cluster import condition
from tests.support.operator_process import OperatorProcess
from tests.support.wait import eventually, holds

pytestmark = pytest.mark.usefixtures("operator")

DRIFT_SECONDS = 1.0


def containers(deployment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in deployment["spec"]["template"]["spec"]["containers"]}


def test_a_tokenservice_gets_its_children_and_a_status(space: Space) -> None:
    space.apply("llm", replicas=2)
    service = space.settled("llm")

    deployment = space.there("Deployment", "llm")
    assert deployment["spec"]["replicas"] == 2
    assert containers(deployment)["server"]["image"] == "registry.invalid/serving:1"
    assert space.there("Service", "llm")["spec"]["ports"][0]["port"] == 80
    budget = space.there("PodDisruptionBudget", "llm")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    for kind in ("Deployment", "Service", "PodDisruptionBudget"):
        owner = space.there(kind, "llm")["metadata"]["ownerReferences"]
        assert [(item["uid"], item["controller"]) for item in owner] == [(service["metadata"]["uid"], True)]

    status = service["status"]
    assert status["observedGeneration"] == 1
    assert status["url"] == f"http://llm.{space.name}.svc.cluster.local/v1"
    assert status["selector"] == "tokenservice.dev/service=llm"
    assert {item["type"] for item in status["conditions"]} == {"Ready", "Available", "Progressing"}
    # Nothing schedules pods here: the scheduler's own words are what a user sees.
    failing = space.ready("llm", "Unschedulable")
    assert "no nodes available" in failing["message"]


def test_a_new_spec_reaches_the_deployment(space: Space) -> None:
    space.apply("llm")
    space.settled("llm")
    space.apply("llm", image="registry.invalid/serving:2", engine={"args": ["--max-tokens=5"]}, replicas=0)

    def rolled() -> bool:
        deployment = space.there("Deployment", "llm")
        server = containers(deployment)["server"]
        return (server["image"], server.get("args"), deployment["spec"]["replicas"]) == (
            "registry.invalid/serving:2",
            ["--max-tokens=5"],
            0,
        )

    eventually(rolled, "the Deployment follows")
    assert space.ready("llm", "ScaledToZero")["status"] == "True"


def set_image(space: Space, plane: Plane) -> None:
    plane.cluster.kubectl("set", "image", "-n", space.name, "deployment/llm", "server=registry.invalid/other:1")


def scale(space: Space, plane: Plane) -> None:
    plane.cluster.kubectl("scale", "-n", space.name, "deployment/llm", "--replicas=5")


def server_side_apply(space: Space, plane: Plane) -> None:
    taken = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "llm"}}
    plane.api.apply(space.name, {**taken, "spec": {"progressDeadlineSeconds": 5}}, manager="argocd")


def remove_a_probe(space: Space, plane: Plane) -> None:
    probe = [{"op": "remove", "path": "/spec/template/spec/containers/0/readinessProbe"}]
    path = f"/apis/apps/v1/namespaces/{space.name}/deployments/llm"
    plane.api.request("PATCH", path, probe, media="application/json-patch+json")


def other_selector(space: Space, plane: Plane) -> None:
    space.patch("Service", "llm", {"spec": {"selector": {"tokenservice.dev/service": "other"}}})


def other_port(space: Space, plane: Plane) -> None:
    space.patch("Service", "llm", {"spec": {"ports": [{"port": 81, "targetPort": "http"}]}})


def edited_port(space: Space, plane: Plane) -> None:
    """As `kubectl edit` sends it: port 80 becomes 81 and keeps its name, so that both cannot be there."""
    ports = [{"name": "http", "port": 81, "targetPort": "http", "protocol": "TCP"}]
    space.patch("Service", "llm", {"spec": {"ports": ports}})


def other_volume(space: Space, plane: Plane) -> None:
    """A volume of ours with a second source, which no pod may have, once ours is merged in."""
    volume = {"name": "cache", "hostPath": {"path": "/srv"}, "emptyDir": None}
    patch = {"spec": {"template": {"spec": {"volumes": [volume]}}}}
    plane.cluster.kubectl("patch", "deployment/llm", "-n", space.name, "--type=strategic", "-p", json.dumps(patch))


def other_budget(space: Space, plane: Plane) -> None:
    space.patch("PodDisruptionBudget", "llm", {"spec": {"maxUnavailable": 3}})


def no_labels(space: Space, plane: Plane) -> None:
    label = {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}
    for kind in ("Deployment", "Service", "PodDisruptionBudget"):
        space.patch(kind, "llm", label)


def no_owner(space: Space, plane: Plane) -> None:
    space.patch("Deployment", "llm", {"metadata": {"ownerReferences": None}})


def no_hash(space: Space, plane: Plane) -> None:
    space.patch("Deployment", "llm", {"metadata": {"annotations": {"tokenservice.dev/applied-hash": "0"}}})


def observed(space: Space) -> dict[str, Any]:
    """What is ours of the children, as it stands there."""
    deployment = space.get("Deployment", "llm") or {}
    service = space.get("Service", "llm") or {}
    budget = space.get("PodDisruptionBudget", "llm") or {}
    spec = deployment.get("spec", {})
    return {
        "image": [item["image"] for item in spec.get("template", {}).get("spec", {}).get("containers", ())],
        "probes": [
            sorted(key for key in item if key.endswith("Probe")) for item in spec["template"]["spec"]["containers"]
        ]
        if spec
        else None,
        "replicas": spec.get("replicas"),
        "volumes": spec.get("template", {}).get("spec", {}).get("volumes"),
        "deadline": spec.get("progressDeadlineSeconds"),
        "owners": len(deployment.get("metadata", {}).get("ownerReferences", ())),
        "hash": deployment.get("metadata", {}).get("annotations", {}).get("tokenservice.dev/applied-hash"),
        "selector": service.get("spec", {}).get("selector"),
        "ports": [item["port"] for item in service.get("spec", {}).get("ports", ())],
        "budget": budget.get("spec", {}).get("maxUnavailable"),
        "labels": [item.get("metadata", {}).get("labels") for item in (deployment, service, budget)],
    }


@pytest.mark.parametrize(
    "change",
    [
        *(set_image, scale, server_side_apply, remove_a_probe, other_selector, other_port, edited_port),
        *(other_volume, other_budget, no_labels, no_owner, no_hash),
    ],
)
def test_a_field_of_ours_is_put_back_within_a_second(space: Space, plane: Plane, change: Any) -> None:
    space.apply("llm")
    space.settled("llm")
    before = observed(space)
    versions = {
        kind: space.there(kind, "llm")["metadata"]["resourceVersion"]
        for kind in ("Deployment", "Service", "PodDisruptionBudget")
    }
    change(space, plane)
    changed_at = time.monotonic()
    moved = lambda: any(  # noqa: E731
        space.there(kind, "llm")["metadata"]["resourceVersion"] != version for kind, version in versions.items()
    )
    assert moved()
    eventually(lambda: observed(space) == before, "all is as it was")
    assert time.monotonic() - changed_at < DRIFT_SECONDS


@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget"])
def test_a_deleted_child_comes_back_within_a_second(space: Space, kind: str) -> None:
    space.apply("llm")
    space.settled("llm")
    uid = space.there(kind, "llm")["metadata"]["uid"]
    space.delete(kind, "llm")
    deleted_at = time.monotonic()

    def back() -> bool:
        return space.there(kind, "llm")["metadata"]["uid"] != uid

    eventually(back, f"a new {kind}")
    assert time.monotonic() - deleted_at < DRIFT_SECONDS


def test_what_others_own_stays(space: Space, plane: Plane) -> None:
    space.apply("llm")
    space.settled("llm")
    plane.cluster.kubectl("rollout", "restart", "-n", space.name, "deployment/llm")
    space.patch("Deployment", "llm", {"metadata": {"labels": {"team": "a"}, "annotations": {"example.com/note": "x"}}})
    space.patch(
        "Deployment", "llm", {"spec": {"template": {"spec": {"dnsPolicy": "Default"}}, "revisionHistoryLimit": 10}}
    )
    space.patch("Service", "llm", {"spec": {"sessionAffinity": "ClientIP"}, "metadata": {"labels": {"team": "a"}}})
    mark = plane.audit.position()
    # A new spec is applied, and takes nothing of it away.
    space.apply("llm", image="registry.invalid/serving:2")
    eventually(lambda: containers(space.there("Deployment", "llm"))["server"]["image"].endswith(":2"), "the new image")
    deployment, service = space.there("Deployment", "llm"), space.there("Service", "llm")
    assert "kubectl.kubernetes.io/restartedAt" in deployment["spec"]["template"]["metadata"]["annotations"]
    assert deployment["metadata"]["labels"]["team"] == "a"
    assert deployment["metadata"]["annotations"]["example.com/note"] == "x"
    assert deployment["spec"]["template"]["spec"]["dnsPolicy"] == "Default"
    assert service["spec"]["sessionAffinity"] == "ClientIP"
    assert service["metadata"]["labels"]["team"] == "a"
    # Nor was anything written to the Service, which the new spec does not touch.
    assert not [write for write in plane.writes(mark) if write.resource == "services" and write.namespace == space.name]


TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"team": "a"}, "annotations": {"example.com/scrape": "true"}},
    "spec": {
        "runtimeClassName": "nvidia",
        "nodeSelector": {"nvidia.com/gpu.present": "true"},
        "priorityClassName": "high",
        "schedulerName": "other",
        "terminationGracePeriodSeconds": 300,
        "imagePullSecrets": [{"name": "pull"}],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h100", "h200"]}]}
                    ]
                }
            }
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"team": "a"}},
            }
        ],
        "volumes": [
            {"name": "cache", "emptyDir": {"sizeLimit": "40Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
        "initContainers": [{"name": "wait", "image": "registry.invalid/wait:1"}],
        "containers": [
            {
                "name": "server",
                "resources": {
                    "limits": {"nvidia.com/gpu": 2, "memory": "32Gi"},
                    "requests": {"cpu": "500m", "memory": "24Gi"},
                },
                "env": [{"name": "OMP_NUM_THREADS", "value": "4"}],
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
            },
            {"name": "sidecar", "image": "registry.invalid/sidecar:1", "ports": [{"containerPort": 9000}]},
        ],
    },
}


def test_everything_in_template_reaches_the_pods(space: Space) -> None:
    space.apply("llm", template=TEMPLATE)
    space.settled("llm")
    template = space.there("Deployment", "llm")["spec"]["template"]
    spec, wanted = template["spec"], TEMPLATE["spec"]
    for name in (
        *("runtimeClassName", "nodeSelector", "priorityClassName", "schedulerName", "terminationGracePeriodSeconds"),
        *("imagePullSecrets", "tolerations", "affinity", "topologySpreadConstraints"),
    ):
        assert spec[name] == wanted[name], name
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["annotations"]["example.com/scrape"] == "true"
    volumes = {item["name"]: item for item in spec["volumes"]}
    assert volumes["cache"]["emptyDir"] == {"sizeLimit": "40Gi"}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory"}
    assert "tmp" in volumes
    assert spec["initContainers"][0]["image"] == "registry.invalid/wait:1"
    found = containers({"spec": {"template": template}})
    server = found["server"]
    assert list(found) == ["server", "sidecar"]
    assert server["resources"]["limits"] == {"nvidia.com/gpu": "2", "memory": "32Gi"}
    assert server["resources"]["requests"] == {"cpu": "500m", "memory": "24Gi"}
    env = {item["name"]: item.get("value") for item in server["env"]}
    assert (env["OMP_NUM_THREADS"], env["TOKEN_SERVER_GRACE_SECONDS"]) == ("4", "300")
    assert {item["mountPath"] for item in server["volumeMounts"]} >= {"/dev/shm", "/tmp"}
    # And nothing of it is drift: the operator wrote it, defaults that the API server added included.
    generation = space.there("Deployment", "llm")["metadata"]["generation"]
    holds(lambda: space.there("Deployment", "llm")["metadata"]["generation"] == generation, "one write", seconds=1)


def test_taking_a_part_of_template_out_takes_it_from_the_pods(space: Space) -> None:
    space.apply("llm", template=TEMPLATE)
    space.settled("llm")
    space.apply("llm", template={"spec": {"nodeSelector": {"gpu": "any"}}})

    def gone() -> bool:
        deployment = space.there("Deployment", "llm")
        spec = deployment["spec"]["template"]["spec"]
        return (
            list(containers(deployment)) == ["server"]
            and "runtimeClassName" not in spec
            and spec["nodeSelector"] == {"gpu": "any"}
            and {item["name"] for item in spec["volumes"]} == {"tmp", "cache"}
        )

    eventually(gone, "only what the template says now")


def test_deleting_a_tokenservice_deletes_its_children(space: Space, plane: Plane, operator: OperatorProcess) -> None:
    space.apply("llm")
    space.settled("llm")
    plane.silence(space.name)  # events come after the status
    mark = plane.audit.position()
    space.delete("TokenService", "llm")
    for kind in ("Deployment", "Service", "PodDisruptionBudget", "ReplicaSet", "Pod"):
        eventually(lambda kind=kind: not space.api.list(kind, space.name), f"no {kind} is left")
    done = [write for write in plane.writes(mark) if write.namespace == space.name and write.code < 300]
    assert {write.what for write in done} <= {"tokenservices/status"}, done
    # The name can be used again at once.
    space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero")


def test_orphans_are_left_alone_until_a_tokenservice_of_their_name_comes(space: Space) -> None:
    space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero")
    space.api.delete("TokenService", space.name, "llm", propagation="Orphan")
    eventually(lambda: space.get("TokenService", "llm") is None, "it is gone")
    deployment = space.there("Deployment", "llm")
    assert not deployment["metadata"].get("ownerReferences")
    holds(lambda: space.get("Deployment", "llm") == deployment, "the orphans are left alone", seconds=1)
    # A new one of the same name takes them over, as a Deployment does with orphaned ReplicaSets.
    new = space.apply("llm", replicas=0)
    space.ready("llm", "ScaledToZero")
    adopted = space.there("Deployment", "llm")["metadata"]
    assert adopted["uid"] == deployment["metadata"]["uid"]
    assert [owner["uid"] for owner in adopted["ownerReferences"]] == [new["metadata"]["uid"]]


def test_paused_holds_a_rollout_and_lets_scaling_go_on(space: Space) -> None:
    space.apply("llm")
    space.settled("llm")
    eventually(lambda: len(space.api.list("ReplicaSet", space.name)) == 1, "one version")
    space.apply("llm", image="registry.invalid/serving:2", replicas=2, paused=True)
    eventually(lambda: space.there("Deployment", "llm")["spec"].get("paused"), "the Deployment is paused")
    eventually(lambda: len(space.api.list("Pod", space.name)) == 2, "scaling goes on")
    holds(lambda: len(space.api.list("ReplicaSet", space.name)) == 1, "no new version is rolled out", seconds=1)
    images = {pod["spec"]["containers"][0]["image"] for pod in space.api.list("Pod", space.name)}
    assert images == {"registry.invalid/serving:1"}
    service = space.there("TokenService", "llm")
    assert condition(service, "Progressing")["status"] in {"False", "True"}
    space.apply("llm", image="registry.invalid/serving:2", replicas=2)
    eventually(lambda: len(space.api.list("ReplicaSet", space.name)) == 2, "the rollout goes on")
    assert not space.there("Deployment", "llm")["spec"].get("paused")
