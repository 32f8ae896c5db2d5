"""Pod templates of servers, for tests of what is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tokenservice.api.v1alpha1 import EnvironmentStatus
from tokenservice.pods.schema import PodSchema
from tokenservice.pods.template import ServerPod, pod_template

T = TypeVar("T")
IMAGE = "registry.example.com/serving:1"


@cache
def pod_schema() -> PodSchema:
    """The schema of kube-apiserver 1.37.2."""
    return PodSchema.from_openapi(json.loads(Path(__file__).with_name("podschema-1.37.json").read_text()))


class Schemas:
    """In the place of SchemaSource: the same schema always."""

    async def checked(self, make: Callable[[PodSchema], T]) -> T:
        return make(pod_schema())


def rendered(template: Mapping[str, Any] | None = None, *, conda_env: str | None = None, **more: Any) -> dict[str, Any]:
    """The pod template of a server; template: the user's partial one, more: other fields of `ServerPod`."""
    runs_in = EnvironmentStatus(image=IMAGE, conda_env=conda_env)
    pod = ServerPod(labels={"app": "demo"}, runs_in=runs_in, template=template or {}, **more)
    return pod_template(pod, pod_schema())


def server(template: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The container that serves."""
    found: dict[str, Any] = rendered(template, **more)["spec"]["containers"][0]
    return found


def env(template: Mapping[str, Any] | None = None, **more: Any) -> dict[str, str]:
    """Its variables."""
    return {item["name"]: item.get("value", "") for item in server(template, **more)["env"]}
