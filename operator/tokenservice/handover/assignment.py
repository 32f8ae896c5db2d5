"""What a warm pod is given: the part of a pod template that its shape leaves out. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenservice import protocol
from tokenservice.api import names

Document = dict[str, Any]

_KEYS = {
    protocol.VAR_MODEL_SOURCE: "source",
    protocol.VAR_MODEL_REVISION: "revision",
    protocol.VAR_MODEL_NAME: "name",
}


def document(service: str, template: Mapping[str, Any]) -> Document:
    """The assignment for the pods of a template, as protocol/assignment.schema.json has it.

    From the template of a revision, not from the spec: a warm pod is to serve what cold ones of its revision do.

    service: namespace/name of the TokenService.
    """
    (server,) = (each for each in template["spec"]["containers"] if each["name"] == names.CONTAINER)
    variables = {item["name"]: item.get("value", "") for item in server.get("env") or ()}
    model: Document = {key: variables[name] for name, key in _KEYS.items() if variables.get(name)}
    model["trustRemoteCode"] = variables.get(protocol.VAR_TRUST_REMOTE_CODE) == "true"
    return {"service": service, "model": model, "args": list(server.get("args") or ())}
