"""Where the seconds of a pod's start went: put together from what Kubernetes, the kubelet and the server tell. Pure.

Kubernetes' timestamps are whole seconds, so what comes from them (scheduling, container, endpoint) is right to a
second; what the server measures, and how long an image took, is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from tokenservice.api.meta import Pod, stamp, time_of
from tokenservice.api.v1alpha1 import LastStart
from tokenservice.handover.claim import claimed_at, served_at
from tokenservice.pods.failures import readiness

_LOADED = ("imports", "prepare", "weights", "warmup")
"""What the server does, in its own words."""
_ASSIGNED = ("weights", "warmup")
"""Of these, what is left to do once there is an assignment."""
_PULLED = re.compile(r"^Successfully pulled image .* in ([0-9hmsµn.]+)")
_PART = re.compile(r"([0-9.]+)(h|ms|m|s|µs|ns)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
_LEAST_PULL = 2.0
"""Seconds from the scheduling to the start of the container, below which no image can have been pulled."""


def warm(pod: Pod, stages: Mapping[str, float], at: datetime) -> LastStart:
    """The start of a claimed pod, which was put into its Service at that time. stages: what its server told."""
    began = claimed_at(pod) or at
    seconds = max(0.0, (at - began).total_seconds())
    told = {name: stages[name] for name in _ASSIGNED if name in stages}
    claim = max(0.0, seconds - sum(told.values()))
    return _start("Warm", pod, seconds, {"claim": claim, **told}, at)


def cold(pod: Pod, told: Mapping[str, float], pulled: float) -> LastStart | None:
    """The start of a pod that came up by itself; None if it is not Ready, or has been started more than once.

    Args:
        pod: the pod.
        told: stage -> seconds, from its server.
        pulled: seconds that its images took to come; 0 if they were there.

    """
    ready, server = readiness(pod), pod.server
    created = time_of(pod.metadata.creation_timestamp)
    if ready is None or server is None or server.restart_count or server.state.running is None or created is None:
        return None
    at, started = time_of(ready.last_transition_time), time_of(server.state.running.started_at)
    if at is None or started is None:
        return None
    scheduled = _condition(pod, "PodScheduled") or created
    inside = {name: told[name] for name in _LOADED if name in told}
    server_seconds = told.get("process", 0.0) + told.get("total", sum(inside.values()))
    stages = {
        "scheduling": (scheduled - created).total_seconds(),
        "pull": pulled,
        "container": (started - scheduled).total_seconds() - pulled + told.get("process", 0.0),
        **inside,
        "endpoint": (at - started).total_seconds() - server_seconds,
    }
    path = "Cold" if pulled else "Prepulled"
    return _start(path, pod, (at - created).total_seconds(), stages, at)


def may_have_pulled(pod: Pod) -> bool:
    """Whether it took so long to start that its image may have come first."""
    server, scheduled = pod.server, _condition(pod, "PodScheduled")
    started = time_of(server.state.running.started_at) if server and server.state.running else None
    return scheduled is None or started is None or (started - scheduled).total_seconds() >= _LEAST_PULL


def pull_seconds(messages: Iterable[str]) -> float:
    """Seconds that images took to come, from the kubelet's events with the reason Pulled; 0 if all were there."""
    found = (_PULLED.match(message) for message in messages)
    return round(sum(_duration(match.group(1)) for match in found if match), 3)


def told(body: bytes) -> dict[str, float]:
    """The stages in the answer to GET /readyz; empty if there are none."""
    try:
        return msgspec.json.decode(body, type=_Body).start.stages
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def newest(starts: Iterable[LastStart | None]) -> LastStart | None:
    """The one that was over last."""
    return max((each for each in starts if each), key=lambda each: time_of(each.at) or datetime.min, default=None)


def over_at(pod: Pod) -> datetime | None:
    """When the pod's start was over; None if it is not."""
    ready = readiness(pod)
    return served_at(pod) or (time_of(ready.last_transition_time) if ready else None)


class _Told(msgspec.Struct):
    stages: dict[str, float] = {}


class _Body(msgspec.Struct):
    start: _Told = msgspec.field(default_factory=_Told)


def _start(path: str, pod: Pod, seconds: float, stages: Mapping[str, float], at: datetime) -> LastStart:
    rounded = {name: round(max(0.0, value), 3) for name, value in stages.items()}
    return msgspec.convert(
        {"path": path, "seconds": round(seconds, 3), "stages": rounded, "pod": pod.metadata.name, "at": stamp(at)},
        LastStart,
    )


def _condition(pod: Pod, kind: str) -> datetime | None:
    """Since when a condition of the pod is True."""
    found = (each for each in pod.status.conditions if each.type == kind and each.status == "True")
    return next((time_of(each.last_transition_time) for each in found), None)


def _duration(text: str) -> float:
    """Seconds of a duration as Go writes it, such as 1m2.5s."""
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
