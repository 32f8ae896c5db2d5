"""Jobs out of the chart's template: who runs them, with what rights and volumes, is the template's to say."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tokenservice.api import names
from tokenservice.api.jobs import EXIT_TERMINAL, REQUEST_VARIABLE, Request, encode_request
from tokenservice.environments.housekeeping import COLLECT, PATIENCE_SECONDS

Manifest = dict[str, Any]

COLLECT_MARGIN_SECONDS = 60.0
"""A collection ends so long before others begin again: clocks differ, and its pod is told a little later."""
TTL_SECONDS = 86400
"""How long a Job that ended, and with it its log, is kept where the template says nothing."""


class InvalidJobTemplateError(ValueError):
    """The file is no Job with a container of the right name; the text says what is wrong."""


def load_template(file: Path) -> Manifest:
    """The partial manifest of a Job in a YAML file.

    Raises:
        InvalidJobTemplateError: it cannot be read or used.

    """
    try:
        template = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidJobTemplateError(f"{file}: {error}") from error
    try:
        containers = template["spec"]["template"]["spec"]["containers"]
        found = [container["name"] for container in containers]
    except (KeyError, TypeError) as error:
        raise InvalidJobTemplateError(f"{file}: is no Job with containers") from error
    if names.JOB_CONTAINER not in found:
        raise InvalidJobTemplateError(f"{file}: has no container named {names.JOB_CONTAINER!r}, only {found}")
    return dict(template)


def job(template: Mapping[str, Any], namespace: str, name: str, need: str, request: Request) -> Manifest:
    """The Job of that name that sees to `request`; need: the hash by which it is found again."""
    made: Manifest = copy.deepcopy(dict(template))
    labels = {names.LABEL_JOB: stage_of(request), names.LABEL_ENVIRONMENT_HASH: need}
    metadata = made.get("metadata") or {}
    made.update(apiVersion="batch/v1", kind="Job")
    made["metadata"] = {
        **metadata,
        "name": name,
        "namespace": namespace,
        "labels": {**(metadata.get("labels") or {}), names.LABEL_MANAGED_BY: names.OPERATOR, **labels},
    }
    spec = made["spec"]
    if stage_of(request) == COLLECT:
        # Builds go on after that: what they have made since is not on its list of what is to stay.
        most = int(PATIENCE_SECONDS - COLLECT_MARGIN_SECONDS)
        spec["activeDeadlineSeconds"] = min(spec.get("activeDeadlineSeconds") or most, most)
    spec.setdefault("backoffLimit", 3)
    spec.setdefault("ttlSecondsAfterFinished", TTL_SECONDS)
    spec.setdefault("podFailurePolicy", _POD_FAILURE_POLICY)
    pod = spec["template"]
    pod_metadata = pod.get("metadata") or {}
    pod_labels = {**(pod_metadata.get("labels") or {}), **labels}
    if pod_labels.get(names.LABEL_MANAGED_BY) == names.OPERATOR:  # by it the pods of TokenServices are watched
        del pod_labels[names.LABEL_MANAGED_BY]
    pod["metadata"] = {**pod_metadata, "labels": pod_labels}
    pod["spec"]["restartPolicy"] = "Never"
    for container in pod["spec"]["containers"]:
        if container["name"] == names.JOB_CONTAINER:
            container["args"] = ["job"]
            kept = [item for item in container.get("env") or [] if item["name"] != REQUEST_VARIABLE]
            container["env"] = [*kept, {"name": REQUEST_VARIABLE, "value": encode_request(request)}]
    return made


def stage_of(request: Request) -> str:
    """`lock`, `build` or `collect`."""
    return str(request.__struct_config__.tag)


_POD_FAILURE_POLICY = {
    "rules": [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": names.JOB_CONTAINER, "operator": "In", "values": [EXIT_TERMINAL]},
        },
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
}
