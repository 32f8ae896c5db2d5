"""The chart's files against what they follow: crds/, the options, the version and the licence of the project."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from tokenservice import options

from tools import sync_crds

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "tokenservice-operator"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

CRD = """\
# Says {{ braces }}.
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: things.example.com
spec:
  metadata: nested
"""


def test_the_template_of_the_crds_is_up_to_date() -> None:
    assert sync_crds.main(["--check"]) == 0


def test_a_crd_is_kept_as_it_stands_but_for_the_conditions() -> None:
    lines = sync_crds.render([("a.yaml", CRD), ("b.yaml", "---\n" + CRD)]).splitlines()
    kept = [line for line in lines if not line.startswith("{{-")]
    one = CRD.replace("{{", '{{ "{{" }}').replace(" }}.", ' {{ "}}" }}.').splitlines()
    one[one.index("metadata:") + 1 : one.index("metadata:") + 1] = [
        "  annotations:",
        "    helm.sh/resource-policy: keep",
    ]
    assert kept == ["---", *one] * 2
    assert [line for line in lines if line.startswith("{{-")][1:] == [
        "{{- if .Values.crds.enabled }}",
        *["{{- if .Values.crds.keep }}", "{{- end }}"] * 2,
        "{{- end }}",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (CRD.replace("metadata:\n", "meta:\n"), "found 0"),
        (CRD + "---\n" + CRD, "found 2"),
        (CRD.replace("  name:", "  annotations: {}\n  name:"), "annotations"),
        (CRD.replace("  name: things.example.com", "  name: a\n  annotations:\n    a: b"), "annotations"),
    ],
)
def test_a_crd_without_room_for_the_annotation_is_refused(text: str, problem: str) -> None:
    with pytest.raises(sync_crds.UnexpectedLayoutError, match=rf"things\.yaml: .*{problem}"):
        sync_crds.template("things.yaml", text)


def test_the_chart_has_the_projects_version_and_licence() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (PROJECT["version"], PROJECT["version"])
    assert chart["annotations"]["artifacthub.io/license"] == PROJECT["license"]
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability." in text


def test_the_deployment_sets_options_that_exist() -> None:
    template = (CHART / "templates" / "deployment.yaml").read_text()
    given = set(re.findall(rf"name: {options.PREFIX}(\w+)", template))
    known = {item.name.upper() for item in fields(options.Options)}
    # The Lease's name is in the Role; a kubeconfig has no place in a cluster; Jobs run where the Lease is.
    assert given == known - {"LEASE_NAME", "KUBECONFIG", "JOB_NAMESPACE"}


def test_the_lease_in_the_role_is_the_operators() -> None:
    text = (CHART / "templates" / "rbac.yaml").read_text()
    assert f"resourceNames: [{options.Options().lease_name}]" in text
