"""What is kept of Kubernetes' objects."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from tokenservice.api.meta import Pod

SPEC: dict[str, Any] = {
    "nodeSelector": {"kind": "big"},
    "affinity": {"nodeAffinity": {}},
    "tolerations": [{"key": "a", "operator": "Exists", "tolerationSeconds": 300}],
    "containers": [
        {"name": "server", "image": "i", "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "500m"}}}
    ],
}


def read(spec: dict[str, Any]) -> Any:
    pod = msgspec.json.decode(json.dumps({"metadata": {"name": "p"}, "spec": spec}), type=Pod)
    return json.loads(msgspec.json.encode(pod.spec))


def test_where_a_pod_could_go_is_known_until_it_has_a_node() -> None:
    containers = [{"resources": SPEC["containers"][0]["resources"]}]
    assert read(SPEC) == {**SPEC, "containers": containers}
    assert read({**SPEC, "nodeName": "node-1"}) == {"nodeName": "node-1"}
