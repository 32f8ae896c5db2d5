"""Where a start's seconds went, from what Kubernetes, the kubelet and the server tell."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tokenservice.api.meta import Pod
from tokenservice.api.v1alpha1 import LastStart
from tokenservice.handover import starts

TOLD = {"process": 0.5, "imports": 5.0, "weights": 0.2, "warmup": 0.05, "total": 5.3}


def pod(
    *, created: str = "12:00:00", scheduled: str | None = "12:00:01", started: str = "12:00:03", **more: Any
) -> Pod:
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": day(more.get("ready", "12:00:10"))}]
    if scheduled:
        conditions.append({"type": "PodScheduled", "status": "True", "lastTransitionTime": day(scheduled)})
    state = {"running": {"startedAt": day(started)}}
    container = {"name": "server", "ready": True, "restartCount": more.get("restarts", 0), "state": state}
    metadata = {"name": "chat-1", "creationTimestamp": day(created), "annotations": more.get("annotations", {})}
    raw = {"metadata": metadata, "status": {"conditions": conditions, "containerStatuses": [container]}}
    return msgspec.convert(raw, Pod)


def day(time: str) -> str:
    return f"2026-03-01T{time}Z"


def stages(start: LastStart | None) -> dict[str, float]:
    assert start
    return {name: seconds for name, seconds in msgspec.structs.asdict(start.stages).items() if seconds is not None}


def test_with_the_image_on_the_node() -> None:
    found = starts.cold(pod(), TOLD, 0.0)
    assert found
    assert (found.path, found.seconds, found.pod, found.at) == ("Prepulled", 10.0, "chat-1", day("12:00:10"))
    assert stages(found) == {
        **{"scheduling": 1.0, "pull": 0.0, "container": 2.5},
        **{"imports": 5.0, "weights": 0.2, "warmup": 0.05},
        "endpoint": 1.2,
    }


def test_with_an_image_that_comes_first() -> None:
    found = starts.cold(pod(started="12:00:45", ready="12:00:52"), TOLD, 43.5)
    assert found
    assert (found.path, found.seconds) == ("Cold", 52.0)
    assert stages(found)["pull"] == 43.5
    assert stages(found)["container"] == 1.0


def test_no_stage_is_negative_though_timestamps_are_whole_seconds() -> None:
    found = stages(starts.cold(pod(scheduled="12:00:03", started="12:00:03", ready="12:00:08"), TOLD, 0.0))
    assert all(seconds >= 0 for seconds in found.values())
    assert found["endpoint"] == 0.0


@pytest.mark.parametrize("more", [{"restarts": 1}])
def test_a_second_start_of_the_container_is_none_of_the_pod(more: dict[str, Any]) -> None:
    assert starts.cold(pod(**more), TOLD, 0.0) is None


def test_of_a_pod_that_is_not_ready_there_is_none() -> None:
    found = pod()
    unready = msgspec.structs.replace(found, status=msgspec.structs.replace(found.status, conditions=()))
    assert starts.cold(unready, TOLD, 0.0) is None
    assert starts.over_at(unready) is None


def test_out_of_a_pool() -> None:
    claimed = {"tokenservice.dev/claimed-at": "2026-03-01T12:00:00.100Z"}
    at = starts.time_of("2026-03-01T12:00:00.350Z")
    assert at
    found = starts.warm(pod(annotations=claimed), {"imports": 5.0, "weights": 0.15, "warmup": 0.01, "total": 0.16}, at)
    assert (found.path, found.seconds) == ("Warm", 0.25)
    assert stages(found) == {"claim": 0.09, "weights": 0.15, "warmup": 0.01}, "imports were before"


@pytest.mark.parametrize(
    ("messages", "seconds"),
    [
        (
            ['Successfully pulled image "r/x@sha256:1" in 43.483s (43.483s including waiting). Image size: 1 bytes.'],
            43.483,
        ),
        (['Successfully pulled image "x" in 1m2.5s (1m3s including waiting). Image size: 1 bytes.'], 62.5),
        (['Successfully pulled image "x" in 532ms (532ms including waiting). Image size: 1 bytes.'], 0.532),
        (
            [
                'Successfully pulled image "x" in 1s (1s including waiting).',
                'Successfully pulled image "y" in 2s (3s in)',
            ],
            3.0,
        ),
        (['Container image "x" already present on machine'], 0.0),
        ([], 0.0),
    ],
)
def test_how_long_images_took(messages: list[str], seconds: float) -> None:
    assert starts.pull_seconds(messages) == seconds


@pytest.mark.parametrize(
    ("more", "expected"),
    [({}, True), ({"started": "12:00:02"}, False), ({"scheduled": None}, True)],
)
def test_whether_an_image_may_have_come(more: dict[str, Any], expected: bool) -> None:
    assert starts.may_have_pulled(pod(**more)) is expected


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"start": 3}', b'{"status": "ready"}', b"\xff", b"[" * 9999])
def test_a_server_that_tells_nothing(body: bytes) -> None:
    assert starts.told(body) == {}


def test_what_a_server_tells() -> None:
    assert starts.told(b'{"status": "ready", "start": {"stages": {"imports": 5.0}, "warm": false}}') == {"imports": 5.0}


def test_the_newest_is_the_one_that_was_over_last() -> None:
    older, newer = (starts.cold(pod(ready=ready), TOLD, 0.0) for ready in ("12:00:10", "12:00:11"))
    assert starts.newest((newer, None, older)) == newer
    assert starts.newest((None,)) is None
