"""The operator uses every right that the chart gives it, and needs no other: read from the API server's audit log."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenservice.api.jobs import EXIT_TERMINAL, RESULT_BYTES, JobResult, Problem, encode_result
from tokenservice.services.revisions import KEPT

from tests.apiserver.chart_plane import ACCOUNT, CHART, IMAGE, Plane, control_plane, declare
from tests.support.api import Api
from tests.support.cluster import localcluster, token_service
from tests.support.played_kubelet import TOLERATION, played
from tests.support.wait import eventually

Right = tuple[str, str, str]

# Asked for by an admission plugin that is off by default, not by a request of its own.
NOT_IN_REQUESTS: set[Right] = {
    ("tokenservice.dev", "tokenservices/finalizers", "update"),
    ("tokenservice.dev", "warmpools/finalizers", "update"),
}


@pytest.fixture
def plane() -> Iterator[Plane]:
    """A control plane whose audit log has the operator's requests, reads included."""
    with control_plane("--audit") as made:
        [policy] = made.state.rglob("audit-policy.yaml")
        rules = [{"level": "Metadata", "users": [ACCOUNT]}, {"level": "None"}]
        ours = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
        policy.write_text(yaml.safe_dump(ours))
        localcluster("restart", "--name", made.cluster.name, "--component", "kube-apiserver")
        eventually(lambda: made.call("kubectl", "get", "--raw", "/readyz").returncode == 0, "the API server is ready")
        yield made


@contextmanager
def operator(plane: Plane, folder: Path) -> Iterator[None]:
    """The manager, run here with the token of the chart's ServiceAccount; told to stop at the end."""
    config = yaml.safe_load(plane.cluster.kubeconfig.read_text())
    token = plane.kubectl("create", "token", "op-tokenservice-operator", "--namespace=system").strip()
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    kubeconfig = folder / "operator.kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    template = folder / "job-template.yaml"
    template.write_text(
        plane.kubectl(
            "get",
            "configmap/op-tokenservice-operator-jobs",
            "--namespace=system",
            r"--output=jsonpath={.data.job-template\.yaml}",
        )
    )
    variables = {
        "TOKENSERVICE_LEASE_NAMESPACE": "system",
        "TOKENSERVICE_HTTP_PORT": str(port),
        "TOKENSERVICE_JOB_TEMPLATE": str(template),
    }
    command = [sys.executable, "-m", "tokenservice.cli", "manager", "--kubeconfig", str(kubeconfig)]
    with (folder / "operator.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log)
        try:
            eventually(lambda: ready(port), "the operator is ready")
            yield
        finally:
            process.terminate()
            status = process.wait(30)
    assert status == 0, (folder / "operator.log").read_text()


def ready(port: int) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).close()  # raises unless it is a success
        return True
    return False


