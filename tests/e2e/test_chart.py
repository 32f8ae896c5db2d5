"""The chart on a cluster with nodes: installed, tested, upgraded and uninstalled while a TokenService serves.

What becomes of the CRDs is tested on a control plane of its own (tests/apiserver/test_chart_lifecycle.py): taking them
away would take every other test's TokenServices along.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import crds
from tests.support.cluster import ROOT, Cluster
from tests.support.wait import eventually

CHART = str(ROOT / "charts" / "tokenservice-operator")
RELEASE, NAMESPACE, TEAM = "chart", "chart-system", "chart-team"
DEPLOYMENT = "chart-tokenservice-operator"


def pods(cluster: Cluster, namespace: str, selector: str) -> dict[str, str]:
    """Name to uid of the pods that are there to stay."""
    out = cluster.kubectl("--namespace", namespace, "get", "pods", "--selector", selector, "--output", "json").stdout
    items = [item["metadata"] for item in json.loads(out)["items"]]
    return {item["name"]: item["uid"] for item in items if "deletionTimestamp" not in item}


def leader(cluster: Cluster) -> str:
    """The pod that holds the Lease."""
    path = "jsonpath={.spec.holderIdentity}"
    command = ("--namespace", NAMESPACE, "get", "lease", "tokenservice-operator", "--output", path)
    return cluster.kubectl(*command).stdout.partition("_")[0]


def ready_pods(cluster: Cluster, name: str, count: int) -> None:
    for wanted in (f"--for=jsonpath={{.status.readyReplicas}}={count}", "--for=condition=Ready"):
        cluster.kubectl("--namespace", TEAM, "wait", wanted, f"tokenservice/{name}", "--timeout=120s")


@pytest.fixture
def release(cluster: Cluster, operator_image: str) -> Iterator[list[str]]:
    """Two namespaces, and the arguments of `helm install`; leaves the cluster as it was."""
    ours = cluster.get("crd", crds.TOKENSERVICES) is None
    repository, digest = operator_image.split("@")
    for namespace in (NAMESPACE, TEAM):
        cluster.kubectl("create", "namespace", namespace)
    try:
        cluster.kubectl("label", "namespace", NAMESPACE, TEAM, "pod-security.kubernetes.io/enforce=restricted")
        yield [
            "--namespace",
            NAMESPACE,
            f"--set=image.repository={repository},image.digest={digest}",
            f"--set=watchNamespaces={{{TEAM}}}",
            f"--set=crds.enabled={json.dumps(ours)}",
        ]
    finally:
        cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait", check=False)
        # Before their namespace, which would look again only after half of their grace period.
        cluster.kubectl("--namespace", TEAM, "delete", "deployments,pods", "--all", "--timeout=60s")
        cluster.kubectl("delete", "namespace", NAMESPACE, TEAM, "--timeout=120s")
        if ours:
            crds.remove(cluster, *crds.ALL)


def test_install_test_upgrade_uninstall(cluster: Cluster, release: list[str], standin_image: str) -> None:
    operator = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=manager"

    # Install: both replicas become ready in a namespace that enforces the restricted standard, and one leads.
    notes = cluster.helm("install", RELEASE, CHART, *release, "--wait", "--timeout=3m").stdout
    assert f"serves the TokenServices of {TEAM}" in notes
    first = pods(cluster, NAMESPACE, operator)
    assert len(first) == 2
    eventually(lambda: leader(cluster) in first, "one of the pods leads")

    # Test: passes, says so, and removes its pod and its rights.
    tested = cluster.helm("test", RELEASE, "--namespace", NAMESPACE, "--logs").stdout
    assert "ok: the cluster takes TokenServices" in tested
    kinds = "pods,serviceaccounts,roles,rolebindings"
    left = ("get", kinds, "--selector=app.kubernetes.io/component=test", "--output=name")
    assert cluster.kubectl("--namespace", NAMESPACE, *left).stdout == ""

    # It serves.
    service: dict[str, Any] = {
        "apiVersion": "tokenservice.dev/v1alpha1",
        "kind": "TokenService",
        "metadata": {"name": "kept", "namespace": TEAM},
        "spec": {"model": {"source": "file:///opt/standin"}, "environment": {"image": {"reference": standin_image}}},
    }
    cluster.kubectl("create", "--filename=-", input=json.dumps(service))
    ready_pods(cluster, "kept", 1)
    serving = pods(cluster, TEAM, "tokenservice.dev/service=kept")
    assert len(serving) == 1

    # Upgrade: a changed value rolls the operator, and not what it serves; the new leader goes on.
    changed = ("--reset-then-reuse-values", "--set=logLevel=debug", "--wait", "--timeout=3m")
    cluster.helm("upgrade", RELEASE, CHART, "--namespace", NAMESPACE, *changed)
    second = pods(cluster, NAMESPACE, operator)
    assert len(second) == 2
    assert not second.keys() & first.keys()
    eventually(lambda: leader(cluster) in second, "one of the new pods leads")
    assert pods(cluster, TEAM, "tokenservice.dev/service=kept") == serving
    cluster.kubectl("--namespace", TEAM, "scale", "tokenservice/kept", "--replicas=2")
    ready_pods(cluster, "kept", 2)
    serving = pods(cluster, TEAM, "tokenservice.dev/service=kept")

    # An upgrade that is a mistake changes nothing.
    mistake = cluster.helm(
        "upgrade", RELEASE, CHART, "--namespace", NAMESPACE, "--reuse-values", "--set=replcas=3", check=False
    )
    assert mistake.returncode != 0
    assert "additional properties 'replcas' not allowed" in mistake.stderr
    assert pods(cluster, NAMESPACE, operator) == second

    # Uninstall: the operator is gone, what it served is not.
    cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
    kinds = "deployments,services,poddisruptionbudgets,networkpolicies,serviceaccounts,roles,rolebindings"
    left = ("get", kinds, f"--selector=app.kubernetes.io/instance={RELEASE}", "--output=name")
    for namespace in (NAMESPACE, TEAM):
        assert cluster.kubectl("--namespace", namespace, *left).stdout == ""
    eventually(lambda: not pods(cluster, NAMESPACE, operator), "the operator's pods are gone")
    cluster.kubectl("get", "crd", *crds.ALL)
    assert pods(cluster, TEAM, "tokenservice.dev/service=kept") == serving
    ready_pods(cluster, "kept", 2)
    available = ("wait", "--for=condition=Available", "deployment/kept", "--timeout=10s")
    cluster.kubectl("--namespace", TEAM, *available)
