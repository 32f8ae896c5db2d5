"""What the benchmark of starts makes of what the client, the watches and the operator say."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from tokenservice.api import names
from tokenservice.api.meta import Pod
from tokenservice.api.v1alpha1 import LastStart

from bench import start_setup as setup
from bench.start_bare import architectures, medians
from bench.start_client import Answer
from bench.start_report import Figures, drawing, result, table
from bench.start_runs import Edit, Failure, Run, cold_steps, p99, stages, warm_steps
from bench.start_watch import Marks, Scene, settled

WALL = datetime(2026, 1, 1, tzinfo=UTC)
EDIT = Edit(100.0, WALL.timestamp())


def told(path: str, seconds: float, **parts: float) -> LastStart:
    return msgspec.convert({"path": path, "seconds": seconds, "stages": parts, "pod": "a"}, LastStart)


def at(seconds: float) -> datetime:
    """So long after the edit, as the operator notes it on a pod."""
    return datetime.fromtimestamp(WALL.timestamp() + seconds, UTC)


class TestStages:
    def test_in_the_order_in_which_they_happen_with_the_rest(self) -> None:
        found = stages(told("Prepulled", 8, endpoint=1.0, imports=5.0, scheduling=0.0, container=1.0), 7.5)
        assert list(found.items()) == [
            ("scheduling", 0.0),
            ("container", 1.0),
            ("imports", 5.0),
            ("endpoint", 1.0),
            ("rest", 0.5),
        ]

    def test_a_warm_start(self) -> None:
        found = stages(told("Warm", 0.15, claim=0.03, weights=0.1, warmup=0.02), 0.25)
        assert found == pytest.approx({"claim": 0.03, "weights": 0.1, "warmup": 0.02, "rest": 0.1})

    def test_all_together_are_the_time_that_the_client_waited(self) -> None:
        assert sum(stages(told("Cold", 40, pull=20.0, container=1.2, imports=5.0), 31.7).values()) == pytest.approx(
            31.7
        )


class TestSteps:
    def test_a_cold_pod(self) -> None:
        marks = Marks(100.1, 100.2, 101.0, 106.0, 106.1)
        found = cold_steps(EDIT, marks, Answer(99.0, 9, 106.2, 106.3, ""))
        expected = {"made": 0.1, "scheduled": 0.1, "running": 0.8, "ready": 5.0, "endpoint": 0.1}
        assert found == pytest.approx({**expected, "connected": 0.1, "token": 0.1})

    def test_a_warm_pod(self) -> None:
        marks = Marks(3.0, 3.0, 4.0, 9.0, 100.26)
        found = warm_steps(EDIT, at(0.02), at(0.2), marks, Answer(99.0, 9, 100.29, 100.3, ""))
        expected = {"claimed": 0.02, "loaded": 0.18, "endpoint": 0.06, "connected": 0.03, "token": 0.01}
        assert found == pytest.approx(expected, abs=1e-5)

    def test_what_no_watch_saw_goes_into_the_next(self) -> None:
        found = cold_steps(EDIT, Marks(100.1), Answer(99.0, 9, 106.2, 106.3, ""))
        assert found == pytest.approx({"made": 0.1, "connected": 6.1, "token": 0.1})


def figures() -> Figures:
    """10 cold starts of each kind, 30 warm ones, one more that failed."""
    found = Figures(weights={"tiny": 907112, "big": 574_900_000}, load=(1.0, 2.0))
    for model, extra in (("tiny", 0.0), ("big", 0.5)):
        for number in range(10):
            seconds = 6.0 + extra + number / 10
            found.runs.append(Run("Prepulled", model, seconds, {"container": 1.0, "imports": 4.0, "rest": seconds - 5}))
        for number in range(30):
            steps = {"claimed": 0.02, "loaded": 0.1}
            found.runs.append(Run("Warm", model, 0.2 + extra + number / 1000, {"claim": 0.02, "rest": 0.18}, steps))
        found.bare[model] = {"imports": 5.0, "load": 0.05 + extra, "token": 0.01}
    found.runs += [Run("Cold", "tiny", 20.0, {"pull": 12.0, "imports": 4.0, "rest": 4.0}) for _ in range(10)]
    found.failures.append(Failure("Warm", "tiny", 7, "the operator tells of it that it came Prepulled"))
    return found


class TestFigures:
    def test_medians_ratios_and_differences(self) -> None:
        found = result(figures())
        shown = {name: value for name, value in found.items() if not isinstance(value, dict)}
        assert shown == {
            "pull_s": 20.0,
            "cold_s": 6.45,
            "warm_s": pytest.approx(0.2145, abs=6e-4),
            "warm_p99_s": 0.229,
            "cold_over_warm": 30.1,
            "imports_s": 5.0,
            "cold_over_imports_s": 1.45,
            "load_s": 0.06,
            "failed": 1,
        }
        assert found["big"] == {
            "weights_mb": 574.9,
            "cold_s": 6.95,
            "warm_s": pytest.approx(0.7145, abs=6e-4),
            "warm_p99_s": 0.729,
            "load_s": 0.56,
            "warm_over_load_s": pytest.approx(0.1545, abs=6e-4),
        }
        assert found["stages"]["Warm"] == {"claim": 0.02, "rest": 0.18}
        assert found["steps"]["Warm"] == {"claimed": 0.02, "loaded": 0.1}
        json.dumps(found)

    def test_what_has_no_runs_is_null(self) -> None:
        found = result(Figures())
        assert found["warm_s"] is None
        assert found["cold_over_warm"] is None
        assert found["big"]["warm_over_load_s"] is None
        assert found["stages"] == {"Cold": {}, "Prepulled": {}, "Warm": {}}
        assert "runs" in table(Figures())
        assert drawing(Figures()).startswith("<svg")

    def test_a_start_that_failed_stands_in_the_table(self) -> None:
        lines = table(figures()).splitlines()
        assert lines[-1] == "Warm, tiny, run 7: the operator tells of it that it came Prepulled"
        [failed] = [line.split() for line in lines if line.strip().startswith("failed ")]
        assert failed == ["failed", "0", "0", "1", "0", "0"]

    def test_of_thirty_the_slowest_is_the_99th_percentile(self) -> None:
        runs = [Run("Warm", "tiny", float(number), {}) for number in range(30)]
        assert p99(runs) == 29.0
        assert p99([]) is None


class TestScene:
    def test_a_pod_on_its_way(self) -> None:
        now = 0.0
        scene = Scene(clock=lambda: now)

        def pod(kind: str = "MODIFIED", node: str = "", **status: Any) -> None:
            nonlocal now
            now += 1.0
            metadata = {"name": "a", "uid": "u", "labels": {names.LABEL_SERVICE: "tiny"}}
            text = json.dumps({"metadata": metadata, "spec": {"nodeName": node}, "status": status})
            scene.take_any_pod(kind, msgspec.Raw(text.encode()))

        running = {"containerStatuses": [{"name": "server", "state": {"running": {"startedAt": "..."}}}]}
        pod("ADDED")
        pod(node="n")
        pod(node="n", **running)
        pod(node="n", **running, conditions=[{"type": "Ready", "status": "True"}])
        slices = {
            "metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "tiny"}},
            "endpoints": [{"conditions": {"ready": True}, "targetRef": {"uid": "u"}}, {"conditions": {}}],
        }
        now = 9.0
        scene.take_slice("ADDED", msgspec.Raw(json.dumps(slices).encode()))
        assert scene.marks["u"] == Marks(1.0, 2.0, 3.0, 4.0, 9.0)
        assert [found.metadata.name for found in scene.of("tiny")] == ["a"]
        assert scene.of("big") == []
        pod("DELETED")
        assert scene.of("tiny") == []

    def test_a_full_pool(self) -> None:
        scene = Scene()

        def member(name: str, *, ready: bool, **more: Any) -> None:
            status = {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
            metadata = {"name": name, "uid": name, "labels": {names.LABEL_POOL: "warm"}, **more}
            text = json.dumps({"metadata": metadata, "status": status})
            scene.take_any_pod("MODIFIED", msgspec.Raw(text.encode()))

        pool = {"metadata": {"name": "warm"}, "status": {"readyReplicas": 1}}
        scene.take_pool("ADDED", msgspec.Raw(json.dumps(pool).encode()))
        assert not scene.full("warm", 1)
        member("a", ready=False)
        assert not scene.full("warm", 1)
        member("a", ready=True)
        assert scene.full("warm", 1)
        member("a", ready=True, deletionTimestamp="2026-01-01T00:00:00Z")
        assert not scene.full("warm", 1)

    @pytest.mark.parametrize(
        ("owner", "labels", "annotations", "expected"),
        [
            ("ReplicaSet", {}, {}, True),
            ("TokenService", {}, {}, False),
            ("ReplicaSet", {names.LABEL_CLAIM: "tiny"}, {}, False),
            ("ReplicaSet", {}, {names.ANNOTATION_DELETION_COST: "1000"}, False),
        ],
    )
    def test_settled(self, owner: str, labels: dict[str, str], annotations: dict[str, str], expected: bool) -> None:
        owners = [{"kind": owner, "name": "x", "uid": "x", "controller": True}]
        metadata = {"name": "a", "labels": labels, "annotations": annotations, "ownerReferences": owners}
        assert settled(msgspec.convert({"metadata": metadata}, Pod)) is expected


class TestManifests:
    def test_a_pool_has_what_the_model_adds_to_the_pods_of_a_service(self) -> None:
        spec = setup.pool()["spec"]["template"]["spec"]
        assert spec["volumes"] == [
            {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}
        ]
        [server] = spec["containers"]
        assert server["resources"] == setup.service("tiny")["spec"]["template"]["spec"]["containers"][0]["resources"]

    def test_both_models_run_in_one_environment(self) -> None:
        tiny, big = (setup.service(name)["spec"] for name in ("tiny", "big"))
        assert "conda" in tiny["environment"]
        assert big["environment"] == {"ref": {"name": "tiny"}}
        assert big["model"] == {"source": "pvc://models/big"}

    def test_the_bare_pod_runs_the_program_of_its_config_map(self) -> None:
        config, pod = setup.bare_pod("image", 5)
        [container] = pod["spec"]["containers"]
        [program] = config["data"]
        assert f"/program/{program}" in container["command"]


def test_bare_runs(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert architectures(tmp_path) == ["LlamaForCausalLM"]
    runs = [{"imports": number, "load": 2 * number, "token": 1.0} for number in (3.0, 1.0, 2.0)]
    assert medians(runs) == {"imports": 2.0, "load": 4.0, "token": 1.0}
