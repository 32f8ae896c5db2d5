"""What should be: the Deployment, Service and PodDisruptionBudget of a TokenService, as pure functions.

The manifests stand in templates/, one object each; this module gives them their values. The pod's template comes
from `tokenservice.pods`, which learns here what is about the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from tokenservice import protocol
from tokenservice.api import names
from tokenservice.api.v1alpha1 import EnvironmentStatus, Model, TokenService
from tokenservice.pods.manifests import Manifest, manifest
from tokenservice.pods.schema import PodSchema
from tokenservice.pods.template import ServerPod, pod_template, variables
from tokenservice.services import revisions

_NO_IMAGE = EnvironmentStatus(image="")

_manifest = partial(manifest, "tokenservice.services")


@dataclass(frozen=True)
class Children:
    """The objects that belong to a TokenService, as they should be. Without an image there is no Deployment."""

    deployment: Manifest | None
    service: Manifest
    budget: Manifest
    pool: Manifest | None = None
    """The WarmPool of its own, where the spec asks for one."""
    inputs: Manifest = field(default_factory=dict)
    """What the pods are made from: `revisions.inputs`."""


def children(service: TokenService, schema: PodSchema, runs_in: EnvironmentStatus | None) -> Children:
    """The children of `service`, whose pods run in `runs_in`; None if there is no image yet.

    Raises:
        InvalidTemplateError: `spec.template` cannot be used; the text names the field.

    """
    # Made without an image, too: a template that cannot be used is refused at once, not when there is an image.
    template = pod_template(_pod(service, runs_in or _NO_IMAGE), schema)
    name = service.metadata.name
    values = {
        **_identity(service),
        "replicas": service.spec.replicas,
        "paused": service.spec.paused,
        "rollout": service.spec.rollout,
        "template": template,
        "deployment_selector": {names.LABEL_DEPLOYMENT: name},
        "service_selector": {names.LABEL_SERVICE: name},
        "port_name": protocol.PORT_NAME,
    }
    own_pool = service.spec.warm_pool is not None and service.spec.warm_pool.replicas is not None
    return Children(
        deployment=_manifest("deployment.yaml.j2", values) if runs_in else None,
        service=_manifest("service.yaml.j2", values),
        budget=_manifest("poddisruptionbudget.yaml.j2", values),
        pool=_manifest("warmpool.yaml.j2", {**values, **_pool(service)}) if own_pool else None,
        inputs=revisions.inputs(service, runs_in) if runs_in else {},
    )


def environment(service: TokenService) -> Manifest | None:
    """The CondaEnvironment of a spec that has it inline, as it stands there; None for others.

    Who asks for another try of the TokenService asks for one of its environment.
    """
    conda = service.spec.environment.conda
    if conda is None:
        return None
    retry = service.metadata.annotations.get(names.ANNOTATION_RETRY)
    annotations = {names.ANNOTATION_RETRY: retry} if retry else {}
    return _manifest("condaenvironment.yaml.j2", {**_identity(service), "annotations": annotations, "spec": conda})


def served_name(model: Model) -> str:
    """The name that clients put into `model`: as given, else `org/name` of the hub, else the last folder's name."""
    if model.name:
        return model.name
    if model.source.startswith("hf://"):
        return model.source.removeprefix("hf://")
    return model.source.rstrip("/").rsplit("/", 1)[-1]


def url(service: TokenService, cluster_domain: str) -> str:
    """The base URL of the service inside the cluster, as OpenAI clients take it."""
    return f"http://{service.metadata.name}.{service.metadata.namespace}.svc.{cluster_domain}/v1"


def _identity(service: TokenService) -> dict[str, Any]:
    """What the metadata of every child says."""
    name = service.metadata.name
    return {
        "name": name,
        "namespace": service.metadata.namespace,
        "labels": names.child_labels(name),
        "owner": names.owner("TokenService", name, service.metadata.uid),
    }


def _pod(service: TokenService, runs_in: EnvironmentStatus) -> ServerPod:
    name, spec = service.metadata.name, service.spec
    mounts, volumes = _claimed(spec.model)
    return ServerPod(
        labels={**names.child_labels(name), names.LABEL_DEPLOYMENT: name},
        runs_in=runs_in,
        args=spec.engine.args,
        env=_env(spec.model),
        mounts=mounts,
        volumes=volumes,
        key_secret_ref=spec.api.key_secret_ref if spec.api else None,
        template=spec.template or {},
    )


def _env(model: Model) -> list[Manifest]:
    """The variables that tell the server what to serve."""
    source = model.source
    if claim_and_path := _claim(source):
        source = f"file://{protocol.MODEL_MOUNT}/{claim_and_path[1]}".rstrip("/")
    told = {
        protocol.VAR_MODEL_SOURCE: source,
        protocol.VAR_MODEL_NAME: served_name(model),
        protocol.VAR_TRUST_REMOTE_CODE: "true" if model.trust_remote_code else "false",
    }
    if model.revision:
        told[protocol.VAR_MODEL_REVISION] = model.revision
    env = variables(told)
    if model.auth_secret_ref:
        secret = {"name": model.auth_secret_ref.name, "key": model.auth_secret_ref.key}
        env.append({"name": protocol.VAR_HF_TOKEN, "valueFrom": {"secretKeyRef": secret}})
    return env


def _pool(service: TokenService) -> dict[str, Any]:
    """What the WarmPool of its own is made from: the pods of the TokenService, without a model."""
    spec, pool = service.spec, service.spec.warm_pool
    environment: Manifest = (
        {"image": msgspec.to_builtins(spec.environment.image)}
        if spec.environment.image
        else {"ref": {"name": service.environment_name}}
    )
    return {
        "environment": environment,
        "pool_replicas": pool.replicas if pool else 0,
        "pool_template": _with_model(service),
        "api": msgspec.to_builtins(spec.api) if spec.api else None,
    }


def _with_model(service: TokenService) -> Manifest:
    """`spec.template`, with what the model adds to the pods: of a running pod it cannot be changed any more."""
    model, given = service.spec.model, service.spec.template or {}
    mounts, volumes = _claimed(model)
    env = [item for item in _env(model) if "valueFrom" in item]
    if not (mounts or env):
        return given
    spec = dict(given.get("spec") or {})
    containers = [dict(each) for each in spec.get("containers") or ()]
    server = next((each for each in containers if each.get("name") == names.CONTAINER), None)
    if server is None:
        server = {"name": names.CONTAINER}
        containers.append(server)
    for parent, key, more in ((server, "volumeMounts", mounts), (server, "env", env), (spec, "volumes", volumes)):
        if more:
            parent[key] = [*(parent.get(key) or ()), *more]
    return {**given, "spec": {**spec, "containers": containers}}


def _claimed(model: Model) -> tuple[list[Manifest], list[Manifest]]:
    """Volume mount and volume of a model on a claim; none for others."""
    claim_and_path = _claim(model.source)
    if claim_and_path is None:
        return [], []
    claim = {"claimName": claim_and_path[0], "readOnly": True}
    mount = {"name": "model", "mountPath": protocol.MODEL_MOUNT, "readOnly": True}
    return [mount], [{"name": "model", "persistentVolumeClaim": claim}]


def _claim(source: str) -> tuple[str, str] | None:
    """Claim and path of `pvc://claim/path`, None for other sources. The path may hold any character but space."""
    if not source.startswith("pvc://"):
        return None
    claim, _, path = source.removeprefix("pvc://").partition("/")
    return claim, path.strip("/")
