from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tokenservice.kube.client import Client
from tokenservice.kube.connection import Connection

from tests.unit.kube.standin_api import StandinApi

Until = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
async def api() -> AsyncIterator[StandinApi]:
    async with StandinApi().serve() as server:
        yield server


@pytest.fixture
async def client(api: StandinApi) -> AsyncIterator[Client]:
    async with Client(Connection(api.url), connect_timeout=1, timeout=5) as client:
        yield client


@pytest.fixture
def until() -> Until:
    """Waits for a condition, at most 10 s."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - any condition, not one that an Event could tell
                await asyncio.sleep(0.005)

    return wait
