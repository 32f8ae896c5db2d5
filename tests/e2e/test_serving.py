"""What users do with a TokenService day by day: apply, look, ask, scale; and the operator's pods may come and go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import yaml

from tests.e2e.client import Client
from tests.e2e.conftest import SYSTEM
from tests.support.api import Api, Object
from tests.support.cluster import ROOT
from tests.support.space import Space
from tests.support.wait import eventually, holds
from tests.support.watch import Timeline

MODEL = {"model": {"source": "file:///opt/standin", "name": "tiny"}}


def manifest(name: str, image: str, **spec: Any) -> str:
    resource = {"apiVersion": "tokenservice.dev/v1alpha1", "kind": "TokenService", "metadata": {"name": name}}
    return yaml.safe_dump({**resource, "spec": {**MODEL, "environment": {"image": {"reference": image}}, **spec}})


def test_apply_wait_look_and_ask(space: Space, client: Client, standin_image: str) -> None:
    said = space.kubectl("apply", "-f", "-", input=manifest("first", standin_image))
    assert said == "tokenservice.tokenservice.dev/first created\n"
    space.kubectl("wait", "--for=condition=Ready", "tsvc/first", "--timeout=60s")

    header, row = (line.split() for line in space.kubectl("get", "tsvc").splitlines())
    assert header == ["NAME", "READY", "REASON", "DESIRED", "SERVING", "MODEL", "AGE"]
    assert row[:-1] == ["first", "True", "Serving", "1", "1", "file:///opt/standin"]
    told = space.kubectl("describe", "tsvc", "first")
    assert "1 of 1 replicas serve" in told

    url = client.reach(space.there("TokenService", "first"))
    assert url == f"http://first.{space.name}.svc.cluster.local/v1"
    models = client.ask(f"{url}/models").json["data"]
    assert [model["id"] for model in models] == ["tiny"]
    question = {"model": "tiny", "messages": [{"role": "user", "content": "Well?"}], "max_tokens": 4, "stream": True}
    answer = client.ask(f"{url}/chat/completions", question)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    *parts, end = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    pieces = [json.loads(part)["choices"][0]["delta"].get("content", "") for part in parts]
    assert "".join(pieces) == "token1 token2 token3 token4"
    assert end == "[DONE]"

    space.kubectl("delete", "tsvc", "first")
    left = ("get", "deploy,svc,pdb", "-o", "name")
    eventually(lambda: space.kubectl(*left) == "", "its children are gone")


def test_pods_are_of_the_restricted_standard(space: Space, standin_image: str) -> None:
    space.apply("safe", standin_image, **MODEL)
    space.ready("safe")  # in a namespace that takes no others
    pod = space.pod("safe")["metadata"]["name"]
    tell = "import os; print(os.getuid(), os.getgid(), os.access('/opt', os.W_OK), os.access('/tmp', os.W_OK))"
    assert space.kubectl("exec", pod, "--", "python3.11", "-c", tell).split() == ["65532", "65532", "False", "True"]
    token = "import os; print(os.path.exists('/var/run/secrets/kubernetes.io'))"
    assert space.kubectl("exec", pod, "--", "python3.11", "-c", token).strip() == "False"


def test_a_key_is_asked_for_and_follows_its_secret(space: Space, client: Client, standin_image: str) -> None:
    space.secret("keys", alice="key-of-alice", bob="key-of-bob")
    space.apply("locked", standin_image, **MODEL, api={"keySecretRef": {"name": "keys"}})
    url = client.reach(space.ready("locked"))
    for key, status in (("key-of-alice", 200), ("key-of-bob", 200), ("key-of-eve", 401), ("", 401)):
        answer = client.ask(f"{url}/models", Authorization=f"Bearer {key}")
        assert answer.status == status, (key, answer)
    assert client.ask(f"{url}/models").status == 401
    text = json.dumps([space.api.list(kind, space.name) for kind in ("TokenService", "Deployment", "Pod", "Event")])
    assert "key-of-" not in text


def test_scaling_by_hand(space: Space, standin_image: str) -> None:
    space.apply("elastic", standin_image, **MODEL)
    space.ready("elastic")
    first = space.uids("elastic")
    space.kubectl("scale", "tsvc/elastic", "--replicas=3")
    space.kubectl("wait", "--for=jsonpath={.status.readyReplicas}=3", "tsvc/elastic", "--timeout=60s")
    space.ready("elastic")
    assert first < space.uids("elastic"), "the pod that served goes on"
    assert len(space.uids("elastic")) == 3
    space.kubectl("scale", "tsvc/elastic", "--replicas=0")
    space.says("elastic", "ScaledToZero")
    assert space.pods("elastic") == []


def test_an_autoscaler_scales_it(space: Space, standin_image: str) -> None:
    """There is no metrics server here: the bounds alone are what the autoscaler goes by."""
    autoscaler = yaml.safe_load((ROOT / "examples/autoscaling.yaml").read_text())
    autoscaler["spec"]["minReplicas"] = 2
    space.apply(autoscaler["spec"]["scaleTargetRef"]["name"], standin_image, **MODEL)
    space.kubectl("apply", "-f", "-", input=yaml.safe_dump(autoscaler))
    space.kubectl("wait", "--for=jsonpath={.status.readyReplicas}=2", "tsvc/tiny", "--timeout=90s")
    assert space.ready("tiny")["spec"]["replicas"] == 2


def leader(api: Api) -> str:
    """The name of the operator's pod that holds the Lease, "" if none does."""
    lease = api.get("Lease", SYSTEM, "tokenservice-operator")
    assert lease
    return str(lease["spec"].get("holderIdentity") or "").partition("_")[0]


