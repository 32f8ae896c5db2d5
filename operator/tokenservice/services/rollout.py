"""How far a rollout is, and its next step: a pure function of what is found.

    a new revision -> pre-pull -> update -> verify -> last good revision
                                     \\         \\
                                      `---------`-> failed -> back to the last good one, or held

What has been done is read from the cluster: the revisions and what failed of them, the one that the Deployment has,
the pods, and which revision was good last. A crash between any two writes leaves one of these states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from tokenservice.api import conditions as reasons
from tokenservice.api import names
from tokenservice.api.conditions import cut
from tokenservice.api.meta import ControllerRevision, Deployment, DeploymentCondition, Pod, stamp, time_of
from tokenservice.api.v1alpha1 import Failure
from tokenservice.handover.balance import held_for
from tokenservice.handover.claim import ended_at, served_at
from tokenservice.kube.apply import needs_apply
from tokenservice.nodes import prepull
from tokenservice.nodes.prepull import Pulls
from tokenservice.pods.environment import verdict
from tokenservice.pods.failures import readiness, where
from tokenservice.pods.manifests import Manifest
from tokenservice.pods.refusal import Refusal
from tokenservice.protocol import VERIFYZ
from tokenservice.services import amounts, revisions
from tokenservice.services.environment import ours
from tokenservice.services.failures import failures
from tokenservice.services.revisions import STABLE_SECONDS, Failed, Wanted
from tokenservice.services.snapshot import Snapshot
from tokenservice.services.verify import Answer, restarts

MANY_DEATHS = 3
"""Of a server that was started again less often, the last end may have been a mishap."""
_AVAILABLE = "NewReplicaSetAvailable"
"""The Deployment controller's reason for a rollout that has come to its end once."""
_NO_DEADLINE = frozenset({_AVAILABLE, reasons.PROGRESS_DEADLINE_EXCEEDED, "DeploymentPaused"})
DOUBTFUL_SECONDS = 2
"""For so long a pod may be Ready without having given its token, before no other is replaced."""
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Step:
    """Where a TokenService's rollout is, and what is to be done about it.

    Attributes:
        running: the revision that the Deployment has, by name.
        update: the one that the spec asks for.
        good: the one that was good last, this step's finding included; by name.
        target: the one that the Deployment is to have now.
        hold: whether the Deployment's own rollout is to be held.
        create: the ControllerRevision to make.
        again: the number of `update`, which exists, and is asked for again.
        adopt: ControllerRevisions that nobody controls any more.
        mark: what to write on `update`, whose rollout has just failed.
        failed: why `update` is not rolled out any more.
        up: whether every pod of `update` that is asked for is Ready, though it may not have proven good yet.
        waits: whether all else of the spec waits for its environment.
        hurry: whether all else waits for pods that came from a pool to become the Deployment's.
        left: whether there are pods of other revisions than `target`.
        wrong: what a Ready pod of `update` answers that should give a token.
        pulls: how far images are on their way; None where none are needed.
        pull: pods to make for it.
        unpull: pods to delete that have done that.
        drop: ControllerRevisions to delete.
        ask: pods to ask for a token.
        requeue_after: seconds after which to look again without a change.

    """

    running: str | None = None
    update: Wanted | None = None
    good: str | None = None
    target: Wanted | None = None
    hold: bool = False
    create: Manifest | None = None
    again: int | None = None
    adopt: tuple[ControllerRevision, ...] = ()
    mark: Failed | None = None
    failed: Failed | None = None
    up: bool = False
    waits: bool = False
    hurry: bool = False
    left: bool = False
    wrong: str | None = None
    pulls: Pulls | None = None
    pull: tuple[Manifest, ...] = ()
    unpull: tuple[Pod, ...] = ()
    drop: tuple[ControllerRevision, ...] = ()
    ask: tuple[Pod, ...] = ()
    requeue_after: float | None = None

    @property
    def updated(self) -> bool:
        """Whether the Deployment has the revision that the spec asks for."""
        return self.update is not None and self.running == self.update.name

    @property
    def verified(self) -> bool:
        return self.update is not None and self.good == self.update.name

    @property
    def back(self) -> bool:
        """Whether the last good revision serves in place of the one asked for."""
        return self.failed is not None and self.target is not None and self.target.name == self.good

    @property
    def begins(self) -> bool:
        """Whether the Deployment gets the revision asked for with this step, with others before it."""
        switches = self.target is not None and self.update is not None and self.target.name == self.update.name
        return switches and self.running is not None and not self.updated


