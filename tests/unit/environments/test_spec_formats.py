"""The formats that the API server checks in a CondaEnvironment's spec: the CRD's own expressions, over a table."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenservice.environments import schedule

CRD = Path(__file__).resolve().parents[3] / "crds" / "tokenservice.dev_condaenvironments.yaml"
SPEC: dict[str, Any] = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"][
    "properties"
]["spec"]["properties"]
DIGEST = "sha256:" + "0" * 64


def accepted(field: str, text: str) -> bool:
    schema: dict[str, Any] = {"properties": SPEC}
    for name in field.split("."):
        schema = schema["properties"][name]
    [rule] = schema["x-kubernetes-validations"]
    found = re.fullmatch(r"self\.matches\('(.*)'\)", rule["rule"])
    assert found, f"{field} has another kind of rule"
    return re.search(found[1].replace("$", r"\Z"), text) is not None and len(text) <= schema["maxLength"]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("virtualPackages.cuda", "12"),
        ("virtualPackages.cuda", "12.4"),
        ("virtualPackages.cuda", "12.4.1"),
        ("virtualPackages.glibc", "2.36"),
        ("baseImage", "debian"),
        ("baseImage", "docker.io/continuumio/miniconda3:latest"),
        ("baseImage", "localhost:5000/base@" + DIGEST),
        ("excludeNewer", "2026-01-31"),
        ("excludeNewer", "2024-02-29"),
        ("excludeNewer", "2026-01-31T12:00:00Z"),
        ("excludeNewer", "2026-01-31T12:00:00+02:00"),
        ("lock", "registry.example.com/team/environments@" + DIGEST),
        ("lock", "localhost:30500/environments:lock-0123456789abcdef"),
        ("lock", "registry.example.com:5000/a/b_c--d:tag@" + DIGEST),
        ("rebuild.schedule", "@monthly"),
        ("rebuild.schedule", "@annually"),
        ("rebuild.schedule", "0 3 1 * *"),
        ("rebuild.schedule", "15  */2 1-7,15 JAN-Jun MON#1"),
        ("rebuild.schedule", "0 0 LW * *"),
    ],
)
def test_is_accepted(field: str, text: str) -> None:
    assert accepted(field, text)
    if field == "excludeNewer":
        datetime.fromisoformat(text)  # as the solver's Job reads it
    if field == "rebuild.schedule":
        schedule.check(text)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("virtualPackages.cuda", ""),
        ("virtualPackages.cuda", "12."),
        ("virtualPackages.cuda", ">=12"),
        ("virtualPackages.cuda", "cu124"),
        ("virtualPackages.cuda", "12.4.1.1"),
        ("virtualPackages.glibc", "2"),
        ("virtualPackages.glibc", "3.1"),
        ("baseImage", ""),
        ("baseImage", "two words"),
        ("baseImage", "docker://debian"),
        ("baseImage", "debian@sha256:123"),
        ("baseImage", "user:password@registry.example.com/debian"),
        ("excludeNewer", "yesterday"),
        ("excludeNewer", "2026-1-31"),
        ("excludeNewer", "2026-02-30"),
        ("excludeNewer", "2026-13-01"),
        ("excludeNewer", "2026-01-31 12:00"),
        ("excludeNewer", "2026-01-31T25:00:00Z"),
        ("excludeNewer", "2026-01-31T12:00:00"),
        ("lock", "environments"),
        ("lock", "https://registry.example.com/environments:a"),
        ("lock", "registry.example.com/Environments:a"),
        ("lock", "registry.example.com/environments@sha256:12"),
        ("lock", "user:password@registry.example.com/environments"),
        ("lock", "./pixi.lock"),
        ("rebuild.schedule", ""),
        ("rebuild.schedule", "monthly"),
        ("rebuild.schedule", "@reboot"),
        ("rebuild.schedule", "@monthly "),
        ("rebuild.schedule", "0 3 1 *"),
        ("rebuild.schedule", "0 0 3 1 * *"),
        ("rebuild.schedule", "0 3 1 * ?"),
        ("rebuild.schedule", "0 3 1 * *" + " " * 100),
    ],
)
def test_is_refused(field: str, text: str) -> None:
    assert not accepted(field, text)
