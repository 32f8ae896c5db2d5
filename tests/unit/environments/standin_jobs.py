"""CondaEnvironments, Jobs and pods as the API server would send them, for tests of the controller's pure core."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.jobs import BuildAnswer, JobResult, LockAnswer, Problem, Reason, encode_result
from tokenservice.api.meta import Pod
from tokenservice.environments.attempts import Job
from tokenservice.environments.needs import Need
from tokenservice.environments.problems import InvalidEnvironment
from tokenservice.environments.spec import Canonical, canonical

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SPEC: dict[str, Any] = {"channels": ["conda-forge"], "dependencies": ["python=3.11"]}


def at(seconds: float) -> str:
    """A timestamp so many seconds after NOW."""
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def environment(
    spec: dict[str, Any] | None = None,
    *,
    name: str = "nlp",
    generation: int = 1,
    deleted: bool = False,
    retry: str = "",
    status: dict[str, Any] | None = None,
) -> CondaEnvironment:
    metadata: dict[str, Any] = {"name": name, "namespace": "team", "uid": f"uid-{name}", "generation": generation}
    if deleted:
        metadata["deletionTimestamp"] = at(0)
    if retry:
        metadata["annotations"] = {names.ANNOTATION_RETRY: retry}
    raw = {"metadata": metadata, "spec": SPEC if spec is None else spec, "status": status or {}}
    return msgspec.json.decode(msgspec.json.encode(raw), type=CondaEnvironment)


def form(made: CondaEnvironment) -> Canonical | InvalidEnvironment:
    try:
        return canonical(made.spec)
    except InvalidEnvironment as problem:
        return problem


def digest(text: str) -> str:
    return "sha256:" + (text.encode().hex() * 64)[:64]


def lock_result(text: str = "a") -> JobResult:
    answer = LockAnswer(lock_digest=digest(f"packages {text}"), reference=f"r/e@{digest(f'lock {text}')}", packages=7)
    return JobResult(lock=answer, seconds=2.0)


def build_result(text: str = "a") -> JobResult:
    answer = BuildAnswer(
        image=f"localhost:30500/e@{digest(f'image {text}')}",
        base="docker.io/base@sha256:1",
        bytes_total=100,
        bytes_pushed=40,
        bytes_shared=60,
        layers=9,
    )
    return JobResult(build=answer, seconds=3.0)


def problem(reason: Reason, message: str = "as the test wants it", *, truncated: bool = False) -> JobResult:
    return JobResult(problem=Problem(reason=reason, message=message, truncated=truncated))


def job(
    need: Need | None = None,
    *,
    name: str = "lock-1",
    stage: str = "lock",
    need_hash: str = "h1",
    uid: str = "j1",
    created: float = -30,
    ended: tuple[str, str, float] | None = None,
    deleted: bool = False,
) -> Job:
    """ended: the condition that says so, its reason, and when."""
    if need is not None:
        stage, need_hash, name = need.stage, need.hash, f"{need.stage}-{need.hash[:16]}"
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "ops",
        "uid": uid,
        "creationTimestamp": at(created),
        "labels": {names.LABEL_JOB: stage, names.LABEL_ENVIRONMENT_HASH: need_hash},
    }
    if deleted:
        metadata["deletionTimestamp"] = at(0)
    status: dict[str, Any] = {}
    if ended:
        kind, reason, when = ended
        words = f"words of {reason}"
        status["conditions"] = [
            {"type": kind, "status": "True", "reason": reason, "message": words, "lastTransitionTime": at(when)}
        ]
    return msgspec.convert({"metadata": metadata, "status": status}, Job)


def pod(
    result: JobResult | str | None = None,
    *,
    name: str = "p1",
    created: float = -20,
    code: int = 0,
    killed: str = "",
    of: str = "j1",
    **status: Any,
) -> Pod:
    """result: what the container left when it ended, None while it goes on."""
    metadata = {
        "name": name,
        "namespace": "ops",
        "uid": f"uid of {name}",
        "creationTimestamp": at(created),
        "ownerReferences": [{"kind": "Job", "name": "any", "uid": of, "controller": True}],
    }
    if result is not None:
        text = result if isinstance(result, str) else encode_result(result).decode()
        state = {"terminated": {"exitCode": code, "reason": killed, "message": text}}
        status["containerStatuses"] = [{"name": "job", "state": state}]
    return msgspec.convert({"metadata": metadata, "status": status}, Pod)
