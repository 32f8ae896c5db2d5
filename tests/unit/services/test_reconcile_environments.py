"""Reconciling TokenServices that run in CondaEnvironments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tokenservice.api.environments import CondaEnvironment
from tokenservice.kube.errors import ApiError

from tests.unit.services.builders import BUILT, CONDA, IMAGE, OLDER, UID, environment
from tests.unit.services.standin_cluster import IMAGES, INLINE, KEY, REF, Cluster


async def test_from_an_environment_in_the_spec_to_pods() -> None:
    cluster = Cluster(environment=INLINE)
    assert await cluster.reconcile() == [
        "apply condaenvironments",
        "apply services",
        "apply poddisruptionbudgets",
        "status",
    ]
    made = cluster.look("condaenvironments")
    assert made
    assert made["spec"] == CONDA
    assert cluster.says("Ready") == ("False", "EnvironmentNotReady")
    cluster.built("demo")
    assert await cluster.reconcile() == ["apply controllerrevisions", "apply deployments", "status"]
    assert cluster.image == BUILT
    cluster.serve()
    assert await cluster.reconcile() == ["status", "status"], "it serves, and then is good"
    assert cluster.says("Ready") == ("True", "Serving")
    assert cluster.says("EnvironmentReady") == ("True", "Built")
    assert cluster.service.status.environment
    assert cluster.service.status.environment.lock_digest == "sha256:newest"
    assert cluster.events == [("Normal", "Built"), ("Normal", "Serving")]
    cluster.restarted()
    assert await cluster.reconcile() == []


async def serving(**spec: Any) -> Cluster:
    """A TokenService that serves in the environment `nlp`, from an older image of it."""
    cluster = Cluster(**spec)
    cluster.put(environment(image=OLDER))
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "Serving")
    return cluster


async def test_while_the_environment_changes_replicas_and_template_are_carried_out_with_the_image_that_is_there() -> (
    None
):
    cluster = await serving(environment=REF)
    for status, reason in (("Unknown", "Locking"), ("False", "Unsolvable")):
        cluster.put(environment(reason=reason, image=OLDER, generation=2, observed=2))
        assert await cluster.reconcile() == ["status"]
        assert cluster.says("EnvironmentReady") == (status, reason)
        assert cluster.says("Ready") == ("True", "Serving")
    template = {"metadata": {"annotations": {"team": "a"}}}
    cluster.want(environment=REF, replicas=3, template=template)
    assert await cluster.reconcile() == ["apply controllerrevisions", "apply deployments", "status"]
    deployment = cluster.look("deployments")
    assert deployment
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["template"]["metadata"]["annotations"] == {"team": "a"}
    assert cluster.image == OLDER
    cluster.put(environment(image=BUILT, generation=3, observed=3))
    assert await cluster.reconcile() == ["apply controllerrevisions", "apply deployments", "status"]
    assert cluster.image == BUILT


async def test_an_image_that_comes_in_between_is_not_spoken_of_before_the_deployment_has_it() -> None:
    cluster = await serving(environment=REF)
    cluster.put(environment(reason="Building", image=OLDER))
    await cluster.reconcile()
    cluster.meanwhile = lambda: cluster.built("nlp")
    cluster.want(environment=REF, replicas=2)
    result = await cluster.reconciler.reconcile(KEY)
    assert result.requeue_after == 0.0
    assert cluster.image == OLDER
    assert cluster.says("EnvironmentReady") == ("Unknown", "Building")
    cluster.meanwhile = None
    assert await cluster.reconcile() == ["apply controllerrevisions", "apply deployments", "status"]
    assert cluster.image == BUILT
    assert cluster.says("Ready") == ("False", "RollingOut")


async def test_the_same_image_of_a_new_lock_rolls_nothing() -> None:
    cluster = await serving(environment=REF)
    cluster.put(environment(image=OLDER, generation=2, observed=2, message="again"))
    assert await cluster.reconcile() == []


async def test_an_environment_that_is_deleted_takes_nothing_with_it() -> None:
    cluster = await serving(environment=REF)
    del cluster.objects["condaenvironments", "nlp"]
    assert await cluster.reconcile() == ["status"]
    assert cluster.says("EnvironmentReady") == ("False", "NotFound")
    cluster.want(environment=REF, replicas=2)
    assert await cluster.reconcile() == ["apply deployments", "status"]
    assert cluster.image == OLDER
    cluster.restarted()
    assert await cluster.reconcile() == []


async def test_from_one_of_an_images_environments_to_a_conda_environment() -> None:
    cluster = Cluster(environment={"image": {"reference": IMAGE, "condaEnv": "token_nlp"}})
    await cluster.reconcile()
    cluster.want(environment=REF)
    cluster.put(environment(reason="Locking"))
    assert await cluster.reconcile() == ["status"]
    assert cluster.image == IMAGE
    cluster.built("nlp")
    assert await cluster.reconcile() == ["apply controllerrevisions", "apply deployments", "status"]
    deployment = cluster.look("deployments")
    assert deployment
    assert "command" not in deployment["spec"]["template"]["spec"]["containers"][0]
    status = cluster.service.status.environment
    assert status
    assert (status.image, status.conda_env) == (BUILT, None)


async def test_an_inline_environment_is_deleted_once_the_pods_run_from_something_else() -> None:
    cluster = Cluster(environment=INLINE)
    await cluster.reconcile()
    cluster.built("demo")
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    cluster.want(environment=IMAGES)
    assert await cluster.reconcile() == ["apply controllerrevisions", "apply deployments", "status"]
    assert cluster.look("condaenvironments")
    cluster.serve()
    assert await cluster.reconcile() == ["delete condaenvironments", "status", "status"]
    assert cluster.look("condaenvironments") is None
    assert cluster.service.status.condition("EnvironmentReady") is None


async def test_who_asks_for_another_try_asks_for_one_of_the_environment() -> None:
    cluster = Cluster(environment=INLINE)
    await cluster.reconcile()
    annotated = msgspec.structs.replace(cluster.service.metadata, annotations={"tokenservice.dev/retry": "1"})
    cluster.keep(msgspec.structs.replace(cluster.service, metadata=annotated))
    assert await cluster.reconcile() == ["apply condaenvironments"]
    made = cluster.look("condaenvironments")
    assert made
    assert made["metadata"]["annotations"]["tokenservice.dev/retry"] == "1"


async def test_an_inline_environment_stays_while_a_pool_runs_in_it() -> None:
    cluster = Cluster(environment=INLINE)
    cluster.caches = replace(cluster.caches, pools=lambda namespace, name: ("nlp",) if name == "demo" else ())
    cluster.restarted()
    await cluster.reconcile()
    cluster.built("demo")
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    cluster.want(environment=IMAGES)
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    assert cluster.look("condaenvironments")
    cluster.caches = replace(cluster.caches, pools=lambda _namespace, _name: ())
    cluster.restarted()
    await cluster.reconcile()
    assert cluster.look("condaenvironments") is None


async def test_a_change_of_an_inline_environment_is_applied_and_what_others_change_of_it_put_back() -> None:
    cluster = Cluster(environment=INLINE)
    await cluster.reconcile()
    cluster.built("demo")
    await cluster.reconcile()
    cluster.want(environment={"conda": {**CONDA, "dependencies": ["python=3.12"]}})
    assert await cluster.reconcile() == ["apply condaenvironments", "status"]
    assert cluster.says("EnvironmentReady") == ("Unknown", "Locking")
    assert cluster.image == BUILT
    raw = cluster.look("condaenvironments")
    assert raw
    raw["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"].pop("f:dependencies")
    raw["metadata"]["resourceVersion"] = "99"
    assert await cluster.reconcile() == ["apply condaenvironments"]


@pytest.mark.parametrize("crash_at", range(1, 5))
async def test_a_crash_between_any_two_writes_is_made_up_for(crash_at: int) -> None:
    """In every step of a life: made inline, built, changed, and given up for a prebuilt image."""

    async def life(crash_at: int | None) -> tuple[Cluster, int]:
        cluster = Cluster(environment=INLINE)
        steps: list[Callable[[], None]] = [
            lambda: None,
            lambda: cluster.built("demo", OLDER),
            cluster.serve,
            lambda: cluster.want(environment={"conda": {**CONDA, "dependencies": ["python=3.12"]}}, replicas=1),
            lambda: cluster.built("demo"),
            cluster.serve,
            lambda: cluster.want(environment=IMAGES),
            cluster.serve,
        ]
        crashes, _ = await cluster.live(steps, crash_at)
        return cluster, crashes

    told, _ = await life(None)
    cluster, crashes = await life(crash_at)
    assert crashes
    assert {key: raw.get("spec") for key, raw in cluster.objects.items()} == {
        key: raw.get("spec") for key, raw in told.objects.items()
    }
    assert cluster.service.status == told.service.status
    assert cluster.service.status.environment
    assert cluster.service.status.environment.image == IMAGE


REFUSED = [
    (ApiError(422, "Invalid", "spec.lock: must be a reference"), "InvalidEnvironment", False),
    (ApiError(403, "Forbidden", "exceeded quota: count/condaenvironments"), "Rejected", True),
    (ApiError(409, "Conflict", "conflict with kubectl", (("spec", "kubectl"),)), "NameConflict", True),
]


@pytest.mark.parametrize(("error", "reason", "may_pass"), REFUSED, ids=[case[1] for case in REFUSED])
async def test_a_refused_environment_stops_nothing_else(error: ApiError, reason: str, may_pass: bool) -> None:
    cluster = Cluster(environment=IMAGES)
    await cluster.reconcile()
    cluster.serve()
    await cluster.reconcile()
    cluster.refusals["condaenvironments"] = error
    cluster.want(environment=INLINE, replicas=2)
    await cluster.reconciler.reconcile(KEY)
    assert cluster.says("EnvironmentReady") == ("False", reason)
    deployment = cluster.look("deployments")
    assert deployment
    assert (cluster.image, deployment["spec"]["replicas"]) == (IMAGE, 2)
    # What may pass is asked again whenever something happens, what is wrong with the spec only when that has changed.
    cluster.refusals.clear()
    cluster.writes.clear()
    await cluster.reconciler.reconcile(KEY)
    assert ("apply condaenvironments" in cluster.writes) is may_pass
    cluster.now += timedelta(hours=1)
    await cluster.reconcile()
    assert cluster.says("EnvironmentReady") == ("Unknown", "Locking")


async def test_a_name_that_is_free_again_is_taken() -> None:
    cluster = Cluster(environment=INLINE)
    cluster.put(environment("demo", uid="other"))
    assert await cluster.reconcile() == ["apply services", "apply poddisruptionbudgets", "status"]
    assert cluster.says("EnvironmentReady") == ("False", "NameConflict")
    assert cluster.service.status.environment is None
    del cluster.objects["condaenvironments", "demo"]
    assert "apply condaenvironments" in await cluster.reconcile()


async def test_one_gone_in_between_is_as_good_as_deleted() -> None:
    cluster = Cluster(environment=IMAGES)
    await cluster.reconcile()
    cluster.serve()
    gone = environment("demo", uid=UID)

    class Stale:
        """A cache that the watch has not told yet."""

        def get(self, namespace: str, name: str, /) -> CondaEnvironment | None:
            return gone if name == "demo" else None

        def observe(self, environment: CondaEnvironment, /) -> None: ...

    cluster.caches = replace(cluster.caches, environments=Stale())
    cluster.restarted()
    assert await cluster.reconcile() == ["status", "status"]
