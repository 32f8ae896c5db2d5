"""TokenServices, Deployments and pods as the API server would send them, for tests of the pure core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
from tokenservice.api import names
from tokenservice.api.conditions import UNDER_WAY
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import ControllerRevision, Deployment, Node, Object, Pod
from tokenservice.api.v1alpha1 import TokenService, TokenServiceStatus
from tokenservice.pods.refusal import Refusal
from tokenservice.services import environment as environments
from tokenservice.services import plan as plans
from tokenservice.services import render, revisions, rollout
from tokenservice.services.snapshot import Snapshot, Surroundings
from tokenservice.services.verify import Answer
from tokenservice.services.warm import Hand

from tests.unit.pods.builders import pod_schema

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"
IMAGE = "registry.example.com/serving:1"
BUILT = "localhost:30500/environments@sha256:" + "1" * 64
OLDER = "localhost:30500/environments@sha256:" + "0" * 64
CONDA: dict[str, Any] = {"channels": ["conda-forge"], "dependencies": ["python=3.11", {"pip": ["fastapi==0.95"]}]}


def service(
    *, status: TokenServiceStatus | None = None, generation: int = 1, deleted: bool = False, **spec: Any
) -> TokenService:
    """The TokenService `demo` in `team`; `spec`: fields over those of a minimal one."""
    metadata: dict[str, Any] = {"name": "demo", "namespace": "team", "uid": UID, "generation": generation}
    if deleted:
        metadata["deletionTimestamp"] = "2026-03-01T11:59:00Z"
    full = {"model": {"source": "hf://org/tiny"}, "environment": {"image": {"reference": IMAGE}}, **spec}
    made = msgspec.convert({"metadata": metadata, "spec": full}, TokenService)
    return made if status is None else msgspec.structs.replace(made, status=status)


def children(tokenservice: TokenService, *around: CondaEnvironment) -> render.Children:
    """What should be; `around`: the CondaEnvironments of the namespace."""
    return render.children(tokenservice, pod_schema(), surroundings(tokenservice, *around).runs_in)


def surroundings(
    tokenservice: TokenService, *around: CondaEnvironment, refusal: Refusal | None = None, others: int = 0
) -> Surroundings:
    """`around`: the CondaEnvironments of the namespace; others: how many other TokenServices run in each."""
    name = tokenservice.environment_name
    return environments.surroundings(
        tokenservice,
        render.environment(tokenservice),
        refusal,
        get={found.metadata.name: found for found in around}.get,
        users_of=lambda asked: range(others + (asked == name)),
    )


def environment(
    name: str = "nlp",
    *,
    reason: str = "Built",
    message: str = "",
    image: str | None = None,
    past: str | None = None,
    observed: int = 1,
    uid: str | None = None,
    **meta: Any,
) -> CondaEnvironment:
    """A CondaEnvironment. Built, it has an image; with another reason, which is Locked's unless it is Building, it has
    none but `image`. past: another image of its history. uid: of the TokenService `demo` that controls it.
    """
    image = image or (BUILT if reason == "Built" else None)
    state = {"status": "Unknown" if reason in UNDER_WAY else "False", "reason": reason, "message": message}
    done = {"status": "True", "reason": "Done"}
    steps = {
        "Built": {"Locked": done, "Built": done, "Ready": done},
        "Building": {"Locked": done, "Built": state, "Ready": state},
    }.get(reason, {"Locked": state, "Built": {**state, "reason": "WaitingForLock"}, "Ready": state})
    history = [{"lockDigest": f"sha256:of {item}", "lock": "x", "image": item} for item in (image, past) if item]
    raw = {
        "metadata": metadata(uid=uid, **{"name": name, **meta}),
        "spec": CONDA,
        "status": {
            "observedGeneration": observed,
            "hash": "sha256:hash",
            "lockDigest": "sha256:newest",
            "image": image,
            "history": history,
            "conditions": [{"type": kind, **step} for kind, step in steps.items()] if observed else [],
        },
    }
    return msgspec.json.decode(msgspec.json.encode(raw), type=CondaEnvironment)


def metadata(*, uid: str | None = UID, kind: str = "TokenService", owner: str = "demo", **more: Any) -> dict[str, Any]:
    """Metadata of a child; `uid`: of the owner that controls it, None for an object of nobody."""
    owners = [] if uid is None else [{"kind": kind, "name": owner, "uid": uid, "controller": True}]
    return {"name": "demo", "namespace": "team", "generation": 1, "ownerReferences": owners, **more}


def deployment(
    *,
    replicas: int = 1,
    existing: int | None = None,
    updated: int | None = None,
    available: int | None = None,
    observed: int = 1,
    conditions: list[dict[str, Any]] | None = None,
    **meta: Any,
) -> Deployment:
    """A Deployment that asks for `replicas`; where nothing else is said it has reached them."""
    status = {
        "observedGeneration": observed,
        "replicas": replicas if existing is None else existing,
        "updatedReplicas": replicas if updated is None else updated,
        "readyReplicas": replicas if available is None else available,
        "availableReplicas": replicas if available is None else available,
        "conditions": conditions or [],
    }
    raw = {"metadata": metadata(**meta), "spec": {"replicas": replicas}, "status": status}
    return msgspec.convert(raw, Deployment)


def child(**meta: Any) -> Object:
    return msgspec.convert({"metadata": metadata(**meta)}, Object)


def pod(
    name: str = "demo-1",
    *,
    created: str = "2026-03-01T11:00:00Z",
    deleted: bool = False,
    revision: str | None = None,
    node: str = "",
    labels: dict[str, str] | None = None,
    **status: Any,
) -> Pod:
    """revision: the name of the ControllerRevision that it was made from."""
    known = {names.LABEL_SERVICE: "demo"} if labels is None else labels
    meta: dict[str, Any] = {
        "name": name,
        "namespace": "team",
        "uid": f"uid of {name}",
        "creationTimestamp": created,
        "labels": {**known, **({names.LABEL_REVISION: revisions.label(revision)} if revision else {})},
    }
    if deleted:
        meta["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    return msgspec.convert({"metadata": meta, "spec": {"nodeName": node}, "status": status}, Pod)


def revision(
    tokenservice: TokenService, *around: CondaEnvironment, number: int = 1, **annotations: str
) -> ControllerRevision:
    """The ControllerRevision that the spec asks for, as the API server would send it."""
    made = children(tokenservice, *around)
    runs_in = surroundings(tokenservice, *around).runs_in
    assert made.deployment
    assert runs_in
    template = made.deployment["spec"]["template"]
    manifest = revisions.wanted(tokenservice, (), made.inputs, template, runs_in).manifest
    assert manifest
    metadata = {**manifest["metadata"], "annotations": annotations, "uid": "uid of a revision"}
    raw = {**manifest, "metadata": metadata, "revision": number}
    return msgspec.json.decode(msgspec.json.encode(raw), type=ControllerRevision)


def snapshot(
    tokenservice: TokenService | None = None,
    *,
    refusal: Refusal | None = None,
    deployment: Deployment | None = None,
    service_object: Object | None = None,
    budget: Object | None = None,
    pods: tuple[Pod, ...] = (),
    now: datetime = NOW,
    around: tuple[CondaEnvironment, ...] = (),
    environment_refusal: Refusal | None = None,
    others: int = 0,
    history: tuple[ControllerRevision, ...] | None = None,
    **more: Any,
) -> Snapshot:
    """history: the revisions that exist. Without it a Deployment has the one that the spec asks for, which is good."""
    tokenservice = tokenservice or service()
    if history is None:
        history = ()
        if deployment and refusal is None and surroundings(tokenservice, *around).runs_in:
            history = (revision(tokenservice, *around),)
            deployment = running(deployment, history[0])
            status = msgspec.structs.replace(tokenservice.status, last_good_revision=history[0].metadata.name)
            tokenservice = msgspec.structs.replace(tokenservice, status=status)
    return Snapshot(
        service=tokenservice,
        children=refusal or children(tokenservice, *around),
        deployment=deployment,
        service_object=service_object,
        budget=budget,
        pods=pods,
        now=now,
        cluster_domain="cluster.local",
        surroundings=surroundings(tokenservice, *around, refusal=environment_refusal, others=others),
        revisions=history,
        **more,
    )


def running(deployment: Deployment, revision: ControllerRevision) -> Deployment:
    """The Deployment, with the template of `revision`."""
    annotations = {**deployment.metadata.annotations, names.ANNOTATION_REVISION: revision.metadata.name}
    metadata = msgspec.structs.replace(deployment.metadata, annotations=annotations)
    return msgspec.structs.replace(deployment, metadata=metadata)


def plan(found: Snapshot, changes: Mapping[plans.Child, str]) -> plans.Plan:
    """As the reconciler has it: the rollout's step, and the plan for the Deployment that it asks for."""
    step = rollout.step(found)
    made, replicas = found.children, found.service.spec.replicas
    if not isinstance(made, Refusal) and made.deployment and step.target:
        whole = revisions.deployment(made.deployment, step.target, hold=step.hold, replicas=replicas)
        made = replace(made, deployment=whole)
    return plans.plan(replace(found, children=made), changes, step, Hand(replicas))


def node(name: str, *, ready: bool = True, pressure: bool = False, **fields: Any) -> Node:
    """A node; fields: `unschedulable`, `taints`, `labels`, `allocatable`."""
    conditions = [
        {"type": "Ready", "status": str(ready)},
        {"type": "DiskPressure", "status": str(pressure)},
    ]
    raw = {
        "metadata": {"name": name, "labels": fields.get("labels", {})},
        "spec": {"unschedulable": fields.get("unschedulable", False), "taints": fields.get("taints", [])},
        "status": {"conditions": conditions, "allocatable": fields.get("allocatable", {})},
    }
    return msgspec.convert(raw, Node)


def answer(verdict: Any = "right", *, tries: int = 1, message: str = "", at: datetime = NOW) -> Answer:
    return Answer(verdict, message, tries, at)