def step(snapshot: Snapshot) -> Step:
    """The next step for what is found."""
    service, children = snapshot.service, snapshot.children
    if service.metadata.deletion_timestamp:
        return Step()
    mine = {
        revision.metadata.name: revision
        for revision in snapshot.revisions
        if ours(service, revision.metadata) and not revision.metadata.deletion_timestamp
    }
    running = _running(snapshot)
    good = service.status.last_good_revision
    found = Step(running=running, good=good if good in mine else None, unpull=_gone_for(snapshot.pull_pods))
    runs_in = snapshot.surroundings.runs_in
    if isinstance(children, Refusal) or children.deployment is None or runs_in is None:
        return found
    template = children.deployment["spec"]["template"]
    update = revisions.wanted(service, mine.values(), children.inputs, template, runs_in)
    newest = max((revision.revision for revision in mine.values()), default=0)
    past, older = update.failed, update.manifest is None and update.number < newest
    runs = mine.get(found.running or "")
    if past and found.good is None and runs and found.running != update.name and revisions.failed(runs) is None:
        # The status was lost: what is marked failed gave way to the one that runs.
        found = replace(found, good=found.running)
    anew = past is not None and (past.asked != revisions.asked(service) or found.good is None)
    tried = anew and found.good != update.name
    if older or tried:
        number = newest + 1 if older else update.number
        update = replace(update, number=number, failed=None, since=snapshot.now)
        found = replace(found, again=number)
    orphans = tuple(revision for revision in mine.values() if revision.metadata.controller is None)
    found = replace(found, update=update, create=update.manifest, adopt=orphans)
    found = _judged(snapshot, found, update)
    found = _targeted(snapshot, found, update, mine)
    found = replace(found, left=_left(snapshot, found))
    used = (update.name, running, found.good, found.target.name if found.target else None)
    coming = 1 if update.manifest else 0
    return replace(found, drop=revisions.superfluous(tuple(mine.values()), used, coming))


def _running(snapshot: Snapshot) -> str | None:
    deployment = snapshot.deployment
    if deployment is None or not ours(snapshot.service, deployment.metadata):
        return None
    return deployment.metadata.annotations.get(names.ANNOTATION_REVISION)


# -- whether it has failed, or is good


def _judged(snapshot: Snapshot, found: Step, update: Wanted) -> Step:
    """`found` with the verdict on the revision that the spec asks for."""
    service, deployment = snapshot.service, snapshot.deployment
    if found.verified:
        return found
    if update.failed:
        return replace(found, failed=update.failed)
    if deployment is None or not found.updated:
        return found
    pods, since = _pods_of(snapshot, update.name), update.since
    ready = sum(1 for pod in pods if _ready_since(pod))
    # Where there are claims, pods that they take the places of may not be Ready any more.
    up = ready >= service.spec.replicas > 0 if snapshot.claims else ready == len(pods) == service.spec.replicas > 0
    found = replace(found, up=up)
    wrong = _answered(pods, snapshot.answers, lambda answer: answer.refuted and (since is None or answer.at > since))
    if service.spec.paused or deployment.status.observed_generation < deployment.metadata.generation:
        return replace(found, wrong=wrong)
    failure = _failure(snapshot, deployment, pods, wrong, since)
    if failure is not None and found.good is not None:  # with nothing to go back to it is tried on
        mark = Failed(
            reason=failure.reason,
            message=cut(where(failure) + failure.message),
            at=stamp(snapshot.now),
            asked=revisions.asked(service),
        )
        return replace(found, mark=mark, failed=mark)
    if failure is None and _good(snapshot, deployment, pods):
        return replace(found, good=update.name)
    return replace(found, wrong=wrong, ask=_due(pods, snapshot), requeue_after=_wait(snapshot, pods, since))


def _failure(
    snapshot: Snapshot, deployment: Deployment, pods: tuple[Pod, ...], wrong: str | None, since: datetime | None
) -> Failure | None:
    """Why the revision of these pods has failed. since: when it was asked for; what was known then is no news."""
    if wrong is not None:
        return Failure(reason=reasons.VERIFICATION_FAILED, message=wrong)
    seconds = snapshot.service.spec.rollout.progress_deadline_seconds
    missed = missed_deadline(deployment, since)
    if missed:
        return _first(pods, deployment) or Failure(reason=missed.reason, message=missed.message)
    refused = _refused_since(deployment, since)
    if refused and refused + timedelta(seconds=seconds) <= snapshot.now:
        return _first((), deployment)
    late = [pod for pod in pods if (until := _deadline(snapshot, pod, since)) and until <= snapshot.now]
    stuck = _answered(late, snapshot.answers, lambda answer: answer.stuck(snapshot.now, seconds))
    if stuck is not None:
        return Failure(reason=reasons.VERIFICATION_FAILED, message=stuck)
    if all(_ready_since(pod) for pod in late):
        return None
    lasting = f"its pods came up, and did not stay Ready for {STABLE_SECONDS} s within {seconds} s"
    return _first(pods, deployment) or Failure(reason=reasons.VERIFICATION_FAILED, message=lasting)


