"""The whole path: an environment.yml inside a TokenService is solved, built and run, and the official client is served.

Real torch, transformers and token_server, a real checkpoint, a real solver and registry. Only the conda channel is made
here, and the CUDA libraries that a CPU never calls are stand-ins (docs/local-channel.md). The TokenService is
examples/tiny.yaml.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import yaml
from tokenservice.handover import tokens
from tokenservice.handover.shape import difference

from tests.e2e.client import Answer, Client
from tests.e2e.conftest import RELEASE, SYSTEM
from tests.support.api import Api, Object
from tests.support.cluster import ROOT, Cluster, condition, localcluster
from tests.support.space import Space, container
from tests.support.wait import eventually
from tests.support.watch import Timeline

KEY = "key-of-the-team"
BUILDING_SECONDS = 280.0
"""For the environment's first image, of which torch takes most, and the model's load."""


@contextlib.contextmanager
def forwarded(space: Space, target: str) -> Iterator[str]:
    """A port of this machine that leads to the service, as `kubectl port-forward` gives it; its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ("kubectl", "--namespace", space.name, "port-forward", target, f"{port}:80")
    with subprocess.Popen(command, env=space.cluster.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert "Forwarding" in process.stdout.readline()
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def kill_container(cluster: Cluster, status: Object) -> None:
    """Sends SIGKILL to the container of that status, as the kernel does when memory is short."""
    identity = status["containerID"].removeprefix("containerd://")
    kill = ("ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", identity)
    localcluster("exec", "--name", cluster.name, "--", *kill)


@pytest.fixture(scope="module")
def tiny(module_space: Space, channel: str, model_image: str) -> Object:
    """examples/tiny.yaml with this image of the model, and a key."""
    resource: dict[str, Any] = yaml.safe_load((ROOT / "examples/tiny.yaml").read_text())
    spec = resource["spec"]
    spec["template"]["spec"]["volumes"][0]["image"]["reference"] = model_image
    spec["api"] = {"keySecretRef": {"name": "keys"}}
    module_space.secret("keys", team=KEY)
    module_space.api.apply(module_space.name, resource)
    return module_space.ready("tiny", seconds=BUILDING_SECONDS)


@pytest.fixture
def ask(module_space: Space, tiny: Object) -> Iterator[openai.OpenAI]:
    with (
        forwarded(module_space, "service/tiny") as url,
        openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as made,
    ):
        yield made


def test_the_official_client_is_served(ask: openai.OpenAI) -> None:
    assert [model.id for model in ask.models.list()] == ["tiny"]

    words = ask.completions.create(model="tiny", prompt="Once upon a time", max_tokens=12, temperature=0)
    assert words.usage
    assert words.usage.completion_tokens == 12
    assert words.usage.prompt_tokens > 0
    assert words.choices[0].finish_reason == "length"
    assert words.choices[0].text
    again = ask.completions.create(model="tiny", prompt="Once upon a time", max_tokens=12, temperature=0)
    assert again.choices[0].text == words.choices[0].text, "without a temperature, the model decides alone"
    cold = ask.completions.create(model="tiny", prompt="Once upon a time", max_tokens=12, temperature=1e-40)
    assert cold.choices[0].text == words.choices[0].text, "what is as good as none is none"

    pieces = list(
        ask.completions.create(model="tiny", prompt="Once upon a time", max_tokens=12, temperature=0, stream=True)
    )
    assert "".join(piece.choices[0].text for piece in pieces) == words.choices[0].text
    assert len(pieces) > 5

    chat: Any = [{"role": "user", "content": "What may I do with this software?"}]
    answer = ask.chat.completions.create(model="tiny", messages=chat, max_tokens=8, seed=1)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    streamed = ask.chat.completions.create(
        model="tiny", messages=chat, max_tokens=8, seed=1, stream=True, stream_options={"include_usage": True}
    )
    parts = list(streamed)
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == answer.choices[0].message.content
    assert parts[-1].usage
    assert parts[-1].usage.completion_tokens == 8


def test_its_environment_is_told(module_space: Space, tiny: Object) -> None:
    found = module_space.there("CondaEnvironment", "tiny")
    status = found["status"]
    assert {each["type"]: each["status"] for each in status["conditions"]} == {
        "Locked": "True",
        "Built": "True",
        "Ready": "True",
    }
    assert status["packages"] > 50
    assert status["bytes"]["total"] > 500e6
    service = module_space.there("TokenService", "tiny")
    image = module_space.pod("tiny")["spec"]["containers"][0]["image"]
    assert image == status["image"] == service["status"]["environment"]["image"]
    assert condition(service, "EnvironmentReady")["status"] == "True"
    listed = module_space.kubectl(
        "exec", module_space.pod("tiny")["metadata"]["name"], "--", "ls", "/opt/env/conda-meta"
    )
    assert "pytorch-2" in listed


def test_an_edit_that_cannot_be_solved_is_told_and_touches_nothing(module_space: Space, tiny: Object) -> None:
    conda = tiny["spec"]["environment"]["conda"]
    before = module_space.uids("tiny")
    deployment = module_space.there("Deployment", "tiny")["metadata"]["generation"]
    broken = {**conda, "dependencies": ["numpy<1", *conda["dependencies"]]}
    begun = time.monotonic()
    module_space.patch("tiny", environment={"conda": broken})

    def told() -> Object:
        found = condition(module_space.there("TokenService", "tiny"), "EnvironmentReady")
        assert found.get("reason") in ("Unsolvable", "UnknownPackage"), found
        return found

    message = eventually(told, "the solver's reason", seconds=30)["message"]
    assert time.monotonic() - begun < 10
    assert "numpy" in message
    described = module_space.kubectl("describe", "tsvc", "tiny")
    assert message.splitlines()[0] in described
    assert condition(module_space.there("TokenService", "tiny"))["status"] == "True", "what runs serves on"

    module_space.patch("tiny", environment={"conda": conda})

    def healed() -> None:
        assert condition(module_space.there("TokenService", "tiny"), "EnvironmentReady").get("status") == "True"

    eventually(lambda: healed() is None, "the old environment is the wanted one again", seconds=30)
    assert module_space.uids("tiny") == before
    assert module_space.there("Deployment", "tiny")["metadata"]["generation"] == deployment


def test_a_small_edit_builds_and_pulls_little(module_space: Space, tiny: Object) -> None:
    conda = tiny["spec"]["environment"]["conda"]
    before = module_space.there("CondaEnvironment", "tiny")["status"]
    pinned = {**conda, "dependencies": ["tqdm=4.67.3", *conda["dependencies"]]}
    module_space.patch("tiny", environment={"conda": pinned})

    def built() -> Object:
        found: Object = module_space.there("CondaEnvironment", "tiny")["status"]
        assert found["image"] != before["image"]
        return found

    status = eventually(built, "the new image", seconds=60)
    assert status["packages"] == before["packages"]
    assert status["bytes"]["pushed"] < 2e6

    def rolled() -> None:
        """Ready speaks of the environment's newest image only once the Deployment has it."""
        images = [pod["spec"]["containers"][0]["image"] for pod in module_space.pods("tiny")]
        assert images == [status["image"]]
        assert condition(module_space.there("TokenService", "tiny")).get("reason") == "Serving"

    eventually(lambda: rolled() is None, "a pod of the new image alone serves", seconds=120)


def test_errors_are_those_that_clients_know(ask: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="other"):
        ask.completions.create(model="other", prompt="Hm")
    with pytest.raises(openai.BadRequestError) as refused:
        ask.completions.create(model="tiny", prompt="Hm", max_tokens=-1)
    assert refused.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError, match="context"):
        ask.completions.create(model="tiny", prompt="word " * 4000)
    for key in ("wrong", "key-of-the-tea", f"{KEY}s"):
        with pytest.raises(openai.AuthenticationError):
            ask.with_options(api_key=key).models.list()


