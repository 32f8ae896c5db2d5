"""A small client of the cluster's API server: what `up` and `status` need, by the standard library."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from .errors import LocalClusterError

Object = dict[str, Any]
_COLLECTIONS = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "EndpointSlice": "endpointslices",
    "Node": "nodes",
    "Service": "services",
}


class ApiError(LocalClusterError):
    """The API server refused a request."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"the API server answered {code}: {message}")
        self.code = code


class Api:
    """A connection as the cluster's administrator. While no server answers: OSError or http.client.HTTPException."""

    def __init__(self, address: str, certificates: Path, timeout: float = 10.0) -> None:
        context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        context.load_cert_chain(certificates / "admin.crt", certificates / "admin.key")
        self._connection = http.client.HTTPSConnection(address, 6443, context=context, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def request(
        self, method: str, path: str, body: Object | None = None, media: str = "application/json"
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": media, "Accept": "application/json"}
        try:
            self._connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the next request begins a new one
            raise

    def get(self, path: str) -> Object | None:
        """The object, or None if there is none."""
        code, body = self.request("GET", path)
        if code == 404:
            return None
        return self._answer(code, body)

    def apply(self, obj: Object) -> None:
        """Server-side apply."""
        path = f"{object_path(obj)}?fieldManager=localcluster&force=true"
        self._answer(*self.request("PATCH", path, obj, "application/apply-patch+yaml"))

    def create(self, obj: Object) -> None:
        """Creates the object unless it exists."""
        collection = object_path(obj).rpartition("/")[0]
        code, body = self.request("POST", collection, obj)
        if code != 409:
            self._answer(code, body)

    def delete(self, path: str) -> None:
        code, body = self.request("DELETE", path)
        if code != 404:
            self._answer(code, body)

    def ready(self) -> bool:
        try:
            return self.request("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    @staticmethod
    def _answer(code: int, body: bytes) -> Object:
        try:
            answer: Object = json.loads(body)
        except ValueError:
            answer = {"message": body[:200].decode(errors="replace")}
        if code >= 300:
            raise ApiError(code, str(answer.get("message", "")))
        return answer


def object_path(obj: Object) -> str:
    """The URL path of an object of one of the kinds that `objects.py` makes."""
    version = obj["apiVersion"]
    base = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    namespace = obj["metadata"].get("namespace")
    if namespace:
        base += f"/namespaces/{quote(namespace)}"
    return f"{base}/{_COLLECTIONS[obj['kind']]}/{quote(obj['metadata']['name'], safe='')}"


def node_ready(node: Object | None) -> bool:
    conditions = (node or {}).get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
