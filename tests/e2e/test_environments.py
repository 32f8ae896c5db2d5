"""CondaEnvironments on a real kubelet: Jobs that solve and build, what they tell, and how they survive what goes wrong.

Environments here have Python and a package or two, so that each takes seconds. A variable with a random value makes one
new, whatever the registry has from a run before.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from tokenservice.api.jobs import REQUEST_VARIABLE, decode_result

from tests.e2e.conftest import CHANNEL, LOGIN, SYSTEM
from tests.support.api import Api, Object
from tests.support.cluster import LOCALCLUSTER, Cluster, condition, localcluster
from tests.support.space import Space, container
from tests.support.wait import eventually
from tests.support.watch import Timeline

BUILT_SECONDS = 90.0
"""For a lock and a build, of which each takes a few seconds, on a machine that does other things besides."""
TOLD_SECONDS = 30.0
JOB_LABEL = "batch.kubernetes.io/job-name"


@pytest.fixture
def mark(channel: str) -> str:
    """What makes an environment new, and its Jobs known."""
    assert channel
    return f"m{secrets.token_hex(8)}"


@pytest.fixture
def team(space: Space, channel: str) -> Space:
    """A namespace, and channels that answer."""
    assert channel
    return space


def conda(mark: str, *more: Any) -> Object:
    return {"channels": ["conda-forge"], "dependencies": ["python=3.11", *more], "variables": {"MARK": mark}}


def declare(space: Space, name: str, spec: Object) -> Object:
    found = {"apiVersion": "tokenservice.dev/v1alpha1", "kind": "CondaEnvironment", "metadata": {"name": name}}
    return space.api.apply(space.name, {**found, "spec": spec})


def says(space: Space, name: str, kind: str, reason: str, *, seconds: float = TOLD_SECONDS) -> Object:
    """The CondaEnvironment's condition, once it has this reason."""

    def look() -> Object:
        found = condition(space.there("CondaEnvironment", name), kind)
        assert found.get("reason") == reason, found
        return found

    return eventually(look, f"{kind} of {name} says {reason}", seconds=seconds)


def built(space: Space, name: str, *, seconds: float = BUILT_SECONDS) -> Object:
    """The CondaEnvironment's status, once the image of its newest spec is there."""
    says(space, name, "Ready", "Built", seconds=seconds)
    status: Object = space.there("CondaEnvironment", name)["status"]
    return status


def asked(job: Object) -> str:
    """What the Job, or a pod of one, was asked."""
    spec = job["spec"].get("template", job)["spec"]
    variables = {each["name"]: each.get("value", "") for each in spec["containers"][0].get("env", ())}
    return str(variables.get(REQUEST_VARIABLE, ""))


def jobs(api: Api, mark: str, stage: str, namespace: str = SYSTEM) -> list[Object]:
    """The Jobs of a stage that see to the environment."""
    found = api.list("Job", namespace, labelSelector=f"tokenservice.dev/job={stage}")
    return [job for job in found if mark in asked(job)]


def job(api: Api, mark: str, stage: str) -> Object:
    """The one Job of this stage."""
    (found,) = jobs(api, mark, stage)
    return found


def pods(api: Api, made: Object) -> list[Object]:
    return api.list("Pod", SYSTEM, labelSelector=f"{JOB_LABEL}={made['metadata']['name']}")


def running(api: Api, mark: str, stage: str) -> Object:
    """The pod of the stage's Job, as soon as its container runs."""

    def look() -> Object | None:
        for made in jobs(api, mark, stage):
            for pod in pods(api, made):
                states = [each["state"] for each in pod.get("status", {}).get("containerStatuses", ())]
                if any("running" in state for state in states):
                    return pod
        return None

    return eventually(look, f"the {stage} Job runs", seconds=BUILT_SECONDS, every=0.02)


