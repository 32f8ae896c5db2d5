"""Jobs that nobody waits for, and what a collection of images must keep."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tokenservice.api.v1alpha1 import TokenService
from tokenservice.environments.attempts import Job
from tokenservice.environments.housekeeping import collect_in, collecting, keep, keep_hash, orphans

from tests.unit.environments.standin_jobs import NOW, environment, job

COMPLETE = ("Complete", "", -20.0)


@pytest.mark.parametrize(
    ("one", "swept", "wait"),
    [
        (job(need_hash="other", created=-11), True, None),
        (job(need_hash="other", created=-4), False, 6),
        (job(need_hash="wanted", created=-11), False, None),
        (job(need_hash="other", created=-31, ended=COMPLETE), False, None),
        (job(need_hash="other", created=-31, ended=("Failed", "", -20)), True, None),
        (job(need_hash="wanted", created=-31, ended=("Failed", "", -20)), False, None),
        (job(need_hash="other", created=-11, deleted=True), False, None),
        (job(need_hash="other", created=-11, stage="build"), True, None),
        (job(need_hash="other", created=-11, stage="collect"), False, None),
    ],
    ids=["orphan", "young", "wanted", "done", "failed", "says why", "deleted", "build", "collect"],
)
def test_which_jobs_are_swept_away(one: Job, wait: float | None, *, swept: bool) -> None:
    assert orphans([one], {"wanted"}, NOW) == ((one,) if swept else (), wait)


@pytest.mark.parametrize(
    ("jobs", "seconds"),
    [
        ([], 0),
        ([job(created=-5)], 30),
        ([job(created=-5, ended=COMPLETE)], 0),
        ([job(created=-5, ended=COMPLETE, need_hash="wanted")], 30),
        ([job(created=-5, ended=("Complete", "", -700), need_hash="wanted")], 0),
        ([job(stage="collect", created=-600)], 3000),
        ([job(stage="collect", created=-600, ended=COMPLETE)], 3000),
        ([job(stage="collect", created=-600), job(stage="collect", created=-10)], 3590),
        ([job(stage="collect", created=-4000)], 0),
    ],
    ids=["none", "at work", "done", "not taken in", "never taken in", "collects", "collected", "twice", "long ago"],
)
def test_when_images_may_be_collected(jobs: list[Job], seconds: float) -> None:
    assert collect_in(jobs, {"wanted"}, NOW) == seconds


def test_a_collection_holds_up_others_for_a_while() -> None:
    one = job(stage="collect", created=-30)
    assert collecting([one], NOW)
    assert not collecting([one], NOW + timedelta(seconds=600))
    assert not collecting([job(stage="collect", ended=COMPLETE)], NOW)
    assert not collecting([job()], NOW)


def reference(digit: str) -> str:
    return f"registry.example/environments@sha256:{digit * 64}"


def service(image: str | None = None, status: str | None = None) -> TokenService:
    environment: dict[str, Any] = {"image": {"reference": image}} if image else {"ref": {"name": "nlp"}}
    raw: dict[str, Any] = {
        "metadata": {"name": "s", "namespace": "team"},
        "spec": {"model": {"source": "hf://a/b"}, "environment": environment},
    }
    if status:
        raw["status"] = {"environment": {"image": status}}
    return msgspec.convert(raw, TokenService)


def test_what_any_status_or_spec_names_is_kept() -> None:
    history = [{"lockDigest": "x", "lock": reference("3"), "image": reference("4")}]
    environments = [
        environment(status={"image": reference("1"), "lock": reference("2"), "history": history}),
        environment({"dependencies": [], "lock": reference("5")}),
        environment({"dependencies": [], "lock": 7}),
    ]
    services = [
        service(status=reference("6")),
        service(image=reference("7")),
        service(image="docker.io/a:latest"),
    ]
    kept = keep(environments, services)
    assert kept == tuple(f"sha256:{digit * 64}" for digit in "1234567")
    assert keep([], []) == ()
    assert keep_hash(kept) != keep_hash(kept[1:])