def operator_pods(api: Api) -> list[Object]:
    found = api.list("Pod", SYSTEM, labelSelector="app.kubernetes.io/component=manager")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def test_another_operator_takes_over(space: Space, api: Api, standin_image: str) -> None:
    space.apply("unmoved", standin_image, replicas=2, **MODEL)
    before = space.good("unmoved")
    pods = space.uids("unmoved")
    first = leader(api)
    assert first in {pod["metadata"]["name"] for pod in operator_pods(api)}
    api.delete("Pod", SYSTEM, first)
    began = time.monotonic()
    second = eventually(lambda: leader(api) not in ("", first) and leader(api), "another leads")
    space.apply("later", standin_image, **MODEL)
    space.ready("later")
    assert time.monotonic() - began < 30
    assert second != first

    def both_ready() -> bool:
        conditions = [each for pod in operator_pods(api) for each in pod["status"].get("conditions", [])]
        ready = [each for each in conditions if each["type"] == "Ready" and each["status"] == "True"]
        return len(ready) == 2

    eventually(both_ready, "two operators again", seconds=60)
    after = space.there("TokenService", "unmoved")
    assert (after["metadata"]["resourceVersion"], space.uids("unmoved")) == (
        before["metadata"]["resourceVersion"],
        pods,
    )


def test_what_others_change_is_put_back(space: Space, standin_image: str) -> None:
    space.apply("firm", standin_image, **MODEL)
    space.ready("firm")
    pods = space.uids("firm")
    deployments = Timeline(space.api, "Deployment", space.name)

    def of(image: str, *, after: int = 0) -> Callable[[Object], bool]:
        def wanted(deployment: Object) -> bool:
            (server,) = deployment["spec"]["template"]["spec"]["containers"]
            return bool(server["image"] == image and deployment["metadata"]["generation"] > after)

        return wanted

    deployments.first(of(standin_image), "the Deployment is watched")
    space.kubectl("set", "image", "deploy/firm", "server=registry.invalid/other:1")
    changed, other = deployments.first(of("registry.invalid/other:1"), "the image is another")
    back, _ = deployments.first(of(standin_image, after=other["metadata"]["generation"]), "the image is back")
    assert back - changed < 1
    space.ready("firm")
    eventually(lambda: space.uids("firm") == pods, "a pod of the other image, if there was one, is gone", seconds=30)
    space.kubectl("rollout", "restart", "deploy/firm")
    eventually(lambda: not pods & space.uids("firm"), "a restart by hand replaces the pods", seconds=60)
    space.ready("firm")
    annotations = space.there("Deployment", "firm")["spec"]["template"]["metadata"]["annotations"]
    assert "kubectl.kubernetes.io/restartedAt" in annotations
    holds(lambda: len(space.pods("firm")) == 1, "nothing rolls again", seconds=1)