def missed_deadline(deployment: Deployment, since: datetime | None) -> DeploymentCondition | None:
    """What the Deployment says if it made no progress for too long; None too for what it said before `since`."""
    progress = _progress(deployment)
    if progress is None or progress.reason != reasons.PROGRESS_DEADLINE_EXCEEDED:
        return None
    at = time_of(progress.last_update_time)
    return progress if since is None or at is None or at > since else None


def _first(pods: tuple[Pod, ...], deployment: Deployment) -> Failure | None:
    return next(iter(failures(pods, deployment)), None)


def _good(snapshot: Snapshot, deployment: Deployment, pods: tuple[Pod, ...]) -> bool:
    """Whether every pod asked for is Ready, has given a token, and has stayed so for a moment."""
    desired, status = snapshot.service.spec.replicas, deployment.status
    if snapshot.claims:  # some of the pods are not the Deployment's yet, and some of its pods are about to go
        proven = sum(1 for pod in pods if _proven(pod, snapshot))
        return status.updated_replicas == status.replicas and proven >= desired > 0
    if not (status.has_all(desired) and len(pods) == desired > 0):
        return False
    return all(_proven(pod, snapshot) for pod in pods)


def _proven(pod: Pod, snapshot: Snapshot) -> bool:
    stable = _stable_at(pod)
    return stable is not None and stable <= snapshot.now and _passed(pod, snapshot.answers)


def _passed(pod: Pod, answers: Mapping[str, Answer]) -> bool:
    """Whether the server that runs now has answered well."""
    answer = answers.get(pod.metadata.uid)
    return answer is not None and answer.passed and answer.restarts == restarts(pod)


def _answered(pods: Iterable[Pod], answers: Mapping[str, Answer], how: Callable[[Answer], bool]) -> str | None:
    """What the first Ready pod said whose answer is of that kind."""
    for pod in pods:
        answer = answers.get(pod.metadata.uid)
        if answer and how(answer) and _ready_since(pod):
            return f"pod {pod.metadata.name} is Ready, and answers GET {VERIFYZ} with {answer.message}"
    return None


def _due(pods: tuple[Pod, ...], snapshot: Snapshot) -> tuple[Pod, ...]:
    """The pods to ask now."""
    ready = (pod for pod in pods if _ready_since(pod) and pod.status.pod_ip)
    return tuple(pod for pod in ready if _asked_at(pod, snapshot.answers, snapshot.now) == snapshot.now)


def _asked_at(pod: Pod, answers: Mapping[str, Answer], now: datetime) -> datetime | None:
    """When a pod is to be asked next, `now` at the earliest; None for never."""
    answer = answers.get(pod.metadata.uid)
    if answer is None or (answer.passed and answer.restarts != restarts(pod)):
        return now
    return max(answer.due, now) if answer.due else None


def _wait(snapshot: Snapshot, pods: tuple[Pod, ...], since: datetime | None) -> float | None:
    """Seconds until time alone changes the verdict."""
    ready = tuple(pod for pod in pods if _ready_since(pod))
    moments = [_stable_at(pod) for pod in ready]
    moments += [_asked_at(pod, snapshot.answers, snapshot.now) for pod in ready]
    moments += [_deadline(snapshot, pod, since) for pod in pods]
    moments += [_doubtful_at(pod, snapshot) for pod in ready]
    answers = (snapshot.answers.get(pod.metadata.uid) for pod in ready)
    patience = timedelta(seconds=snapshot.service.spec.rollout.progress_deadline_seconds)
    moments += [answer.began + patience for answer in answers if answer and not answer.passed]
    if snapshot.deployment and (refused := _refused_since(snapshot.deployment, since)):
        moments.append(refused + patience)
    left = [(moment - snapshot.now).total_seconds() for moment in moments if moment and moment > snapshot.now]
    return min(left, default=None)


