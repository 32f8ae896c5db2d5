"""Reconciling TokenServices against a stand-in that keeps what is applied: API server and caches in one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import ControllerRevision, Deployment, Node, Object, Pod, stamp
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import LastStart, TokenService, TokenServiceStatus
from tokenservice.handover.assigner import Outcome
from tokenservice.handover.assignment import Document
from tokenservice.handover.claim import CLAIMS, POOL
from tokenservice.handover.tally import Tally
from tokenservice.kube.client import MERGE, STRATEGIC, Client, Resource
from tokenservice.kube.errors import ApiError
from tokenservice.kube.events import EventRecorder
from tokenservice.kube.status import NUMBERS_SECONDS
from tokenservice.pods.source import SchemaSource
from tokenservice.services.caches import PULLS, Caches
from tokenservice.services.controller import Reconciler
from tokenservice.services.store import Store
from tokenservice.services.taking import Around, WarmPods
from tokenservice.services.verify import Answer, restarts

from tests.support.merge_patch import merge_patch
from tests.unit.pods.builders import Schemas
from tests.unit.services.builders import BUILT, CONDA, IMAGE, NOW, environment, node, service

KEY = ("team", "demo")
KEY_ID = "key"
REF: dict[str, Any] = {"ref": {"name": "nlp"}}
INLINE: dict[str, Any] = {"conda": CONDA}
IMAGES: dict[str, Any] = {"image": {"reference": IMAGE}}
NODE = node("any")
"""A node of which a test says nothing."""
PROGRESS = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable", "message": ""}


class CrashError(Exception):
    """The end of the operator's process."""


