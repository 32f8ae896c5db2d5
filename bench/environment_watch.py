"""When Jobs were made, when they had a result, and when CondaEnvironments became Ready: one clock, three watches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import msgspec
from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironmentStatus
from tokenservice.api.jobs import JobResult, decode_result

from bench.client import Api
from bench.cluster import SYSTEM, BenchError

T = TypeVar("T")
Key = tuple[str, str]
"""Namespace and name."""


@dataclass
class JobRun:
    """A Job: `stage` is lock, build or collect; times are of the monotonic clock, in seconds."""

    name: str
    stage: str
    created: float
    ended: float | None = None
    result: JobResult | None = None


def stage_seconds(jobs: Iterable[JobRun], stage: str, since: float) -> float | None:
    """From the making of the stage's Job to its result, Job start included; None if there was no Job or no result.

    A Job that had to be made again counts from the first one's making.
    """
    runs = [job for job in jobs if job.stage == stage and job.created >= since]
    ends = [job.ended for job in runs if job.ended is not None and succeeded(job)]
    return min(ends) - min(job.created for job in runs) if ends else None


def succeeded(job: JobRun) -> bool:
    """Whether it came to a digest."""
    return job.result is not None and bool(job.result.lock or job.result.build)


class _Metadata(msgspec.Struct, rename="camel"):
    name: str
    uid: str
    namespace: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    owner_references: list[dict[str, Any]] = []


class _Terminated(msgspec.Struct):
    message: str = ""


class _State(msgspec.Struct, frozen=True):
    terminated: _Terminated | None = None


class _Container(msgspec.Struct):
    state: _State = _State()


class _PodStatus(msgspec.Struct, rename="camel", frozen=True):
    container_statuses: list[_Container] = []


class Pod(msgspec.Struct):
    """A Job's pod."""

    metadata: _Metadata
    status: _PodStatus = _PodStatus()


class Job(msgspec.Struct):
    """A Job."""

    metadata: _Metadata


class Environment(msgspec.Struct):
    """A CondaEnvironment."""

    metadata: _Metadata
    status: CondaEnvironmentStatus = CondaEnvironmentStatus()

    @property
    def ready(self) -> bool:
        condition = self.status.condition("Ready")
        settled = self.status.observed_generation == self.metadata.generation
        return settled and condition is not None and condition.status == "True"

    @property
    def says(self) -> str:
        """Why it is not Ready."""
        condition = self.status.condition("Ready")
        return f"{condition.reason}: {condition.message}" if condition else "nothing yet"


@dataclass
class Moments:
    """What was seen, and when. `clock` is the monotonic clock."""

    clock: Callable[[], float] = time.monotonic
    jobs: dict[str, JobRun] = field(default_factory=dict)
    """By uid."""
    environments: dict[Key, Environment] = field(default_factory=dict)
    ready_at: dict[tuple[str, int], float] = field(default_factory=dict)
    """By uid and generation."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    problem: BaseException | None = None
    """Why a watch has ended for good."""

    def take_end(self, watch: asyncio.Task[None]) -> None:
        self.problem = None if watch.cancelled() else watch.exception()
        self.changed.set()

    def take_job(self, kind: str, data: msgspec.Raw) -> None:
        metadata = msgspec.json.decode(data, type=Job).metadata
        if kind == "ADDED" and metadata.uid not in self.jobs:
            self.jobs[metadata.uid] = JobRun(metadata.name, metadata.labels.get(names.LABEL_JOB, ""), self.clock())

    def take_pod(self, _: str, data: msgspec.Raw) -> None:
        pod = msgspec.json.decode(data, type=Pod)
        messages = [each.state.terminated.message for each in pod.status.container_statuses if each.state.terminated]
        results = [found for message in messages if (found := decode_result(message))]
        for owner in pod.metadata.owner_references:
            job = self.jobs.get(owner.get("uid", ""))
            if job and results and not succeeded(job):
                job.result, job.ended = results[-1], self.clock()

    def take_environment(self, kind: str, data: msgspec.Raw) -> None:
        found = msgspec.json.decode(data, type=Environment)
        key = (found.metadata.namespace, found.metadata.name)
        if kind == "DELETED":
            self.environments.pop(key, None)
            return
        self.environments[key] = found
        if found.ready:
            self.ready_at.setdefault((found.metadata.uid, found.metadata.generation), self.clock())

    async def until(self, find: Callable[[], T | None], otherwise: Callable[[], str], seconds: float) -> T:
        """What `find` finds, as soon as it is not None. Raises BenchError with `otherwise()` after so long."""
        try:
            async with asyncio.timeout(seconds):
                while (found := find()) is None:
                    if self.problem:
                        raise BenchError(f"a watch has ended: {self.problem}")
                    self.changed.clear()
                    await self.changed.wait()
                return found
        except TimeoutError:
            raise BenchError(f"{otherwise()}, after {seconds:g} s") from None

    async def until_ready(self, key: Key, since: float, image_before: str | None, seconds: float) -> Environment:
        """The environment, Ready since `since` or later, with another image than the one before."""

        def find() -> Environment | None:
            found = self.environments.get(key)
            if found is None or not found.ready or found.status.image == image_before:
                return None
            return found if self.at(found) >= since else None

        def otherwise() -> str:
            found = self.environments.get(key)
            return f"CondaEnvironment {key[1]} is not Ready ({found.says if found else 'it is not there'})"

        return await self.until(find, otherwise, seconds)

    def at(self, environment: Environment) -> float:
        """When it became Ready."""
        return self.ready_at[environment.metadata.uid, environment.metadata.generation]

    def runs(self) -> Sequence[JobRun]:
        return tuple(self.jobs.values())


class Watching(Api):
    """The bare client, with watches. Use it with `async with`, `seen` within."""

    @contextlib.asynccontextmanager
    async def seen(self) -> AsyncGenerator[Moments, None]:
        """What happens from now on."""
        moments = Moments()
        jobs = f"labelSelector={names.LABEL_JOB}"
        watches = (
            (f"/apis/batch/v1/namespaces/{SYSTEM}/jobs?{jobs}", moments.take_job),
            (f"/api/v1/namespaces/{SYSTEM}/pods?{jobs}", moments.take_pod),
            (f"/apis/{names.API_VERSION}/condaenvironments?", moments.take_environment),
        )
        async with self._following(watches, moments):
            yield moments

    @contextlib.asynccontextmanager
    async def _following(
        self, watches: Iterable[tuple[str, Callable[[str, msgspec.Raw], None]]], moments: Moments
    ) -> AsyncGenerator[None, None]:
        """Paths, and who takes what is seen there."""
        tasks = [asyncio.create_task(self._follow(path, take, moments)) for path, take in watches]
        for task in tasks:
            task.add_done_callback(moments.take_end)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, path: str, take: Callable[[str, msgspec.Raw], None], moments: Moments) -> None:
        while True:
            # The server may end a watch at any time; the next one begins with everything there is.
            with contextlib.suppress(aiohttp.ClientError):
                await self._watch_once(f"{path}&watch=true&resourceVersion=0", take, moments)
            await asyncio.sleep(0.2)

    async def _watch_once(self, path: str, take: Callable[[str, msgspec.Raw], None], moments: Moments) -> None:
        rest = b""
        async with self._session.get(path, timeout=aiohttp.ClientTimeout(total=None)) as answer:
            answer.raise_for_status()
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = msgspec.json.decode(line, type=_Event)
                    if event.type in ("ADDED", "MODIFIED", "DELETED"):
                        take(event.type, event.object)
                        moments.changed.set()


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw
