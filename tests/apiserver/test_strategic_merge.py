"""The operator's merge of templates against kubectl's own strategic merge patch. No cluster is asked.

Where the two differ on purpose (see `PodSchema.merge`) is tested in tests/unit; order is one such place, so that lists
merged by a key are compared sorted by it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.pods.builders import pod_schema
from tests.unit.services.builders import children, service
from tools.localcluster import build, paths

BASE: dict[str, Any] = children(
    service(model={"source": "pvc://claim/a", "authSecretRef": {"name": "hub"}}, api={"keySecretRef": {"name": "keys"}})
).deployment
KEYS = ("name", "mountPath", "containerPort", "ip", "topologyKey")


@pytest.fixture(scope="module")
def kubectl() -> Path:
    built = build.programs(paths.cache_folder())
    build.ensure(built, ["kubectl"])
    return built.path("kubectl")


def ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: ordered(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [ordered(item) for item in value]
        key = next((key for key in KEYS if items and all(isinstance(i, dict) and key in i for i in items)), None)
        return sorted(items, key=lambda item: str(item[key])) if key else items
    return value


def in_server(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "server", **fields}]}}


TEMPLATES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "GPU": in_server(resources={"limits": {"nvidia.com/gpu": 1, "memory": "64Gi"}, "requests": {"cpu": "500m"}}),
    "labels and annotations": {"metadata": {"labels": {"team": "x"}, "annotations": {"a/b": "c", "gone": None}}},
    "variables": in_server(env=[{"name": "HOME", "value": "/root"}, {"name": "A", "value": "1"}]),
    "a variable goes": in_server(env=[{"name": "HF_HOME", "$patch": "delete"}]),
    "variables replaced": in_server(env=[{"$patch": "replace"}, {"name": "A", "value": "1"}]),
    "a mount moves": in_server(volumeMounts=[{"mountPath": "/tmp", "name": "cache"}, {"mountPath": "/x", "name": "y"}]),
    "a port more": in_server(ports=[{"containerPort": 9000, "name": "more"}]),
    "probes": in_server(
        startupProbe={"failureThreshold": 600}, livenessProbe=None, readinessProbe={"periodSeconds": 5}
    ),
    "a probe of another kind": in_server(readinessProbe={"httpGet": None, "tcpSocket": {"port": 8000}}),
    "lists of texts": in_server(
        command=["a"], securityContext={"capabilities": {"drop": ["NET_RAW"], "add": ["SYS_NICE"]}}
    ),
    "sidecar": {"spec": {"containers": [{"name": "proxy", "image": "p", "env": [{"name": "A", "value": "1"}]}]}},
    "init containers": {"spec": {"initContainers": [{"name": "a", "image": "i", "workingDir": None}]}},
    "volumes": {
        "spec": {"volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}, {"name": "x", "emptyDir": {}}]}
    },
    "a volume goes": {"spec": {"volumes": [{"name": "cache", "$patch": "delete"}]}},
    "scheduling": {
        "spec": {
            "nodeSelector": {"gpu": "h100"},
            "runtimeClassName": "nvidia",
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": None}
            ],
        }
    },
    "security": {"spec": {"securityContext": {"fsGroup": None, "supplementalGroups": [1000]}}},
    "security replaced": {"spec": {"securityContext": {"$patch": "replace", "runAsUser": 1}}},
    "scalars": {"spec": {"terminationGracePeriodSeconds": None, "hostNetwork": True, "enableServiceLinks": True}},
    "pull secrets": {"spec": {"imagePullSecrets": [{"name": "a"}, {"name": "b"}]}},
    "host aliases where there were none": {
        "spec": {"hostAliases": [{"$patch": "replace"}, {"ip": "::1", "hostnames": ["a"]}]}
    },
    "nulls below what is new": {
        "spec": {"dnsConfig": {"options": [{"name": "ndots", "value": "2"}], "searches": None}}
    },
    "nothing below what is new": {"spec": {"affinity": {"podAffinity": {}}}},
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_merged_as_kubectl_does(kubectl: Path, template: dict[str, Any], tmp_path: Path) -> None:
    base, patch = tmp_path / "base.json", tmp_path / "patch.json"
    base.write_text(json.dumps(BASE))
    patch.write_text(json.dumps({"spec": {"template": template}}))
    command = [kubectl, "patch", "--local", "--type=strategic", f"--patch-file={patch}", "-f", base, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)["spec"]["template"]
    theirs["metadata"].pop("creationTimestamp", None)
    pod_schema().check(template)
    ours = pod_schema().merge(BASE["spec"]["template"], template)
    assert ordered(ours) == ordered(theirs)