def test_the_service_answers_within_the_cluster(tiny: Object, client: Client) -> None:
    url = client.reach(tiny)
    assert client.ask(f"{url}/models").status == 401
    answer = client.ask(f"{url}/models", Authorization=f"Bearer {KEY}")
    assert answer.json["data"][0]["id"] == "tiny"
    metrics = client.ask(url.removesuffix("v1") + "metrics").text
    assert "token_server_" in metrics


def test_it_runs_with_few_rights(module_space: Space, tiny: Object) -> None:
    pod = module_space.pod("tiny")["metadata"]["name"]
    tell = """
import json, os, torch
def writable(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
    return True
paths = ["/opt/env/x", "/x", "/models/tiny/x", "/tmp/x"]
print(json.dumps([os.getuid(), os.getgid(), torch.cuda.is_available(), *map(writable, paths)]))
"""
    seen = json.loads(module_space.kubectl("exec", pod, "--", "/opt/env/bin/python", "-c", tell))
    assert seen[:3] == [65532, 65532, False]
    assert seen[3:] == ["Read-only file system"] * 3 + [True]


def apply_pool(space: Space, tiny: Object, model_image: str) -> None:
    """examples/pool.yaml with this image of the model, and the key that `tiny` has."""
    pool: dict[str, Any] = yaml.safe_load((ROOT / "examples/pool.yaml").read_text())
    pool["spec"]["template"]["spec"]["volumes"][0]["image"]["reference"] = model_image
    pool["spec"]["api"] = tiny["spec"]["api"]
    space.api.apply(space.name, pool)