def _deadline(snapshot: Snapshot, pod: Pod, since: datetime | None) -> datetime | None:
    """Until when a pod may take to be proven, where the Deployment has no deadline for it any more; else None.

    It has none once the pods of a revision were there, for a revision that it has given up before, and while it is
    held; and a pod that is Ready again and again, and dies each time, is progress to it.

    One that has died once or twice, or has given a token and is not Ready for a while, has as long again from then.

    since: when the revision was asked for.
    """
    progress = _progress(snapshot.deployment)
    if progress is None or not (progress.reason in _NO_DEADLINE or restarts(pod)):
        return None
    there = time_of(progress.last_update_time) if progress.reason == _AVAILABLE else None
    died = ended_at(pod) if restarts(pod) < MANY_DEATHS else None
    fell = _unready_since(pod) if _passed(pod, snapshot.answers) else None
    moments = (since, there, time_of(pod.metadata.creation_timestamp), served_at(pod), died, fell)
    known = [when for when in moments if when]
    seconds = snapshot.service.spec.rollout.progress_deadline_seconds
    return max(known) + timedelta(seconds=seconds) if known else None


def _refused_since(deployment: Deployment, since: datetime | None) -> datetime | None:
    """Since when pods cannot even be created, where the Deployment has no deadline for that; else None."""
    progress = _progress(deployment)
    if progress is None or progress.reason not in _NO_DEADLINE:
        return None
    found = (item for item in deployment.status.conditions if item.type == "ReplicaFailure" and item.status == "True")
    times = [at for item in found if (at := time_of(item.last_transition_time))]
    return max([*times, *([since] if since else [])]) if times else None


def _doubtful_at(pod: Pod, snapshot: Snapshot) -> datetime | None:
    """From when on a Ready pod that has given no token is not to take another's place; None for not at all.

    It may have given something else, or be taking its time. What was not asked yet is in no doubt.
    """
    ready, answer = _ready_since(pod), snapshot.answers.get(pod.metadata.uid)
    since = answer.began if answer else snapshot.asking.get(pod.metadata.uid)
    if ready is None or since is None or _passed(pod, snapshot.answers):
        return None
    return max(ready, since) + timedelta(seconds=DOUBTFUL_SECONDS)


def _doubtful(snapshot: Snapshot, pods: Iterable[Pod]) -> bool:
    """Whether a pod is Ready and has given no token for too long, beside older ones that it would replace."""
    return any((at := _doubtful_at(pod, snapshot)) is not None and at <= snapshot.now for pod in pods)


def _left(snapshot: Snapshot, found: Step) -> bool:
    if found.target is None:
        return False
    label = revisions.label(found.target.name)
    return any(pod.metadata.labels.get(names.LABEL_REVISION) != label for pod in staying(snapshot.pods))


def _progress(deployment: Deployment | None) -> DeploymentCondition | None:
    conditions = deployment.status.conditions if deployment else ()
    return next((condition for condition in conditions if condition.type == "Progressing"), None)


def _pods_of(snapshot: Snapshot, name: str) -> tuple[Pod, ...]:
    """The pods of the revision of that name that are there to stay, in the order of their names."""
    label = revisions.label(name)
    found = (pod for pod in staying(snapshot.pods) if pod.metadata.labels.get(names.LABEL_REVISION) == label)
    return tuple(sorted(found, key=lambda pod: pod.metadata.name))


def staying(pods: Iterable[Pod]) -> Iterator[Pod]:
    """The pods that neither have ended nor are on their way out."""
    return (pod for pod in pods if not (pod.metadata.deletion_timestamp or pod.ended))


def _ready_since(pod: Pod) -> datetime | None:
    found, served = readiness(pod), served_at(pod)
    if found is None:
        return None
    ready = time_of(found.last_transition_time) or _LONG_AGO
    return max(ready, served) if served else ready  # a warm pod is Ready before it has a model


def _unready_since(pod: Pod) -> datetime | None:
    found = (each for each in pod.status.conditions if each.type == "Ready" and each.status != "True")
    return next((time_of(each.last_transition_time) for each in found), None)


def _stable_at(pod: Pod) -> datetime | None:
    since = _ready_since(pod)
    return since + timedelta(seconds=STABLE_SECONDS) if since else None


# -- which revision the Deployment is to have


