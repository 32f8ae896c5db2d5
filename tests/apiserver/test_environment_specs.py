"""What the API server makes of a CondaEnvironment's spec: kept as it stands, or refused with the field's name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.apiserver.conftest import Space
from tests.support.api import RefusedError

BASE: dict[str, Any] = {"channels": ["conda-forge"], "dependencies": ["python=3.11", {"pip": ["fastapi"]}]}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("platform", {"platform": "osx-64"}, "spec.platform"),
    ("cuda as a number", {"virtualPackages": {"cuda": 12.4}}, "spec.virtualPackages.cuda"),
    ("cuda", {"virtualPackages": {"cuda": "cu124"}}, "spec.virtualPackages.cuda"),
    ("glibc", {"virtualPackages": {"glibc": "2"}}, "spec.virtualPackages.glibc"),
    ("base image", {"baseImage": "docker://debian"}, "spec.baseImage"),
    ("day", {"excludeNewer": "yesterday"}, "spec.excludeNewer"),
    ("no such day", {"excludeNewer": "2026-02-30"}, "spec.excludeNewer"),
    ("lock", {"lock": "./pixi.lock"}, "spec.lock"),
    ("schedule", {"rebuild": {"schedule": "monthly"}}, "spec.rebuild.schedule"),
    ("four fields", {"rebuild": {"schedule": "0 3 1 *"}}, "spec.rebuild.schedule"),
    ("no schedule", {"rebuild": {}}, "spec.rebuild.schedule"),
]


def dry_run(space: Space, spec: Any) -> dict[str, Any]:
    body = {"apiVersion": "tokenservice.dev/v1alpha1", "kind": "CondaEnvironment", "metadata": {"name": "nlp"}}
    made: dict[str, Any] = space.api.create("CondaEnvironment", space.name, {**body, **spec}, dryRun="All")
    return made


@pytest.mark.parametrize(("change", "field"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_it_is_refused_and_the_field_named(space: Space, change: dict[str, Any], field: str) -> None:
    with pytest.raises(RefusedError, match=field.replace(".", r"\.")):
        dry_run(space, {"spec": {**BASE, **change}})


def test_a_spec_is_needed(space: Space) -> None:
    with pytest.raises(RefusedError, match="spec"):
        dry_run(space, {})


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"virtualPackages": {"cuda": "12.4", "glibc": "2.36"}, "baseImage": "debian:12-slim"},
        {"excludeNewer": "2026-01-31", "lock": "localhost:30500/environments@sha256:" + "0" * 64},
        {"variables": {"A": "1", "B": 2}, "name": "mine"},
        {"rebuild": {"schedule": "0 3 * * MON"}},
        # The operator says what is wrong with these, and what to write instead.
        {"chanels": ["a"], "prefix": "/x"},
        {"rebuild": {"schedule": "0 0 31 2 *"}},
        {"channels": "conda-forge", "dependencies": [3.9, {"python": 3.9}], "variables": ["A=1"], "name": 3},
    ],
)
def test_everything_else_is_kept_as_it_stands(space: Space, change: dict[str, Any]) -> None:
    asked = {**BASE, **change}
    found = dry_run(space, {"spec": asked})["spec"]
    assert found == {"platform": "linux-64", "virtualPackages": {}, **asked}
