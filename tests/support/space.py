"""A namespace of a test's own on a cluster with nodes, and short ways to speak about what is in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.api import Api, Object
from tests.support.cluster import Cluster, condition, token_service
from tests.support.wait import eventually

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@dataclass(frozen=True)
class Space:
    """A namespace that takes only pods of the restricted standard. Times are seconds."""

    name: str
    cluster: Cluster
    api: Api

    @classmethod
    @contextlib.contextmanager
    def made(cls, name: str, cluster: Cluster, api: Api) -> Iterator[Space]:
        """Deleted afterwards, which nobody waits for."""
        api.create("Namespace", None, {"metadata": {"name": name, "labels": RESTRICTED}})
        try:
            yield cls(name, cluster, api)
        finally:
            api.delete("Namespace", None, name)

    def apply(self, service: str, image: str, **spec: Any) -> Object:
        """Applies a TokenService; `spec` adds to or replaces fields of its spec."""
        return self.api.apply(self.name, token_service(service, image, **spec))

    def get(self, kind: str, name: str) -> Object | None:
        return self.api.get(kind, self.name, name)

    def there(self, kind: str, name: str) -> Object:
        """The object, which must exist."""
        found = self.get(kind, name)
        assert found, f"no {kind} {name}"
        return found

    def patch(self, service: str, **spec: Any) -> Object:
        """Merges into the spec of a TokenService."""
        return self.api.patch("TokenService", self.name, service, {"spec": spec})

    def make(self, kind: str, name: str, **fields: Any) -> Object:
        return self.api.create(kind, self.name, {"metadata": {"name": name}, **fields})

    def secret(self, name: str, **values: str) -> Object:
        return self.make("Secret", name, stringData=values)

    def says(self, service: str, reason: str, *, seconds: float = 60.0) -> Object:
        """The TokenService, once Ready of its newest spec has this reason."""

        def look() -> Object:
            found = self.there("TokenService", service)
            ready = condition(found)
            assert ready.get("reason") == reason, ready
            return found

        return eventually(look, f"Ready of {service} says {reason}", seconds=seconds)

    def condition(self, service: str, kind: str, reason: str, *, seconds: float = 60.0) -> Object:
        """The condition of that type of a TokenService, once it has this reason for the newest spec."""

        def look() -> Object:
            found = condition(self.there("TokenService", service), kind)
            assert found.get("reason") == reason, found
            return found

        return eventually(look, f"{kind} of {service} says {reason}", seconds=seconds)

    def good(self, service: str, *, seconds: float = 60.0) -> Object:
        """The TokenService, once the revision that its newest spec asks for has proven good."""

        def look() -> Object:
            found = self.there("TokenService", service)
            status = found.get("status", {})
            assert condition(found).get("reason") == "Serving", status
            assert status.get("lastGoodRevision") == status["updateRevision"] == status["currentRevision"], status
            return found

        return eventually(look, f"the newest revision of {service} is good", seconds=seconds)

    def ready(self, service: str, *, seconds: float = 60.0) -> Object:
        """The TokenService, once every replica of its newest spec serves."""
        return self.says(service, "Serving", seconds=seconds)

    def pods(self, service: str) -> list[Object]:
        """The pods of a TokenService that are there to stay, oldest first."""
        found = self.api.list("Pod", self.name, labelSelector=f"tokenservice.dev/service={service}")
        staying = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(staying, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def pod(self, service: str) -> Object:
        """The one pod of a TokenService."""
        (found,) = self.pods(service)
        return found

    def uids(self, service: str) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.pods(service)}

    def events(self, name: str, kind: str = "TokenService") -> list[Object]:
        """The events about a TokenService, or another object, oldest first."""
        found = [
            event
            for event in self.api.list("Event", self.name)
            if event["regarding"].get("kind") == kind and event["regarding"]["name"] == name
        ]
        return sorted(found, key=lambda event: str(event["eventTime"]))

    def events_with(self, reason: str, name: str, kind: str = "TokenService") -> list[Object]:
        """The same, once one of that reason is among them: events are posted beside the status, not before it."""

        def found() -> list[Object]:
            events = self.events(name, kind)
            return events if any(event["reason"] == reason for event in events) else []

        return eventually(found, f"an event {reason} of {kind} {name}", seconds=10)

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.cluster.kubectl("--namespace", self.name, *arguments, **options).stdout

    def claim(self, name: str) -> Path:
        """Makes a PersistentVolumeClaim; returns the folder of the node that it is."""
        of = f"{self.name}-{name}"
        folder = Path(self.cluster.facts["hostpath"]) / of
        folder.mkdir(parents=True)
        common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
        volume = {"capacity": {"storage": "1Gi"}, "hostPath": {"path": str(folder), "type": "Directory"}, **common}
        self.api.create("PersistentVolume", None, {"metadata": {"name": of}, "spec": volume})
        asked = {"resources": {"requests": {"storage": "1Gi"}}, "volumeName": of, **common}
        self.make("PersistentVolumeClaim", name, spec=asked)
        return folder


def container(pod: Object) -> Object:
    """The status of the container that serves, {} before there is one."""
    statuses: list[Object] = pod.get("status", {}).get("containerStatuses", [])
    return next((status for status in statuses if status["name"] == "server"), {})