def filled(space: Space) -> Object:
    """The pool, once it is warm."""

    def look() -> Object:
        found = space.there("WarmPool", "tiny")
        assert condition(found).get("reason") == "Warm", found.get("status")
        return found

    return eventually(look, "the pool is warm", seconds=120)


def test_a_pod_of_a_pool_takes_a_model_and_keeps_it(
    module_space: Space, tiny: Object, model_image: str, client: Client, cluster: Cluster
) -> None:
    """examples/pool.yaml, which has the environment and shape of `tiny`. The test assigns, in the operator's place."""
    apply_pool(module_space, tiny, model_image)

    assert filled(module_space)["status"]["readyReplicas"] == 1
    (pod,) = module_space.api.list("Pod", module_space.name, labelSelector="tokenservice.dev/pool=tiny")
    name = pod["metadata"]["name"]
    secret = module_space.api.get("Secret", SYSTEM, f"{RELEASE}-token-key")
    assert secret
    nonce = pod["metadata"]["annotations"]["tokenservice.dev/nonce"]
    token = tokens.token(b64decode(secret["data"]["key"]), module_space.name, name, nonce)
    running = module_space.pod("tiny")["spec"]
    assert difference(pod["spec"], {**running, "nodeName": pod["spec"]["nodeName"]}) is None

    address = module_space.there("Pod", name)["status"]["podIP"]
    base = f"http://{address}:8000"
    key = {"Authorization": f"Bearer {KEY}"}
    asked = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
    assert client.ask(f"{base}/v1/completions", asked, **key).json["error"]["code"] == "model_loading"

    def assign(source: str, given: str = token) -> Answer:
        document = {"service": "team/tiny", "model": {"source": source}}
        return client.ask(f"http://{address}:8001/assignment", document, method="PUT", Authorization=f"Bearer {given}")

    assert assign("file:///models/tiny", "wrong").status == 401
    taken = assign("file:///models/tiny")
    assert taken.status == 200, taken.text
    stages = taken.json["stages"]
    assert stages["total"] < stages["imports"], stages
    words = client.ask(f"{base}/v1/completions", asked, **key).json["choices"][0]["text"]
    assert words

    before = container(module_space.there("Pod", name))
    kill_container(cluster, before)
    pods = Timeline(module_space.api, "Pod", module_space.name)

    def again(pod: Object) -> bool:
        now = container(pod)
        return pod["metadata"]["name"] == name and now.get("restartCount", 0) > before["restartCount"]

    def served_again(pod: Object) -> bool:
        return again(pod) and bool(container(pod)["ready"])

    pods.first(lambda pod: again(pod) and not container(pod)["ready"], "it is not ready while it loads", seconds=60)
    pods.first(served_again, "it is ready again", seconds=60)
    assert client.ask(f"{base}/v1/completions", asked, **key).json["choices"][0]["text"] == words
    assert assign("file:///models/other").status == 409
    assert assign("file:///models/tiny").status == 200
    module_space.api.delete("WarmPool", module_space.name, "tiny")


