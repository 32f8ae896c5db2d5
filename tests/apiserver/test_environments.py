"""CondaEnvironments against a real API server and its Job controller.

Jobs do not run here, since there are no nodes: the test plays the kubelet and writes into a pod's status what the Job's
program would have left there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenservice.api.jobs import (
    EXIT_DONE,
    EXIT_TERMINAL,
    RESULT_BYTES,
    BuildAnswer,
    JobResult,
    LockAnswer,
    Problem,
    encode_result,
)

from tests.apiserver.conftest import Plane, Space
from tests.support.api import Object
from tests.support.operator_process import OperatorProcess
from tests.support.wait import eventually

TOLD_SECONDS = 10.0
CONDA: Object = {"channels": ["conda-forge"], "dependencies": ["python=3.11"]}
LOCKING, BUILDING = ("Locking", "Unschedulable"), ("Building", "Unschedulable")
"""While a Job is at work; there is no node for its pod, which is told as soon as it is known."""
IMAGE = "localhost:30500/environments@sha256:" + "1" * 64
LOCK = LockAnswer(lock_digest="sha256:" + "2" * 64, reference="r/environments@sha256:" + "3" * 64, packages=7)
BUILD = BuildAnswer(image=IMAGE, base="b@sha256:4", bytes_total=3, bytes_pushed=1, bytes_shared=2, layers=5)
TEMPLATE: Object = {
    "spec": {"template": {"spec": {"containers": [{"name": "job", "image": "registry.invalid/operator:1"}]}}}
}


@pytest.fixture(scope="module")
def jobs(plane: Plane) -> str:
    """The namespace of the Jobs."""
    plane.api.create("Namespace", None, {"metadata": {"name": "jobs"}})
    return "jobs"


@pytest.fixture
def operator(plane: Plane, jobs: str, alone: None, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator that may make Jobs, with an administrator's rights; the chart's are another test's matter."""
    template = tmp_path / "template.yaml"
    template.write_text(yaml.safe_dump(TEMPLATE))
    made = plane.operator(f"--job-template={template}", f"--job-namespace={jobs}", kubeconfig=plane.cluster.kubeconfig)
    made.start()
    yield made
    assert made.stop() == 0


def make(space: Space, name: str = "nlp", **spec: Any) -> None:
    body = {"apiVersion": "tokenservice.dev/v1alpha1", "kind": "CondaEnvironment", "metadata": {"name": name}}
    space.api.apply(space.name, {**body, "spec": {**CONDA, **spec}})


def pod_of(space: Space, jobs: str, stage: str, *, seconds: float = TOLD_SECONDS) -> str:
    """The newest pod that the Job controller made for a Job of this stage, waiting for a node as all do here."""

    def look() -> str | None:
        found = space.api.list("Pod", jobs, labelSelector=f"tokenservice.dev/job={stage}")
        waiting = [pod["metadata"] for pod in found if pod["status"]["phase"] == "Pending"]
        newest = max(waiting, key=lambda pod: str(pod["creationTimestamp"]), default=None)
        return str(newest["name"]) if newest else None

    return eventually(look, f"a pod of the {stage} Job", seconds=seconds)


