"""What concerns no single CondaEnvironment: Jobs that nobody waits for, and images that nobody uses. Pure functions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from datetime import datetime

from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import time_of
from tokenservice.api.v1alpha1 import TokenService
from tokenservice.environments.attempts import Job

ORPHAN_SECONDS = 10.0
"""How old a Job that nobody waits for must be: who asked for it may be about to say so."""
WORK_SECONDS = 30.0
"""How often to see whether Jobs are still at work."""
COLLECT_SECONDS = 3600.0
"""At least between two collections."""

PATIENCE_SECONDS = 600.0
"""How long a collection, or a result that nobody takes in, holds up others."""
COLLECT = "collect"

_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})$")


def orphans(jobs: Iterable[Job], wanted: Collection[str], now: datetime) -> tuple[tuple[Job, ...], float | None]:
    """The Jobs that nobody waits for, and in how many seconds there will be more of them; None for not at all.

    Those that succeeded stay for their logs, until their time to live is over: nobody waits for them any more.
    """
    idle = [
        job
        for job in jobs
        if job.metadata.labels.get(names.LABEL_JOB) in ("lock", "build")
        and job.metadata.labels.get(names.LABEL_ENVIRONMENT_HASH) not in wanted
        and (job.ended is None or job.ended.type != "Complete")
        and not job.metadata.deletion_timestamp
    ]
    young = [ORPHAN_SECONDS - _age(job, now) for job in idle if _age(job, now) < ORPHAN_SECONDS]
    return tuple(job for job in idle if _age(job, now) >= ORPHAN_SECONDS), min(young, default=None)


def keep(
    environments: Iterable[CondaEnvironment], services: Iterable[TokenService], more: Iterable[str | None] = ()
) -> tuple[str, ...]:
    """Digests of every image and lock that a status, a spec or one of `more` names, sorted."""
    references: set[str | None] = set(more)
    for environment in environments:
        status = environment.status
        references |= {status.image, status.lock, environment.spec.get("lock")}
        for past in status.history:
            references |= {past.image, past.lock}
    for service in services:
        image = service.spec.environment.image
        references |= {image.reference if image else None}
        references |= {service.status.environment.image if service.status.environment else None}
    found = (_DIGEST.search(reference) for reference in references if isinstance(reference, str))
    return tuple(sorted({match.group(1) for match in found if match}))


def keep_hash(digests: Iterable[str]) -> str:
    """By which the Job is known that keeps these."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:32]


def collect_in(jobs: Collection[Job], wanted: Collection[str], now: datetime) -> float:
    """Seconds until images may be collected; 0 for now.

    Never while a Job locks or builds, nor before its result was taken in: what is just made stands in nobody's status.
    """
    if any(_at_work(job, wanted, now) for job in jobs):
        return WORK_SECONDS
    ages = [_age(job, now) for job in jobs if job.metadata.labels.get(names.LABEL_JOB) == COLLECT]
    return max([COLLECT_SECONDS - age for age in ages if age < COLLECT_SECONDS], default=0.0)


def collecting(jobs: Iterable[Job], now: datetime) -> bool:
    """Whether images are being collected: nothing new is begun then, which might count on what is about to go."""
    return any(
        job.metadata.labels.get(names.LABEL_JOB) == COLLECT and job.ended is None and _age(job, now) < PATIENCE_SECONDS
        for job in jobs
    )


def _at_work(job: Job, wanted: Collection[str], now: datetime) -> bool:
    labels = job.metadata.labels
    if labels.get(names.LABEL_JOB) == COLLECT:
        return False
    if job.ended is None:
        return True
    at = time_of(job.ended.last_transition_time)
    recent = at is None or (now - at).total_seconds() < PATIENCE_SECONDS
    return recent and labels.get(names.LABEL_ENVIRONMENT_HASH) in wanted


def _age(job: Job, now: datetime) -> float:
    created = time_of(job.metadata.creation_timestamp)
    return (now - created).total_seconds() if created else 0.0