def test_what_two_teams_declare_is_made_once(team: Space, api: Api, operator: Cluster, mark: str) -> None:
    with Space.made(f"second-{secrets.token_hex(2)}", operator, api) as second:
        spec = conda(mark, "tqdm", {"pip": ["sse-starlette"]})
        declare(team, "shared", spec)
        declare(second, "same", spec)
        first, other = built(team, "shared"), built(second, "same")
        assert first["image"] == other["image"]
        assert first["lockDigest"] == other["lockDigest"]
        lock, build = job(api, mark, "lock"), job(api, mark, "build")

        header, line = (row.split() for row in team.kubectl("get", "cenv").splitlines())
        assert header == ["NAME", "READY", "REASON", "PACKAGES", "AGE"]
        assert line[:4] == ["shared", "True", "Built", str(first["packages"])]
        described = team.kubectl("describe", "cenv", "shared")
        assert first["image"] in described
        assert {"Locked", "Built"} <= {
            event["reason"] for event in team.events_with("Built", "shared", "CondaEnvironment")
        }

        # Another order and another name inside the image are no other environment.
        before = team.there("CondaEnvironment", "shared")["metadata"]["generation"]
        changed = {**spec, "name": "renamed", "dependencies": [{"pip": ["sse-starlette"]}, "tqdm", "python=3.11"]}
        declare(team, "shared", changed)
        now = built(team, "shared")
        assert now["observedGeneration"] > before
        assert (now["image"], now["lockDigest"]) == (first["image"], first["lockDigest"])
        for stage, made in (("lock", lock), ("build", build)):
            assert job(api, mark, stage)["metadata"]["uid"] == made["metadata"]["uid"]
            assert len(pods(api, made)) == 1

        _ran_with_few_rights(api, lock, build)
        _logs_tell(operator, lock, build, first)
        _no_secret(operator, team, [lock, build, *pods(api, lock), *pods(api, build)])


