"""What should be: the Deployment, Service and PodDisruptionBudget of a TokenService, as pure functions.

The manifests stand in templates/, one object each; this module gives them their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import jinja2
import yaml

from tokenservice import protocol
from tokenservice.api import names
from tokenservice.api.v1alpha1 import EnvironmentStatus, Model, TokenService
from tokenservice.services import revisions
from tokenservice.services.podschema import InvalidTemplateError, PodSchema

try:
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML without libyaml: the same result, nine times slower
    from yaml import SafeLoader as Loader  # type: ignore[assignment]

Manifest = dict[str, Any]

_KUBERNETES_GRACE_SECONDS = 30
"""What a pod gets that names no terminationGracePeriodSeconds; a template's null brings it back."""

_NO_IMAGE = EnvironmentStatus(image="")

_CONDA = "/opt/conda"
"""Where Miniconda's images have conda, and with it the environment called base."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What comes after the environment's folder: an image's own PATH cannot be known here; this is the usual one."""

_MARK = "@"
"""Begins what stands for a value in a rendered template; no text in the templates begins with it."""

RESERVED_LABELS = frozenset(
    {
        names.LABEL_MANAGED_BY,
        names.LABEL_NAME,
        names.LABEL_INSTANCE,
        names.LABEL_SERVICE,
        names.LABEL_DEPLOYMENT,
        names.LABEL_REVISION,
        names.LABEL_PRE_PULL,
    }
)


@dataclass(frozen=True)
class Children:
    """The objects that belong to a TokenService, as they should be. Without an image there is no Deployment."""

    deployment: Manifest | None
    service: Manifest
    budget: Manifest
    inputs: Manifest = field(default_factory=dict)
    """What the pods are made from: `revisions.inputs`."""


