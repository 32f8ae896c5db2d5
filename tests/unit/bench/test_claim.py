"""What the benchmark of claims makes of the audit log. Recorded lines are of clients that raced for a pool."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer
from tokenservice import protocol
from tokenservice.api import names
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import EnvironmentStatus, TokenService
from tokenservice.handover.shape import difference, shape
from tokenservice.services import render

from bench import claim_check, claim_setup, claim_standin
from bench.audit import AuditLog, Write
from bench.claim_check import Verdict, check, together
from bench.claim_figures import figures
from bench.claim_log import Story, story
from bench.claim_report import BARE, OPERATOR, Outcome, Report, proof, result, table
from tests.unit.pods.builders import pod_schema

RECORDED = Path(__file__).parent / "claims.jsonl"
"""Audit lines as an API server wrote them, without the pods' specs and what tells about the writer's machine."""
START = datetime(2026, 1, 1, tzinfo=UTC)


def write(what: str, name: str, at: float, body: Any = None, verb: str = "patch", **other: Any) -> Write:
    """A write that was answered `at` seconds, after 10 ms."""
    moment = START + timedelta(seconds=at)
    plain: dict[str, Any] = {"user": "somebody", "namespace": "ns", "code": 200}
    return Write(
        **{**plain, **other},
        verb=verb,
        what=what,
        name=name,
        received=moment - timedelta(milliseconds=10),
        answered=moment,
        body=b"" if body is None else msgspec.json.encode(body),
    )


def service(name: str, at: float = 0.0, **spec: Any) -> Write:
    return write("tokenservices", name, at, {"metadata": {"name": name}, "spec": {"replicas": 0, **spec}}, "create")


def edit(name: str, at: float, replicas: int = 1) -> Write:
    return write("tokenservices", name, at, {"spec": {"replicas": replicas}})


def pod(name: str, at: float = 0.0) -> list[Write]:
    """A warm pod, as KWOK makes it one."""
    body = {"metadata": {"name": name, "labels": {names.LABEL_POOL: "pool"}}}
    return [write("pods", name, at, body, "create", code=201), write("pods/status", name, at + 0.1)]


def claim(pod: str, service: str, at: float, **other: Any) -> Write:
    labels = {names.LABEL_POOL: None, names.LABEL_CLAIM: service}
    return write("pods", pod, at, {"metadata": {"labels": labels}}, **other)


def serve(pod: str, service: str, at: float) -> Write:
    return write("pods", pod, at, {"metadata": {"labels": {names.LABEL_SERVICE: service}}})


def settle(pod: str, at: float) -> Write:
    return write("pods", pod, at, {"metadata": {"labels": {names.LABEL_CLAIM: None, "pod-template-hash": "abc"}}})


def told(*writes: Write | Sequence[Write]) -> Story:
    flat = [one for each in writes for one in ([each] if isinstance(each, Write) else each)]
    return story(flat, "ns")


def verdict(*writes: Write | Sequence[Write]) -> tuple[int, int, int]:
    """finished, lost, duplicated."""
    found = check(told(*writes))
    return found.finished, found.lost, found.duplicated


class TestRecorded:
    """Of real clients and a real API server."""

    def read(self, namespace: str) -> Story:
        return story(AuditLog(RECORDED, namespaces=[namespace], offset=0).read(), namespace)

    def test_with_the_lock_each_pod_goes_to_one_service(self) -> None:
        found = self.read("race-locked")
        assert check(found) == Verdict(edits=2, finished=2, lost=0, duplicated=0)
        assert {pod.name: set(pod.claims) for pod in found.pods} == {"pool-1": {"svc-00001"}, "pool-17": {"svc-00000"}}
        assert all(pod.warm and pod.left and pod.warm < pod.left for pod in found.pods)

    def test_without_it_one_pod_goes_to_two_and_the_checker_says_so(self) -> None:
        found = check(self.read("race-broken"))
        assert (found.lost, found.duplicated, found.good) == (0, 1, False)
        assert found.words == ("pool-1 was claimed by svc-00012, svc-00013",)

    def test_latencies_are_from_the_edit_to_the_second_patch(self) -> None:
        seen = figures(self.read("race-locked"))
        assert seen.claims == 2
        assert seen.p50_ms is not None
        assert seen.longest_ms is not None
        assert 50 < seen.p50_ms < seen.longest_ms < 5000

    def test_the_program_ends_with_1_on_a_broken_claim(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for namespace, status in (("race-locked", 0), ("race-broken", 1)):
            monkeypatch.setattr(sys, "argv", ["claim_check", str(RECORDED), "--namespace", namespace])
            assert claim_check.main() == status
            found = json.loads(capsys.readouterr().out.splitlines()[-1])
            assert found == {"edits": 2, "finished": 2, "lost": 0, "duplicated": status}


class TestChecker:
    def test_a_claim_that_was_finished_and_settled_is_good(self) -> None:
        writes = [service("a"), *pod("p"), edit("a", 1), claim("p", "a", 2), serve("p", "a", 3), settle("p", 9)]
        assert verdict(writes) == (1, 0, 0)

    def test_an_edit_that_got_no_pod_is_lost_while_there_are_warm_ones(self) -> None:
        assert verdict(service("a"), pod("p"), edit("a", 1)) == (0, 1, 0)

    def test_it_is_not_when_there_are_none(self) -> None:
        taken = [*pod("p"), claim("p", "b", 0.5), serve("p", "b", 0.6)]
        assert verdict(service("a"), service("b"), edit("b", 0.4), taken, edit("a", 1)) == (1, 0, 0)
        assert verdict(service("a"), edit("a", 1)) == (0, 0, 0)

    def test_a_pod_that_becomes_warm_later_would_have_done(self) -> None:
        assert verdict(service("a"), edit("a", 1), pod("p", at=2)) == (0, 1, 0)

    def test_a_pod_that_was_deleted_would_not(self) -> None:
        gone = write("pods", "p", 0.5, verb="delete")
        assert verdict(service("a"), pod("p"), gone, edit("a", 1)) == (0, 0, 0)

    def test_a_pod_that_never_became_warm_would_not(self) -> None:
        made, _ = pod("p")
        waits = write("pods/status", "p", 0.2, user="system:kube-scheduler")
        assert verdict(service("a"), made, waits, edit("a", 1)) == (0, 0, 0)

    def test_a_pod_that_was_claimed_and_never_labelled_is_lost_once(self) -> None:
        found = check(told(service("a"), pod("p"), edit("a", 1), claim("p", "a", 2), pod("other")))
        assert (found.finished, found.lost, found.duplicated) == (0, 1, 0)
        assert found.words == ("a has claimed p: never labelled",)

    def test_so_is_one_that_was_deleted_then_and_that_is_told(self) -> None:
        gone = write("pods", "p", 3, verb="delete")
        found = check(told(service("a"), pod("p"), edit("a", 1), claim("p", "a", 2), gone))
        assert (found.lost, found.words) == (1, ("a has claimed p, deleted since: never labelled",))

    def test_a_pod_too_many_that_is_never_labelled_is_lost_too(self) -> None:
        first = [claim("p", "a", 2), serve("p", "a", 3)]
        assert verdict(service("a"), pod("p"), pod("q"), edit("a", 1), first, claim("q", "a", 2)) == (1, 1, 0)

    def test_two_services_on_one_pod_are_a_duplicate_once(self) -> None:
        both = [claim("p", "a", 2), claim("p", "b", 2.1), serve("p", "a", 3), serve("p", "b", 3.1)]
        writes = [service("a"), service("b"), *pod("p"), edit("a", 1), edit("b", 1), *both]
        assert verdict(writes) == (2, 0, 1)

    def test_a_service_label_that_changes_is_a_duplicate(self) -> None:
        writes = [service("a"), *pod("p"), edit("a", 1), claim("p", "a", 2), serve("p", "a", 3), serve("p", "b", 4)]
        assert verdict(writes) == (1, 0, 1)

    def test_a_claim_that_was_refused_is_none(self) -> None:
        writes = [*pod("p"), claim("p", "a", 2), claim("p", "b", 2.1, code=409), serve("p", "a", 3)]
        assert verdict(service("a"), edit("a", 1), writes) == (1, 0, 0)

    def test_a_claim_made_again_after_a_lost_answer_is_one(self) -> None:
        writes = [*pod("p"), claim("p", "a", 2), claim("p", "a", 2.5), serve("p", "a", 3)]
        assert verdict(service("a"), edit("a", 1), writes) == (1, 0, 0)

    def test_a_later_pod_of_the_same_name_is_another_one(self) -> None:
        first = [*pod("p"), claim("p", "a", 2), serve("p", "a", 3), write("pods", "p", 4, verb="delete")]
        second = [*pod("p", at=5), claim("p", "b", 7), serve("p", "b", 8)]
        assert verdict(service("a"), service("b"), edit("a", 1), edit("b", 6), first, second) == (2, 0, 0)

    def test_what_is_no_object_and_what_is_elsewhere_says_nothing(self) -> None:
        patch = write("pods", "p", 2, [{"op": "add", "path": "/metadata/labels/x", "value": "y"}])
        elsewhere = claim("p", "b", 2, namespace="other")
        writes = [*pod("p"), claim("p", "a", 2), patch, elsewhere, serve("p", "a", 3)]
        assert verdict(service("a"), edit("a", 1), writes) == (1, 0, 0)

    def test_an_edit_counts_for_each_replica_more_and_none_for_one_less(self) -> None:
        story = told(service("a"), edit("a", 1, 3), edit("a", 2, 1), write("tokenservices", "a", 3, {"spec": {}}))
        assert len(story.edits["a"]) == 3
        assert told(write("tokenservices", "b", 0, {}, "create"), edit("b", 1, 2)).edits["b"]

    def test_several_namespaces_are_judged_together(self) -> None:
        one, two = Verdict(3, 2, 1, 0, ("x",)), Verdict(4, 4, 0, 2, ("y",))
        assert together([one, two]) == Verdict(7, 6, 1, 2, ("x", "y"))


class TestFigures:
    def test_claims_a_second_count_to_the_end_of_the_last_claim(self) -> None:
        writes: list[Write] = []
        for number in range(10):
            name, at = f"{number}", 1 + number * 0.1
            writes += [service(name), *pod(name), edit(name, at + 0.01), claim(name, name, at + 0.02)]
            writes.append(serve(name, name, at + (1.1 if number == 9 else 0.05)))
        seen = figures(told(writes))
        assert (seen.claims, round(seen.edits_s, 3)) == (10, 0.9)
        assert seen.per_s == pytest.approx(10 / 2.0)
        assert seen.p50_ms == pytest.approx(50)
        assert seen.p90_ms == pytest.approx(50)
        assert seen.p99_ms == pytest.approx(1100)

    def test_what_warms_up_does_not_count(self) -> None:
        writes = [
            service("a"),
            service("w"),
            *pod("p"),
            *pod("q"),
            edit("w", 1),
            claim("q", "w", 5),
            serve("q", "w", 9),
        ]
        writes += [edit("a", 10.01), claim("p", "a", 10.1), serve("p", "a", 10.2)]
        seen = figures(told(writes), without=["w"])
        assert (seen.claims, seen.longest_ms) == (1, pytest.approx(200))
        assert seen.began
        assert seen.ended
        assert (seen.ended - seen.began).total_seconds() == pytest.approx(0.2)

    def test_nothing_finished_has_no_latency(self) -> None:
        seen = figures(told(service("a"), edit("a", 1)))
        assert (seen.claims, seen.per_s, seen.p99_ms) == (0, None, None)
        assert seen.began == seen.ended
        assert figures(told()).began is None


class TestReport:
    def report(self, *who: str) -> Report:
        writes = [service("a"), *pod("p"), edit("a", 1.01), claim("p", "a", 1.1), serve("p", "a", 1.2)]
        seen = figures(told(writes))
        report = Report(nodes=5, pool=60, load=(0.5, 1.5), broken=Verdict(16, 16, 0, 8))
        for scenario in ("without_refill", "with_refill", "burst"):
            for each in who:
                found = Verdict(1, 1, 0, int(each == BARE))
                report.outcomes.append(Outcome(each, scenario, seen, found, 2.0, 9.5, Counter({"patch pods": 3})))
        return report

    def test_the_last_line_has_the_operators_figures_beside_the_bare_clients_p99(self) -> None:
        rates = {"per_s": 5.0, "p50_ms": 200.0, "p99_ms": 200.0, "bare_p99_ms": 200.0}
        assert result(self.report(BARE, OPERATOR)) == {
            "with_refill": rates,
            "without_refill": rates,
            "burst_300_p90_ms": 200.0,
            "lost": 0,
            "duplicated": 0,
        }

    def test_what_was_not_measured_is_null(self) -> None:
        found = result(self.report(BARE))
        assert found["with_refill"] == {"per_s": None, "p50_ms": None, "p99_ms": None, "bare_p99_ms": 200.0}
        assert (found["burst_300_p90_ms"], found["lost"], found["duplicated"]) == (None, 0, 3)
        assert result(Report(nodes=5, pool=60, load=(0.0, 0.0)))["lost"] is None

    def test_the_proof_is_told_by_itself(self) -> None:
        assert proof(self.report())["without_lock"] == {"edits": 16, "lost": 0, "duplicated": 8}

    def test_the_table_names_the_stand_in(self) -> None:
        text = table(self.report(BARE, OPERATOR))
        assert "answered by a stand-in" in text
        assert "operator, without refill" in text
        assert "  patch pods" + " " * 32 + "              3.00" * 6 in text
        assert text.endswith("8 pods claimed twice, with it 0")
        assert table(self.report()) == text.splitlines()[-1]


class TestSetUp:
    def test_the_pools_pods_fit_the_services_be_they_the_operators_or_the_bare_clients(self) -> None:
        pool = msgspec.convert(claim_setup.pool_manifest("ns", 10, 1), WarmPool)
        one = msgspec.convert(claim_setup.service_manifest("ns", "a"), TokenService)
        assert (one.spec.replicas, one.metadata.namespace, pool.metadata.name) == (0, "ns", claim_setup.POOL)
        deployment = render.children(
            one, pod_schema(), EnvironmentStatus(image="registry.example.com/team/serving:1.0")
        )
        assert deployment.deployment is not None
        served = deployment.deployment["spec"]["template"]["spec"]
        warm = json.loads(claim_setup.pod_text(pod_schema(), pool))
        assert difference(warm["spec"], served) is None
        assert warm["metadata"]["labels"][names.LABEL_SHAPE] == shape(served)


class TestStandIn:
    @pytest.mark.parametrize(
        ("body", "headers", "status"),
        [
            ({"service": "ns/a", "model": {"source": "file:///models/tiny"}}, {"Authorization": "Bearer x"}, 200),
            ({"service": "ns/a", "model": {"source": "file:///models/tiny"}}, {}, 401),
            ({"service": "ns/a", "model": {}}, {"Authorization": "Bearer x"}, 400),
            ({"service": "ns/a", "model": {"source": "hf://a/b"}, "more": 1}, {"Authorization": "Bearer x"}, 400),
        ],
    )
    async def test_it_answers_what_keeps_the_contract(self, body: Any, headers: dict[str, str], status: int) -> None:
        async with TestClient(TestServer(claim_standin.assignments())) as client:
            answer = await client.put(protocol.ASSIGNMENT, json=body, headers=headers)
            said = await answer.json()
        assert answer.status == status
        if status == 200:
            assert said == {"status": "serving", "model": "tiny", "stages": {"weights": 0.0, "total": 0.0}}