class Cluster:
    """The API server and the caches in one: keeps what is applied, refuses what a test tells it to."""

    def __init__(self, **spec: Any) -> None:
        self.now = NOW
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.writes: list[str] = []
        self.refusals: dict[str, ApiError] = {}
        self.refuses: Callable[[Resource, dict[str, Any]], ApiError | None] | None = None
        """What an admission policy says to what a patch would make of an object."""
        self.events: list[tuple[str, str]] = []
        self.version = 0
        self.meanwhile: Callable[[], None] | None = None
        """What somebody else does while a Deployment is being applied."""
        self.dated = False
        """Whether what is applied has a time of its making."""
        self.crash_at: int | None = None
        """The operator dies with the answer to the write of that number on its way."""
        self.crash_early = False
        """Or rather with that write on its way."""
        self.before_patch: Callable[[str], None] | None = None
        """What somebody else does to a pod just before it is patched."""
        self.store = Store()
        caches: dict[str, Any] = {field: Cache(self, plural, kind) for field, (plural, kind) in KINDS.items()}
        self.nodes: tuple[Node, ...] = ()
        self.pools: dict[str, WarmPool] = {}
        self.pool_specs: dict[str, Any] = {}
        self.caches = Caches(
            **caches,
            nodes=lambda: self.nodes,
            warm_pools=cast("Any", Pools(self)),
        )
        self.around = Around(
            caches["pods"],
            cast("Any", Pools(self)),
            spec=lambda _namespace, name: self.pool_specs.get(name),
            node=lambda name: next((node for node in self.nodes if node.metadata.name == name), NODE),
        )
        self.rollout: dict[str, Any] = {"prePull": False}
        """Of every spec that says nothing else."""
        self.verdict: Any = "right"
        """What pods answer that are asked for a token."""
        self.answers: dict[str, Answer] = {}
        self.asking: dict[str, datetime] = {}
        self.asked = 0
        self.stages: list[str] = []
        self.rollbacks = 0
        self.assigner = Assigner()
        self.timer = Timer()
        self.starts: list[str] = []
        self.pools_asked: list[tuple[str, str]] = []
        self.hits = 0
        self.misses: list[str] = []
        self.hurry = False
        """Whether others wait for a pod."""
        self.reconciler = self.restarted()
        self.want(**spec)

    def restarted(self) -> Reconciler:
        """The operator's reconciler, which remembers nothing."""
        self.answers.clear()
        self.assigner.outcomes.clear()
        self.assigner.given.clear()
        self.warm_pods = WarmPods(
            cast("Client", self),
            self.around,
            assigner=self.assigner,
            timer=self.timer,
            tally=Tally(self.pools_asked.append),
            metrics=self,
            now=self.clock,
        )
        self.reconciler = Reconciler(
            cast("Client", self),
            self.store,
            self.caches,
            cast("SchemaSource", Schemas()),
            cast("EventRecorder", self),
            asker=self,
            warm_pods=self.warm_pods,
            metrics=self,
            cluster_domain="cluster.local",
            now=self.clock,
            hurry=lambda: self.hurry,
        )
        return self.reconciler

    def clock(self) -> datetime:
        return self.now

    # -- what users and others do

    def want(self, **spec: Any) -> None:
        """A new generation of the TokenService."""
        known = self.store.get(KEY)
        status = known.status if known else TokenServiceStatus()
        generation = known.metadata.generation + 1 if known else 1
        self.keep(service(status=status, generation=generation, **{"rollout": self.rollout, **spec}))

    def put(self, made: CondaEnvironment) -> None:
        """Somebody, such as the environments' own controller, writes a CondaEnvironment."""
        raw = cast("dict[str, Any]", msgspec.to_builtins(made))
        self.objects["condaenvironments", made.metadata.name] = raw

    def built(self, name: str, image: str = BUILT) -> None:
        """The environments' controller is done with the newest spec of this one."""
        raw = self.objects["condaenvironments", name]
        done = msgspec.to_builtins(environment(name, image=image, observed=raw["metadata"]["generation"]).status)
        raw["status"] = done

    def serve(self, **status: Any) -> None:
        """The Deployment's controller is done: the pods of the newest template are Ready since a while. `status`: what
        else it says of itself.
        """
        raw = self.objects["deployments", "demo"]
        count, template = raw["spec"]["replicas"], raw["spec"]["template"]
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), count)
        conditions = [{**PROGRESS, "lastUpdateTime": stamp(self.now)}]
        known = {"observedGeneration": raw["metadata"]["generation"], "conditions": conditions}
        raw["status"] = {**counts, **known, **status}
        self.drop_pods()
        for number in range(count):
            self.put_pod(f"demo-{raw['metadata']['generation']}-{number}", template["metadata"]["labels"])

    def put_pod(self, name: str, labels: Mapping[str, str], *, ready: bool = True, **status: Any) -> None:
        """A pod, Ready since a while or not."""
        since = stamp(self.now - timedelta(seconds=60))
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": since}
        self.objects["pods", name] = {
            "metadata": {
                **{"name": name, "namespace": "team", "uid": f"uid of {name}", "labels": dict(labels)},
                "creationTimestamp": since,
            },
            "spec": {"nodeName": "node-1"},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [condition], **status},
        }

    def drop_pods(self) -> None:
        """No pod serves any more."""
        for plural, name in [*self.objects]:
            if plural == "pods" and names.LABEL_PRE_PULL not in self.objects[plural, name]["metadata"]["labels"]:
                del self.objects[plural, name]

    def late(self) -> None:
        """The newest template makes no progress, says the Deployment's controller; the old pods are there still."""
        raw = self.objects["deployments", "demo"]
        count = raw["spec"]["replicas"]
        condition = {**PROGRESS, "status": "False", "reason": "ProgressDeadlineExceeded", "message": "too late"}
        raw["status"] = {
            "observedGeneration": raw["metadata"]["generation"],
            **{"replicas": count + 1, "updatedReplicas": 1, "readyReplicas": count, "availableReplicas": count},
            "conditions": [{**condition, "lastUpdateTime": stamp(self.now)}],
        }

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
        asked = self.asked
        result = await self.reconciler.reconcile(KEY)
        while self._soon(result.requeue_after) or self.asked != asked:
            asked = self.asked
            result = await self.reconciler.reconcile(KEY)
        done, self.writes = self.writes, []
        await self.reconciler.reconcile(KEY)
        assert self.writes == [], "a second look writes nothing"
        return done

    def _soon(self, seconds: float | None) -> bool:
        """Whether to look again at once; where there are claims, numbers are written a moment later, which passes."""
        if seconds and self.service.pool_name and seconds <= NUMBERS_SECONDS:
            self.now += timedelta(seconds=seconds)
            return True
        return seconds == 0.0

    async def live(
        self, steps: Iterable[Callable[[], None]], crash_at: int | None, check: Callable[[], None] = lambda: None
    ) -> tuple[int, int]:
        """What others do, step by step, and what the operator makes of each; it dies at the write of that number of
        every step, and begins anew. Returns how often it died, and the most writes of a step. check: after each.
        """
        crashes, most = 0, 0
        for step in steps:
            step()
            self.crash_at = crash_at
            self.writes.clear()
            try:
                await self.reconciler.reconcile(KEY)
            except CrashError:
                crashes += 1
                self.restarted()
            most = max(most, len(self.writes))
            self.crash_at = None
            await self.reconcile()
            check()
        return crashes, most

    # -- who asks pods, and what is measured

    def ask(self, pod: Pod) -> None:
        self.asked += 1
        before = self.answers.get(pod.metadata.uid)
        if before is None or before.verdict != self.verdict or before.restarts != restarts(pod):
            before = Answer(self.verdict, "HTTP 500", 0, self.now)
        again = (before.tries + 1, self.now, before.began, restarts(pod))
        self.answers[pod.metadata.uid] = Answer(self.verdict, "HTTP 500", *again)

    def rollout_stage(self, stage: str, seconds: float) -> None:
        self.stages.append(stage)

    def rolled_back(self) -> None:
        self.rollbacks += 1

    def pool_hit(self, age: float) -> None:
        assert age >= 0
        self.hits += 1

    def pool_misses(self, reason: str, pods: int) -> None:
        self.misses += [reason] * pods

    def started(self, start: LastStart) -> None:
        self.starts.append(start.path)

    # -- the client

    async def get(self, resource: Resource, namespace: str, name: str) -> bytes:
        assert resource.plural == "tokenservices"
        return msgspec.json.encode({"metadata": msgspec.to_builtins(self.service.metadata)})

    async def apply(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], **_: Any) -> bytes:
        self._writes()
        if resource.plural in self.refusals:
            self.writes.append(f"refused {resource.plural}")
            raise self.refusals[resource.plural]
        before = self.objects.get((resource.plural, name), {})
        generation = before.get("metadata", {}).get("generation", 0) + (before.get("spec") != body.get("spec"))
        made = {**before, **body}
        made["metadata"] = {
            **body["metadata"],
            "uid": f"uid of {resource.plural} {name}",
            "resourceVersion": self._next(),
            **({"creationTimestamp": stamp(self.now)} if self.dated and not before else {}),
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

    async def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> bytes:
        name = body["metadata"]["name"]
        self._writes()
        if resource.plural in self.refusals:
            raise self.refusals[resource.plural]
        if (resource.plural, name) in self.objects:
            raise ApiError(409, "AlreadyExists")
        metadata = {**body["metadata"], "uid": f"uid of {name}", "creationTimestamp": stamp(self.now)}
        self.objects[resource.plural, name] = {**body, "metadata": metadata}
        self._wrote(f"create {resource.plural}")
        return msgspec.json.encode(self.objects[resource.plural, name])

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], *, content_type: str = MERGE
    ) -> bytes:
        if self.before_patch and resource.plural == "pods":
            self.before_patch(name)
        known = self.objects.get((resource.plural, name))
        if known is None:
            raise ApiError(404, "NotFound")
        asked, has = body["metadata"], known["metadata"]
        if asked.get("resourceVersion", has.get("resourceVersion")) != has.get("resourceVersion"):
            raise ApiError(409, "Conflict")
        if asked.get("uid", has.get("uid")) != has.get("uid"):
            raise ApiError(422, "Invalid", "field is immutable", (("metadata.uid", "field is immutable"),))
        made = (strategic_patch if content_type == STRATEGIC else merge_patch)(known, body)
        if made == known:
            return msgspec.json.encode(known)
        if refused := self.refuses(resource, made) if self.refuses else None:
            raise refused
        self._writes()
        made["metadata"] = {**made["metadata"], "resourceVersion": self._next()}
        self.objects[resource.plural, name] = made
        self._wrote(f"patch {resource.plural}")
        return msgspec.json.encode(made)

    async def list(self, resource: Resource, *, namespace: str, label_selector: str) -> AsyncIterator[bytes]:
        wanted = dict(term.split("=") for term in label_selector.split(","))
        found = (raw for (plural, _), raw in self.objects.items() if plural == resource.plural)
        items = [raw for raw in found if wanted.items() <= raw["metadata"]["labels"].items()]
        yield msgspec.json.encode({"items": items})

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str) -> bytes:
        found = self.objects.get((resource.plural, name))
        if found is None:
            raise ApiError(404, "NotFound")
        if found["metadata"]["uid"] != uid:
            raise ApiError(409, "Conflict")
        self._writes()
        del self.objects[resource.plural, name]
        self._wrote(f"delete {resource.plural}")
        return msgspec.json.encode({**found, "metadata": {**found["metadata"], "deletionTimestamp": stamp(self.now)}})

    async def patch_status(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> bytes:
        self._writes()
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

    def _writes(self) -> None:
        if self.crash_early and self.crash_at == len(self.writes) + 1:
            raise CrashError

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


class Timer:
    """Says of starts what a test tells it to."""

    def __init__(self) -> None:
        self.timed: dict[str, LastStart | None] = {}

    def time(self, pod: Pod) -> None:
        self.timed.setdefault(pod.metadata.uid, None)


def strategic_patch(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A merge patch, but for owners, whose merge key is the uid."""
    metadata = dict(patch["metadata"])
    gone = {each["uid"] for each in metadata.pop("ownerReferences") if each == {"$patch": "delete", "uid": each["uid"]}}
    made: dict[str, Any] = merge_patch(target, {**patch, "metadata": metadata})
    owners = [each for each in made["metadata"].get("ownerReferences", ()) if each["uid"] not in gone]
    return {**made, "metadata": {**made["metadata"], "ownerReferences": owners}}


class Assigner:
    """Gives no pod anything: a test says what came of it."""

    key_id = KEY_ID

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.given: dict[str, Document] = {}

    def assign(self, pod: Pod, nonce: str, document: Document, seconds: float) -> None:
        assert nonce
        assert seconds > 0
        self.given[pod.metadata.uid] = document

    def refuse(self, pod: Pod, reason: str, message: str) -> None:
        self.outcomes[pod.metadata.uid] = Outcome("refused", reason, message)


class Cache:
    """What the cluster holds of one kind."""

    def __init__(self, cluster: Cluster, plural: str, kind: type[Any]) -> None:
        self._cluster, self._plural, self._kind = cluster, plural, kind

    def get(self, namespace: str, name: str) -> Any:
        raw = self._cluster.look(self._plural, name)
        return None if raw is None else msgspec.json.decode(msgspec.json.encode(raw), type=self._kind)

    def by_index(self, key: str) -> tuple[Any, ...]:
        found = [raw for (plural, _), raw in self._cluster.objects.items() if plural == self._plural]
        if self._plural == "pods":
            found = [raw for raw in found if _key(raw["metadata"]["labels"]) == key]
        return tuple(msgspec.json.decode(msgspec.json.encode(raw), type=self._kind) for raw in found)

    def decode(self, data: bytes) -> Any:
        return msgspec.json.decode(data, type=self._kind)

    def observe(self, obj: Any) -> None:
        """It is there already."""


def _key(labels: Mapping[str, str]) -> str:
    """A pod's key in the index."""
    kinds = ((names.LABEL_POOL, POOL), (names.LABEL_PRE_PULL, PULLS), (names.LABEL_CLAIM, CLAIMS))
    found = ((label, end) for label, end in (*kinds, (names.LABEL_SERVICE, "")) if label in labels)
    label, end = next(found)
    return f"team/{labels[label]}{end}"


KINDS: dict[str, tuple[str, type[Any]]] = {
    "deployments": ("deployments", Deployment),
    "services": ("services", Object),
    "budgets": ("poddisruptionbudgets", Object),
    "pods": ("pods", Pod),
    "environments": ("condaenvironments", CondaEnvironment),
    "revisions": ("controllerrevisions", ControllerRevision),
}


class Pools:
    """The WarmPools that a test has made, and those that were applied."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def get(self, _namespace: str, name: str) -> WarmPool | None:
        raw = self._cluster.objects.get(("warmpools", name))
        return self._cluster.pools.get(name) or (self.decode(msgspec.json.encode(raw)) if raw else None)

    def decode(self, data: bytes) -> WarmPool:
        return msgspec.json.decode(data, type=WarmPool)

    def observe(self, pool: WarmPool) -> None:
        """It is there already."""


def owned(body: Mapping[str, Any]) -> dict[str, Any]:
    """Fields owned whole, one level below the top: enough for what needs_apply looks at."""
    metadata: dict[str, Any] = {f"f:{name}": {} for name in ("labels", "annotations", "ownerReferences")}
    return {"f:metadata": metadata, "f:spec": {f"f:{name}": {} for name in body.get("spec", {})}}