def _ran_with_few_rights(api: Api, *made: Object) -> None:
    """The namespace enforces the restricted standard; beyond that, nothing can be written and nothing asked."""
    for pod in (pod for each in made for pod in pods(api, each)):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert not [volume for volume in spec["volumes"] if "projected" in volume]
        assert spec["securityContext"]["runAsNonRoot"] is True
        (only,) = spec["containers"]
        assert only["securityContext"]["readOnlyRootFilesystem"] is True
        assert only["securityContext"]["allowPrivilegeEscalation"] is False
        assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not [mount for mount in only["volumeMounts"] if "serviceaccount" in mount["mountPath"]]
        bindings = api.request("GET", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings")["items"]
        bindings += api.request("GET", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{SYSTEM}/rolebindings")["items"]
        subjects = [each for binding in bindings for each in binding.get("subjects", ())]
        assert spec["serviceAccountName"] not in [each["name"] for each in subjects]


def _log(cluster: Cluster, made: Object) -> list[str]:
    return cluster.kubectl("-n", SYSTEM, "logs", f"job/{made['metadata']['name']}").stdout.splitlines()


def _logs_tell(cluster: Cluster, lock: Object, build: Object, status: Object) -> None:
    """Packages and bytes while it works, and the result as last line."""
    *_, last = locking = _log(cluster, lock)
    result = decode_result(last)
    assert result
    assert result.lock
    assert (result.lock.lock_digest, result.lock.packages) == (status["lockDigest"], status["packages"])
    assert any(line.startswith(f"locked {status['packages']} packages as {status['lockDigest']}") for line in locking)
    *_, last = building = _log(cluster, build)
    result = decode_result(last)
    assert result
    assert result.build
    assert (result.build.image, result.build.bytes_total) == (status["image"], status["bytes"]["total"])
    (whole,) = (line for line in building if line.startswith("image sha256:"))
    assert f"{status['packages']} packages in {result.build.layers} layers" in whole
    assert re.search(r", [0-9.]+ MiB, of which [0-9.]+ \S+ (was|were) pushed, in [0-9.]+ s$", whole), whole


def _no_secret(cluster: Cluster, space: Space, objects: list[Object]) -> None:
    """The channels' login, which Jobs hold, is in nothing that users or operators read."""
    seen = json.dumps([objects, space.api.list("Event", space.name), space.api.list("Event", SYSTEM)])
    seen += space.kubectl("get", "cenv,tsvc", "-o", "yaml")
    for each in objects:
        if each.get("status", {}).get("succeeded"):
            seen += "\n".join(_log(cluster, each))
    selector = "app.kubernetes.io/component=manager"
    seen += cluster.kubectl("-n", SYSTEM, "logs", "--selector", selector, "--tail=-1").stdout
    seen += cluster.kubectl("-n", SYSTEM, "get", "configmaps", "-o", "yaml").stdout
    assert LOGIN["password"] not in seen
    assert "channel-login" in seen, "it was there to be held"


def test_mistakes_are_told_and_corrected(team: Space, api: Api, mark: str) -> None:
    declare(team, "wrong", conda(mark, {"pip": ["fastapi=0.95"]}))
    told = says(team, "wrong", "Locked", "InvalidEnvironment", seconds=5)
    assert "dependencies[1].pip[0] ('fastapi=0.95')" in told["message"]
    assert "fastapi==0.95" in told["message"]
    assert jobs(api, mark, "lock") == []

    declare(team, "wrong", conda(mark, "tqdn"))
    told = says(team, "wrong", "Locked", "UnknownPackage", seconds=15)
    assert "tqdn" in told["message"]
    assert condition(team.there("CondaEnvironment", "wrong"))["reason"] == "UnknownPackage"
    described = team.kubectl("describe", "cenv", "wrong")
    assert told["message"].splitlines()[0] in described
    events = team.events_with("UnknownPackage", "wrong", "CondaEnvironment")
    noted = [event for event in events if event["type"] == "Warning"]
    assert [event["reason"] for event in noted] == ["InvalidEnvironment", "UnknownPackage"]
    assert "tqdn" in noted[-1]["note"]
    # The Job is at its end after its first pod: what the user must change is not tried again.
    failed = job(api, mark, "lock")
    ended = eventually(
        lambda: [each for each in job(api, mark, "lock")["status"].get("conditions", ()) if each["type"] == "Failed"],
        "the Job is at its end",
    )
    assert ended[0]["reason"] == "PodFailurePolicy"
    assert len(pods(api, failed)) == 1

    declare(team, "wrong", conda(mark, "tqdm"))
    assert built(team, "wrong")["image"]


@pytest.fixture
def no_channel(operator: Cluster, channel: str) -> Iterator[None]:
    """Nothing answers where the channels were; at the end they are back."""
    scale = ("-n", CHANNEL, "scale", f"deployment/{channel}")
    operator.kubectl(*scale, "--replicas=0")
    operator.kubectl("-n", CHANNEL, "wait", "--for=delete", "pod", "--all", "--timeout=60s")
    try:
        yield
    finally:
        operator.kubectl(*scale, "--replicas=1")
        operator.kubectl("-n", CHANNEL, "rollout", "status", f"deployment/{channel}", "--timeout=60s")


def test_a_channel_that_is_down_and_comes_back(
    team: Space, api: Api, operator: Cluster, channel: str, mark: str, no_channel: None
) -> None:
    declare(team, "waiting", conda(mark))
    told = says(team, "waiting", "Locked", "ChannelUnavailable", seconds=60)
    assert "conda-forge" in told["message"]
    assert "conda-channel.conda-channel.svc" in told["message"]
    assert LOGIN["password"] not in json.dumps(team.there("CondaEnvironment", "waiting"))
    operator.kubectl("-n", CHANNEL, "scale", f"deployment/{channel}", "--replicas=1")
    # The Job itself tries again, after 10 s and then 20 s.
    built(team, "waiting", seconds=90)
    noted = [event["reason"] for event in team.events_with("Built", "waiting", "CondaEnvironment")]
    assert noted == ["ChannelUnavailable", "Locked", "Built"], "said once, however often it is tried"
    assert len(jobs(api, mark, "lock")) == 1


@pytest.fixture
def no_registry(operator: Cluster) -> Iterator[None]:
    """Nothing answers where images go; at the end it is back."""
    localcluster("stop", "--name", operator.name, "--component", "registry")
    try:
        yield
    finally:
        localcluster("start", "--name", operator.name, "--component", "registry")


def test_a_registry_that_is_down_and_comes_back(
    team: Space, api: Api, operator: Cluster, mark: str, no_registry: None
) -> None:
    declare(team, "stored", conda(mark))
    told = says(team, "stored", "Locked", "RegistryUnavailable", seconds=90)
    assert operator.registry in told["message"]
    assert "RegistryUnavailable" in team.kubectl("describe", "cenv", "stored")
    localcluster("start", "--name", operator.name, "--component", "registry")
    # The Job itself tries again, after 10 s and then 20 s.
    built(team, "stored", seconds=120)
    assert len(jobs(api, mark, "lock")) == 1


def test_an_evicted_job_goes_on_in_another_pod(team: Space, api: Api, operator: Cluster, mark: str) -> None:
    """Evicted as by the drain of its node."""
    declare(team, "moved", conda(mark))
    victim = running(api, mark, "lock")["metadata"]
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": victim["name"], "namespace": SYSTEM},
    }
    path = f"/api/v1/namespaces/{SYSTEM}/pods/{victim['name']}/eviction"
    operator.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))
    assert built(team, "moved")["image"]
    assert len(jobs(api, mark, "lock")) == 1
    assert condition(team.there("CondaEnvironment", "moved"), "Locked")["reason"] == "Locked"


