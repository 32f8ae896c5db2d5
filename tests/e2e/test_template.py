"""What a TokenService says of its pods reaches them, and they run: devices, runtime, nodes, volumes, models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.e2e.client import Client
from tests.e2e.gpus import GPU, node_with_gpus
from tests.support.api import Api
from tests.support.cluster import ROOT, Cluster
from tests.support.space import Space

GPU_LABEL = "nvidia.com/gpu.present"
RUNTIME = "nvidia"


def example(name: str, image: str) -> dict[str, Any]:
    """A TokenService of examples/, with an image that is there."""
    resource: dict[str, Any] = yaml.safe_load((ROOT / "examples" / name).read_text())
    resource["spec"]["environment"] = {"image": {"reference": image}}
    return resource


@pytest.fixture
def gpu_node(cluster: Cluster, api: Api) -> Iterator[str]:
    """A node with GPUs as far as Kubernetes can see, and the RuntimeClass of NVIDIA's toolkit, which is runc here."""
    with node_with_gpus(cluster, api, 4) as name:
        api.apply(
            None,
            {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": RUNTIME}, "handler": "runc"},
        )
        cluster.kubectl("label", "node", name, f"{GPU_LABEL}=true", "--overwrite")
        cluster.kubectl("taint", "node", name, f"{GPU}=present:NoSchedule", "--overwrite")
        try:
            yield name
        finally:
            cluster.kubectl("taint", "node", name, f"{GPU}-")
            cluster.kubectl("label", "node", name, f"{GPU_LABEL}-")
            api.delete("RuntimeClass", None, RUNTIME)


def test_the_example_with_gpus(space: Space, gpu_node: str, client: Client, standin_image: str) -> None:
    """examples/hub-gpu.yaml, but for its size: GPUs, runtime class, node selector, toleration, both Secrets."""
    space.secret("hub", token="hf_test")
    space.secret("keys", team="key-of-team")
    resource = example("hub-gpu.yaml", standin_image)
    (server,) = resource["spec"]["template"]["spec"]["containers"]
    server["resources"]["limits"]["memory"] = "256Mi"
    server["resources"]["requests"] = {"cpu": "10m", "memory": "64Mi"}
    resource["spec"]["engine"] = {"args": ["--require-hf-token"]}
    space.api.apply(space.name, resource)
    url = client.reach(space.ready("llama"))
    pods = space.pods("llama")
    assert len(pods) == 2
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["limits"] == {GPU: "1", "memory": "256Mi"}
        assert pod["spec"]["runtimeClassName"] == RUNTIME
        assert pod["spec"]["nodeSelector"] == {GPU_LABEL: "true"}
        assert pod["spec"]["nodeName"] == gpu_node
    models = client.ask(f"{url}/models", Authorization="Bearer key-of-team").json["data"]
    assert [model["id"] for model in models] == ["llama-3.1-8b"]


def test_the_example_with_a_claim(space: Space, client: Client, standin_image: str) -> None:
    (space.claim("models") / "models/tiny").mkdir(parents=True)
    space.api.apply(space.name, example("claim.yaml", standin_image))
    url = client.reach(space.ready("from-claim"))
    assert [model["id"] for model in client.ask(f"{url}/models").json["data"]] == ["tiny"]


def test_more_volumes_variables_and_containers(space: Space, standin_image: str) -> None:
    space.make("ConfigMap", "notes", data={"note": "written by the team"})
    safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    look = ["python3.11", "-c", "open('/shared/made', 'w').write('by an init container')"]
    init = {"name": "first", "image": standin_image, "command": look, "securityContext": safe}
    template = {
        "metadata": {"annotations": {"team": "blue"}},
        "spec": {
            "initContainers": [{**init, "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}],
            "containers": [
                {
                    "name": "server",
                    "env": [{"name": "TEAM", "value": "blue"}],
                    "volumeMounts": [
                        {"name": "notes", "mountPath": "/notes"},
                        {"name": "shared", "mountPath": "/shared"},
                    ],
                }
            ],
            "volumes": [{"name": "notes", "configMap": {"name": "notes"}}, {"name": "shared", "emptyDir": {}}],
            "terminationGracePeriodSeconds": 20,
        },
    }
    space.apply("rich", standin_image, model={"source": "file:///opt/standin"}, template=template)
    space.ready("rich")
    pod = space.pod("rich")
    assert pod["metadata"]["annotations"]["team"] == "blue"
    tell = """
import json, os
print(json.dumps([open("/notes/note").read(), open("/shared/made").read(), os.environ["TEAM"],
                  os.environ["TOKEN_SERVER_GRACE_SECONDS"]]))
"""
    seen = json.loads(space.kubectl("exec", pod["metadata"]["name"], "-c", "server", "--", "python3.11", "-c", tell))
    assert seen == ["written by the team", "by an init container", "blue", "20"]


def test_a_model_in_an_image_of_its_own(space: Space, client: Client, standin_image: str, model_image: str) -> None:
    """examples/tiny.yaml: an image volume; the stand-in looks no further than that the folder is there."""
    resource = example("tiny.yaml", standin_image)
    resource["spec"]["template"]["spec"]["volumes"][0]["image"]["reference"] = model_image
    space.api.apply(space.name, resource)
    url = client.reach(space.ready("tiny"))
    assert [model["id"] for model in client.ask(f"{url}/models").json["data"]] == ["tiny"]
    files = space.kubectl("exec", space.pod("tiny")["metadata"]["name"], "--", "ls", "/models/tiny").split()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
