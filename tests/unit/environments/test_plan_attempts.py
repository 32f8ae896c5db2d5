"""What became of a Job: results, problems, Kubernetes' own words, and pods that are not there."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tokenservice.api.jobs import JobResult
from tokenservice.api.meta import Pod
from tokenservice.environments.attempts import (
    Attempt,
    Done,
    Failed,
    Going,
    Job,
    Lost,
    Outcome,
    lacks_pods,
    outcome,
    unexplained,
)

from tests.unit.environments.standin_jobs import NOW, job, lock_result, pod, problem

UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}],
}
EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on ephemeral-storage."}
GIVEN_UP = ("Failed", "BackoffLimitExceeded", -20)
COMPLETE = ("Complete", "CompletionsReached", -20)


def waiting(reason: str, message: str) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "job", "state": {"waiting": {"reason": reason, "message": message}}}]}


def failed(reason: str, message: str, *, terminal: bool = False, seconds: int = -20) -> Failed:
    return Failed(reason, message, terminal, NOW + timedelta(seconds=seconds))


CASES: dict[str, tuple[Job, tuple[Pod, ...], Outcome]] = {
    "young": (job(created=-1), (), Going()),
    "pod waits for its image": (job(), (pod(**waiting("ContainerCreating", "")),), Going()),
    "image cannot be pulled": (
        job(),
        (
            pod(
                **waiting("ErrImagePull", "no such"),
            ),
        ),
        Going("ImagePullBackOff", "no such"),
    ),
    "Secret missing": (
        job(),
        (pod(**waiting("CreateContainerConfigError", 'secret "x" not found')),),
        Going("CreateContainerConfigError", 'secret "x" not found'),
    ),
    "no room": (job(), (pod(**UNSCHEDULABLE),), Going("Unschedulable", "0/1 nodes")),
    "evicted, another pod is coming": (job(), (pod(**EVICTED),), Going("Evicted", EVICTED["message"])),
    "evicted, another pod runs": (job(), (pod(**EVICTED), pod(name="p2", created=-5)), Going()),
    "tried again within the Job": (
        job(),
        (pod(problem("ChannelUnavailable", "no answer"), code=1),),
        Going("ChannelUnavailable", "no answer"),
    ),
    "done": (job(ended=COMPLETE), (pod(lock_result()),), Done(lock_result())),
    "done, the Job does not know yet": (job(), (pod(lock_result()),), Done(lock_result())),
    "done and then crashed": (job(ended=GIVEN_UP), (pod(lock_result(), code=139),), Done(lock_result())),
    "done in the second try": (
        job(ended=COMPLETE),
        (pod(problem("DiskFull"), code=1), pod(lock_result(), name="p2", created=-5)),
        Done(lock_result()),
    ),
    "unsolvable": (
        job(ended=("Failed", "PodFailurePolicy", -20)),
        (pod(problem("Unsolvable", "a needs b"), code=2),),
        failed("Unsolvable", "a needs b", terminal=True),
    ),
    "gave up": (
        job(ended=GIVEN_UP),
        (
            pod(problem("RegistryFull", "first"), code=1),
            pod(problem("DiskFull", "last"), name="p2", created=-5, code=1),
        ),
        failed("DiskFull", "last"),
    ),
    "gave up, and the last pod said nothing": (
        job(ended=GIVEN_UP),
        (pod(problem("RegistryFull", "first"), code=1), pod("", name="p2", created=-5, code=1)),
        failed("RegistryFull", "first"),
    ),
    "out of memory": (
        job(ended=GIVEN_UP),
        (pod("", code=137, killed="OOMKilled"),),
        failed("OOMKilled", "the Job used more memory than its limit allows (exit code 137); raise builder.resources"),
    ),
    "broken program": (
        job(ended=GIVEN_UP),
        (pod("no JSON", code=1),),
        failed("Failed", "no JSON (exit code 1)"),
    ),
    "evicted for good": (job(ended=GIVEN_UP), (pod(**EVICTED),), failed("Evicted", EVICTED["message"])),
    "deadline": (
        job(ended=("Failed", "DeadlineExceeded", -1)),
        (),
        failed("DeadlineExceeded", "words of DeadlineExceeded", seconds=-1),
    ),
    "failed, its pods are not seen yet": (job(ended=("Failed", "PodFailurePolicy", -1)), (), Going()),
    "failed, its pods are gone": (
        job(ended=("Failed", "PodFailurePolicy", -20)),
        (),
        failed("PodFailurePolicy", "words of PodFailurePolicy"),
    ),
    "complete, its pod is not seen yet": (job(ended=("Complete", "CompletionsReached", -1)), (), Going()),
    "complete, its pod is gone": (job(ended=COMPLETE), (), Lost()),
    "complete without a result": (
        job(ended=COMPLETE),
        (pod("{}"),),
        failed("Failed", "the Job ended and its pod left no result"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_became_of_it(case: str) -> None:
    made, pods, expected = CASES[case]
    assert outcome(Attempt(made, pods), NOW) == expected


def test_why_no_pod_is_made_is_told() -> None:
    assert outcome(Attempt(job(), refused="exceeded quota: small"), NOW) == Going(
        "FailedCreate", "exceeded quota: small"
    )
    assert lacks_pods(Attempt(job()), NOW)
    assert not lacks_pods(Attempt(job(created=-1)), NOW)
    assert not lacks_pods(Attempt(job(), (pod(),)), NOW)
    assert not lacks_pods(Attempt(job(ended=COMPLETE)), NOW)


def test_a_long_explanation_is_asked_for_once_and_told_whole() -> None:
    long = "because " * 2000
    cut = problem("Unsolvable", long[:100], truncated=True)
    attempt = Attempt(job(ended=("Failed", "PodFailurePolicy", -20)), (pod(cut, code=2),))
    asked = unexplained(attempt)
    assert asked is not None
    assert asked.metadata.name == "p1"
    told = Attempt(attempt.job, attempt.pods, explanation=long)
    assert unexplained(told) is None
    assert outcome(told, NOW) == failed("Unsolvable", long, terminal=True)
    whole = Attempt(job(), (pod(problem("Unsolvable")),))
    assert unexplained(whole) is None


@pytest.mark.parametrize("result", [JobResult(), None])
def test_an_empty_result_is_none(result: JobResult | None) -> None:
    made = outcome(Attempt(job(), (pod(result),)), NOW)
    assert made == Going()
