"""A control plane of the tier's own, the operator with the rights that the chart grants, and a namespace a test."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import crds
from tests.support.api import Api
from tests.support.audit import AuditLog, Write
from tests.support.cluster import ROOT, Cluster, condition, localcluster, token_service
from tests.support.faulty_proxy import FaultyProxy
from tests.support.operator_process import OperatorProcess
from tests.support.wait import eventually

SYSTEM = "tokenservice-system"
CHART = "charts/tokenservice-operator"

_numbers = itertools.count()


@dataclass
class Plane:
    """The control plane, with the CRD and the operator's account."""

    cluster: Cluster
    api: Api
    audit: AuditLog
    folder: Path
    user: str
    kubeconfig: Path
    rules: list[dict[str, Any]]
    """Every rule of the roles that the chart binds to the operator."""
    operators: list[OperatorProcess] = field(default_factory=list)

    def operator(self, *flags: str, kubeconfig: Path | None = None, name: str | None = None) -> OperatorProcess:
        """An operator that is not started yet; ended with the session at the latest."""
        made = OperatorProcess(
            kubeconfig or self.kubeconfig, self.folder, *flags, name=name or f"operator-{next(_numbers)}"
        )
        self.operators.append(made)
        return made

    def writes(self, since: int) -> list[Write]:
        """What the operator wrote since that position of the audit log, Leases excluded."""
        return self.audit.writes(since, self.user)

    def silence(self, namespace: str | None = None, *, seconds: float = 2.0, within: float = 60.0) -> None:
        """Waits until the operator has written nothing (in this namespace) for so long."""
        since, mark = time.monotonic(), self.audit.position()

        def look() -> bool:
            nonlocal since, mark
            now = self.audit.position()
            if any(namespace in (None, write.namespace) for write in self.writes(mark)):
                since, mark = time.monotonic(), now
            return time.monotonic() - since >= seconds

        eventually(look, f"no writes for {seconds:g} s", seconds=within, every=0.2)

    def control(self, operation: str, component: str) -> None:
        """start, stop or restart a component of the control plane; waits until that is done."""
        localcluster(operation, "--name", self.cluster.name, "--component", component)

    def apply_crd(self) -> None:
        self.cluster.kubectl("apply", "--server-side", "-f", "crds/")
        crds.established(self.cluster, crds.TOKENSERVICES)


@dataclass(frozen=True)
class Space:
    """A namespace of one test's own, and short ways to speak about the TokenServices in it."""

    name: str
    api: Api

    def apply(self, service: str, **spec: Any) -> dict[str, Any]:
        """Applies a TokenService as kubectl would; `spec` adds to or replaces fields of its spec."""
        return self.api.apply(self.name, token_service(service, **spec))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        return self.api.get(kind, self.name, name)

    def there(self, kind: str, name: str) -> dict[str, Any]:
        """The object, which must exist."""
        found = self.get(kind, name)
        assert found, f"no {kind} {name}"
        return found

    def patch(self, kind: str, name: str, body: dict[str, Any], sub: str | None = None) -> dict[str, Any]:
        return self.api.patch(kind, self.name, name, body, sub)

    def delete(self, kind: str, name: str) -> None:
        self.api.delete(kind, self.name, name)

    def ready(self, service: str, reason: str, *, seconds: float = 30.0) -> dict[str, Any]:
        """The Ready condition, once it has this reason and speaks of the newest spec."""

        def look() -> dict[str, Any] | None:
            found = condition(self.there("TokenService", service))
            assert found.get("reason") == reason, found
            return found

        return eventually(look, f"Ready of {service} says {reason}", seconds=seconds)

    def settled(self, service: str, *, seconds: float = 30.0) -> dict[str, Any]:
        """The TokenService, once all children and a status of its newest spec exist."""

        def look() -> dict[str, Any] | None:
            for kind in ("Deployment", "Service", "PodDisruptionBudget"):
                self.there(kind, service)
            found = self.there("TokenService", service)
            return found if condition(found) else None

        return eventually(look, f"{service} has children and a status", seconds=seconds)

    def events(self, service: str) -> list[dict[str, Any]]:
        """The events about a TokenService, oldest first."""
        found = [
            event
            for event in self.api.list("Event", self.name)
            if event["regarding"].get("kind") == "TokenService" and event["regarding"]["name"] == service
        ]
        return sorted(found, key=lambda event: str(event["eventTime"]))


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    cluster = Cluster.up("test-apiserver", "--shape", "control-plane", "--audit", "--raise-client-limits")
    made: Plane | None = None
    try:
        folder = tmp_path_factory.mktemp("operator")
        rules = _grant(cluster)
        account = "op-tokenservice-operator"
        token = cluster.kubectl("create", "token", account, "-n", SYSTEM, "--duration=4h").stdout.strip()
        kubeconfig = folder / "kubeconfig"
        write_kubeconfig(kubeconfig, cluster.facts["server"], token, ca=_ca(cluster))
        made = Plane(
            cluster=cluster,
            api=Api(cluster.kubeconfig),
            audit=AuditLog(Path(cluster.facts["audit_log"])),
            folder=folder,
            user=f"system:serviceaccount:{SYSTEM}:{account}",
            kubeconfig=kubeconfig,
            rules=rules,
        )
        made.apply_crd()
        yield made
    finally:
        for operator in made.operators if made else ():
            if operator.running:
                assert operator.stop() == 0
        if made:
            made.api.close()
        cluster.down()


