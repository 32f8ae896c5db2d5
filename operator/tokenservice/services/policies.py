"""From what is to conditions: each policy says whether it applies, and why.

Ready means that the newest spec serves with every replica asked for; Available that enough replicas serve, of
whatever version; Progressing that something is under way. The first policy of a chain that answers decides.

A new image is on its way to the nodes first (PrePulling), then into the pods (RollingOut), which are asked for a token
each and watched for a moment (Verifying): then the revision counts as good. One that fails gives way to the last good
one (RolledBack), or is held.

An environment that is being solved or built, or cannot be, does not make a service unready that serves with the image
it has: EnvironmentReady tells. As long as it takes, Progressing names the step (Locking, Building); where it fails,
Progressing is False with EnvironmentNotReady.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tokenservice.api import conditions as names
from tokenservice.api.conditions import Verdict
from tokenservice.api.meta import Condition, Deployment
from tokenservice.api.names import ANNOTATION_RETRY
from tokenservice.api.v1alpha1 import Failure, TokenService
from tokenservice.pods.failures import where
from tokenservice.pods.refusal import Refusal
from tokenservice.services import amounts
from tokenservice.services.rollout import Step, missed_deadline
from tokenservice.services.warm import Hand


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
    step: Step = field(default_factory=Step)
    """How far the rollout is."""
    hand: Hand = field(default_factory=lambda: Hand(0))
    """What is taken from a warm pool."""

    @property
    def desired(self) -> int:
        return self.service.spec.replicas

    @property
    def available(self) -> int:
        known = self.deployment.status.available_replicas if self.deployment else 0
        return self.hand.serving + self.hand.counted(known)

    @property
    def asked(self) -> int:
        """How many of the replicas are the Deployment's."""
        return self.hand.deployed if self.hand.claims or self.hand.balance.short else self.desired

    @property
    def observed(self) -> bool:
        """Whether the Deployment's status speaks of its newest spec, and that of the number asked for."""
        deployment = self.deployment
        return (
            deployment is not None
            and not self.outdated
            and deployment.metadata.deletion_timestamp is None
            and deployment.observed
            and deployment.spec.replicas == self.asked
        )

    @property
    def complete(self) -> bool:
        """Whether the revision that the spec asks for, and nothing else, runs as often as asked."""
        return self.settled and self.step.updated

    @property
    def settled(self) -> bool:
        """Whether one template alone runs as often as asked, whichever it is."""
        if not self.deployment:
            return False
        if self.hand.claims or self.hand.settling:
            # The Deployment is about to be scaled, or was just now, and a pod that a claimed one stands for may be on
            # its way still: what is there tells, and not the Deployment.
            step, gone = self.step, self.deployment.metadata.deletion_timestamp is not None
            alone = step.target is not None and step.running == step.target.name and not step.left
            return alone and not self.outdated and not gone and self.available >= self.desired
        if not self.observed:
            return False
        return self.deployment.status.has_all(self.desired)

    @property
    def mixed(self) -> bool:
        """Whether pods of an older template are left, or may be: the Deployment has not said yet."""
        if not self.deployment or not self.observed:
            return True
        return self.deployment.status.replicas > self.deployment.status.updated_replicas

    @property
    def deadline_exceeded(self) -> str | None:
        """The Deployment's message when this rollout, not an earlier one, made no progress for too long."""
        if not self.deployment or not self.observed:
            return None
        missed = missed_deadline(self.deployment, self.step.update.since if self.step.update else None)
        return missed.message if missed else None


