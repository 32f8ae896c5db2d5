"""What is wrong with a pod stands in the TokenService within seconds, in the words of who found it; and it heals.

Each trouble is caused for real. All are caused at once, and later all causes are taken away at once: what takes time
is the kubelet trying again, ever more slowly.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import Client
from tests.e2e.gpus import GPU, node_with_gpus
from tests.support.api import Api, Object
from tests.support.cluster import Cluster, condition
from tests.support.space import Space, container
from tests.support.wait import eventually
from tests.support.watch import Timeline

SHOWN_SECONDS = 5.0
"""From the report of the kubelet or the scheduler in the pod to the TokenService's status, as an onlooker sees both."""

SERVING = {"model": {"source": "file:///opt/standin"}}
MANY = 6
"""GPUs of one pod, of the node's 8: two such pods do not fit."""


def server(**fields: Any) -> dict[str, Any]:
    """A template for the container that serves."""
    return {"template": {"spec": {"containers": [{"name": "server", **fields}]}}}


def memory(limit: str) -> dict[str, Any]:
    return server(resources={"limits": {"memory": limit}})


def waiting(*reasons: str) -> Callable[[Object], bool]:
    return lambda pod: container(pod).get("state", {}).get("waiting", {}).get("reason") in reasons


def ended(pod: Object) -> bool:
    """The first end of the container; whether it is seen as the present or the last state is a matter of luck."""
    seen = container(pod)
    return any("terminated" in seen.get(state, {}) for state in ("state", "lastState"))


def unschedulable(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "PodScheduled" and each["status"] == "False" for each in conditions)


@dataclass(frozen=True)
class Stage:
    """Where the troubles are caused."""

    space: Space
    cluster: Cluster
    image: str
    pods: Timeline
    services: Timeline
    folders: dict[str, Path] = field(default_factory=dict)

    @property
    def late_image(self) -> str:
        return f"{self.cluster.registry}/late/{self.space.name}:1"


@dataclass(frozen=True)
class Trouble:
    """A spec that does not work yet; what is said about it; and what takes the cause away.

    `reported`: the state of the pod that tells of it. `words`: a pattern of the message.
    """

    name: str
    spec: dict[str, Any]
    reported: Callable[[Object], bool]
    reason: str
    words: str
    heal: Callable[[Stage], object]


def push_late_image(stage: Stage) -> None:
    stage.cluster.run("crane", "copy", "--insecure", stage.image, stage.late_image)


def label_node(stage: Stage) -> None:
    (node,) = stage.cluster.facts["nodes"]
    stage.cluster.kubectl("label", "node", node["name"], f"{stage.space.name}=here")


def delete_holder(stage: Stage) -> None:
    stage.space.api.delete("TokenService", stage.space.name, "holder")


TROUBLES = [
    Trouble(
        name="image",
        spec=SERVING,  # its image is Stage.late_image
        reported=waiting("ErrImagePull", "ImagePullBackOff"),
        reason="ImagePullBackOff",
        words=r"late/\S+:1.*not found",
        heal=push_late_image,
    ),
    Trouble(
        name="crash",
        spec={**SERVING, "engine": {"args": ["--fail-after", "0", "--fail-message", "shard 7 of 9 has no weights"]}},
        reported=ended,
        reason="CrashLoopBackOff",
        words=r"shard 7 of 9 has no weights \(exit code 1\)",
        heal=lambda stage: stage.space.patch("crash", engine={"args": []}),
    ),
    Trouble(
        name="memory",
        spec={**SERVING, "engine": {"args": ["--allocate-mib", "160"]}, **memory("96Mi")},
        reported=ended,
        reason="OOMKilled",
        words=r"used more memory than its limit allows \(.*(137|signal 9)\)",
        heal=lambda stage: stage.space.patch("memory", **memory("320Mi")),
    ),
    Trouble(
        name="selector",
        spec={**SERVING},  # its node selector is the namespace's name
        reported=unschedulable,
        reason="Unschedulable",
        words=r"0/1 nodes are available: 1 node\(s\) didn't match Pod's node affinity/selector",
        heal=label_node,
    ),
    Trouble(
        name="gpus",
        spec={**SERVING, **server(resources={"limits": {GPU: MANY}})},
        reported=unschedulable,
        reason="Unschedulable",
        words=rf"0/1 nodes are available: 1 Insufficient {re.escape(GPU)}",
        heal=delete_holder,
    ),
    Trouble(
        name="claim",
        spec={"model": {"source": "pvc://late/tiny"}},
        reported=unschedulable,
        reason="Unschedulable",
        words=r'persistentvolumeclaim "late" not found',
        heal=lambda stage: (stage.space.claim("late") / "tiny").mkdir(),
    ),
    Trouble(
        name="model",
        spec={"model": {"source": "pvc://models/llama"}},
        reported=ended,
        reason="CrashLoopBackOff",
        words=r"cannot load model file:///var/run/tokenservice/model/llama: not found: there is no folder",
        heal=lambda stage: (stage.folders["models"] / "llama").mkdir(),
    ),
    Trouble(
        name="hub-token",
        spec={"model": {"source": "hf://org/gated", "authSecretRef": {"name": "hub"}}},
        reported=waiting("CreateContainerConfigError"),
        reason="CreateContainerConfigError",
        words=r'secret "hub" not found',
        heal=lambda stage: stage.space.secret("hub", token="hf_test"),
    ),
    Trouble(
        name="keys",
        spec={**SERVING, "api": {"keySecretRef": {"name": "keys"}}},
        reported=ended,
        reason="CrashLoopBackOff",
        words=r"no API key in \S+: the Secret of spec.api.keySecretRef does not exist or is empty",
        heal=lambda stage: stage.space.secret("keys", alice="key-of-alice"),
    ),
]
each_trouble = pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)


