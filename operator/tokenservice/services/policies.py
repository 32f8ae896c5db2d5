"""From what is to conditions: each policy says whether it applies, and why.

Ready means that the newest spec serves with every replica asked for; Available that enough replicas serve, of
whatever version; Progressing that something is under way. The first policy of a chain that answers decides.

An environment that is being solved or built, or cannot be, does not make a service unready that serves with the image
it has: EnvironmentReady tells. As long as it takes, Progressing names the step (Locking, Building); where it fails,
Progressing is False with EnvironmentNotReady.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tokenservice.api import conditions as names
from tokenservice.api.meta import Condition, Deployment
from tokenservice.api.v1alpha1 import Failure, TokenService
from tokenservice.services.snapshot import Refusal

Verdict = tuple[str, str, str]
"""Status, reason, message of a condition."""


@dataclass(frozen=True)
class Facts:
    """What the policies look at. Counts are pods."""

    service: TokenService
    refusal: Refusal | None
    deployment: Deployment | None
    failures: tuple[Failure, ...]
    outdated: bool = False
    """Whether the Deployment is yet to be applied: what it says of itself is then about something else."""
    environment: Verdict | None = None
    """EnvironmentReady; None for a prebuilt image."""
    unbuilt: bool = False
    """Whether there is no image to run, and none that ran before."""

    @property
    def desired(self) -> int:
        return self.service.spec.replicas

    @property
    def available(self) -> int:
        return self.deployment.status.available_replicas if self.deployment else 0

    @property
    def observed(self) -> bool:
        """Whether the Deployment's status speaks of its newest spec, and that of the number asked for."""
        deployment = self.deployment
        return (
            deployment is not None
            and not self.outdated
            and deployment.metadata.deletion_timestamp is None
            and deployment.status.observed_generation >= deployment.metadata.generation
            and deployment.spec.replicas == self.desired
        )

    @property
    def complete(self) -> bool:
        """Whether the newest template, and nothing else, runs as often as asked."""
        if not self.deployment or not self.observed:
            return False
        status = self.deployment.status
        return status.updated_replicas == status.replicas == status.available_replicas == self.desired

    @property
    def mixed(self) -> bool:
        """Whether pods of an older template are left, or may be: the Deployment has not said yet."""
        if not self.deployment or not self.observed:
            return True
        return self.deployment.status.replicas > self.deployment.status.updated_replicas

    @property
    def deadline_exceeded(self) -> str | None:
        """The Deployment's message when its rollout made no progress for too long."""
        for condition in self.deployment.status.conditions if self.deployment and self.observed else ():
            if condition.type == "Progressing" and condition.reason == names.PROGRESS_DEADLINE_EXCEEDED:
                return condition.message
        return None


def conditions(facts: Facts) -> tuple[Condition, ...]:
    """Ready, EnvironmentReady (unless the image is prebuilt), Available and Progressing, without transition times."""
    generation = facts.service.metadata.generation
    verdicts = {
        names.READY: _first(READY_POLICIES, facts),
        names.ENVIRONMENT_READY: facts.environment,
        names.AVAILABLE: available(facts),
        names.PROGRESSING: _first(PROGRESSING_POLICIES, facts),
    }
    return tuple(
        Condition(type=kind, status=verdict[0], reason=verdict[1], message=verdict[2], observed_generation=generation)
        for kind, verdict in verdicts.items()
        if verdict
    )


def _first(policies: tuple[Callable[[Facts], Verdict | None], ...], facts: Facts) -> Verdict:
    return next(verdict for policy in policies if (verdict := policy(facts)) is not None)


def _refused(facts: Facts) -> Verdict | None:
    if facts.refusal is None:
        return None
    kept = "; the last good spec keeps running" if facts.deployment else ""
    return "False", facts.refusal.reason, facts.refusal.message + kept