def _targeted(snapshot: Snapshot, found: Step, update: Wanted, mine: Mapping[str, ControllerRevision]) -> Step:
    """`found` with the revision that the Deployment is to have."""
    service = snapshot.service
    current = _known(found.running, update, mine)
    if service.spec.paused:
        return replace(found, target=current or update)
    if found.failed and service.spec.rollout.on_failure == "Pause":
        return replace(found, target=current or update, hold=True)
    if found.failed:
        return replace(found, target=_known(found.good, update, mine) or update)
    if found.updated and found.good and not found.verified:
        held = _doubtful(snapshot, _pods_of(snapshot, update.name)) and bool(_pods_of(snapshot, found.good))
        return replace(found, target=update, hold=held)
    if current is None or found.updated:
        return replace(found, target=update)
    if not found.verified and _halfway(snapshot):
        return replace(found, target=current, hold=_unproven(found), waits=True)
    settle = [claim for claim in snapshot.claims if claim.revision == revisions.label(current.name)]
    if wait := held_for(settle, update.since, snapshot.now):
        return replace(found, target=current, hold=_unproven(found), hurry=True, requeue_after=wait)
    if found.verified:
        return replace(found, target=update)
    if service.spec.rollout.pre_pull and {*prepull.images(update.template)} - {*prepull.images(current.template)}:
        found = _pulled(snapshot, found, update, current)
        if found.target is not update:
            return found
    return replace(_dated(snapshot, found, update), target=update)


def _unproven(found: Step) -> bool:
    """Whether the Deployment has a revision that nobody asks for any more, and that is not known to be good."""
    return found.good is not None and found.running != found.good


def _halfway(snapshot: Snapshot) -> bool:
    """Whether the environment that the spec asks for is on its way: the rest of the spec waits for it.

    Where an inline environment cannot be had, too: it was changed by the same hand.
    """
    service, around = snapshot.service, snapshot.surroundings
    outdated = around.wanted is not None and (
        around.own is None or needs_apply(around.wanted, around.own.metadata) is not None
    )
    told = verdict(service, around.used, around.refusal, outdated=outdated)
    if told is None or told[0] == "True":
        return False
    return told[0] == "Unknown" or service.spec.environment.conda is not None


def _dated(snapshot: Snapshot, found: Step, update: Wanted) -> Step:
    """`found`, about to switch: a revision that was there before is asked for anew where the Deployment still tells of
    a deadline that another one missed.
    """
    progress = _progress(snapshot.deployment)
    stale = progress is not None and progress.reason == reasons.PROGRESS_DEADLINE_EXCEEDED
    return replace(found, again=update.number) if stale and update.manifest is None else found


def _known(name: str | None, update: Wanted, mine: Mapping[str, ControllerRevision]) -> Wanted | None:
    if name == update.name:
        return update
    return revisions.of(mine[name]) if name is not None and name in mine else None


def _pulled(snapshot: Snapshot, found: Step, update: Wanted, current: Wanted) -> Step:
    """`found`, while the images of `update` are on their way to the nodes, or once they are there."""
    service = snapshot.service
    rollout, label = service.spec.rollout, revisions.label(update.name)
    seconds = rollout.progress_deadline_seconds
    spec = update.template["spec"]
    nodes = prepull.choose(
        (pod for pod in snapshot.pods if not pod.metadata.deletion_timestamp),
        snapshot.nodes,
        spec,
        amounts.pods(rollout.max_surge, service.spec.replicas, up=True),
        snapshot.image_bytes,
    )
    pods = tuple(pod for pod in snapshot.pull_pods if pod.metadata.labels.get(names.LABEL_REVISION) == label)
    pulls = prepull.pulls(nodes, pods, snapshot.unpullable, snapshot.now, seconds=seconds)
    if pulls.over:
        return replace(found, target=update, pulls=pulls)
    metadata = {
        "namespace": service.metadata.namespace,
        "labels": prepull.labels(service.metadata.name, label),
        "ownerReferences": [names.owner("TokenService", service.metadata.name, service.metadata.uid)],
    }
    create = tuple(
        prepull.pod(service.metadata.name, update.template, node, metadata=metadata, seconds=seconds)
        for node in pulls.todo
    )
    oldest = min((made for pod in pods if (made := time_of(pod.metadata.creation_timestamp))), default=snapshot.now)
    left = seconds + 1 - (snapshot.now - oldest).total_seconds()
    return replace(
        found,
        target=current,
        hold=_unproven(found),
        pulls=pulls,
        pull=create,
        unpull=tuple(pod for pod in found.unpull if pod not in pods),
        requeue_after=max(1.0, left),
    )


def _gone_for(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    return tuple(pod for pod in pods if not pod.metadata.deletion_timestamp)
