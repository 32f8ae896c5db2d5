"""What becomes of CRDs and rights over the life of a release: on a control plane of its own, without nodes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.apiserver.chart_plane import ACCOUNT, CHART, IMAGE, Plane, control_plane, declare
from tests.support import crds
from tests.support.cluster import ROOT
from tests.support.wait import eventually

EVALUATION = (
    "--set=registry.enabled=true",
    "--set=registry.storage.persistent=true",
    "--set=builder.cache.enabled=true",
)


@pytest.fixture(scope="module")
def plane() -> Iterator[Plane]:
    with control_plane() as made:
        yield made


@pytest.fixture
def clean(plane: Plane) -> Iterator[Plane]:
    """The control plane, without a release and without CRDs afterwards."""
    yield plane
    plane.helm("uninstall", "op", "--ignore-not-found", "--wait")
    crds.remove(plane.cluster, *crds.ALL)


def test_the_crds_follow_upgrades_and_outlive_the_release(clean: Plane, tmp_path: Path) -> None:
    clean.helm("install", "op", str(CHART), IMAGE, *EVALUATION)
    declare(clean)

    # A chart with a changed CRD: the CRD changes, the operator's pods do not.
    newer = shutil.copytree(CHART, tmp_path / "chart")
    template = newer / "templates" / "crds.yaml"
    template.write_text(template.read_text().replace("shortNames: [tsvc]", "shortNames: [tsvc, tkns]"))
    before = clean.kubectl(
        "get", "deployments", "--namespace=system", "--output=jsonpath={.items[*].metadata.generation}"
    )
    clean.helm("upgrade", "op", str(newer), "--reset-then-reuse-values")
    eventually(
        lambda: clean.call("kubectl", "get", "tkns", "--namespace=team-a").returncode == 0,
        "the new short name is served",
    )
    after = clean.kubectl(
        "get", "deployments", "--namespace=system", "--output=jsonpath={.items[*].metadata.generation}"
    )
    assert before == after == "1 1"  # the operator's, and the registry's for evaluation

    # Uninstalled: the CRDs and the TokenService stay, and nothing else.
    clean.helm("uninstall", "op", "--wait")
    clean.kubectl("get", "tokenservice", "kept", "--namespace=team-a")
    kinds = (
        "deployments,services,configmaps,persistentvolumeclaims,poddisruptionbudgets,networkpolicies,"
        "serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings"
    )
    command = ("get", kinds, "--all-namespaces", "--selector=app.kubernetes.io/instance=op", "--output=name")
    assert clean.kubectl(*command) == ""

    # Installed again under its name, the release takes them over; under another, it says whose they are.
    refused = clean.call("helm", "install", "other", str(CHART), IMAGE, "--namespace=system")
    assert refused.returncode != 0
    assert 'must equal "other": current value is "op"' in refused.stderr
    clean.helm("install", "op", str(CHART), IMAGE)
    clean.kubectl("get", "tokenservice", "kept", "--namespace=team-a")


def test_without_keep_the_crds_go_with_the_release(clean: Plane) -> None:
    clean.helm("install", "op", str(CHART), IMAGE)
    declare(clean)
    clean.helm("upgrade", "op", str(CHART), "--reset-then-reuse-values", "--set=crds.keep=false")
    clean.kubectl("get", "tokenservice", "kept", "--namespace=team-a")
    crds.listed(clean.cluster, *crds.ALL)
    clean.helm("uninstall", "op", "--wait")
    eventually(lambda: not clean.has_crds(), "the CRDs are gone")


def test_crds_by_hand(clean: Plane) -> None:
    clean.kubectl("apply", "--filename", str(ROOT / "crds"))
    clean.helm("install", "op", str(CHART), IMAGE, "--set=crds.enabled=false")
    declare(clean)
    clean.helm("uninstall", "op", "--wait")
    clean.kubectl("get", "tokenservice", "kept", "--namespace=team-a")


@pytest.mark.parametrize("namespaces", ["", "team-a"])
def test_the_operator_may_what_it_does_and_where(clean: Plane, namespaces: str) -> None:
    clean.helm("install", "op", str(CHART), IMAGE, f"--set=watchNamespaces={{{namespaces}}}" if namespaces else IMAGE)
    here = "--namespace=team-a"
    assert clean.may(ACCOUNT, "list", "tokenservices.tokenservice.dev", here)
    assert clean.may(ACCOUNT, "patch", "tokenservices.tokenservice.dev", "--subresource=status", here)
    assert clean.may(ACCOUNT, "create", "deployments.apps", here)
    assert clean.may(ACCOUNT, "update", "leases.coordination.k8s.io/tokenservice-operator", "--namespace=system")
    assert not clean.may(ACCOUNT, "update", "leases.coordination.k8s.io/other", "--namespace=system")
    assert not clean.may(ACCOUNT, "patch", "tokenservices.tokenservice.dev", here)
    assert not clean.may(ACCOUNT, "delete", "deployments.apps", here)
    assert not clean.may(ACCOUNT, "list", "secrets", here)
    assert clean.may(ACCOUNT, "create", "condaenvironments.tokenservice.dev", here)
    assert not clean.may(ACCOUNT, "create", "jobs.batch", here)
    assert not clean.may(ACCOUNT, "create", "jobs.batch", "--namespace=system")  # without a registry there are none
    assert clean.may(ACCOUNT, "create", "deployments.apps", "--namespace=team-b") is (not namespaces)


def test_people_who_may_edit_deployments_may_edit_tokenservices(clean: Plane) -> None:
    clean.helm("install", "op", str(CHART), IMAGE)
    for role in ("view", "edit"):
        clean.kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", "--namespace=team-a")
    here = "--namespace=team-a"
    for what in crds.ALL:
        eventually(
            lambda what=what: clean.may("editer", "create", what, here) and clean.may("viewer", "get", what, here),
            "the roles are aggregated",
        )
        assert not clean.may("editer", "patch", what, "--subresource=status", here)
        assert not clean.may("viewer", "create", what, here)
    assert clean.may("editer", "update", "tokenservices.tokenservice.dev", "--subresource=scale", here)


def test_with_a_registry_the_operator_may_run_jobs_and_they_may_nothing(clean: Plane) -> None:
    clean.helm("install", "op", str(CHART), IMAGE, "--set=registry.url=registry.example.com/team")
    for verb in ("list", "create", "delete"):
        assert clean.may(ACCOUNT, verb, "jobs.batch", "--namespace=system")
        assert not clean.may(ACCOUNT, verb, "jobs.batch", "--namespace=team-a")
    assert clean.may(ACCOUNT, "list", "nodes")
    assert not clean.may(ACCOUNT, "get", "secrets", "--namespace=system")
    assert not clean.may(ACCOUNT, "get", "configmaps", "--namespace=system")
    for what in ("pods", "secrets", "configmaps", "jobs.batch", "condaenvironments.tokenservice.dev"):
        assert not clean.may(f"{ACCOUNT}-jobs", "get", what, "--namespace=system")


def test_a_namespace_may_enforce_the_restricted_standard(clean: Plane) -> None:
    """Of the operator, the registry for evaluation, and a Job made of the chart's template as the operator makes it."""
    clean.kubectl("label", "namespace", "system", "pod-security.kubernetes.io/enforce=restricted")
    clean.helm("install", "op", str(CHART), IMAGE, *EVALUATION)
    job = yaml.safe_load(
        clean.kubectl(
            "get",
            "configmap/op-tokenservice-operator-jobs",
            "--namespace=system",
            r"--output=jsonpath={.data.job-template\.yaml}",
        )
    )
    job["metadata"] |= {"name": "lock-1", "namespace": "system"}
    job["spec"]["template"]["spec"]["containers"][0]["args"] = ["job"]
    clean.kubectl("create", "--filename=-", stdin=yaml.safe_dump(job))
    created = "--output=jsonpath={.items[*].metadata.name}"
    eventually(
        lambda: len(clean.kubectl("get", "pods", "--namespace=system", created).split()) == 4,
        "two pods of the operator, one of the registry and one of the Job are let in",
    )
    clean.kubectl("delete", "job", "lock-1", "--namespace=system")
