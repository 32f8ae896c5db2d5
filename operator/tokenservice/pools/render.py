"""What the pods of a WarmPool are: the pod that serves, its server started without a model. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tokenservice import protocol
from tokenservice.api import names
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import EnvironmentStatus
from tokenservice.handover.shape import ASSIGNMENT_VOLUME, shape
from tokenservice.pods.manifests import Manifest
from tokenservice.pods.schema import InvalidTemplateError, PodSchema
from tokenservice.pods.template import ServerPod, pod_template, variables

_DIGITS = 10

_canonical = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True)
class Rendered:
    """What the pods of a pool are made from.

    Attributes:
        revision: tells what was asked for apart: another one is rolled out.
        shape: what a TokenService must have to be served by them.
        template: the PodTemplateSpec, without what differs from pod to pod.

    """

    revision: str
    shape: str
    template: Manifest


def rendered(pool: WarmPool, schema: PodSchema, runs_in: EnvironmentStatus) -> Rendered:
    """What the pods of `pool` are made from, where they run in `runs_in`.

    The revision follows from what is asked for, not from what it is rendered to: another version of this operator,
    which renders differently, rolls nothing.

    Raises:
        InvalidTemplateError: `spec.template` cannot be used; the text names the field.

    """
    spec = pool.spec
    _check(spec.template or {})
    warm = {protocol.VAR_WARM: "true"}
    if spec.preload:
        warm[protocol.VAR_PRELOAD] = ",".join(sorted(spec.preload))
    template = pod_template(
        ServerPod(
            labels=_labels(pool),
            runs_in=runs_in,
            env=variables(warm),
            mounts=[{"name": ASSIGNMENT_VOLUME, "mountPath": protocol.ASSIGNMENT_MOUNT}],
            volumes=[{"name": ASSIGNMENT_VOLUME, "emptyDir": {}}],
            ports=[{"name": protocol.ASSIGN_PORT_NAME, "containerPort": protocol.ASSIGN_PORT, "protocol": "TCP"}],
            key_secret_ref=spec.api.key_secret_ref if spec.api else None,
            template=spec.template or {},
        ),
        schema,
    )
    asks = {
        "image": runs_in.image,
        "condaEnv": runs_in.conda_env,
        "preload": sorted(spec.preload),
        "template": spec.template,
        "api": spec.api,
    }
    revision = hashlib.sha256(_canonical.encode({key: each for key, each in asks.items() if each})).hexdigest()
    return Rendered(revision[:_DIGITS], shape(template["spec"]), template)


def pod(pool: WarmPool, made: Rendered, name: str, *, digest: str, annotations: Mapping[str, str]) -> Manifest:
    """The pod of that name.

    digest: the SHA-256 of its token, in hexadecimal; annotations: besides those of its template.
    """
    metadata, spec = made.template["metadata"], made.template["spec"]
    token = variables({protocol.VAR_ASSIGN_TOKEN_SHA256: digest})
    containers: list[dict[str, Any]] = [
        {**each, "env": [*each["env"], *token]} if each["name"] == names.CONTAINER else each
        for each in spec["containers"]
    ]
    labels = {names.LABEL_REVISION: made.revision, names.LABEL_SHAPE: made.shape}
    of_template = sorted(metadata.get("labels", {}).keys() - _labels(pool).keys())
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": pool.metadata.namespace,
            "labels": {**metadata.get("labels", {}), **labels},
            "annotations": {
                **metadata.get("annotations", {}),
                names.ANNOTATION_POOL_LABELS: ",".join(of_template),
                **annotations,
            },
            "ownerReferences": [names.owner("WarmPool", pool.metadata.name, pool.metadata.uid)],
        },
        "spec": {**spec, "containers": containers},
    }


def _check(template: Mapping[str, Any]) -> None:
    """Refuses what is in the way of a pod's own assignment; what is no list of mappings, the schema refuses."""
    spec = template.get("spec") or {}
    for index, volume in enumerate(_items(spec, "volumes")):
        if volume.get("name") == ASSIGNMENT_VOLUME:
            raise InvalidTemplateError(
                f"spec.template.spec.volumes[{index}].name: {ASSIGNMENT_VOLUME} is the operator's"
            )
    for number, container in enumerate(_items(spec, "containers")):
        path = f"spec.template.spec.containers[{number}]"
        for index, port in enumerate(_items(container, "ports")):
            if port.get("containerPort") == protocol.ASSIGN_PORT or port.get("name") == protocol.ASSIGN_PORT_NAME:
                said = (
                    f"port {protocol.ASSIGN_PORT} ({protocol.ASSIGN_PORT_NAME}) is where a warm server takes its model"
                )
                raise InvalidTemplateError(f"{path}.ports[{index}]: {said}")
        for index, mount in enumerate(_items(container, "volumeMounts")):
            if str(mount.get("mountPath", "")).rstrip("/") == protocol.ASSIGNMENT_MOUNT:
                raise InvalidTemplateError(f"{path}.volumeMounts[{index}].mountPath: is where the assignment is kept")


def _items(parent: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = parent.get(key)
    return [each if isinstance(each, Mapping) else {} for each in found] if isinstance(found, list) else []


def _labels(pool: WarmPool) -> dict[str, str]:
    """None that a Service or a Deployment selects."""
    return {
        names.LABEL_MANAGED_BY: names.OPERATOR,
        names.LABEL_NAME: names.APP_NAME,
        names.LABEL_POOL: pool.metadata.name,
    }