def children(service: TokenService, schema: PodSchema, runs_in: EnvironmentStatus | None) -> Children:
    """The children of `service`, whose pods run in `runs_in`; None if there is no image yet.

    Raises:
        InvalidTemplateError: `spec.template` cannot be used; the text names the field.

    """
    template = service.spec.template or {}
    schema.check(template)
    check_reserved(template)
    values = _values(service, template, runs_in or _NO_IMAGE)
    deployment = _manifest("deployment.yaml.j2", values)
    deployment["spec"]["template"] = schema.merge(deployment["spec"]["template"], template)
    return Children(
        # Made all the same: a template may be refused for what it makes of the Deployment.
        deployment=deployment if runs_in else None,
        service=_manifest("service.yaml.j2", values),
        budget=_manifest("poddisruptionbudget.yaml.j2", values),
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


def prefix(conda_env: str) -> str:
    """The folder of a conda environment in a prebuilt image, given by name or by its path."""
    if conda_env.startswith("/"):
        return conda_env.rstrip("/")
    return _CONDA if conda_env == "base" else f"{_CONDA}/envs/{conda_env}"


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


def check_reserved(template: Mapping[str, Any]) -> None:
    """Refuses what would cut the service off from its own pods, or says the same thing in two places.

    Raises:
        InvalidTemplateError: names the field and where to set it instead.

    """
    metadata = template.get("metadata") or {}
    for key in metadata:
        if key not in ("labels", "annotations", "$patch"):
            raise InvalidTemplateError(f"spec.template.metadata.{key}: only labels and annotations reach the pods")
    for label in metadata.get("labels") or {}:
        if label in RESERVED_LABELS:
            raise InvalidTemplateError(f"spec.template.metadata.labels[{label}]: belongs to the operator")
    spec = template.get("spec") or {}
    for where, part in (("metadata", metadata), ("spec", spec), ("metadata.labels", metadata.get("labels") or {})):
        if "$patch" in part:
            raise InvalidTemplateError(
                f"spec.template.{where}.$patch: works on parts of the template, not on the whole"
            )
    if "$patch" in template:
        raise InvalidTemplateError("spec.template.$patch: works on parts of the template, not on the whole")
    for part in ("spec", "metadata"):
        if part in template and template[part] is None:
            raise InvalidTemplateError(f"spec.template.{part}: is empty; write something below it or take it out")
    if "labels" in metadata and metadata["labels"] is None:
        raise InvalidTemplateError("spec.template.metadata.labels: is empty; write a label below it or take it out")
    if "containers" in spec and spec["containers"] is None:
        raise InvalidTemplateError("spec.template.spec.containers: is empty; write a container below it or take it out")
    for index, container in enumerate(spec.get("containers") or ()):
        path = f"spec.template.spec.containers[{index}]"
        if container.get("$patch") == "replace":
            raise InvalidTemplateError(f"{path}.$patch: replacing the list would remove the container that serves")
        if container.get("name") == names.CONTAINER:
            _check_server(container, path)


def _check_server(container: Mapping[str, Any], path: str) -> None:
    if container.get("$patch") == "delete":
        raise InvalidTemplateError(f"{path}.$patch: the container that serves cannot be removed")
    if "image" in container:
        raise InvalidTemplateError(f"{path}.image: set spec.environment.image.reference instead")
    if "args" in container:
        raise InvalidTemplateError(f"{path}.args: set spec.engine.args instead")
    for key in ("env", "ports", "volumeMounts"):
        if key in container and container[key] is None:
            raise InvalidTemplateError(f"{path}.{key}: is empty; write something below it or take it out")
        if any(item.get("$patch") == "replace" for item in container.get(key) or ()):
            raise InvalidTemplateError(f"{path}.{key}: has entries of the operator; $patch must not replace it")
    for index, variable in enumerate(container.get("env") or ()):
        if str(variable.get("name", "")).startswith(protocol.VARIABLE_PREFIX):
            raise InvalidTemplateError(
                f"{path}.env[{index}].name: {variable['name']} is the operator's; use spec.model and spec.api"
            )
    for index, port in enumerate(container.get("ports") or ()):
        if port.get("containerPort") == protocol.PORT or port.get("name") == protocol.PORT_NAME:
            raise InvalidTemplateError(
                f"{path}.ports[{index}]: port {protocol.PORT} ({protocol.PORT_NAME}) is the server's; add others only"
            )


def _identity(service: TokenService) -> dict[str, Any]:
    """What the metadata of every child says."""
    name = service.metadata.name
    return {
        "name": name,
        "namespace": service.metadata.namespace,
        "labels": names.child_labels(name),
        "owner": names.owner("TokenService", name, service.metadata.uid),
    }


def _values(service: TokenService, template: Mapping[str, Any], runs_in: EnvironmentStatus) -> dict[str, Any]:
    name = service.metadata.name
    grace = (template.get("spec") or {}).get("terminationGracePeriodSeconds", protocol.GRACE_SECONDS)
    grace_seconds = _KUBERNETES_GRACE_SECONDS if grace is None else grace
    deployment_selector = {names.LABEL_DEPLOYMENT: name}
    mounts, volumes = _storage(service)
    return {
        **_identity(service),
        "pod_labels": {**names.child_labels(name), **deployment_selector},
        "deployment_selector": deployment_selector,
        "service_selector": {names.LABEL_SERVICE: name},
        "replicas": service.spec.replicas,
        "paused": service.spec.paused,
        "rollout": service.spec.rollout,
        "container": names.CONTAINER,
        "image": runs_in.image,
        "command": _command(runs_in),
        "args": list(service.spec.engine.args),
        "env": _env(service, grace_seconds) + _activation(runs_in),
        "mounts": mounts,
        "volumes": volumes,
        "grace_seconds": grace_seconds,
        "user_id": protocol.USER_ID,
        "port": protocol.PORT,
        "port_name": protocol.PORT_NAME,
        "healthz": protocol.HEALTHZ,
        "readyz": protocol.READYZ,
    }


def _env(service: TokenService, grace_seconds: int) -> list[dict[str, Any]]:
    model = service.spec.model
    source = model.source
    if claim_and_path := _claim(source):
        source = f"file://{protocol.MODEL_MOUNT}/{claim_and_path[1]}".rstrip("/")
    variables = {
        protocol.VAR_PORT: str(protocol.PORT),
        protocol.VAR_MODEL_SOURCE: source,
        protocol.VAR_MODEL_NAME: served_name(model),
        protocol.VAR_TRUST_REMOTE_CODE: "true" if model.trust_remote_code else "false",
        protocol.VAR_GRACE_SECONDS: str(grace_seconds),
        protocol.VAR_DRAIN_DELAY_SECONDS: str(protocol.DRAIN_DELAY_SECONDS),
        protocol.VAR_HF_HOME: f"{protocol.CACHE_MOUNT}/huggingface",
        "HOME": "/tmp",  # noqa: S108 - an emptyDir of the pod's own
    }
    if model.revision:
        variables[protocol.VAR_MODEL_REVISION] = model.revision
    if service.spec.api:
        variables[protocol.VAR_API_KEYS_DIR] = protocol.API_KEYS_MOUNT
    env: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in variables.items()]
    if model.auth_secret_ref:
        secret = {"name": model.auth_secret_ref.name, "key": model.auth_secret_ref.key}
        env.append({"name": protocol.VAR_HF_TOKEN, "valueFrom": {"secretKeyRef": secret}})
    return env