def test_scaled_up_from_a_pool(
    module_space: Space, tiny: Object, model_image: str, client: Client, cluster: Cluster
) -> None:
    """The new replica serves before imports would end, becomes the Deployment's, and needs nobody from then on."""
    apply_pool(module_space, tiny, model_image)
    module_space.patch("tiny", warmPool={"name": "tiny"})
    module_space.ready("tiny")
    module_space.condition("tiny", "WarmPoolReady", "Fits")

    filled(module_space)
    found = module_space.api.list("Pod", module_space.name, labelSelector="tokenservice.dev/pool=tiny")
    (warm,) = (pod for pod in found if "deletionTimestamp" not in pod["metadata"])  # an earlier pool's may drain still
    name = warm["metadata"]["name"]
    pods = Timeline(module_space.api, "Pod", module_space.name)
    pods.first(lambda pod: pod["metadata"]["name"] == name, "the warm pod is watched")
    begun = time.monotonic()
    module_space.patch("tiny", replicas=2)
    when, pod = pods.first(
        lambda pod: pod["metadata"]["name"] == name and "tokenservice.dev/service" in pod["metadata"]["labels"],
        "the warm pod serves",
    )
    stages = json.loads(pod["metadata"]["annotations"]["tokenservice.dev/start-stages"])
    assert when - begun < stages["imports"], stages
    module_space.ready("tiny")
    assert when - begun < 2.0

    pods.first(
        lambda pod: (
            pod["metadata"]["name"] == name
            and pod["metadata"].get("ownerReferences", [{}])[0].get("kind") == "ReplicaSet"
            and "controller.kubernetes.io/pod-deletion-cost" not in pod["metadata"]["annotations"]
        ),
        "it is the Deployment's like any other",
    )
    deployment = module_space.there("Deployment", "tiny")
    assert deployment["spec"]["replicas"] == 2
    assert warm["metadata"]["uid"] in module_space.uids("tiny")
    assert len(module_space.uids("tiny")) == 2
    filled(module_space)

    cluster.kubectl("-n", SYSTEM, "scale", "deployment", RELEASE, "--replicas", "0")
    try:
        before = container(module_space.there("Pod", name))
        kill_container(cluster, before)

        def again(pod: Object) -> bool:
            now = container(pod)
            return pod["metadata"]["name"] == name and now.get("restartCount", 0) > before["restartCount"]

        pods.first(lambda pod: again(pod) and not container(pod)["ready"], "it is not Ready while it loads", seconds=60)
        pods.first(lambda pod: again(pod) and bool(container(pod)["ready"]), "it serves again, by itself", seconds=60)
        address = module_space.there("Pod", name)["status"]["podIP"]
        asked = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
        answer = client.ask(f"http://{address}:8000/v1/completions", asked, Authorization=f"Bearer {KEY}")
        assert answer.json["choices"][0]["text"]
    finally:
        cluster.kubectl("-n", SYSTEM, "scale", "deployment", RELEASE, "--replicas", "2")
        cluster.kubectl("-n", SYSTEM, "rollout", "status", "deployment", RELEASE, "--timeout=120s")
    module_space.patch("tiny", replicas=1, warmPool=None)
    module_space.api.delete("WarmPool", module_space.name, "tiny")
    module_space.ready("tiny")


