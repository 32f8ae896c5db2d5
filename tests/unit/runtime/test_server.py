"""The operator's HTTP server, and the series that it shows."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tokenservice.runtime.controller import Controller, Result
from tokenservice.runtime.metrics import Metrics
from tokenservice.runtime.queue import KeyedQueue
from tokenservice.runtime.server import Server


async def test_health_and_readiness() -> None:
    problem: str | None = "caches are filling"
    server = Server(Metrics().registry, ready=lambda: problem, host="127.0.0.1", port=0)
    async with server, aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        async with session.get("/healthz") as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")
        async with session.get("/readyz") as answer:
            assert (answer.status, await answer.text()) == (503, "caches are filling\n")
        problem = None
        async with session.get("/readyz") as answer:
            assert answer.status == 200
        async with session.get("/other") as answer:
            assert answer.status == 404


async def test_a_taken_port_is_told() -> None:
    async with Server(Metrics().registry, host="127.0.0.1", port=0) as first:
        with pytest.raises(OSError, match="address already in use"):
            await Server(Metrics().registry, host="127.0.0.1", port=first.port).start()


async def test_metrics_are_there_from_the_start_and_count() -> None:
    metrics = Metrics()
    queue: KeyedQueue[str] = KeyedQueue("tokenservice", metrics=metrics.queue("tokenservice"))

    async def reconcile(key: str) -> Result:
        if key == "bad":
            raise ValueError
        return Result()

    controller = Controller("tokenservice", queue, reconcile, metrics=metrics.controller("tokenservice"))
    metrics.watch("pods", lambda: 1.5)

    async def scrape(session: aiohttp.ClientSession) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        async with session.get("/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            families = text_string_to_metric_families(await answer.text())
            return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}

    def of(name: str, /, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        return name, tuple(sorted(labels.items()))

    async with (
        Server(metrics.registry, host="127.0.0.1", port=0) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session,
    ):
        zero = await scrape(session)
        for series in (
            of("workqueue_depth", name="tokenservice"),
            of("workqueue_adds_total", name="tokenservice"),
            of("workqueue_retries_total", name="tokenservice"),
            of("workqueue_queue_duration_seconds_count", name="tokenservice"),
            of("workqueue_work_duration_seconds_count", name="tokenservice"),
            of("controller_runtime_reconcile_total", controller="tokenservice", result="success"),
            of("controller_runtime_reconcile_total", controller="tokenservice", result="error"),
            of("controller_runtime_reconcile_errors_total", controller="tokenservice"),
            of("controller_runtime_reconcile_time_seconds_count", controller="tokenservice"),
            of("controller_runtime_active_workers", controller="tokenservice"),
            of("tokenservice_watch_restarts_total", resource="pods", cause="expired"),
            of("tokenservice_events_dropped_total", cause="full"),
        ):
            assert zero[series] == 0, series
        assert zero[of("tokenservice_watch_last_event_age_seconds", resource="pods")] == 1.5
        task = asyncio.create_task(controller.run())
        for key in ("a", "b", "bad"):
            queue.add(key)
        async with asyncio.timeout(5):
            while not queue.idle:  # noqa: ASYNC110
                await asyncio.sleep(0)
        metrics.request("PATCH", "api:6443", "200")
        task.cancel()
        await asyncio.wait([task])
        after = await scrape(session)
        assert after[of("workqueue_adds_total", name="tokenservice")] == 3
        assert after[of("workqueue_retries_total", name="tokenservice")] == 1
        assert after[of("controller_runtime_reconcile_total", controller="tokenservice", result="success")] == 2
        assert after[of("controller_runtime_reconcile_errors_total", controller="tokenservice")] == 1
        assert after[of("rest_client_requests_total", method="PATCH", code="200", host="api:6443")] == 1
        assert any(name == "process_resident_memory_bytes" for name, _ in after)
