"""Jobs out of a template: what the operator adds, what it leaves, and templates that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenservice.api.jobs import BuildRequest, CollectRequest, LockRequest, Request, decode_request
from tokenservice.environments.housekeeping import PATIENCE_SECONDS
from tokenservice.environments.render import InvalidJobTemplateError, job, load_template, stage_of

TEMPLATE = """
metadata:
  labels: {app.kubernetes.io/managed-by: Helm, team: ml}
spec:
  backoffLimit: 1
  template:
    metadata:
      labels: {app.kubernetes.io/component: job}
    spec:
      containers:
        - {name: sidecar, image: s}
        - {name: job, image: operator, command: [tokenservice], env: [{name: HOME, value: /tmp}]}
"""


def made(request: Request, template: str = TEMPLATE) -> dict[str, Any]:
    return job(yaml.safe_load(template), "ops", "lock-1", "need", request)


def test_what_is_added_and_what_stays() -> None:
    request = LockRequest(environment={"dependencies": ["python"]}, previous="r/e@sha256:1")
    manifest = made(request)
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    assert manifest["metadata"] == {
        "name": "lock-1",
        "namespace": "ops",
        "labels": {
            "app.kubernetes.io/managed-by": "tokenservice-operator",
            "team": "ml",
            "tokenservice.dev/job": "lock",
            "tokenservice.dev/environment-hash": "need",
        },
    }
    spec = manifest["spec"]
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"]) == (1, 86400)
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert spec["template"]["metadata"]["labels"] == {
        "app.kubernetes.io/component": "job",
        "tokenservice.dev/job": "lock",
        "tokenservice.dev/environment-hash": "need",
    }
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    sidecar, main = pod["containers"]
    assert sidecar == {"name": "sidecar", "image": "s"}
    assert (main["command"], main["args"]) == (["tokenservice"], ["job"])
    assert main["env"][0] == {"name": "HOME", "value": "/tmp"}
    assert main["env"][1]["name"] == "TOKENSERVICE_REQUEST"
    assert decode_request(main["env"][1]["value"]) == request


@pytest.mark.parametrize("text", ["a$$b", "$(HOME)/d", "$", 'quote " and $(HTTPS_PROXY)', "\\$(A)"])
def test_kubernetes_reads_no_variables_in_the_request(text: str) -> None:
    request = LockRequest(environment={"dependencies": [], "variables": {"A": text, text: "a"}})
    value = made(request)["spec"]["template"]["spec"]["containers"][1]["env"][1]["value"]
    assert "$" not in value
    assert decode_request(value) == request


@pytest.mark.parametrize(
    ("says", "expected"), [("", 540), ("activeDeadlineSeconds: 3600", 540), ("activeDeadlineSeconds: 60", 60)]
)
def test_a_collection_ends_before_others_begin_again(says: str, expected: int) -> None:
    template = yaml.safe_load(TEMPLATE)
    template["spec"].update(yaml.safe_load(says) or {})
    collect = job(template, "ops", "collect-1", "need", CollectRequest())
    assert collect["spec"]["activeDeadlineSeconds"] == expected < PATIENCE_SECONDS
    lock = job(template, "ops", "lock-1", "need", LockRequest(environment={}))
    assert lock["spec"].get("activeDeadlineSeconds") == template["spec"].get("activeDeadlineSeconds")


def test_the_template_itself_does_not_change() -> None:
    template = yaml.safe_load(TEMPLATE)
    job(template, "ops", "a", "need", CollectRequest(keep=("sha256:1",)))
    assert template == yaml.safe_load(TEMPLATE)


def test_pods_of_jobs_are_not_taken_for_pods_of_services() -> None:
    labels = "labels: {app.kubernetes.io/managed-by: tokenservice-operator}"
    manifest = made(LockRequest(environment={}), TEMPLATE.replace("labels: {app.kubernetes.io/component: job}", labels))
    assert "app.kubernetes.io/managed-by" not in manifest["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize(
    ("request_", "stage"),
    [
        (LockRequest(environment={}), "lock"),
        (BuildRequest(lock="l", lock_digest="d"), "build"),
        (CollectRequest(), "collect"),
    ],
)
def test_the_stage_is_in_the_label(request_: Request, stage: str) -> None:
    assert stage_of(request_) == stage
    assert made(request_)["metadata"]["labels"]["tokenservice.dev/job"] == stage


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spec: {}", "is no Job with containers"),
        ("[]", "is no Job with containers"),
        ("", "is no Job with containers"),
        ("a: [", "expected"),
        (TEMPLATE.replace("name: job,", "name: main,"), "has no container named 'job', only ['sidecar', 'main']"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "template.yaml"
    file.write_text(text)
    with pytest.raises(InvalidJobTemplateError) as caught:
        load_template(file)
    assert str(file) in str(caught.value)
    assert words in str(caught.value)


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidJobTemplateError, match="none"):
        load_template(tmp_path / "none")
    (tmp_path / "good").write_text(TEMPLATE)
    assert load_template(tmp_path / "good")["spec"]["backoffLimit"] == 1