def granted(plane: Plane) -> set[Right]:
    objects = yaml.safe_load_all(plane.helm("get", "manifest", "op"))
    roles = [item for item in objects if item and item["kind"] in ("Role", "ClusterRole")]
    operators = [item for item in roles if not any("/aggregate-to-" in key for key in item["metadata"]["labels"])]
    assert len(operators) == 2
    return {
        (group, resource, verb)
        for role in operators
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(events: list[dict[str, Any]]) -> set[Right]:
    rights: set[Right] = set()
    for event in events:
        target = event.get("objectRef", {})
        if "resource" not in target:
            continue  # discovery and the OpenAPI document, which everyone may read
        resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
        rights.add((target.get("apiGroup", ""), resource, event["verb"]))
        if event["verb"] == "patch" and event["responseStatus"]["code"] == 201:
            rights.add((target.get("apiGroup", ""), resource, "create"))  # server-side apply of something new
    return rights


def an_environment_comes_and_goes(plane: Plane) -> None:
    """A TokenService with an unsolvable environment inline, whose Job fails; then it names an image instead."""
    here = "--namespace=team-a"
    service = {
        "apiVersion": "tokenservice.dev/v1alpha1",
        "kind": "TokenService",
        "metadata": {"name": "inline", "namespace": "team-a"},
        "spec": {
            "model": {"source": "file:///model"},
            "environment": {"conda": {"channels": ["conda-forge"], "dependencies": ["python=3.11"]}},
        },
    }
    plane.kubectl("create", "--filename=-", stdin=json.dumps(service))
    job = ("--selector=tokenservice.dev/job=lock", "--namespace=system", "--output=name")
    eventually(lambda: bool(plane.kubectl("get", "pods", *job)), "the lock Job has a pod")
    # The kubelet's part, which this control plane has not: the pod ran and said why there is no lock, in more words
    # than its status holds.
    problem = Problem(reason="Unsolvable", message="a needs b, and nothing provides b\n" * 1000)
    message = encode_result(JobResult(problem=problem), RESULT_BYTES).decode()
    ended = {"terminated": {"exitCode": EXIT_TERMINAL, "reason": "Error", "message": message}}
    container = {"name": "job", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": ended}
    status = {"status": {"phase": "Failed", "containerStatuses": [container]}}
    pod = plane.kubectl("get", "pods", *job).strip()
    plane.kubectl(
        "patch", pod, "--namespace=system", "--subresource=status", "--type=merge", "--patch", json.dumps(status)
    )
    reason = r"--output=jsonpath={.status.conditions[?(@.type=='Locked')].reason}"
    eventually(
        lambda: plane.kubectl("get", "condaenvironment", "inline", here, reason) == "Unsolvable", "the reason is told"
    )
    # With nothing to start, the change is complete at once, and the environment has served its time.
    image = {"spec": {"replicas": 0, "environment": {"conda": None, "image": {"reference": "example.com/s"}}}}
    plane.kubectl("patch", "tokenservice", "inline", here, "--type=merge", "--patch", json.dumps(image))
    eventually(
        lambda: not plane.kubectl("get", "condaenvironments", here, "--output=name"), "the CondaEnvironment is deleted"
    )
    eventually(lambda: not plane.kubectl("get", "jobs", *job), "the Job that nothing needs is deleted")


def a_pool(plane: Plane) -> None:
    """It is filled, as far as that goes without nodes, and emptied."""
    here = "--namespace=team-a"
    pool = {
        "apiVersion": "tokenservice.dev/v1alpha1",
        "kind": "WarmPool",
        "metadata": {"name": "warm", "namespace": "team-a"},
        "spec": {"environment": {"image": {"reference": "example.com/s"}}, "replicas": 1},
    }
    pods = ("get", "pods", "--selector=tokenservice.dev/pool=warm", here, "--output=name")
    plane.kubectl("create", "--filename=-", stdin=json.dumps(pool))
    eventually(lambda: bool(plane.kubectl(*pods)), "there is a pod")
    plane.kubectl("scale", "warmpool/warm", "--replicas=0", here)
    eventually(lambda: not plane.kubectl(*pods), "it is gone")


def a_claim(plane: Plane) -> None:
    """A replica out of a pool of the service's own, which becomes the Deployment's; then no pool is asked for."""
    api = Api(plane.cluster.kubeconfig)
    try:
        with played(api):
            template = {"spec": {"tolerations": [TOLERATION]}}
            spec: dict[str, Any] = {"template": template, "warmPool": {"replicas": 1}, "replicas": 0}
            api.apply("team-a", token_service("warmed", "example.com/slow", **spec))

            def warm() -> int:
                return int((api.get("WarmPool", "team-a", "warmed") or {}).get("status", {}).get("readyReplicas", 0))

            eventually(lambda: warm() == 1, "a pod is warm", seconds=60)
            api.patch("TokenService", "team-a", "warmed", {"spec": {"replicas": 1}})

            def settled() -> bool:
                found = api.list("Pod", "team-a", labelSelector="tokenservice.dev/deployment=warmed")
                assert len(found) == 1
                metadata = found[0]["metadata"]
                assert [owner["kind"] for owner in metadata["ownerReferences"]] == ["ReplicaSet"]
                return "controller.kubernetes.io/pod-deletion-cost" not in metadata["annotations"]

            eventually(settled, "it is the Deployment's", seconds=60)
            api.patch("TokenService", "team-a", "warmed", {"spec": {"warmPool": None}})
            eventually(lambda: api.get("WarmPool", "team-a", "warmed") is None, "the pool is gone")
    finally:
        api.close()


def a_rollout(plane: Plane) -> None:
    """A revision that is good; then another image, which is brought to the node first; then more than are kept."""
    api = Api(plane.cluster.kubeconfig)
    here = "--namespace=team-a"
    try:
        with played(api):
            spec: dict[str, Any] = {"template": {"spec": {"tolerations": [TOLERATION]}}}
            api.apply("team-a", token_service("rolled", "example.com/old", **spec))

            def status() -> dict[str, Any]:
                return (api.get("TokenService", "team-a", "rolled") or {}).get("status", {})

            eventually(lambda: status().get("lastGoodRevision"), "the first revision is good", seconds=60)
            first = status()["lastGoodRevision"]
            change = {"spec": {"environment": {"image": {"reference": "example.com/new"}}}}
            api.patch("TokenService", "team-a", "rolled", change)
            eventually(lambda: status()["lastGoodRevision"] != first, "the second is", seconds=60)
            for number in range(KEPT):
                before = status()["updateRevision"]
                more = {"spec": {"engine": {"args": [f"--number={number}"]}}}
                api.patch("TokenService", "team-a", "rolled", more)
                eventually(lambda before=before: status()["updateRevision"] != before, "the revision is known")
            history = (
                "get",
                "controllerrevisions",
                "--selector=tokenservice.dev/service=rolled",
                here,
                "--output=name",
            )
            eventually(lambda: first not in plane.kubectl(*history), "the oldest revision goes")
    finally:
        api.close()


def test_every_right_is_used_and_none_is_missing(plane: Plane, tmp_path: Path) -> None:
    plane.helm("install", "op", str(CHART), IMAGE, "--set=replicas=0", "--set=registry.url=registry.example.com/team")
    here = "--namespace=team-a"
    with operator(plane, tmp_path):
        declare(plane)
        eventually(
            lambda: len(plane.kubectl("get", "deployment,service,pdb", here, "--output=name").split()) == 3,
            "three children exist",
        )
        # A child is deleted: the operator makes sure that the TokenService is still there, and makes it again.
        plane.kubectl("delete", "service", "kept", here)
        eventually(lambda: plane.call("kubectl", "get", "service", "kept", here).returncode == 0, "the Service is back")
        # A pod serves, as far as a control plane without a kubelet can tell.
        eventually(lambda: bool(plane.kubectl("get", "pods", here, "--output=name")), "there is a pod")
        pod = plane.kubectl("get", "pods", here, "--output=name").strip()
        serving = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
        plane.kubectl("patch", pod, here, "--subresource=status", "--type=merge", "--patch", json.dumps(serving))
        plane.kubectl("wait", "--for=condition=Ready", "tokenservice/kept", here, "--timeout=30s")
        about = "--field-selector=regarding.kind=TokenService"
        eventually(
            lambda: bool(plane.kubectl("get", "events.events.k8s.io", about, here, "--output=name")),
            "there is an event",
        )
        an_environment_comes_and_goes(plane)
        a_rollout(plane)
        a_pool(plane)
        a_claim(plane)

    log = [json.loads(line) for line in (plane.state / "audit.log").read_text().splitlines()]
    events = [event for event in log if event["user"]["username"] == ACCOUNT]
    assert [event for event in events if event["responseStatus"]["code"] == 403] == []
    assert used(events) == granted(plane) - NOT_IN_REQUESTS
