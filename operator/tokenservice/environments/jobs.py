"""The Jobs of the operator's namespace as the controller sees and changes them: thin effects around pure modules."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

import msgspec

from tokenservice.api import names
from tokenservice.api.jobs import LockRequest, Request, decode_result
from tokenservice.api.meta import Pod, Struct
from tokenservice.environments import nodes, render
from tokenservice.environments.attempts import Attempt, Job, lacks_pods, succeeded, unexplained
from tokenservice.environments.needs import Need, job_name, with_cuda
from tokenservice.kube.client import Client, decode
from tokenservice.kube.errors import ApiError
from tokenservice.kube.resources import CORE_EVENTS, JOBS, PODS
from tokenservice.runtime.logs import get_logger

LABEL_JOB_NAME = "batch.kubernetes.io/job-name"
"""Set by the Job controller on the pods that it makes."""

LOG_BYTES = 64 << 10
TAKEN_SECONDS = 5.0
"""How long a watch may take to tell of a Job."""
_EXPLAINED = 64

T = TypeVar("T")

_log = get_logger("tokenservice.environments")


class RefusedError(Exception):
    """The API server takes no Job; the text says why."""


class Cache(Protocol[T]):
    """What is needed of an informer."""

    def by_index(self, key: str) -> tuple[T, ...]: ...

    def all(self) -> Iterable[T]: ...

    def decode(self, data: bytes) -> T: ...

    def observe(self, obj: T) -> None: ...


@dataclass(frozen=True)
class Caches:
    """Jobs, indexed by the hash of the need; their pods, indexed by the Job's name."""

    jobs: Cache[Job]
    pods: Cache[Pod]


class Nothing(Generic[T]):
    """A cache that holds nothing, for an operator that makes no Jobs and has no right to watch any."""

    def by_index(self, key: str) -> tuple[T, ...]:  # noqa: ARG002 - a Cache's
        return ()

    def all(self) -> Iterable[T]:
        return ()

    def decode(self, data: bytes) -> T:
        raise NotImplementedError("there is nothing to decode")

    def observe(self, obj: T) -> None:
        raise NotImplementedError("there is nothing to observe")


class _Event(Struct, frozen=True, kw_only=True):
    reason: str = ""
    message: str = ""
    last_timestamp: str | None = None


class _Events(msgspec.Struct):
    items: list[_Event]


