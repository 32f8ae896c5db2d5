"""A small client of the API server for tests: plain JSON in and out, as administrator, from any thread."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

Object = dict[str, Any]

KINDS = {
    "TokenService": ("/apis/tokenservice.dev/v1alpha1", "tokenservices"),
    "CondaEnvironment": ("/apis/tokenservice.dev/v1alpha1", "condaenvironments"),
    "WarmPool": ("/apis/tokenservice.dev/v1alpha1", "warmpools"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "ReplicaSet": ("/apis/apps/v1", "replicasets"),
    "Service": ("/api/v1", "services"),
    "Pod": ("/api/v1", "pods"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Secret": ("/api/v1", "secrets"),
    "Node": ("/api/v1", "nodes"),
    "PersistentVolume": ("/api/v1", "persistentvolumes"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "RuntimeClass": ("/apis/node.k8s.io/v1", "runtimeclasses"),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "HorizontalPodAutoscaler": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    "ResourceQuota": ("/api/v1", "resourcequotas"),
    "Event": ("/apis/events.k8s.io/v1", "events"),
    "Job": ("/apis/batch/v1", "jobs"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "Namespace": ("/api/v1", "namespaces"),
    "CustomResourceDefinition": ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
}
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"


def path_of(kind: str, namespace: str | None = None, name: str | None = None, sub: str | None = None) -> str:
    base, plural = KINDS[kind]
    parts = [base, *(["namespaces", namespace] if namespace else []), plural, *([name] if name else [])]
    return "/".join([*parts, *([sub] if sub else [])])


class RefusedError(AssertionError):
    """An error answer. `message` is the API server's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Api:
    """As the user of `kubeconfig`, with its client certificate or token."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        if "client-certificate-data" in user:
            with tempfile.NamedTemporaryFile() as pair:
                pair.write(base64.b64decode(user["client-certificate-data"]))
                pair.write(base64.b64decode(user["client-key-data"]))
                pair.flush()
                tls.load_cert_chain(pair.name)
        headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        limits = httpx.Limits(max_connections=32)
        self.ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.server = str(cluster["server"])
        self._http = httpx.Client(
            base_url=self.server, verify=tls, headers=headers, timeout=30, limits=limits, trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def request(
        self, method: str, path: str, body: Any = None, *, media: str = "application/json", **query: str
    ) -> Any:
        """The answer's JSON. Raises RefusedError for an error answer."""
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": media} if content else {}
        answer = self._http.request(method, path, content=content, headers=headers, params=query)
        if answer.status_code >= 300:
            try:
                message = str(answer.json().get("message", answer.text))
            except ValueError:
                message = answer.text
            raise RefusedError(answer.status_code, message)
        return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else answer.text

    def get(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """The object, or None."""
        try:
            found: Object = self.request("GET", path_of(kind, namespace, name))
        except RefusedError as error:
            if error.code == 404:
                return None
            raise
        return found

    def list(self, kind: str, namespace: str | None = None, **query: str) -> list[Object]:
        items: list[Object] = self.request("GET", path_of(kind, namespace), **query)["items"]
        return items

    def create(self, kind: str, namespace: str | None, body: Object, **query: str) -> Object:
        made: Object = self.request("POST", path_of(kind, namespace), body, **query)
        return made

    def apply(self, namespace: str | None, body: Object, manager: str = "test", **query: str) -> Object:
        """Server-side apply, as `kubectl apply --server-side --force-conflicts` does it."""
        path = path_of(body["kind"], namespace, body["metadata"]["name"])
        done: Object = self.request("PATCH", path, body, media=APPLY, fieldManager=manager, force="true", **query)
        return done

    def patch(self, kind: str, namespace: str | None, name: str, body: Object, sub: str | None = None) -> Object:
        """A merge patch."""
        done: Object = self.request(
            "PATCH", path_of(kind, namespace, name, sub), body, media=MERGE, fieldManager="somebody"
        )
        return done

    def delete(self, kind: str, namespace: str | None, name: str, propagation: str = "Background") -> None:
        """Deletes the object if it is there."""
        try:
            self.request("DELETE", path_of(kind, namespace, name), propagationPolicy=propagation)
        except RefusedError as error:
            if error.code != 404:
                raise

    def watch(self, kind: str, namespace: str | None = None) -> Iterator[Object]:
        """Watch events as they come, those of the objects that exist first; ends when the API server ends it."""
        query = {"watch": "true", "timeoutSeconds": "3600"}
        with self._http.stream("GET", path_of(kind, namespace), params=query, timeout=None) as answer:
            for line in answer.iter_lines():
                yield json.loads(line)

    def delete_all(self, kind: str, namespace: str) -> None:
        self.request("DELETE", path_of(kind, namespace), propagationPolicy="Background")
