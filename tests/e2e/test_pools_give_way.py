"""A node with one GPU, which a WarmPool holds: a TokenService that asks for it gets it, and gives it back.

The stand-in for the server cannot be warm: the pool's pods end again and again, and hold the GPU all the same.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.gpus import GPU, node_with_gpus
from tests.support.api import Api, Object
from tests.support.cluster import Cluster, condition
from tests.support.space import Space
from tests.support.wait import eventually
from tests.support.watch import Timeline

POOL = "tokenservice.dev/pool=nlp"
TEMPLATE: dict[str, Any] = {"spec": {"containers": [{"name": "server", "resources": {"limits": {GPU: 1}}}]}}


def pool_pods(space: Space, *, placed: bool) -> list[Object]:
    found = space.api.list("Pod", space.name, labelSelector=POOL)
    staying = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
    return [pod for pod in staying if bool(pod["spec"].get("nodeName")) == placed]


@pytest.mark.usefixtures("operator")
def test_a_service_gets_the_gpu_that_a_pool_holds(space: Space, cluster: Cluster, api: Api, standin_image: str) -> None:
    environment = {"image": {"reference": standin_image}}
    pool = {
        "apiVersion": "tokenservice.dev/v1alpha1",
        "kind": "WarmPool",
        "metadata": {"name": "nlp"},
        "spec": {"environment": environment, "replicas": 1, "template": TEMPLATE},
    }
    with node_with_gpus(cluster, api, 1):
        api.apply(space.name, pool)
        (held,) = eventually(lambda: pool_pods(space, placed=True), "the pool holds the GPU")
        states = Timeline(api, "WarmPool", space.name)

        space.apply("chat", standin_image, model={"source": "file:///opt/standin"}, template=TEMPLATE)
        space.ready("chat", seconds=90)
        _, told = states.first(lambda each: condition(each).get("reason") == "GivingWay", "the pool says so")
        assert condition(told)["message"].endswith(f"which is Unschedulable: Insufficient {GPU}"), condition(told)
        assert held["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in pool_pods(space, placed=True)}
        events = [
            event for event in space.events_with("GivingWay", "nlp", "WarmPool") if event["reason"] == "GivingWay"
        ]
        assert [event["type"] for event in events] == ["Normal"]

        (waits,) = eventually(lambda: pool_pods(space, placed=False), "its next pod waits in turn")
        assert not pool_pods(space, placed=True)
        api.delete("TokenService", space.name, "chat")
        (back,) = eventually(lambda: pool_pods(space, placed=True), "the pool has the GPU again", seconds=90)
        assert back["metadata"]["uid"] == waits["metadata"]["uid"], "nothing was made anew for it"