def _command(runs_in: EnvironmentStatus) -> list[str]:
    """The command in place of the image's own, for one of several environments.

    Through that environment's interpreter, not the script token-server: what that begins with (`#!`) may name another
    environment, and where it lies only the image knows.
    """
    if runs_in.conda_env is None:
        return []
    return [f"{prefix(runs_in.conda_env)}/bin/python", "-m", protocol.MODULE]


def _activation(runs_in: EnvironmentStatus) -> list[dict[str, Any]]:
    """The variables that `conda activate` would set."""
    if runs_in.conda_env is None:
        return []
    folder = prefix(runs_in.conda_env)
    variables = {
        "PATH": f"{folder}/bin:{_PATH}",
        "CONDA_PREFIX": folder,
        "CONDA_DEFAULT_ENV": runs_in.conda_env,
    }
    return [{"name": name, "value": value} for name, value in variables.items()]


def _storage(service: TokenService) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volume mounts and volumes of the container that serves."""
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "cache", "mountPath": protocol.CACHE_MOUNT},
    ]
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {}}]
    if claim_and_path := _claim(service.spec.model.source):
        claim = {"claimName": claim_and_path[0], "readOnly": True}
        mounts.append({"name": "model", "mountPath": protocol.MODEL_MOUNT, "readOnly": True})
        volumes.append({"name": "model", "persistentVolumeClaim": claim})
    if service.spec.api:
        # Optional: a Secret that is missing then shows in the container's own words, not as a pod that never starts.
        secret = {"secretName": service.spec.api.key_secret_ref.name, "optional": True}
        mounts.append({"name": "api-keys", "mountPath": protocol.API_KEYS_MOUNT, "readOnly": True})
        volumes.append({"name": "api-keys", "secret": secret})
    return mounts, volumes


def _claim(source: str) -> tuple[str, str] | None:
    """Claim and path of `pvc://claim/path`, None for other sources. The path may hold any character but space."""
    if not source.startswith("pvc://"):
        return None
    claim, _, path = source.removeprefix("pvc://").partition("/")
    return claim, path.strip("/")


@jinja2.pass_context
def _to_json(context: jinja2.runtime.Context, value: Any) -> str:
    """Keeps the value in `held` and leaves a mark in its place; `_filled` puts it there once the YAML is parsed.

    So no value can be misread as YAML, and all services of one shape give one text, which is parsed once: that takes
    longer than everything else here.
    """
    held: list[Any] = context["held"]
    held.append(value)
    return f'"{_MARK}{len(held) - 1}"'


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tokenservice.services"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - YAML, not HTML; every value goes through tojson
    )
    environment.filters["tojson"] = _to_json
    return environment


def _manifest(template: str, values: Mapping[str, Any]) -> Manifest:
    held: list[Any] = []
    text = _environment().get_template(template).render(values, held=held)
    manifest: Manifest = _filled(_parsed(text), held)
    return manifest


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=Loader)


def _filled(node: Any, held: Sequence[Any]) -> Any:
    """A copy of `node` with the values in the place of their marks."""
    if isinstance(node, dict):
        return {key: _filled(value, held) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(item, held) for item in node]
    if isinstance(node, str) and node.startswith(_MARK):
        return held[int(node[len(_MARK) :])]
    return node
