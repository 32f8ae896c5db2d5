"""Leader election: the decision as a table, many simulated interleavings, and the elector against a stand-in server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenservice.kube.client import Client
from tokenservice.kube.connection import Connection
from tokenservice.kube.lease import Elector, LeaseLost, Observed, Timing, next_step, record, see

from tests.unit.kube.conftest import Until
from tests.unit.kube.standin_api import StandinApi, error

TIMING = Timing()
FAST = Timing(lease_duration=6.0, renew_deadline=1.5, retry_period=0.05)
ROOMY = Timing(retry_period=0.05)  # on a busy machine a test may be away for a second or two


def held(by: str, *, at: float = 0.0, duration: float = 15.0) -> Observed:
    return Observed(holder=by, duration=duration, version="1", first_seen=at)


@pytest.mark.parametrize(
    ("observed", "now", "leading_since", "step"),
    [
        (Observed(), 0, None, "create"),
        (held("other"), 14.9, None, "wait"),
        (held("other"), 15.0, None, "acquire"),
        (held("other", duration=60), 59, None, "wait"),  # the holder's own duration counts
        (held("other", duration=0), 14, None, "wait"),
        (held(""), 0, None, "acquire"),  # given back
        (held("me"), 0, None, "acquire"),  # the answer to our own acquisition was lost
        (held("me"), 9.9, 0.0, "renew"),
        (held("me"), 10.0, 0.0, "lost"),  # could not renew in time
        (held("other"), 1.0, 0.0, "lost"),  # someone else holds it, for whatever reason
        (held(""), 1.0, 0.0, "lost"),
        (Observed(), 1.0, 0.0, "create"),  # somebody deleted it: made again, unless somebody else was faster
    ],
)
def test_next_step(observed: Observed, now: float, leading_since: float | None, step: str) -> None:
    assert next_step(observed, now, "me", leading_since, TIMING) == step


def test_the_time_counts_from_when_this_version_was_first_seen() -> None:
    def lease(version: str) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 15}}

    first = see(Observed(), lease("1"), 5.0)
    assert see(first, lease("1"), 9.0) == first
    assert see(first, lease("2"), 9.0).first_seen == 9.0
    assert see(first, None, 9.0).version is None


def test_record_keeps_what_is_not_ours() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    lease = {
        "metadata": {"resourceVersion": "7", "labels": {"a": "b"}},
        "spec": {"leaseTransitions": 3, "strategy": "x"},
    }
    out = record(lease, "me", 15, now, "acquire")
    assert out["metadata"] == lease["metadata"]
    assert out["spec"] == {
        "leaseTransitions": 4, "strategy": "x", "holderIdentity": "me", "leaseDurationSeconds": 15,
        "acquireTime": "2026-01-02T03:04:05.678901Z", "renewTime": "2026-01-02T03:04:05.678901Z",
    }  # fmt: skip
    assert "acquireTime" not in record(lease, "me", 15, now, "renew")["spec"]


@pytest.mark.parametrize("timing", [(10, 10, 2), (15, 10, 10), (15, 10, 0)])
def test_timing_must_make_sense(timing: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="retry period < renew deadline < lease duration"):
        Timing(*timing)


@dataclass
class SimulatedServer:
    version: int = 0
    lease: dict[str, Any] | None = None


@dataclass
class SimulatedCandidate:
    """A candidate as the elector acts, with its own clock, and calls that may hang, get lost, or lose their answer."""

    name: str
    offset: float
    observed: Observed = field(default_factory=Observed)
    lease: dict[str, Any] | None = None
    since: float | None = None
    ended: bool = False
    on_the_way: tuple[dict[str, Any], str, float] | None = (
        None  # a write that has been sent: record, base version, when
    )

    def leads(self, now: float) -> bool:
        return not self.ended and self.since is not None and now + self.offset - self.since < TIMING.renew_deadline

    def act(self, server: SimulatedServer, now: float, fate: str) -> None:
        local = now + self.offset
        if self.on_the_way is not None:
            self._arrive(server, local, fate)
            return
        if self.since is None or self.lease is None or fate == "read":
            if fate == "lost":
                return
            self._read(server, local)
        step = next_step(self.observed, local, self.name, self.since, TIMING)
        if step == "lost":
            self.ended = True
        elif step != "wait":
            body = {"spec": {"holderIdentity": self.name, "leaseDurationSeconds": 15}}
            self.on_the_way = (body, self.observed.version or "", local)
            if fate != "slow":
                self._arrive(server, local, fate)

    def _read(self, server: SimulatedServer, local: float) -> None:
        self.lease = server.lease
        self.observed = see(self.observed, server.lease, local)

    def _arrive(self, server: SimulatedServer, local: float, fate: str) -> None:
        assert self.on_the_way is not None
        body, base, sent = self.on_the_way
        self.on_the_way = None
        current = server.lease["metadata"]["resourceVersion"] if server.lease else ""
        if fate == "lost":
            return
        if base == current:
            server.version += 1
            server.lease = {**body, "metadata": {"resourceVersion": str(server.version)}}
            if (
                fate != "no answer" and local - sent < TIMING.renew_deadline / 2
            ):  # the elector's own time limit of a call
                self._read(server, local)
                self.since = sent
        else:
            self.lease = None
            self._read(server, local)


MOVES = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.floats(0.0, 6.0),
        st.sampled_from(["well", "well", "well", "slow", "lost", "no answer", "read"]),
    ),
    max_size=120,
)


@settings(max_examples=200, deadline=None)
@given(MOVES, st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)))
def test_never_two_leaders(moves: list[tuple[int, float, str]], offsets: tuple[float, float, float]) -> None:
    server = SimulatedServer()
    candidates = [SimulatedCandidate(f"c{i}", offset) for i, offset in enumerate(offsets)]
    now = 0.0
    for who, pause, fate in moves:
        now += pause
        candidate = candidates[who]
        if candidate.ended:  # the process ended; a new one takes its place
            candidates[who] = candidate = replace(
                SimulatedCandidate(f"{candidate.name}'", candidate.offset), observed=Observed()
            )
        candidate.act(server, now, fate)
        assert sum(each.leads(now) for each in candidates) <= 1, candidates


def test_the_simulation_can_show_two_leaders() -> None:
    """The property above would be worthless if the simulated world could not break it: without waiting, it does."""
    server = SimulatedServer()
    one, two = SimulatedCandidate("c0", 0.0), SimulatedCandidate("c1", 0.0)
    one.act(server, 0.0, "well")
    two.observed = see(Observed(), server.lease, -100.0)  # as if the record had been seen long ago
    two.lease = server.lease
    two.act(server, 1.0, "well")
    assert one.leads(1.0)
    assert two.leads(1.0)


def elector(client: Client, identity: str, timing: Timing = ROOMY, **options: Any) -> Elector:
    return Elector(client, identity=identity, namespace="sys", name="lease", timing=timing, **options)


def lease(api: StandinApi) -> dict[str, Any]:
    spec: dict[str, Any] = api.objects["sys", "lease"]["spec"]
    return spec


async def test_the_second_leads_when_the_first_gives_it_back(api: StandinApi, client: Client, until: Until) -> None:
    events: list[str] = []

    async def work(name: str) -> None:
        events.append(f"{name} starts")
        try:
            await asyncio.Event().wait()
        finally:
            events.append(f"{name} ends")

    turns: list[bool] = []
    a, b = elector(client, "a", on_leading=turns.append), elector(client, "b")
    one = asyncio.create_task(a.run(lambda: work("a")))
    await until(lambda: a.leading)
    two = asyncio.create_task(b.run(lambda: work("b")))
    await until(lambda: b.holder == "a")
    assert lease(api)["holderIdentity"] == "a"
    assert lease(api)["leaseDurationSeconds"] == 15
    renewed = lease(api)["renewTime"]
    await until(lambda: lease(api)["renewTime"] > renewed)
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    await until(lambda: len(events) > 2)  # a little after `leading`: the work is a task of its own
    assert events == ["a starts", "a ends", "b starts"]
    assert b.leading
    assert turns == [True, False]
    assert not a.leading
    assert lease(api)["leaseTransitions"] == 1
    two.cancel()
    await asyncio.wait([two])
    assert lease(api)["holderIdentity"] == ""


async def test_the_lease_is_given_back_when_the_work_ends(api: StandinApi, client: Client) -> None:
    async def work() -> None:
        assert lease(api)["holderIdentity"] == "a"

    await elector(client, "a").run(work)
    assert lease(api)["holderIdentity"] == ""


async def test_what_the_work_raises_comes_out(api: StandinApi, client: Client) -> None:
    async def work() -> None:
        raise ValueError("from the work")

    with pytest.raises(ValueError, match="from the work"):
        await elector(client, "a").run(work)
    assert lease(api)["holderIdentity"] == ""


async def test_a_hung_server_ends_the_leader_in_time(api: StandinApi) -> None:
    ended = asyncio.Event()

    async def work() -> None:
        api.hang.clear()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with Client(Connection(api.url), timeout=30) as client:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(LeaseLost, match=r"could not be renewed for 1\.5 s"):
            await elector(client, "a", FAST).run(work)
        assert FAST.renew_deadline <= loop.time() - started < FAST.lease_duration
        assert ended.is_set()


async def test_a_server_that_answers_errors_ends_the_leader(api: StandinApi, client: Client) -> None:
    async def work() -> None:
        api.answers += [error(500, "InternalError") for _ in range(1000)]
        await asyncio.Event().wait()

    with pytest.raises(LeaseLost, match="InternalError"):
        await elector(client, "a", FAST).run(work)


async def test_a_lease_that_another_took_ends_the_leader_at_once(api: StandinApi, client: Client) -> None:
    async def work() -> None:
        await api.put("lease", "sys", spec={"holderIdentity": "thief", "leaseDurationSeconds": 15})
        await asyncio.Event().wait()

    with pytest.raises(LeaseLost, match="now held by 'thief'"):
        await elector(client, "a").run(work)
    assert lease(api)["holderIdentity"] == "thief"


async def test_a_conflict_that_takes_nothing_away_is_no_loss(api: StandinApi, client: Client, until: Until) -> None:
    leader = elector(client, "a")
    task = asyncio.create_task(leader.run(asyncio.Event().wait))  # type: ignore[arg-type]
    await until(lambda: leader.leading)
    conflicts = 0

    async def conflict(request: web.Request) -> web.StreamResponse:
        nonlocal conflicts
        conflicts += 1
        await api.put("lease", "sys", spec=lease(api))  # someone labels it just now
        return error(409, "Conflict")

    for wanted in (1, 2, 3):
        api.answers.append(conflict)
        await until(partial(lambda count: conflicts == count, wanted))
        renewed = lease(api)["renewTime"]
        await until(partial(lambda time: lease(api)["renewTime"] > time, renewed))
        assert leader.leading
    task.cancel()
    await asyncio.wait([task])


async def test_the_leader_is_replaced_when_it_vanishes(api: StandinApi, client: Client, until: Until) -> None:
    await api.put("lease", "sys", spec={"holderIdentity": "dead", "leaseDurationSeconds": 1})
    follower = elector(client, "b")
    loop = asyncio.get_running_loop()
    started = loop.time()
    task = asyncio.create_task(follower.run(asyncio.Event().wait))  # type: ignore[arg-type]
    await until(lambda: follower.leading)
    assert loop.time() - started >= 1.0
    task.cancel()
    await asyncio.wait([task])


async def test_saturated_client_does_not_cost_the_lease(api: StandinApi, until: Until) -> None:
    stuck = asyncio.Event()

    async def slow(request):  # type: ignore[no-untyped-def]
        await stuck.wait()
        return error(500, "late")

    async with Client(Connection(api.url), max_in_flight=1) as client:
        leader = elector(client, "a")
        task = asyncio.create_task(leader.run(asyncio.Event().wait))  # type: ignore[arg-type]
        await until(lambda: leader.leading)
        api.answers.append(slow)
        blocked = asyncio.create_task(client.request("GET", "/apis/x/v1/namespaces/n/things/a"))
        renewed = json.dumps(lease(api))
        await until(lambda: not api.answers and json.dumps(lease(api)) != renewed)
        stuck.set()
        await asyncio.wait([blocked])
        assert isinstance(blocked.exception(), Exception)
        assert leader.leading
        task.cancel()
        await asyncio.wait([task])