@pytest.fixture(scope="module")
def stage(module_space: Space, cluster: Cluster, api: Api, standin_image: str) -> Iterator[Stage]:
    """All troubles, caused."""
    space = module_space
    with node_with_gpus(cluster, api, 8):
        holder = {**SERVING, **server(resources={"limits": {GPU: MANY}})}
        space.apply("holder", standin_image, **holder)
        space.ready("holder")
        timelines = (Timeline(api, "Pod", space.name), Timeline(api, "TokenService", space.name))
        made = Stage(space, cluster, standin_image, *timelines, folders={"models": space.claim("models")})
        for trouble in TROUBLES:
            spec = dict(trouble.spec)
            if trouble.name == "selector":
                spec["template"] = {"spec": {"nodeSelector": {space.name: "here"}}}
            space.apply(trouble.name, made.late_image if trouble.name == "image" else standin_image, **spec)
        yield made


@pytest.fixture(scope="module")
def healed(stage: Stage) -> Stage:
    """All causes taken away, once each has shown."""
    for trouble in TROUBLES:
        with contextlib.suppress(AssertionError):  # that is for test_it_shows to tell
            stage.space.says(trouble.name, trouble.reason)
    for trouble in TROUBLES:
        trouble.heal(stage)
    return stage


@each_trouble
def test_it_shows(stage: Stage, trouble: Trouble, record_property: Callable[[str, object], None]) -> None:
    def mine(pod: Object) -> bool:
        return bool(pod["metadata"]["labels"].get("tokenservice.dev/service") == trouble.name)

    def shows(service: Object) -> bool:
        failures = service.get("status", {}).get("failures", [])
        return (
            service["metadata"]["name"] == trouble.name
            and condition(service).get("status") == "False"
            and condition(service).get("reason") == trouble.reason
            and any(failure["reason"] == trouble.reason for failure in failures)
        )

    reported, pod = stage.pods.first(lambda pod: mine(pod) and trouble.reported(pod), "the pod tells", seconds=60)
    shown, service = stage.services.first(shows, f"the TokenService tells {trouble.reason}", seconds=60)
    record_property("seconds", round(shown - reported, 2))
    assert shown - reported <= SHOWN_SECONDS

    (failure,) = service["status"]["failures"]
    assert re.search(trouble.words, failure["message"]), failure
    assert failure["pod"] == pod["metadata"]["name"]
    assert failure.get("container", "") == ("" if trouble.reported is unschedulable else "server")
    assert re.search(trouble.words, condition(service)["message"]), condition(service)
    assert condition(service)["message"].startswith(f"pod {failure['pod']}: ")

    def event() -> bool:
        found = [event for event in stage.space.events(trouble.name) if event["reason"] == trouble.reason]
        return any(event["type"] == "Warning" and re.search(trouble.words, event["note"]) for event in found)

    eventually(event, "a warning tells it, too")


@each_trouble
def test_it_heals(healed: Stage, trouble: Trouble) -> None:
    service = healed.space.ready(trouble.name, seconds=90)
    assert not service["status"].get("failures")

    (event,) = (each for each in healed.space.events_with("Serving", trouble.name) if each["reason"] == "Serving")
    assert event["type"] == "Normal"


def test_the_late_key_is_asked_for(healed: Stage, client: Client) -> None:
    url = client.reach(healed.space.ready("keys", seconds=90))
    assert client.ask(f"{url}/models").status == 401
    assert client.ask(f"{url}/models", Authorization="Bearer key-of-alice").status == 200
