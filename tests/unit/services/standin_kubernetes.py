"""What Kubernetes' own controllers, a kubelet and a WarmPool's reconciler make of a stand-in cluster's objects."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
from tokenservice.api import names
from tokenservice.api.meta import stamp
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import EnvironmentStatus
from tokenservice.handover.assigner import Outcome
from tokenservice.handover.patches import LABEL_HASH
from tokenservice.pools import render
from tokenservice.pools.render import Rendered

from tests.unit.pods.builders import pod_schema
from tests.unit.pools.builders import warm_pool
from tests.unit.services.builders import IMAGE
from tests.unit.services.standin_cluster import KEY_ID, PROGRESS, Cluster

Raw = dict[str, Any]
RUNNING = {"containerStatuses": [{"name": "server", "ready": True, "state": {"running": {}}}]}


class Kubernetes:
    """Nothing happens by itself: a test says when who looks."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.number = 0
        self.surge = 1
        """Of rolling updates."""
        self.deleted: list[str] = []
        """Pods that the ReplicaSets have deleted."""

    # -- a WarmPool

    def pool(self, name: str = "nlp", *, image: str = IMAGE, **spec: Any) -> None:
        """There is a WarmPool, or it has another spec."""
        pool = warm_pool(environment={"image": {"reference": image}}, **spec)
        metadata = msgspec.structs.replace(pool.metadata, name=name, uid=f"uid of {name}")
        self.cluster.pools[name] = pool = msgspec.structs.replace(pool, metadata=metadata)
        self.rendered = rendered(pool)
        self.cluster.pool_specs[name] = self.rendered.template["spec"]

    def warm(self, count: int = 1, pool: str = "nlp") -> list[str]:
        """So many more pods of the pool are Ready. Returns their names."""
        made = []
        for _ in range(count):
            self.number += 1
            name = f"{pool}-{self.number}"
            annotations = {names.ANNOTATION_NONCE: f"nonce-{self.number}", names.ANNOTATION_KEY: KEY_ID}
            manifest = render.pod(
                self.cluster.pools[pool], self.rendered, name, digest="0" * 64, annotations=annotations
            )
            self._put(name, dict(manifest), started=True)
            self.ready(name)
            made.append(name)
        return made

    def loaded(self, *which: str) -> None:
        """The models of these pods, or of all that were given one, are there."""
        for uid in which or (*self.cluster.assigner.given,):
            self.cluster.assigner.outcomes.setdefault(uid, Outcome("serves", stages={"total": 0.5}))

    def came(self, outcome: Outcome) -> None:
        """This came of giving pods their models."""
        for uid in self.cluster.assigner.given:
            self.cluster.assigner.outcomes.setdefault(uid, outcome)

    # -- pods

    def pods(self, *labels: str) -> list[str]:
        """Those that have the labels."""
        return sorted(raw["metadata"]["name"] for raw in self._pods(*labels))

    def _pods(self, *labels: str) -> Iterator[Raw]:
        for (plural, _), raw in [*self.cluster.objects.items()]:
            if plural == "pods" and {*labels} <= raw["metadata"]["labels"].keys():
                yield raw

    @property
    def claims(self) -> list[str]:
        return self.pods(names.LABEL_CLAIM)

    @property
    def waiting(self) -> list[str]:
        return self.pods(names.LABEL_POOL)

    @property
    def serving(self) -> list[str]:
        """The Ready pods that the Service selects."""
        return sorted(raw["metadata"]["name"] for raw in self._pods(names.LABEL_SERVICE) if _ready(raw))

    def metadata(self, name: str) -> Raw:
        found: Raw = self.cluster.objects["pods", name]["metadata"]
        return found

    def ready(self, name: str, *, ready: bool = True) -> None:
        since = stamp(self.cluster.now - timedelta(seconds=10))
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": since}
        status = {**self.cluster.objects["pods", name]["status"], **RUNNING, "phase": "Running"}
        self.say(name, **{**status, "podIP": "10.0.0.1", "conditions": [condition]})

    def say(self, name: str, **status: Any) -> None:
        raw = self.cluster.objects["pods", name]
        version = self.cluster._next()
        self.cluster.objects["pods", name] = {
            **raw,
            "metadata": {**raw["metadata"], "resourceVersion": version},
            "status": {**raw["status"], **status},
        }

    def start(self) -> None:
        """The kubelet has started every pod of a ReplicaSet, and they are Ready."""
        for raw in self._pods(LABEL_HASH):
            if not _ready(raw):
                self.ready(raw["metadata"]["name"])

    def _put(self, name: str, manifest: Raw, *, started: bool) -> None:
        metadata = {
            **manifest["metadata"],
            **{"name": name, "namespace": "team", "uid": f"uid of {name}"},
            "creationTimestamp": stamp(self.cluster.now),
            "resourceVersion": self.cluster._next(),
        }
        status = {"phase": "Running" if started else "Pending"}
        spec = {**manifest["spec"], "nodeName": "node-1"}
        self.cluster.objects["pods", name] = {"metadata": metadata, "spec": spec, "status": status}

    # -- controllers

    def deployment(self) -> None:
        """The Deployment's controller: a rolling update, and what it says of it."""
        raw = self.cluster.objects["deployments", "demo"]
        template, wanted = raw["spec"]["template"], raw["spec"]["replicas"]
        newest = template["metadata"]["labels"][names.LABEL_REVISION]
        sets = self.sets
        if newest not in sets:
            labels = {**template["metadata"]["labels"], LABEL_HASH: f"hash-{newest}"}
            metadata = {"name": f"demo-{newest}", "namespace": "team", "uid": f"set {newest}", "labels": labels}
            self.cluster.objects["replicasets", f"demo-{newest}"] = {
                "metadata": metadata,
                "spec": {"replicas": 0, "template": template},
            }
            sets = self.sets
        old = [each for label, each in sets.items() if label != newest]
        ready = sum(1 for each in self._of(sets[newest]) if _ready(each))
        for each in old:
            each["spec"]["replicas"] = min(each["spec"]["replicas"], max(0, wanted - ready))
        beside = sum(each["spec"]["replicas"] for each in old)
        sets[newest]["spec"]["replicas"] = min(wanted, wanted + self.surge - beside) if beside else wanted
        self.tell()

    def tell(self) -> None:
        """What the Deployment says of itself."""
        raw = self.cluster.objects["deployments", "demo"]
        newest = raw["spec"]["template"]["metadata"]["labels"][names.LABEL_REVISION]
        pods = [each for found in self.sets.values() for each in self._of(found)]
        ready = sum(1 for each in pods if _ready(each))
        raw["status"] = {
            **{"observedGeneration": raw["metadata"]["generation"], "replicas": len(pods)},
            **{"readyReplicas": ready, "availableReplicas": ready},
            "updatedReplicas": sum(1 for each in pods if each["metadata"]["labels"][names.LABEL_REVISION] == newest),
            "conditions": [{**PROGRESS, "lastUpdateTime": stamp(self.cluster.now)}],
        }

    @property
    def sets(self) -> dict[str, Raw]:
        """ReplicaSets by their revision's label."""
        found = [raw for (plural, _), raw in self.cluster.objects.items() if plural == "replicasets"]
        return {raw["metadata"]["labels"][names.LABEL_REVISION]: raw for raw in found}

    def _of(self, found: Raw) -> list[Raw]:
        uid = found["metadata"]["uid"]
        return [
            raw for raw in self._pods(LABEL_HASH) if uid in [each["uid"] for each in raw["metadata"]["ownerReferences"]]
        ]

    def replica_sets(self) -> None:
        """The ReplicaSets' controller: takes in what has their labels, then makes or deletes as many as it takes."""
        for found in self.sets.values():
            uid = found["metadata"]["uid"]
            for raw in self._pods(LABEL_HASH):
                owners, labels = raw["metadata"]["ownerReferences"], raw["metadata"]["labels"]
                mine = labels[LABEL_HASH] == found["metadata"]["labels"][LABEL_HASH]
                if mine and not any(each["controller"] for each in owners):
                    raw["metadata"]["ownerReferences"] = [
                        *owners,
                        {"kind": "ReplicaSet", "name": "demo", "uid": uid, "controller": True},
                    ]
            pods = self._of(found)
            for _ in range(found["spec"]["replicas"] - len(pods)):
                self._begin(found)
            for raw in sorted(pods, key=_rank)[: max(0, len(pods) - found["spec"]["replicas"])]:
                self.deleted.append(raw["metadata"]["name"])
                del self.cluster.objects["pods", raw["metadata"]["name"]]

    def _begin(self, found: Raw) -> None:
        self.number += 1
        labels = found["metadata"]["labels"]
        owner = {"kind": "ReplicaSet", "name": "demo", "uid": found["metadata"]["uid"], "controller": True}
        manifest = {**found["spec"]["template"], "metadata": {"labels": dict(labels), "ownerReferences": [owner]}}
        self._put(f"demo-{self.number}", manifest, started=False)

    def controllers(self) -> None:
        """Each of them has looked."""
        self.deployment()
        self.replica_sets()
        self.tell()


def _ready(raw: Raw) -> bool:
    return any(each == {**each, "type": "Ready", "status": "True"} for each in raw["status"].get("conditions", ()))


def _rank(raw: Raw) -> tuple[bool, int, int]:
    """Kubernetes' order, as far as it matters: the first go first."""
    metadata = raw["metadata"]
    cost = int(metadata.get("annotations", {}).get(names.ANNOTATION_DELETION_COST, "0"))
    return _ready(raw), cost, -int(metadata["name"].rsplit("-", 1)[1])


def rendered(pool: WarmPool) -> Rendered:
    """What the pods of a pool are made from that runs in a prebuilt image."""
    image = pool.spec.environment.image
    assert image
    return render.rendered(pool, pod_schema(), EnvironmentStatus(image=image.reference))
