"""What a user's partial pod template must leave to the operator. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenservice import protocol
from tokenservice.api import names
from tokenservice.pods.schema import InvalidTemplateError

RESERVED_LABELS = frozenset(
    {
        names.LABEL_MANAGED_BY,
        names.LABEL_NAME,
        names.LABEL_INSTANCE,
        names.LABEL_SERVICE,
        names.LABEL_DEPLOYMENT,
        names.LABEL_REVISION,
        names.LABEL_PRE_PULL,
        names.LABEL_POOL,
        names.LABEL_SHAPE,
        names.LABEL_CLAIM,
    }
)


def check_reserved(template: Mapping[str, Any]) -> None:
    """Refuses what would cut a pod off from those it belongs to, or says the same thing in two places.

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
        raise InvalidTemplateError(f"{path}.args: set spec.engine.args of the TokenService instead")
    for key in ("env", "ports", "volumeMounts"):
        if key in container and container[key] is None:
            raise InvalidTemplateError(f"{path}.{key}: is empty; write something below it or take it out")
        if any(item.get("$patch") == "replace" for item in container.get(key) or ()):
            raise InvalidTemplateError(f"{path}.{key}: has entries of the operator; $patch must not replace it")
    for index, variable in enumerate(container.get("env") or ()):
        if str(variable.get("name", "")).startswith(protocol.VARIABLE_PREFIX):
            raise InvalidTemplateError(
                f"{path}.env[{index}].name: {variable['name']} is the operator's; "
                "use spec.model and spec.api of the TokenService"
            )
    for index, port in enumerate(container.get("ports") or ()):
        if port.get("containerPort") == protocol.PORT or port.get("name") == protocol.PORT_NAME:
            raise InvalidTemplateError(
                f"{path}.ports[{index}]: port {protocol.PORT} ({protocol.PORT_NAME}) is the server's; add others only"
            )
