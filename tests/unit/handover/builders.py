"""Pods of pools and claims on them, for tests of what is decided about them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from tokenservice.api import names
from tokenservice.api.meta import Pod
from tokenservice.handover.balance import SETTLE_SECONDS
from tokenservice.handover.claim import Claim, Taker, stamp_exactly

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TAKER = Taker("team", "demo", "service-uid")
READY = [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-03-01T11:50:00Z"}]


def owner(kind: str, name: str, uid: str, **more: Any) -> dict[str, Any]:
    return {**names.owner(kind, name, uid), **more}


def warm_raw(name: str = "nlp-1", *, ready: bool = True, **meta: Any) -> dict[str, Any]:
    """A pod that waits in the WarmPool `nlp`, as the API server sends it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid of {name}",
            "resourceVersion": "41",
            "creationTimestamp": "2026-03-01T11:49:00Z",
            "labels": {
                names.LABEL_MANAGED_BY: names.OPERATOR,
                names.LABEL_NAME: names.APP_NAME,
                names.LABEL_POOL: "nlp",
                names.LABEL_REVISION: "of-the-pool",
                names.LABEL_SHAPE: "shape-1",
                "team.example/of": "the pool's template",
            },
            "annotations": {
                names.ANNOTATION_NONCE: "nonce-1",
                names.ANNOTATION_KEY: "key-1",
                names.ANNOTATION_POOL_LABELS: "team.example/of",
                "team.example/note": "the pool's template",
            },
            "ownerReferences": [owner("WarmPool", "nlp", "pool-uid")],
            **meta,
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "server", "image": "registry/env:1"}]},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.7",
            "conditions": READY if ready else [],
            "containerStatuses": [{"name": "server", "ready": ready, "state": {"running": {}}}],
        },
    }


def as_pod(raw: dict[str, Any]) -> Pod:
    return msgspec.json.decode(msgspec.json.encode(raw), type=Pod)


def ago(seconds: float) -> str:
    return stamp_exactly(NOW - timedelta(seconds=seconds))


def claimed_raw(name: str = "nlp-1", *, at: float = 1.0, served: float | None = None, **more: Any) -> dict[str, Any]:
    """A pod that `demo` took `at` seconds ago, and that serves since `served` seconds."""
    raw = warm_raw(name, **more)
    metadata = raw["metadata"]
    labels = {key: value for key, value in metadata["labels"].items() if key != names.LABEL_POOL}
    labels |= {names.LABEL_CLAIM: TAKER.name, names.LABEL_REVISION: "r1"}
    annotations = metadata["annotations"] | {
        names.ANNOTATION_CLAIMED_AT: ago(at),
        names.ANNOTATION_CLAIMED_FROM: "nlp",
    }
    if served is not None:
        labels[names.LABEL_SERVICE] = TAKER.name
        annotations[names.ANNOTATION_SERVED_AT] = ago(served)
    owners = [owner("TokenService", TAKER.name, TAKER.uid)]
    raw["metadata"] = {**metadata, "labels": labels, "annotations": annotations, "ownerReferences": owners}
    return raw


def claim(
    name: str = "nlp-1", *, at: float = 1.0, served: float | None = None, ready: bool = True, lost: bool = False
) -> Claim:
    """The same, read."""
    return Claim(
        pod=as_pod(claimed_raw(name, at=at, served=served, ready=ready)),
        revision="r1",
        at=NOW - timedelta(seconds=at),
        served=None if served is None else NOW - timedelta(seconds=served),
        ready=ready,
        failing=None,
        lost=lost,
    )


def loads(name: str, at: float = 1.0) -> Claim:
    """One that is being given its model."""
    return claim(name, at=at)


def serves(name: str, served: float = 1.0) -> Claim:
    """One that serves, and must do so for a while yet."""
    return claim(name, at=served + 0.3, served=served)


def due(name: str, served: float = SETTLE_SECONDS) -> Claim:
    """One that can settle."""
    return claim(name, at=served + 0.3, served=served)


def warm_pod(name: str = "nlp-1", **meta: Any) -> Pod:
    """A pod that waits in the pool."""
    return as_pod(warm_raw(name, **meta))