class Jobs:
    """Finds, makes and deletes Jobs. `template` None: none are made."""

    def __init__(
        self,
        client: Client,
        caches: Caches,
        namespace: str,
        template: render.Manifest | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._client = client
        self._caches = caches
        self._namespace = namespace
        self._template = template
        self._explanations: OrderedDict[str, str] = OrderedDict()
        """Pod's uid -> what it explained at length, to be read once."""
        self._taken: dict[str, float] = {}
        """Name of a Job that exists, though no watch has told of it -> since when that is known."""

    @property
    def enabled(self) -> bool:
        return self._template is not None

    def all(self) -> tuple[Job, ...]:
        return tuple(self._caches.jobs.all())

    def unfinished(self) -> tuple[Job, ...]:
        """All but those of which a pod has told its success; that the Job has ended is known a little later."""
        return tuple(job for job in self.all() if not succeeded(self._pods(job)))

    def _pods(self, job: Job) -> tuple[Pod, ...]:
        # A Job may have had an earlier one of its name, whose pods are not gone yet.
        return tuple(pod for pod in self._caches.pods.by_index(job.metadata.name) if _owner(pod) == job.metadata.uid)

    async def attempt(self, need: Need, now: datetime) -> Attempt | None:
        """The newest Job that sees to `need`, with what can be told of it only by asking.

        Raises:
            ApiError, Unreachable: the API server cannot tell now.

        """
        jobs = [job for job in self._caches.jobs.by_index(need.hash) if _stage(job) == need.stage]
        if not jobs:
            return None
        job = max(jobs, key=lambda job: (job.metadata.creation_timestamp or "", job.metadata.name))
        pods = self._pods(job)
        attempt = Attempt(job, pods)
        pod = unexplained(attempt)
        if pod is not None:
            return Attempt(job, pods, explanation=await self._explanation(pod))
        if lacks_pods(attempt, now):
            return Attempt(job, pods, refused=await self._refused(job))
        return attempt

    async def create(self, need: Need) -> Job:
        """Makes the Job for `need`.

        Raises:
            RefusedError: the API server takes none.
            ApiError, Unreachable: something else; may pass.

        """
        request = need.request
        if isinstance(request, LockRequest) and request.virtual_packages.cuda is None and request.lock is None:
            request = with_cuda(request, await nodes.cuda(self._client))
        return await self.create_as(job_name(need, request), need.hash, request)

    async def create_as(self, name: str, need: str, request: Request) -> Job:
        """As `create`, for any request."""
        if self._template is None:
            raise RefusedError("there is no template to make Jobs of")
        manifest = render.job(self._template, self._namespace, name, need, request)
        try:
            body = await self._client.create(JOBS, self._namespace, manifest)
        except ApiError as error:
            if error.is_already_exists:
                return self._existing(name, need, error)
            if error.is_forbidden or error.is_leaving or error.is_invalid or error.is_not_found:
                raise RefusedError(error.message) from error
            raise
        self._taken.pop(name, None)
        _log.info("created", action="Job", job=name, namespace=self._namespace)
        job = self._caches.jobs.decode(body)
        self._caches.jobs.observe(job)
        return job

    async def delete(self, job: Job, why: str) -> None:
        """Deletes the Job and its pods, unless it is gone already."""
        try:
            await self._client.delete(JOBS, self._namespace, job.metadata.name, uid=job.metadata.uid)
        except ApiError as error:
            if not (error.is_not_found or error.is_conflict):
                raise
        else:
            _log.info("deleted", action="Job", job=job.metadata.name, namespace=self._namespace, reason=why)

    def _existing(self, name: str, need: str, error: ApiError) -> Job:
        """The Job that was made just before: for another who needs the same, or with an answer that got lost.

        Raises:
            ApiError: the watch has not told of it yet.
            RefusedError: it never will, since the Job is somebody else's.

        """
        found = next((job for job in self._caches.jobs.by_index(need) if job.metadata.name == name), None)
        if found is not None:
            return found
        first = self._taken.setdefault(name, self._clock())
        if self._clock() - first < TAKEN_SECONDS:
            raise error
        del self._taken[name]
        raise RefusedError(f"Job {name} exists in namespace {self._namespace} and was not made for this")

    async def _explanation(self, pod: Pod) -> str | None:
        """The problem's whole message, from the last line of the pod's log; None where it cannot be had."""
        uid = pod.metadata.uid
        if uid not in self._explanations:
            path = PODS.path(self._namespace, pod.metadata.name, "log")
            query = {"container": names.JOB_CONTAINER, "tailLines": "1", "limitBytes": str(LOG_BYTES)}
            try:
                line = await self._client.request("GET", path, query=query)
            except ApiError as error:
                if error.is_transient:
                    raise
                _log.info("log cannot be read", job=pod.metadata.name, error=error.message)
                return None
            message = explained(line)
            if message is None:
                return None
            self._explanations[uid] = message
            if len(self._explanations) > _EXPLAINED:
                self._explanations.popitem(last=False)
        return self._explanations[uid]

    async def _refused(self, job: Job) -> str | None:
        """Why the Job controller cannot make a pod; it says so in an event of the Job and nowhere else."""
        selector = f"involvedObject.uid={job.metadata.uid},reason=FailedCreate"
        try:
            body = await self._client.request(
                "GET", CORE_EVENTS.path(self._namespace), query={"fieldSelector": selector}
            )
        except ApiError as error:
            if error.is_transient:
                raise
            _log.info("events of Jobs cannot be read", job=job.metadata.name, error=error.message)
            return None
        found = [event for event in decode(body, _Events).items if event.reason == "FailedCreate"]
        newest = max(found, key=lambda event: event.last_timestamp or "", default=None)
        return newest.message if newest else None


def explained(line: bytes) -> str | None:
    """The message of the problem in a line of a log, also when its end is missing."""
    result = decode_result(line)
    if result is not None:
        return result.problem.message if result.problem else None
    _, found, rest = line.partition(b'"message":"')
    text = rest.decode(errors="ignore")
    while found and text:  # cut somewhere, maybe within an escape of up to six characters
        try:
            return str(msgspec.json.decode(f'"{text}"'))
        except msgspec.DecodeError:
            text = text[:-1] if len(rest) - len(text.encode()) < 16 else ""
    return None


def job_of(pod: Pod) -> str:
    """The name of the Job that a pod belongs to: the key of the pods' index."""
    return pod.metadata.labels.get(LABEL_JOB_NAME, "")


def _stage(job: Job) -> str:
    return job.metadata.labels.get(names.LABEL_JOB, "")


def _owner(pod: Pod) -> str:
    owner = pod.metadata.controller
    return owner.uid if owner else ""