def test_a_crash_is_told_and_mended(module_space: Space, tiny: Object, cluster: Cluster) -> None:
    before = container(module_space.pod("tiny"))
    kill_container(cluster, before)
    service = module_space.says("tiny", "CrashLoopBackOff", seconds=20)
    assert "137" in service["status"]["failures"][0]["message"]

    def restarted() -> bool:
        return bool(container(module_space.pod("tiny"))["restartCount"] == before["restartCount"] + 1)

    eventually(restarted, "the kubelet starts it again")
    module_space.ready("tiny", seconds=BUILDING_SECONDS)


def test_a_deleted_pod_finishes_its_stream(module_space: Space, tiny: Object, api: Api, client: Client) -> None:
    pods = Timeline(api, "Pod", module_space.name)
    pod = module_space.pod("tiny")
    name, base = pod["metadata"]["name"], f"http://{pod['status']['podIP']}:8000"
    pods.first(lambda seen: seen["metadata"]["name"] == name, "the pod is watched")

    def gone(seen: Object) -> bool:
        return seen["metadata"]["name"] == name and condition(seen).get("status") == "False"

    asked = {"model": "tiny", "prompt": "Once", "max_tokens": 2000, "stream": True, "temperature": 0}
    with client.stream(f"{base}/v1/completions", asked, Authorization=f"Bearer {KEY}") as stream:
        api.delete("Pod", module_space.name, name)
        assert not stream.ended, "it runs while the pod is deleted"
        pods.first(gone, "it is not ready any more")
        answer = stream.answer()
    assert answer.text.endswith("data: [DONE]\n\n")
    assert answer.text.count("data: ") > 1000

    def over(seen: Object) -> bool:
        return seen["metadata"]["name"] == name and "terminated" in container(seen).get("state", {})

    _, last = pods.first(over, "the container ended", seconds=60)
    assert container(last)["state"]["terminated"]["exitCode"] == 0


def test_a_gated_model_of_the_hub(module_space: Space, standin_image: str, tiny: Object, model_image: str) -> None:
    """hub.py stands in for the hub, which cannot be reached from everywhere; huggingface_hub and its cache are real."""
    space = module_space
    safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    hub = {
        "name": "hub",
        "image": standin_image,
        "command": ["python3.11", "/opt/standin/hub.py", "--model", "acme/tiny=/model"],
        "args": ["--gated", "acme/tiny", "--token", "hf_right"],
        "securityContext": safe,
        "volumeMounts": [{"name": "model", "mountPath": "/model"}],
    }
    context = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    volumes = [{"name": "model", "image": {"reference": model_image}}]
    space.make("Pod", "hub", spec={"containers": [hub], "securityContext": context, "volumes": volumes})
    space.kubectl("wait", "--for=condition=Ready", "pod/hub", "--timeout=60s")
    endpoint = f"http://{space.there('Pod', 'hub')['status']['podIP']}:8080"
    server = {"name": "server", "env": [{"name": "HF_ENDPOINT", "value": endpoint}]}

    space.secret("hub", token="hf_wrong")
    space.apply(
        "gated",
        module_space.there("CondaEnvironment", "tiny")["status"]["image"],
        model={"source": "hf://acme/tiny", "authSecretRef": {"name": "hub"}},
        template={"spec": {"containers": [server]}},
    )
    service = space.says("gated", "CrashLoopBackOff", seconds=BUILDING_SECONDS)
    (failure,) = service["status"]["failures"]
    assert failure["message"].startswith("cannot load model hf://acme/tiny: not authorised: the repository is gated; ")
    assert "hf_wrong" not in json.dumps([service, space.events("gated"), space.pod("gated")])

    space.api.patch("Secret", space.name, "hub", {"stringData": {"token": "hf_right"}})
    space.ready("gated", seconds=BUILDING_SECONDS)
    with forwarded(space, "service/gated") as url, openai.OpenAI(base_url=url, api_key="none", max_retries=0) as ask:
        assert ask.completions.create(model="acme/tiny", prompt="Once", max_tokens=3).choices[0].text
    assert "hf_right" not in space.kubectl("logs", space.pod("gated")["metadata"]["name"])
