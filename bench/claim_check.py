"""Whether claims kept their promise: no pod for two TokenServices, and a pod for every edit while there were warm ones.

    python -m bench.claim_check AUDIT_LOG --namespace NAMESPACE [--namespace ...]

It knows nothing of who made the claims, and asks nobody: the API server's audit log has every patch that was answered.
The exit status is 1 if anything was lost or duplicated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.audit import AuditLog
from bench.claim_log import Story, story

NEVER = datetime.max.replace(tzinfo=UTC)
SHOWN = 10
"""So many findings are told in words."""


@dataclass(frozen=True)
class Verdict:
    """What the checker found.

    Attributes:
        edits: requests for one replica more.
        finished: claims whose second patch was answered.
        lost: edits that led to no finished claim although warm pods were there, and pods that were claimed and never
            got the label that their Service selects. An edit whose pod was left so is lost once.
        duplicated: pods that more than one TokenService has claimed or has been served by.
        words: the first findings, for people.

    """

    edits: int
    finished: int
    lost: int
    duplicated: int
    words: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return not self.lost and not self.duplicated


def check(told: Story) -> Verdict:
    """What is to be said of one namespace."""
    lost, words = _lost(told)
    twice = [pod for pod in told.pods if len({*pod.claims, *pod.served}) > 1]
    words += [f"{pod.name} was claimed by {', '.join(sorted({*pod.claims, *pod.served}))}" for pod in twice]
    return Verdict(
        edits=sum(map(len, told.edits.values())),
        finished=sum(map(len, told.finished.values())),
        lost=lost,
        duplicated=len(twice),
        words=tuple(words[:SHOWN]),
    )


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on several namespaces."""
    every = list(verdicts)
    return Verdict(
        edits=sum(one.edits for one in every),
        finished=sum(one.finished for one in every),
        lost=sum(one.lost for one in every),
        duplicated=sum(one.duplicated for one in every),
        words=tuple(word for one in every for word in one.words)[:SHOWN],
    )


def _lost(told: Story) -> tuple[int, list[str]]:
    last_warm = max((pod.left or NEVER for pod in told.pods if pod.warm), default=None)
    lost, words = 0, []
    for service in told.services:
        left = told.edits.get(service, [])[len(told.finished.get(service, [])) :]
        unanswered = [at for at in left if last_warm and last_warm > at]
        stuck = told.stuck.get(service, [])
        lost += max(len(unanswered), len(stuck))
        if stuck:
            words.append(f"{service} has claimed {'; '.join(stuck)}: never labelled")
        elif unanswered:
            words.append(f"{service} got no pod for its edit at {unanswered[0].time()}")
    return lost, words


def main() -> int:
    """Checks a log; 0 if nothing was lost or duplicated."""
    parser = argparse.ArgumentParser(prog="bench.claim_check", description="Claims, as the audit log tells them.")
    parser.add_argument("log", type=Path, help="the API server's audit log, of a cluster made with --audit-bodies")
    parser.add_argument("--namespace", action="append", required=True, help="to check; can be repeated")
    arguments = parser.parse_args()
    writes = AuditLog(arguments.log, namespaces=arguments.namespace, offset=0).read()
    verdict = together(check(story(writes, namespace)) for namespace in arguments.namespace)
    for word in verdict.words:
        print(word)
    found = asdict(verdict)
    del found["words"]
    print(json.dumps(found))
    return 0 if verdict.good and verdict.edits else 1


if __name__ == "__main__":
    sys.exit(main())