def _serving(facts: Facts) -> Verdict | None:
    if not facts.complete:
        return None
    if facts.desired == 0:
        return "True", names.SCALED_TO_ZERO, "No replica is asked for"
    return "True", names.SERVING, _served(facts)


def _unbuilt(facts: Facts) -> Verdict | None:
    if not facts.unbuilt or facts.environment is None:
        return None
    return "False", names.ENVIRONMENT_NOT_READY, _wanting(facts.environment)


def _wanting(environment: Verdict) -> str:
    _, reason, message = environment
    return f"{reason}: {names.first_line(message)}"


def _failing(facts: Facts) -> Verdict | None:
    if not facts.failures:
        return None
    first = facts.failures[0]
    where = "".join(f"{kind} {name}: " for kind, name in (("pod", first.pod), ("container", first.container)) if name)
    more = f" (and {len(facts.failures) - 1} more, see status.failures)" if len(facts.failures) > 1 else ""
    room = names.MAX_MESSAGE_BYTES - len(f"{where}{more}".encode())
    return "False", first.reason, f"{where}{names.cut_front(first.message, room)}{more}"


def _held(facts: Facts) -> Verdict | None:
    if not facts.service.spec.paused or facts.complete:
        return None
    return "False", names.PAUSED, f"spec.paused holds the rollout; {_served(facts)}"


def _too_late(facts: Facts) -> Verdict | None:
    if facts.deadline_exceeded is None:
        return None
    seconds = facts.service.spec.rollout.progress_deadline_seconds
    return "False", names.PROGRESS_DEADLINE_EXCEEDED, f"No progress for {seconds} s: {facts.deadline_exceeded}"


def _underway(facts: Facts) -> Verdict:
    reason = names.ROLLING_OUT if facts.available and facts.mixed else names.STARTING
    return "False", reason, _served(facts)


def _served(facts: Facts) -> str:
    return f"{min(facts.available, facts.desired)} of {facts.desired} replicas serve"


def _preparing(facts: Facts) -> Verdict | None:
    """An environment is under way, which is going to be rolled out."""
    if facts.environment is None or facts.environment[0] == "True" or facts.environment[1] not in names.UNDER_WAY:
        return None
    _, reason, message = facts.environment
    return "True", reason, names.first_line(message)


def _done(facts: Facts) -> Verdict | None:
    if not facts.complete:
        return None
    if facts.environment and facts.environment[0] != "True":
        kept = "; what runs keeps the image it has"
        return "False", names.ENVIRONMENT_NOT_READY, _wanting(facts.environment) + kept
    return "False", names.COMPLETE, "Nothing is under way"


def _progressing(facts: Facts) -> Verdict:
    _, reason, message = _underway(facts)
    return "True", reason, message


READY_POLICIES = (_refused, _serving, _unbuilt, _failing, _held, _too_late, _underway)
PROGRESSING_POLICIES = (_refused, _preparing, _done, _unbuilt, _held, _too_late, _progressing)


def available(facts: Facts) -> Verdict:
    """Whether at most `maxUnavailable` replicas are missing, and at least one serves if any is asked for."""
    rollout = facts.service.spec.rollout
    missing_allowed = resolve(rollout.max_unavailable, facts.desired)
    if missing_allowed == 0 and rollout.max_surge in (0, "0%"):
        missing_allowed = 1  # as Deployments do, which could replace no pod otherwise
    needed = max(min(1, facts.desired), facts.desired - missing_allowed)
    text = f"{facts.available} replicas serve, {needed} are needed"
    if facts.available >= needed:
        return "True", names.MINIMUM_REPLICAS_AVAILABLE, text
    return "False", names.MINIMUM_REPLICAS_UNAVAILABLE, text


def resolve(value: int | str, replicas: int) -> int:
    """maxUnavailable in pods; a percentage is rounded down, as Deployments do."""
    if isinstance(value, int):
        return value
    return math.floor(int(value.removesuffix("%")) * replicas / 100)