def test_a_job_that_is_killed_is_started_again(team: Space, api: Api, operator: Cluster, channel: str) -> None:
    assert channel
    seen = Timeline(api, "Job", SYSTEM)
    name, mark = _with_a_killed_build(team, operator)
    assert built(team, name)["image"]
    for stage in ("lock", "build"):
        states = seen.states(lambda state: mark in asked(state))
        of_stage = [each for _, each in states if each["metadata"]["labels"]["tokenservice.dev/job"] == stage]
        assert len({each["metadata"]["uid"] for each in of_stage}) == 1, "the same Job goes on"

    def ends() -> bool:
        found = [
            each["state"].get("terminated", {}).get("exitCode", -1)
            for pod in pods(api, job(api, mark, "build"))
            for each in pod["status"].get("containerStatuses", ())
        ]
        return sorted(found) == [0, 137]

    eventually(ends, "one pod of the Job was killed, the next one went through")


def _with_a_killed_build(space: Space, cluster: Cluster) -> tuple[str, str]:
    """An environment of which the lock's pod was deleted and the build's process killed; its name and mark."""
    for number in range(3):
        name, mark = f"killed-{number}", f"m{secrets.token_hex(8)}"
        declare(space, name, conda(mark, "tqdm"))
        pod = running(space.api, mark, "lock")["metadata"]["name"]
        cluster.kubectl("-n", SYSTEM, "delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
        victim = running(space.api, mark, "build")
        identity = victim["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        kill = ("ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", identity)
        done = cluster.run(*LOCALCLUSTER, "exec", "--name", cluster.name, "--", *kill, check=False)
        if done.returncode == 0:
            return name, mark
        # The build was faster than this test, which can happen once.
    raise AssertionError(f"no build could be killed: {done.stderr}")


def test_an_operator_that_restarts_takes_the_result_in(team: Space, api: Api, operator: Cluster, mark: str) -> None:
    seen = Timeline(api, "Job", SYSTEM)
    declare(team, "restarted", conda(mark))
    running(api, mark, "lock")
    deployment = "deployment/tokenservice-operator"
    operator.kubectl("-n", SYSTEM, "rollout", "restart", deployment)
    status = built(team, "restarted")
    operator.kubectl("-n", SYSTEM, "rollout", "status", deployment, "--timeout=90s")
    assert built(team, "restarted")["image"] == status["image"]
    made = {state["metadata"]["uid"] for _, state in seen.states(lambda state: mark in asked(state))}
    assert len(made) == 2, "a lock and a build"


def test_a_reference_to_what_comes_later(team: Space, mark: str, standin_image: str) -> None:
    """The environment's base is the stand-in's image, which serves without the packages of a model."""
    server = {"name": "server", "command": ["python3.11", "-I", "/opt/standin/standin.py"]}
    team.apply(
        "early",
        "",
        environment={"ref": {"name": "later"}},
        model={"source": "file:///opt/standin"},
        template={"spec": {"containers": [server]}},
    )
    service = team.says("early", "EnvironmentNotReady")
    told = condition(service, "EnvironmentReady")
    assert (told["status"], told["reason"]) == ("False", "NotFound")
    assert "later" in told["message"]
    assert team.pods("early") == []

    declare(team, "later", {**conda(mark), "baseImage": standin_image})
    status = built(team, "later")
    service = team.ready("early", seconds=60)
    assert condition(service, "EnvironmentReady")["status"] == "True"
    pod = team.pod("early")
    assert pod["spec"]["containers"][0]["image"] == status["image"]
    where = "import os, sys; print(sys.version_info[:2], sys.prefix, os.environ['MARK'], os.environ['CONDA_PREFIX'])"
    seen = team.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", where)
    assert seen.split() == ["(3,", "11)", "/opt/env", mark, "/opt/env"]
    assert container(pod)["ready"]


def test_an_inline_environment_goes_with_its_service(team: Space, mark: str) -> None:
    team.apply("inline", "", environment={"conda": conda(mark)}, replicas=0)
    made = eventually(lambda: team.get("CondaEnvironment", "inline"), "the CondaEnvironment is made")
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("TokenService", "inline", True)
    built(team, "inline")
    assert "inline" in team.kubectl("get", "cenv")
    team.kubectl("delete", "tsvc", "inline", "--timeout=30s")
    eventually(lambda: team.get("CondaEnvironment", "inline") is None, "it is gone with its TokenService")
