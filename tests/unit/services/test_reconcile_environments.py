"""Reconciling TokenServices that run in CondaEnvironments, against a stand-in that keeps what is applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
import pytest
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import Deployment, Object, Pod
from tokenservice.api.v1alpha1 import TokenService, TokenServiceStatus
from tokenservice.kube.client import Client, Resource
from tokenservice.kube.errors import ApiError
from tokenservice.kube.events import EventRecorder
from tokenservice.services.controller import Caches, Reconciler
from tokenservice.services.schemas import SchemaSource
from tokenservice.services.store import Store

from tests.support.merge_patch import merge_patch
from tests.unit.services.builders import BUILT, CONDA, IMAGE, NOW, OLDER, UID, environment, pod_schema, service

KEY = ("team", "demo")
REF: dict[str, Any] = {"ref": {"name": "nlp"}}
INLINE: dict[str, Any] = {"conda": CONDA}
IMAGES: dict[str, Any] = {"image": {"reference": IMAGE}}
GOES = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1, "observedGeneration": 1}


class CrashError(Exception):
    """The end of the operator's process."""


class Cluster:
    """The API server and the caches in one: keeps what is applied, refuses what a test tells it to."""

    def __init__(self, **spec: Any) -> None:
        self.now = NOW
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.writes: list[str] = []
        self.refusals: dict[str, ApiError] = {}
        self.events: list[tuple[str, str]] = []
        self.version = 0
        self.meanwhile: Callable[[], None] | None = None
        """What somebody else does while a Deployment is being applied."""
        self.crash_at: int | None = None
        """The operator dies with the answer to the write of that number on its way."""
        self.store = Store()
        self.caches = Caches(**{field: Cache(self, plural, kind) for field, (plural, kind) in KINDS.items()})
        self.reconciler = self.restarted()
        self.ask(**spec)

    def restarted(self) -> Reconciler:
        """The operator's reconciler, which remembers nothing."""
        self.reconciler = Reconciler(
            cast("Client", self),
            self.store,
            self.caches,
            cast("SchemaSource", Schemas()),
            cast("EventRecorder", self),
            cluster_domain="cluster.local",
            now=self.clock,
        )
        return self.reconciler

    def clock(self) -> datetime:
        return self.now

    # -- what users and others do

    def ask(self, **spec: Any) -> None:
        """A new generation of the TokenService."""
        known = self.store.get(KEY)
        status = known.status if known else TokenServiceStatus()
        generation = known.metadata.generation + 1 if known else 1
        self.keep(service(status=status, generation=generation, **spec))

    def put(self, made: CondaEnvironment) -> None:
        """Somebody, such as the environments' own controller, writes a CondaEnvironment."""
        raw = cast("dict[str, Any]", msgspec.to_builtins(made))
        self.objects["condaenvironments", made.metadata.name] = raw

    def built(self, name: str, image: str = BUILT) -> None:
        """The environments' controller is done with the newest spec of this one."""
        raw = self.objects["condaenvironments", name]
        done = msgspec.to_builtins(environment(name, image=image, observed=raw["metadata"]["generation"]).status)
        raw["status"] = done

    def serve(self) -> None:
        """The Deployment's controller is done."""
        raw = self.objects["deployments", "demo"]
        raw["status"] = {**GOES, "observedGeneration": raw["metadata"]["generation"]}

    def look(self, plural: str, name: str = "demo") -> dict[str, Any] | None:
        return self.objects.get((plural, name))

    @property
    def image(self) -> str | None:
        found = self.look("deployments")
        return found["spec"]["template"]["spec"]["containers"][0]["image"] if found else None

    @property
    def service(self) -> TokenService:
        found = self.store.get(KEY)
        assert found
        return found

    def says(self, kind: str) -> tuple[str, str]:
        found = self.service.status.condition(kind)
        assert found
        return found.status, found.reason

    async def reconcile(self) -> list[str]:
        """Until nothing is left to do. Returns what was written."""
        self.writes.clear()
        result = await self.reconciler.reconcile(KEY)
        while result.requeue_after == 0.0:
            result = await self.reconciler.reconcile(KEY)
        done, self.writes = self.writes, []
        await self.reconciler.reconcile(KEY)
        assert self.writes == [], "a second look writes nothing"
        return done

    # -- the client

    async def get(self, resource: Resource, namespace: str, name: str) -> bytes:
        assert resource.plural == "tokenservices"
        return msgspec.json.encode({"metadata": msgspec.to_builtins(self.service.metadata)})

    async def apply(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], **_: Any) -> bytes:
        if resource.plural in self.refusals:
            self.writes.append(f"refused {resource.plural}")
            raise self.refusals[resource.plural]
        before = self.objects.get((resource.plural, name), {})
        generation = before.get("metadata", {}).get("generation", 0) + (before.get("spec") != body["spec"])
        made = {**before, **body}
        made["metadata"] = {
            **body["metadata"],
            "uid": f"uid of {resource.plural} {name}",
            "resourceVersion": self._next(),
            "generation": generation,
            "managedFields": [
                {"manager": "tokenservice-operator", "operation": "Apply", "fieldsV1": owned(body)},
                {"manager": "kubectl", "operation": "Update", "fieldsV1": {}},
            ],
        }
        self.objects[resource.plural, name] = made
        if self.meanwhile and resource.plural == "deployments":
            self.meanwhile()
        self._wrote(f"apply {resource.plural}")
        return msgspec.json.encode(made)

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str) -> bytes:
        found = self.objects.get((resource.plural, name))
        if found is None:
            raise ApiError(404, "NotFound")
        assert found["metadata"]["uid"] == uid
        del self.objects[resource.plural, name]
        self._wrote(f"delete {resource.plural}")
        return b"{}"

    async def patch_status(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> bytes:
        status = merge_patch(msgspec.to_builtins(self.service.status), body["status"])
        raw = msgspec.to_builtins(self.service)
        made = {**raw, "status": status}
        made["metadata"] = {**raw["metadata"], "resourceVersion": self._next()}
        if self.crash_at == len(self.writes) + 1:  # what the server holds reaches the next operator with its first list
            self.store.observe(msgspec.convert(made, TokenService))
        self._wrote("status")
        return msgspec.json.encode(made)

    def event(self, _about: object, reason: str, _note: str, *, type: str, **_: Any) -> None:
        self.events.append((type, reason))

    def _wrote(self, what: str) -> None:
        self.writes.append(what)
        if self.crash_at == len(self.writes):
            raise CrashError

    def keep(self, made: TokenService) -> None:
        metadata = msgspec.structs.replace(made.metadata, resource_version=self._next())
        self.store.observe(msgspec.structs.replace(made, metadata=metadata))

    def _next(self) -> str:
        self.version += 1
        return str(self.version)


class Cache:
    """What the cluster holds of one kind."""

    def __init__(self, cluster: Cluster, plural: str, kind: type[Any]) -> None:
        self._cluster, self._plural, self._kind = cluster, plural, kind

    def get(self, namespace: str, name: str) -> Any:
        raw = self._cluster.look(self._plural, name)
        return None if raw is None else msgspec.json.decode(msgspec.json.encode(raw), type=self._kind)

    def by_index(self, key: str) -> tuple[Any, ...]:
        return ()

    def decode(self, data: bytes) -> Any:
        return msgspec.json.decode(data, type=self._kind)

    def observe(self, obj: Any) -> None:
        """It is there already."""


KINDS: dict[str, tuple[str, type[Any]]] = {
    "deployments": ("deployments", Deployment),
    "services": ("services", Object),
    "budgets": ("poddisruptionbudgets", Object),
    "pods": ("pods", Pod),
    "environments": ("condaenvironments", CondaEnvironment),
}


class Schemas:
    schema = pod_schema()
    stale = False


def owned(body: Mapping[str, Any]) -> dict[str, Any]:
    """Fields owned whole, one level below the top: enough for what needs_apply looks at."""
    metadata: dict[str, Any] = {f"f:{name}": {} for name in ("labels", "annotations", "ownerReferences")}
    return {"f:metadata": metadata, "f:spec": {f"f:{name}": {} for name in body["spec"]}}


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
    assert await cluster.reconcile() == ["apply deployments", "status"]
    assert cluster.image == BUILT
    cluster.serve()
    assert await cluster.reconcile() == ["status"]
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
    cluster.ask(environment=REF, replicas=3, template=template)
    assert await cluster.reconcile() == ["apply deployments", "status"]
    deployment = cluster.look("deployments")
    assert deployment
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["template"]["metadata"]["annotations"] == {"team": "a"}
    assert cluster.image == OLDER
    cluster.put(environment(image=BUILT, generation=3, observed=3))
    assert await cluster.reconcile() == ["apply deployments", "status"]
    assert cluster.image == BUILT


async def test_an_image_that_comes_in_between_is_not_spoken_of_before_the_deployment_has_it() -> None:
    cluster = await serving(environment=REF)
    cluster.put(environment(reason="Building", image=OLDER))
    await cluster.reconcile()
    cluster.meanwhile = lambda: cluster.built("nlp")
    cluster.ask(environment=REF, template={"metadata": {"annotations": {"team": "a"}}})
    result = await cluster.reconciler.reconcile(KEY)
    assert result.requeue_after == 0.0
    assert cluster.image == OLDER
    assert cluster.says("EnvironmentReady") == ("Unknown", "Building")
    cluster.meanwhile = None
    assert await cluster.reconcile() == ["apply deployments", "status"]
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
    cluster.ask(environment=REF, replicas=2)
    assert await cluster.reconcile() == ["apply deployments", "status"]
    assert cluster.image == OLDER
    cluster.restarted()
    assert await cluster.reconcile() == []


async def test_from_one_of_an_images_environments_to_a_conda_environment() -> None:
    cluster = Cluster(environment={"image": {"reference": IMAGE, "condaEnv": "token_nlp"}})
    await cluster.reconcile()
    cluster.ask(environment=REF)
    cluster.put(environment(reason="Locking"))
    assert await cluster.reconcile() == ["status"]
    assert cluster.image == IMAGE
    cluster.built("nlp")
    assert await cluster.reconcile() == ["apply deployments", "status"]
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
    cluster.ask(environment=IMAGES)
    assert await cluster.reconcile() == ["apply deployments", "status"]
    assert cluster.look("condaenvironments")
    cluster.serve()
    assert await cluster.reconcile() == ["delete condaenvironments", "status"]
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


async def test_a_change_of_an_inline_environment_is_applied_and_what_others_change_of_it_put_back() -> None:
    cluster = Cluster(environment=INLINE)
    await cluster.reconcile()
    cluster.built("demo")
    await cluster.reconcile()
    cluster.ask(environment={"conda": {**CONDA, "dependencies": ["python=3.12"]}})
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
        cluster, crashes = Cluster(environment=INLINE), 0
        steps: list[Callable[[], None]] = [
            lambda: None,
            lambda: cluster.built("demo", OLDER),
            cluster.serve,
            lambda: cluster.ask(environment={"conda": {**CONDA, "dependencies": ["python=3.12"]}}, replicas=1),
            lambda: cluster.built("demo"),
            cluster.serve,
            lambda: cluster.ask(environment=IMAGES),
            cluster.serve,
        ]
        for step in steps:
            step()
            cluster.crash_at = crash_at
            cluster.writes.clear()
            try:
                await cluster.reconciler.reconcile(KEY)
            except CrashError:
                crashes += 1
                cluster.restarted()
            cluster.crash_at = None
            await cluster.reconcile()
        return cluster, crashes

    told, _ = await life(None)
    cluster, crashes = await life(crash_at)
    assert crashes
    assert {key: raw["spec"] for key, raw in cluster.objects.items()} == {
        key: raw["spec"] for key, raw in told.objects.items()
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
    cluster.ask(environment=INLINE, replicas=2)
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
    assert await cluster.reconcile() == ["status"]
