"""The client beside the node (start_client.py) as a process of the benchmark's: one order at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import start_client
from bench.cluster import ROOT, BenchError, Cluster
from bench.containerd import LOCALCLUSTER
from bench.start_client import Answer, Order

REFUSED_SECONDS = 10.0


class Asker:
    """Gives orders, and takes the answers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def beside(cls, cluster: Cluster) -> AsyncGenerator[Asker, None]:
        """On the cluster's first node, with this Python."""
        command = (*LOCALCLUSTER, "exec", "--name", str(cluster.facts["name"]), "--")
        program = str(Path(start_client.__file__))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, sys.executable, program, stdin=pipe, stdout=pipe, cwd=ROOT
        )
        try:
            yield cls(process)
        finally:
            if process.stdin:
                process.stdin.close()  # with no more orders, it ends
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), start_client.ANSWER_SECONDS)

    async def begin(self, order: Order) -> None:
        """Has the client ask; returns once it was refused. Raises BenchError if it was not."""
        if self._process.stdin is None:
            raise BenchError("the client takes no orders")
        self._process.stdin.write(f"{json.dumps(asdict(order))}\n".encode())
        told = await self._line(start_client.CONNECT_SECONDS + start_client.ANSWER_SECONDS + REFUSED_SECONDS)
        if not told.get("asking"):
            raise BenchError("the Service answers before the edit")

    async def answer(self, order: Order) -> Answer:
        """What came of the order that was begun. Raises BenchError if the client says nothing."""
        told = await self._line(order.seconds + start_client.ANSWER_SECONDS + REFUSED_SECONDS)
        told.pop("asking")
        return Answer(**told)

    async def _line(self, seconds: float) -> dict[str, Any]:
        if self._process.stdout is None:
            raise BenchError("the client gives no answers")
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), seconds)
        except TimeoutError:
            raise BenchError(f"the client says nothing for {seconds:g} s") from None
        if not line:
            raise BenchError("the client has ended")
        found: dict[str, Any] = json.loads(line)
        return found