@pytest.fixture
def operator(_operator: OperatorProcess) -> Iterator[OperatorProcess]:
    """The operator, reconciling. Tests may stop and kill it; the next one finds it running again."""
    if not _operator.running:
        _operator.start()
    else:
        eventually(_operator.reconciles, "the operator reconciles")
    yield _operator
    assert not _operator.surprises()


@pytest.fixture(scope="session")
def _operator(plane: Plane) -> OperatorProcess:
    return plane.operator(name="operator")


@pytest.fixture
def space(plane: Plane) -> Iterator[Space]:
    """A namespace that is deleted afterwards, which nobody waits for."""
    name = f"test-{next(_numbers)}"
    plane.api.create("Namespace", None, {"metadata": {"name": name}})
    yield Space(name, plane.api)
    # Not left to the namespace controller, which passes over what the API server, just restarted, does not list yet.
    for kind in ("TokenService", "WarmPool", "CondaEnvironment"):
        plane.api.delete_all(kind, name)
    plane.api.delete("Namespace", None, name)


@pytest.fixture
def alone(_operator: OperatorProcess) -> None:
    """For tests that run operators of their own: the shared one gives up the Lease and ends."""
    if _operator.running:
        assert _operator.stop() == 0


@pytest.fixture(scope="session")
def proxy(plane: Plane) -> Iterator[FaultyProxy]:
    """Between the API server and the operators of `proxied`."""
    made = FaultyProxy(plane.api.server, plane.api.ca)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def proxied(plane: Plane, proxy: FaultyProxy) -> Path:
    """A kubeconfig for operators that reach the API server through the proxy."""
    token = yaml.safe_load(plane.kubeconfig.read_text())["users"][0]["user"]["token"]
    kubeconfig = plane.folder / "proxied"
    write_kubeconfig(kubeconfig, proxy.url, token)
    return kubeconfig


def write_kubeconfig(path: Path, server: str, token: str, ca: str | None = None) -> None:
    """A kubeconfig for a token; ca: PEM, base64-encoded."""
    place = {"server": server, **({"certificate-authority-data": ca} if ca else {})}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": place}],
        "users": [{"name": "operator", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "operator"}}],
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))


def _ca(cluster: Cluster) -> str:
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    data: str = config["clusters"][0]["cluster"]["certificate-authority-data"]
    assert base64.b64decode(data)
    return data


def _grant(cluster: Cluster) -> list[dict[str, Any]]:
    """Applies the account and the roles of the chart, as `helm install` would. Returns the roles' rules."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
    rendered = cluster.helm(
        *("template", "op", CHART, "--namespace", SYSTEM, "--set=image.repository=registry.example.com/operator"),
        *("--show-only=templates/rbac.yaml", "--show-only=templates/serviceaccount.yaml"),
    ).stdout
    objects = [item for item in yaml.safe_load_all(rendered) if item]
    cluster.kubectl(
        "apply", "-n", SYSTEM, "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    )
    return [rule for item in objects if item["kind"] in ("Role", "ClusterRole") for rule in item["rules"]]


__all__ = ["ROOT", "SYSTEM", "Plane", "Space", "write_kubeconfig"]
