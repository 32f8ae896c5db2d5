"""What the benchmark of rollouts makes of what clients and the operator say."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cluster import BenchError
from bench.rollout import rooted
from bench.rollout_client import Record
from bench.rollout_report import Figures, result, table
from bench.rollout_requests import Phase, percentile, ratio, summary, told, verdict
from bench.rollout_setup import NotYetError, Pod, clients_pod, edition, eventually, service, settled
from bench.rollout_watch import Stage, State, Story, stages


def record(**fields: Any) -> Record:
    """A stream that ended well, of 0.1 s."""
    plain: dict[str, Any] = {
        **{"client": 1, "keeps": False, "reused": False, "start": 10.0, "first": 10.02, "end": 10.1},
        **{"status": 200, "done": True, "version": "old", "error": ""},
    }
    return Record(**{**plain, **fields})


class TestRequests:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, "ok"),
            ({"status": 503, "done": False}, "failed"),
            ({"status": 0, "done": False, "error": "ConnectionRefusedError: "}, "failed"),
            ({"done": False}, "cut"),
            ({"done": False, "error": "IncompleteRead: "}, "cut"),
            ({"error": "ConnectionResetError: "}, "cut"),
        ],
    )
    def test_verdict(self, fields: dict[str, Any], expected: str) -> None:
        assert verdict(record(**fields)) == expected

    @pytest.mark.parametrize(
        ("count", "percent", "expected"), [(100, 99, 99), (101, 99, 100), (1, 99, 1), (1, 50, 1), (4, 50, 2), (4, 0, 1)]
    )
    def test_percentile_is_the_nearest_rank(self, count: int, percent: float, expected: float) -> None:
        assert percentile(range(count, 0, -1), percent) == expected

    def test_percentile_of_nothing(self) -> None:
        assert percentile([], 99) is None

    @given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.1, 100))
    def test_percentile_is_one_that_so_many_do_not_exceed(self, values: list[float], percent: float) -> None:
        found = percentile(values, percent)
        assert found in values
        assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-6
        assert sum(value < found for value in values) < len(values) * percent / 100 + 1e-6

    def test_a_request_belongs_to_the_phase_in_which_it_ended(self) -> None:
        records = [record(start=9.9, end=10.0), record(start=9.9, end=10.1), record(start=10.9, end=11.0)]
        assert Phase("before", 9.0, 10.1).of(records) == records[:1]
        assert Phase("change", 10.1, 11.0).of(records) == records[1:2]
        assert Phase("rollback", 11.0, 12.0).of(records) == records[2:]

    def test_summary(self) -> None:
        records = [
            record(),
            record(end=10.3, first=10.05, version="new", reused=True),
            record(end=40.0, done=False),
            record(end=40.0, status=0, first=None, done=False, version="", error="TimeoutError: timed out"),
        ]
        found = summary(records)
        assert (found.requests, found.failed, found.cut, found.reused) == (4, 1, 1, 1)
        assert found.p50 == pytest.approx(0.1)
        assert found.p99 == found.longest == pytest.approx(0.3)
        assert found.first_p99 == pytest.approx(0.05)
        assert found.versions == Counter(old=1, new=1)

    def test_summary_of_nothing(self) -> None:
        found = summary([])
        assert (found.requests, found.failed, found.p99, found.longest) == (0, 0, None, None)

    def test_ratio(self) -> None:
        assert ratio(3.0, 1.5) == 2.0
        assert ratio(None, 1.0) is None
        assert ratio(1.0, None) is None

    def test_a_request_is_told(self) -> None:
        bad = {"first": None, "status": 0, "done": False, "version": "", "error": "RemoteDisconnected: gone"}
        assert told(record(client=4, keeps=True, reused=True, end=10.5, **bad)) == (
            "client 4 (connection kept, used before), no answer: failed after 0.50 s: RemoteDisconnected: gone"
        )
        assert told(record(end=12.5)) == "client 1 (a connection each), old: ok after 2.50 s, first event after 0.02 s"
        assert told(record(status=503, done=False)).endswith("s: HTTP 503")
        assert told(record(done=False)).endswith(": no [DONE] at the end")


def body(generation: int, observed: int, *conditions: tuple[str, str, str], **status: Any) -> bytes:
    listed = [
        {"type": kind, "status": value, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind, value, reason in conditions
    ]
    service = {
        "metadata": {"name": "standin", "generation": generation},
        "status": {"observedGeneration": observed, "conditions": listed, **status},
    }
    return json.dumps(service).encode()


ROLLING = (("Ready", "False", "RollingOut"), ("Progressing", "True", "RollingOut"))
VERIFYING = (("Ready", "True", "Serving"), ("Progressing", "True", "Verifying"))
COMPLETE = (("Ready", "True", "Serving"), ("Progressing", "False", "Complete"))
GOING_BACK = (
    *(("Ready", "False", "RolledBack"), ("Progressing", "True", "RollingBack")),
    ("RolledBack", "True", "CrashLoopBackOff"),
)
BACK = (*GOING_BACK[::2], ("Progressing", "False", "RolledBack"))


class TestWatch:
    def story(self, *bodies: bytes) -> Story:
        """A state a second, from 100 s on."""
        seconds = iter(range(100, 200))
        story = Story(clock=lambda: float(next(seconds)))
        for each in bodies:
            story.take_service("MODIFIED", msgspec.Raw(each))
        return story

    def states(self, *bodies: bytes) -> list[State]:
        return self.story(*bodies).states

    def test_serving_is_said_of_the_newest_spec_alone(self) -> None:
        [old, new] = self.states(body(2, 1, *VERIFYING), body(2, 2, *VERIFYING))
        assert (old.serving, new.serving) == (False, True)

    def test_verified(self) -> None:
        same = {"lastGoodRevision": "a", "updateRevision": "a"}
        states = self.states(
            *(body(2, 2, *VERIFYING, **same), body(2, 2, *COMPLETE), body(2, 2, *COMPLETE, **same)),
            body(2, 2, *COMPLETE, lastGoodRevision="a", updateRevision="b"),
        )
        assert [state.verified for state in states] == [False, False, True, False]

    def test_rolled_back_is_so_once_every_replica_is(self) -> None:
        states = self.states(body(2, 2, *ROLLING), body(2, 2, *GOING_BACK), body(2, 2, *BACK), body(2, 2, *COMPLETE))
        assert [state.rolled_back for state in states] == [False, False, True, False]

    def test_stages_are_those_of_the_edit(self) -> None:
        states = self.states(
            *(body(1, 1, *COMPLETE), body(2, 1, *COMPLETE), body(2, 2, ("Progressing", "True", "PrePulling"))),
            *(body(2, 2, *ROLLING), body(2, 2, *ROLLING), body(2, 2, *VERIFYING), body(2, 2, *COMPLETE)),
            *(body(2, 2), body(3, 3, *ROLLING)),
        )
        assert stages(states, 101.5, 2) == [
            *(Stage("PrePulling", 0.5, 1.5), Stage("RollingOut", 1.5, 3.5), Stage("Verifying", 3.5, 4.5)),
            Stage("Complete", 4.5, None),
        ]

    def test_no_stages_of_what_nothing_was_said_of(self) -> None:
        assert stages(self.states(body(1, 1, *COMPLETE)), 0.0, 2) == []

    async def test_the_first_state_that_is_wanted(self) -> None:
        story = self.story(body(1, 1, *COMPLETE), body(2, 2, *ROLLING), body(2, 2, *VERIFYING), body(2, 2, *VERIFYING))
        found = await story.first(2, lambda state: state.serving, "Ready", 1.0)
        assert found.at == 102.0

    async def test_one_that_does_not_come_is_told_with_the_last(self) -> None:
        with pytest.raises(BenchError, match=r"is not Ready \(Ready=False RollingOut: .*after 0.01 s"):
            await self.story(body(2, 2, *ROLLING)).first(2, lambda state: state.serving, "Ready", 0.01)
        with pytest.raises(BenchError, match="it is not there"):
            await self.story().first(2, lambda state: state.serving, "Ready", 0.01)

    async def test_the_last_state_is_waited_for(self) -> None:
        story = self.story(body(2, 2, *VERIFYING), body(2, 2, *ROLLING))
        with pytest.raises(BenchError, match="is not Ready"):
            await story.now(lambda state: state.serving, "Ready", 0.01)
        story.take_service("MODIFIED", msgspec.Raw(body(2, 2, *VERIFYING)))
        assert (await story.now(lambda state: state.serving, "Ready", 1.0)).at == 102.0

    def test_a_deleted_one_says_nothing(self) -> None:
        story = Story()
        story.take_service("DELETED", msgspec.Raw(body(1, 1)))
        assert not story.states


def pod(*, ready: bool = True, leaves: bool = False) -> Pod:
    given = {
        "metadata": {"name": "p", "uid": "u", **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if leaves else {})},
        "spec": {"nodeName": "one"},
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }
    return msgspec.convert(given, Pod)


class TestSetup:
    def test_pods_are_settled_once_nothing_comes_or_goes(self) -> None:
        assert settled([pod(), pod()])
        assert not settled([pod()])
        assert not settled([pod(), pod(ready=False)])
        assert not settled([pod(), pod(), pod(leaves=True)])
        assert not settled([pod(), pod(leaves=True)])

    def test_a_new_pod_says_little(self) -> None:
        assert not msgspec.convert({"metadata": {"name": "p", "uid": "u"}, "spec": {}, "status": {}}, Pod).ready

    def test_an_edition_is_a_layer_and_the_same_each_time(self) -> None:
        layer = edition(1000)
        assert layer == edition(1000)
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            [member] = archive.getmembers()
        assert member.size == 1000

    def test_the_service_keeps_its_pods_apart(self) -> None:
        made = service("host/image@sha256:0", ["--version-text", "old"])
        [spread] = made["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"] == {"tokenservice.dev/deployment": made["metadata"]["name"]}
        assert made["spec"]["replicas"] == 2

    def test_clients_stay_on_their_node(self) -> None:
        program, made = clients_pod("host/image@sha256:0", "one", ["http://standin/v1", "standin"])
        assert made["spec"]["nodeSelector"] == {"kubernetes.io/hostname": "one"}
        [container] = made["spec"]["containers"]
        assert container["command"][1:] == ["/program/rollout_client.py", "http://standin/v1", "standin"]
        compile(program["data"]["rollout_client.py"], "rollout_client.py", "exec")

    def test_a_name_that_dns_takes_as_it_is(self) -> None:
        assert rooted("http://a.b.svc.cluster.local/v1") == "http://a.b.svc.cluster.local./v1"
        assert rooted("http://a.b.svc.cluster.local.") == "http://a.b.svc.cluster.local."

    async def test_eventually(self) -> None:
        answers = iter([0, 0, 7])

        async def look() -> int:
            return next(answers)

        assert await eventually(look, "nothing came", 5.0) == 7

    async def test_eventually_says_what_was_in_the_way(self) -> None:
        async def look() -> int:
            raise NotYetError("no such pod")

        with pytest.raises(BenchError, match=r"nothing came after 0\.01 s: no such pod"):
            await eventually(look, "nothing came", 0.01)


class TestReport:
    def figures(self) -> Figures:
        before, change = [record() for _ in range(3)], [record(end=10.25, version="new"), record(done=False)]
        parts = {"before": before, "change": change, "rollback": [record(status=0)], "drain": [record()]}
        return Figures(
            setting="The stand-in server",
            deadline_s=15,
            phases={name: Phase(name, float(number), number + 1.5) for number, name in enumerate(parts)},
            summaries={name: summary(found) for name, found in parts.items()},
            during=summary([*change, record(status=0), record()]),
            replaced={"change": 2, "rollback": 0, "drain": 1},
            stages={"change": [Stage("RollingOut", 0.21, 11.04), Stage("Complete", 11.04, None)]},
            new_serving_s=11.04,
            rolled_back_s=17.26,
            drain_s=9.0,
        )

    def test_the_last_line(self) -> None:
        assert result(self.figures()) == {
            "requests": 7,
            "failed": 1,
            "cut": 1,
            "edit_to_new_serving_s": 11.0,
            "edit_to_rolled_back_s": 17.3,
            "p99_latency_ratio": 2.5,
        }

    def test_the_table(self) -> None:
        lines = {line[:40].strip(): line[40:].split() for line in table(self.figures()).splitlines() if line}
        assert lines["requests"] == ["3", "2", "1", "1", "4"]
        assert lines["cut"] == ["0", "1", "0", "0", "1"]
        assert lines["pods replaced"] == ["0", "2", "0", "1"]
        assert lines["p99, ms"] == ["100", "250", "-", "100", "250"]
        assert lines["RollingOut"][-4:] == ["from", "0.2", "to", "11.0"]
        assert lines["Complete"][-3:] == ["from", "11.0", "on"]

    def test_nothing_measured_is_no_figure(self) -> None:
        figures = Figures("", 15, summaries={"before": summary([])}, phases={"before": Phase("before", 0.0, 1.0)})
        assert result(figures)["p99_latency_ratio"] is None
        assert "-" in table(figures)
