"""What a CondaEnvironment needs done, and by what name: whoever needs the same finds the same Job. Pure functions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec

from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment, CondaEnvironmentStatus
from tokenservice.api.jobs import BuildRequest, LockRequest, VirtualPackages
from tokenservice.environments.spec import HASH_VERSION, Canonical

Stage = Literal["lock", "build"]

HASH_DIGITS = 32
NAME_DIGITS = 16


@dataclass(frozen=True)
class Need:
    """Something for a Job to do.

    Attributes:
        stage: which of the two.
        hash: of everything that leads to another result, and of the retry annotation, so that another try is another
            Job. Of the CUDA version found on the nodes it knows nothing: they are looked at when a Job is made.
        request: what the Job is asked.

    """

    stage: Stage
    hash: str
    request: LockRequest | BuildRequest


@dataclass(frozen=True)
class Lock:
    """The lock of an environment's newest spec."""

    digest: str
    reference: str
    packages: int | None


def identity(environment: CondaEnvironment, canonical: Canonical) -> str:
    """`status.hash`: of all that a lock is made from.

    The canonical form's own hash, unless the resource says more than an environment.yml can.
    """
    spec = environment.typed
    more = [spec.platform, msgspec.to_builtins(spec.virtual_packages), spec.exclude_newer, spec.lock]
    if more == ["linux-64", {}, None, None]:
        return canonical.hash
    return f"sha256:{_digest([canonical.hash, *more])}"


def lock_need(environment: CondaEnvironment, canonical: Canonical) -> Need:
    """The lock of the newest spec; the last lock's choices are preferred."""
    spec = environment.typed
    previous = None if spec.lock else environment.status.lock
    request = LockRequest(
        environment=canonical.document,
        platform=spec.platform,
        virtual_packages=spec.virtual_packages,
        exclude_newer=spec.exclude_newer,
        previous=previous,
        lock=spec.lock,
    )
    asked = ["lock", identity(environment, canonical), previous, _retry(environment)]
    return Need("lock", _digest(asked)[:HASH_DIGITS], request)


def build_hash(environment: CondaEnvironment, canonical: Canonical, lock: Lock, began: datetime | None) -> str:
    """`status.buildHash`: of all that an image is made from.

    The environment's name is none of it: it must not roll anything, and those who share an image may have several.
    `began`: when the schedule of rebuilds fired last; what the base image's name stands for may be another one since.
    """
    spec = environment.typed
    made_from = ["build", lock.digest, spec.base_image, canonical.variables, spec.platform]
    # Without a schedule as it always was: another hash would build every environment again.
    return _digest([*made_from, began.isoformat()] if began else made_from)[:HASH_DIGITS]


def build_need(environment: CondaEnvironment, canonical: Canonical, lock: Lock, began: datetime | None) -> Need:
    """The image of `lock`; `began` as of build_hash."""
    spec = environment.typed
    request = BuildRequest(
        lock=lock.reference,
        lock_digest=lock.digest,
        platform=spec.platform,
        base_image=spec.base_image,
        variables=canonical.variables,
    )
    asked = [build_hash(environment, canonical, lock, began), _retry(environment)]
    return Need("build", _digest(asked)[:HASH_DIGITS], request)


def known_lock(environment: CondaEnvironment, canonical: Canonical) -> Lock | None:
    """The lock in the status, if it is that of the newest spec."""
    status = environment.status
    if status.lock is None or status.lock_digest is None:
        return None
    if status.hash != identity(environment, canonical) and not _hashed_differently(environment):
        return None
    return Lock(status.lock_digest, status.lock, status.packages)


def with_cuda(request: LockRequest, found: str | None) -> LockRequest:
    """The request for nodes whose drivers offer that version of CUDA; a version that the spec gives stands."""
    given = request.virtual_packages
    if given.cuda is not None or found is None:
        return request
    return msgspec.structs.replace(request, virtual_packages=VirtualPackages(cuda=found, glibc=given.glibc))


def job_name(need: Need, request: LockRequest | BuildRequest) -> str:
    """Such as `lock-0123456789abcdef`; a lock for another CUDA version is another Job."""
    cuda = request.virtual_packages.cuda if isinstance(request, LockRequest) else None
    return f"{need.stage}-{_digest([need.hash, cuda])[:NAME_DIGITS]}"


def _hashed_differently(environment: CondaEnvironment) -> bool:
    """Whether the status has the newest spec's hash as another version of this operator counts it."""
    status: CondaEnvironmentStatus = environment.status
    locked = status.condition("Locked")
    return (
        status.hash_version != HASH_VERSION
        and locked is not None
        and locked.status == "True"
        and locked.observed_generation == environment.metadata.generation
    )


def _retry(environment: CondaEnvironment) -> str:
    return environment.metadata.annotations.get(names.ANNOTATION_RETRY, "")


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
