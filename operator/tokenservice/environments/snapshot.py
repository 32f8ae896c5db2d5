"""What is: everything a plan is made from, frozen at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from tokenservice.api.environments import CondaEnvironment
from tokenservice.environments import schedule
from tokenservice.environments.attempts import Attempt
from tokenservice.environments.problems import InvalidEnvironment
from tokenservice.environments.spec import Canonical


@dataclass(frozen=True)
class Refusal:
    """Why the API server takes no Job: a quota, an admission policy, a right that the operator lacks."""

    message: str
    at: datetime


@dataclass(frozen=True)
class Snapshot:
    """One CondaEnvironment and the Jobs that work for it.

    Attributes:
        environment: the resource.
        canonical: its canonical form, or what is wrong with it.
        now: the time.
        attempts: hash of a need -> the Job that sees to it. Whoever else needs the same has the same Job.
        refusals: hash of a need -> why there is no Job.
        enabled: whether there is a template to make Jobs of.
        collecting: whether old images are being deleted just now.
        keep_images: how many images before the current one stay in the status.

    """

    environment: CondaEnvironment
    canonical: Canonical | InvalidEnvironment
    now: datetime
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    enabled: bool = True
    collecting: bool = False
    keep_images: int = 3

    @cached_property
    def period(self) -> tuple[datetime, datetime] | None:
        """When `spec.rebuild` fired last and when it fires next; None without one that can be used."""
        if isinstance(self.canonical, InvalidEnvironment):
            return None
        rebuild = self.environment.typed.rebuild
        return schedule.period(rebuild.schedule, self.now) if rebuild else None

    @property
    def began(self) -> datetime | None:
        """When `spec.rebuild` fired last: what was built of a base image before is to be built again."""
        return self.period[0] if self.period else None
