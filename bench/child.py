"""A program of the benchmark as a process of its own, that ends when the benchmark does, however that ends.

It is told its work as one line of JSON on its input, says `ready`, and ends when its input is closed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.cluster import ROOT, BenchError

READY = b"ready\n"
MOST_BYTES = 1 << 20


class Child:
    """The parent's side: `python -m MODULE`. Use it with `async with`; inside, it is ready."""

    def __init__(self, module: str, task: bytes, log: Path, seconds: float = 60.0) -> None:
        self._module = module
        self._task = task
        self._log = log
        self._seconds = seconds

    async def __aenter__(self) -> Child:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
            )
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(self._task + b"\n")
            said = await asyncio.wait_for(self._process.stdout.readline(), self._seconds)
        except (OSError, TimeoutError):
            said = b""
        if said != READY:
            await self._kill()
            words = self._log.read_text(errors="replace").splitlines()[-5:]
            raise BenchError(f"{self._module} does not begin; its last words:\n" + "\n".join(words))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def end(self) -> None:
        """Ends it. Raises BenchError if it had ended by itself, or ends with another status than 0."""
        process = self._process
        early = process.returncode
        if early is None and process.stdin:
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                await self._kill()
        if early is not None or process.returncode:
            words = self._log.read_text(errors="replace").splitlines()[-5:]
            raise BenchError(f"{self._module}: exit status {process.returncode}; its last words:\n" + "\n".join(words))

    async def _kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def serve(work: Callable[[bytes, Callable[[], None]], Awaitable[None]]) -> None:
    """The child's side: runs `work` until the input is closed.

    work: given the task and what to call once it is ready.
    """
    reader = asyncio.StreamReader(limit=MOST_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    task = await reader.readline()

    def ready() -> None:
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()

    running = asyncio.ensure_future(work(task, ready))
    closed = asyncio.ensure_future(reader.read())
    await asyncio.wait({running, closed}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
        raise BenchError("the work has ended by itself")
    running.cancel()
    await asyncio.wait({running})
