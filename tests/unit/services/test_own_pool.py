"""The WarmPool that a TokenService has as its own: made with it, of its shape, gone when nobody asks for it."""

from __future__ import annotations

import msgspec
import pytest
from tokenservice.api.pools import WarmPool
from tokenservice.handover.shape import difference
from tokenservice.pools.render import rendered
from tokenservice.services import render

from tests.unit.pods.builders import pod_schema
from tests.unit.services.builders import BUILT, service
from tests.unit.services.standin_cluster import IMAGES, INLINE, KEY, REF, Cluster

OWN = {"replicas": 2}
SCHEMA = pod_schema()


async def test_it_is_made_asked_and_taken_away() -> None:
    cluster = Cluster(environment=IMAGES, warmPool=OWN)
    assert "apply warmpools" in await cluster.reconcile()
    assert cluster.pools_asked == [KEY], "the watch tells nobody of what was known from the answer"
    found = cluster.look("warmpools")
    assert found
    assert found["spec"]["replicas"] == 2
    assert [owner["kind"] for owner in found["metadata"]["ownerReferences"]] == ["TokenService"]
    cluster.want(environment=IMAGES, warmPool={"replicas": 3})
    assert "apply warmpools" in await cluster.reconcile()
    cluster.want(environment=IMAGES)
    assert "delete warmpools" in await cluster.reconcile()
    assert cluster.look("warmpools") is None
    assert await cluster.reconcile() == []


async def test_one_of_that_name_that_is_not_its_own_is_left_alone() -> None:
    cluster = Cluster(environment=IMAGES)
    cluster.objects["warmpools", "demo"] = {
        "metadata": {"name": "demo", "namespace": "team", "uid": "another"},
        "spec": {"environment": {"image": {"reference": "x"}}},
    }
    cluster.want(environment=IMAGES, warmPool=OWN)
    assert "apply warmpools" not in await cluster.reconcile()
    assert cluster.says("WarmPoolReady") == ("False", "NameConflict")
    cluster.want(environment=IMAGES)
    await cluster.reconcile()
    assert cluster.look("warmpools"), "nor is it deleted"


@pytest.mark.parametrize("environment", [IMAGES, INLINE, REF], ids=["image", "conda", "ref"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"model": {"source": "pvc://models/llama"}},
        {"model": {"source": "hf://acme/tiny", "authSecretRef": {"name": "hub", "key": "token"}}},
        {"api": {"keySecretRef": {"name": "keys"}}, "engine": {"args": ["--max-queue", "3"]}},
        {
            "model": {"source": "pvc://models/llama"},
            "template": {
                "metadata": {"labels": {"team": "nlp"}},
                "spec": {
                    "nodeSelector": {"gpu": "a100"},
                    "volumes": [{"name": "scratch", "emptyDir": {}}],
                    "containers": [
                        {"name": "proxy", "image": "proxy:1"},
                        {"name": "server", "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]},
                    ],
                },
            },
        },
    ],
    ids=["plain", "claim", "hub", "keys", "template"],
)
def test_its_pods_have_the_shape_of_the_services(environment: dict[str, object], more: dict[str, object]) -> None:
    made = service(environment=environment, warmPool=OWN, **more)
    runs_in = render.EnvironmentStatus(image=BUILT)
    if made.spec.environment.image:
        runs_in = render.EnvironmentStatus(image=made.spec.environment.image.reference)
    children = render.children(made, SCHEMA, runs_in)
    assert children.pool
    assert children.deployment
    pool = msgspec.convert(children.pool, WarmPool)
    template = children.deployment["spec"]["template"]
    assert difference(rendered(pool, SCHEMA, runs_in).template["spec"], template["spec"]) is None