def conditions(facts: Facts) -> tuple[Condition, ...]:
    """Ready, EnvironmentReady (unless the image is prebuilt), WarmPoolReady (where the spec names a pool), Available,
    Progressing, and RolledBack where that is so; without transition times.
    """
    generation = facts.service.metadata.generation
    verdicts = {
        names.READY: _first(READY_POLICIES, facts),
        names.ENVIRONMENT_READY: facts.environment,
        names.WARM_POOL_READY: facts.hand.verdict,
        names.AVAILABLE: available(facts),
        names.PROGRESSING: _first(PROGRESSING_POLICIES, facts),
        names.ROLLED_BACK: rolled_back(facts),
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


def _failed(facts: Facts) -> Verdict | None:
    failed = facts.step.failed
    if failed is None:
        return None
    if facts.step.back:
        return "False", names.ROLLED_BACK, f"{_what_failed(facts)}; {_kept(facts)}"
    return "False", failed.reason, f"{_what_failed(facts)}; {_held_until(facts)}"


def _what_failed(facts: Facts) -> str:
    failed, update = facts.step.failed, facts.step.update
    if failed is None or update is None:
        return ""
    room = names.MAX_MESSAGE_BYTES - 400  # for what to do about it
    return f"Revision {update.name} failed: {failed.reason}: {names.cut_front(failed.message, room)}"


def _kept(facts: Facts) -> str:
    return (
        f"{facts.step.good} serves: {_served(facts)}; change the spec, or annotate {ANNOTATION_RETRY} to try it again"
    )


def _held_until(facts: Facts) -> str:
    return (
        f"its rollout is held (spec.rollout.onFailure), {_served(facts)}; change the spec, or annotate "
        f"{ANNOTATION_RETRY} to go on"
    )


def _answering_wrongly(facts: Facts) -> Verdict | None:
    wrong = facts.step.wrong
    return ("False", names.VERIFICATION_FAILED, wrong) if wrong else None


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


def _waiting(facts: Facts) -> Verdict | None:
    """A change of other things waits for that of the environment, which may be one with it."""
    if not facts.step.waits or facts.environment is None:
        return None
    return "False", names.ENVIRONMENT_NOT_READY, f"{_wanting(facts.environment)}; until then {_served(facts)} as before"


def _lacking(facts: Facts) -> Verdict | None:
    """Only warm pods will do, and none waits."""
    if not facts.hand.balance.short:
        return None
    verdict = facts.hand.verdict
    why = f": {names.first_line(verdict[2])}" if verdict and verdict[0] != "True" else ""
    return (
        "False",
        names.WAITING_FOR_WARM_POD,
        f"{_served(facts)}; {facts.hand.balance.short} wait for a warm pod (spec.warmPool.policy: Required){why}",
    )


def _wanting(environment: Verdict) -> str:
    _, reason, message = environment
    return f"{reason}: {names.first_line(message)}"


def _failing(facts: Facts) -> Verdict | None:
    if not facts.failures:
        return None
    first = facts.failures[0]
    of = where(first)
    more = f" (and {len(facts.failures) - 1} more, see status.failures)" if len(facts.failures) > 1 else ""
    room = names.MAX_MESSAGE_BYTES - len(f"{of}{more}".encode())
    return "False", first.reason, f"{of}{names.cut_front(first.message, room)}{more}"


def _held(facts: Facts) -> Verdict | None:
    if not facts.service.spec.paused or facts.complete:
        return None
    return "False", names.PAUSED, f"spec.paused holds the rollout; {_served(facts)}"


def _too_late(facts: Facts) -> Verdict | None:
    if facts.deadline_exceeded is None:
        return None
    seconds = facts.service.spec.rollout.progress_deadline_seconds
    nothing = "" if facts.step.good else "; no revision was good before, so there is nothing to go back to"
    return (
        "False",
        names.PROGRESS_DEADLINE_EXCEEDED,
        f"No progress for {seconds} s: {facts.deadline_exceeded}{nothing}",
    )


def _pulling(facts: Facts) -> Verdict | None:
    pulls = facts.step.pulls
    if pulls is None or pulls.over:
        return None
    return "False", names.PRE_PULLING, f"{pulls.said}; {_served(facts)}"


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


def _going_back(facts: Facts) -> Verdict | None:
    failed = facts.step.failed
    if failed is None:
        return None
    if facts.step.back and facts.step.left:
        return "True", names.ROLLING_BACK, f"{_what_failed(facts)}; {facts.step.good} takes its place"
    return _failed(facts)


def _verifying(facts: Facts) -> Verdict | None:
    step = facts.step
    there = facts.complete or (facts.observed and step.updated and step.up)
    if not there or step.verified or facts.desired == 0:
        return None
    return "True", names.VERIFYING, "Its pods are asked for a token each, and watched for a moment"


def _done(facts: Facts) -> Verdict | None:
    if not facts.complete:
        return None
    if facts.environment and facts.environment[0] != "True":
        kept = "; what runs keeps the image it has"
        return "False", names.ENVIRONMENT_NOT_READY, _wanting(facts.environment) + kept
    return "False", names.COMPLETE, "Nothing is under way"


def _progressing(facts: Facts) -> Verdict:
    _, reason, message = _pulling(facts) or _underway(facts)
    return "True", reason, message


READY_POLICIES = (
    *(_refused, _failed, _answering_wrongly, _serving, _unbuilt, _waiting, _failing, _held, _too_late, _pulling),
    *(_lacking, _underway),
)
PROGRESSING_POLICIES = (
    *(_refused, _preparing, _going_back, _answering_wrongly, _verifying, _done, _unbuilt, _waiting, _held, _too_late),
    *(_lacking, _progressing),
)


def rolled_back(facts: Facts) -> Verdict | None:
    """RolledBack, while the last good revision serves in place of the one that the spec asks for."""
    failed = facts.step.failed
    if failed is None or not facts.step.back:
        return None
    return "True", failed.reason, f"{_what_failed(facts)}; {_kept(facts)}"


def available(facts: Facts) -> Verdict:
    """Whether at most `maxUnavailable` replicas are missing, and at least one serves if any is asked for."""
    rollout = facts.service.spec.rollout
    missing_allowed = amounts.pods(rollout.max_unavailable, facts.desired)
    if missing_allowed == 0 and rollout.max_surge in (0, "0%"):
        missing_allowed = 1  # as Deployments do, which could replace no pod otherwise
    needed = max(min(1, facts.desired), facts.desired - missing_allowed)
    text = f"{facts.available} replicas serve, {needed} are needed"
    if facts.available >= needed:
        return "True", names.MINIMUM_REPLICAS_AVAILABLE, text
    return "False", names.MINIMUM_REPLICAS_UNAVAILABLE, text