def ends(space: Space, jobs: str, pod: str, result: JobResult, code: int = EXIT_DONE) -> None:
    """The kubelet's part: the container ended and left this."""
    message = encode_result(result, RESULT_BYTES).decode()
    state = {"terminated": {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": message}}
    container = {"name": "job", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    phase = "Succeeded" if code == 0 else "Failed"
    body = {"status": {"phase": phase, "containerStatuses": [container]}}
    space.api.patch("Pod", jobs, pod, body, sub="status")


def says(space: Space, kind: str, *reasons: str, name: str = "nlp") -> Object:
    """The condition of that type, once it has one of these reasons and speaks of the newest spec."""

    def look() -> Object:
        found = space.there("CondaEnvironment", name)
        conditions = found.get("status", {}).get("conditions", [])
        told = next((item for item in conditions if item["type"] == kind), {})
        assert told.get("reason") in reasons, told
        assert told["observedGeneration"] == found["metadata"]["generation"]
        return dict(told)

    return eventually(look, f"{kind} of {name} says {' or '.join(reasons)}", seconds=TOLD_SECONDS)


@pytest.mark.usefixtures("operator")
def test_from_a_spec_to_an_image_to_pods_and_back_from_a_bad_edit(plane: Plane, space: Space, jobs: str) -> None:
    make(space)
    space.apply("llm", environment={"ref": {"name": "nlp"}})
    assert says(space, "Locked", *LOCKING)["status"] != "True"
    ends(space, jobs, pod_of(space, jobs, "lock"), JobResult(lock=LOCK))
    assert says(space, "Built", *BUILDING)["status"] != "True"
    # What counts is the digest, not how the program ended.
    ends(space, jobs, pod_of(space, jobs, "build"), JobResult(build=BUILD), code=139)
    says(space, "Ready", "Built")
    status = space.there("CondaEnvironment", "nlp")["status"]
    assert (status["image"], status["lockDigest"], status["packages"]) == (IMAGE, LOCK.lock_digest, 7)
    assert status["bytes"] == {"total": 3, "pushed": 1, "shared": 2}

    def runs() -> bool:
        containers = space.there("Deployment", "llm")["spec"]["template"]["spec"]["containers"]
        return bool(containers[0]["image"] == IMAGE)

    eventually(runs, "the service runs it")
    before = space.there("Deployment", "llm")["metadata"]["generation"]
    make(space, dependencies=["python=3.11", "torch=99"])
    words = "torch 99 does not exist, which python would need\nand more\n"
    problem = Problem(reason="Unsolvable", message=words)
    ends(space, jobs, pod_of(space, jobs, "lock"), JobResult(problem=problem), code=EXIT_TERMINAL)
    assert says(space, "Locked", "Unsolvable")["message"] == words.strip()
    described = plane.cluster.kubectl("describe", "cenv", "nlp", "-n", space.name).stdout
    assert "torch 99 does not exist" in described
    assert space.there("CondaEnvironment", "nlp")["status"]["image"] == IMAGE
    make(space, dependencies=["python=3.11"])
    says(space, "Ready", "Built")
    assert space.there("Deployment", "llm")["metadata"]["generation"] == before


def test_a_restarted_operator_writes_nothing(plane: Plane, space: Space, jobs: str, operator: OperatorProcess) -> None:
    make(space, variables={"OF": "restart"})
    ends(space, jobs, pod_of(space, jobs, "lock"), JobResult(lock=LOCK))
    ends(space, jobs, pod_of(space, jobs, "build"), JobResult(build=BUILD))
    says(space, "Ready", "Built")
    version = space.there("CondaEnvironment", "nlp")["metadata"]["resourceVersion"]
    assert operator.stop() == 0
    operator.start()
    make(space, "later", dependencies=["python=3.9"])
    says(space, "Locked", *LOCKING, name="later")  # it has looked at all that was there before
    assert space.there("CondaEnvironment", "nlp")["metadata"]["resourceVersion"] == version


@pytest.mark.usefixtures("operator")
def test_a_job_for_nobody_is_deleted_and_one_deleted_by_hand_is_made_again(
    plane: Plane, space: Space, jobs: str
) -> None:
    def names() -> set[str]:
        listed = plane.cluster.kubectl(
            "get", "jobs", "-n", jobs, "-l", "tokenservice.dev/job=lock", "-o", "name"
        ).stdout
        return set(listed.split())

    before = names()
    make(space, dependencies=["python=3.10"])
    [job] = eventually(lambda: names() - before, "a lock Job is made")
    plane.cluster.kubectl("delete", job, "-n", jobs)
    eventually(lambda: job in names(), "it is made again", seconds=TOLD_SECONDS)
    space.delete("CondaEnvironment", "nlp")
    eventually(lambda: job not in names(), "it is deleted, since nobody waits for it", seconds=30)


@pytest.mark.usefixtures("operator")
def test_a_quota_that_keeps_a_job_from_its_pod_is_told_and_heals(space: Space, jobs: str) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    space.api.create("ResourceQuota", jobs, quota)
    try:
        make(space, dependencies=["python=3.8"])
        told = eventually(lambda: says(space, "Locked", "FailedCreate"), "the quota is told", seconds=40)
        assert "exceeded quota: none" in told["message"]
    finally:
        space.api.delete("ResourceQuota", jobs, "none")
    # The Job controller tries again by itself, at intervals that grow.
    ends(space, jobs, pod_of(space, jobs, "lock", seconds=120), JobResult(lock=LOCK))
    says(space, "Locked", "Locked")
