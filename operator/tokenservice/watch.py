"""kopf's part: it watches the operator's own kinds, and here is all that is particular about it.

Its handlers keep what a watch says and ask for a reconcile; they do nothing else. What kopf would do besides (diffs,
progress, events, signals) is off.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import kopf
import msgspec

from tokenservice.kube.client import Resource
from tokenservice.kube.connection import Connection
from tokenservice.runtime.logs import get_logger

Key = tuple[str, str]
"""Namespace and name."""

WATCHERS_SECONDS = 30.0
"""For kopf to begin its watches; it takes milliseconds."""

WATCHER = "watcher for "
"""How the names of kopf's tasks begin that watch a resource."""

log = get_logger("tokenservice.watch")


class WatchEnded(Exception):  # noqa: N818 - an event, not a mistake
    """Nothing watches one of our kinds any more; the text says why."""


@dataclass(frozen=True)
class Kind:
    """One of our own kinds, and who is told of its objects.

    Attributes:
        resource: the kind.
        take: reads an object, as kopf hands it over or as the API server sends it, and keeps it; raises
            msgspec.ValidationError if it is not as the CRD has it.
        remove: forgets an object.
        unreadable: told of each object whether it could not be read.

    """

    resource: Resource
    take: Callable[[Mapping[str, Any] | msgspec.Raw], object]
    remove: Callable[[Key], object]
    unreadable: Callable[[Key, bool], object] = lambda _key, _unreadable: None


async def watch(
    connection: Connection, kinds: Sequence[Kind], namespaces: tuple[str, ...], *, on_started: Callable[[], None]
) -> None:
    """Runs kopf, which watches `kinds` in `namespaces`, or everywhere if there are none.

    `on_started` is called when kopf has set itself up, signal handlers included.

    Raises:
        WatchEnded: kopf has given up: an answer it does not expect, such as 404 after a CRD was deleted, ends its
            watch of a resource for good, without ending kopf.

    """
    started = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(_unheard)
    async with asyncio.TaskGroup() as group:
        operator = kopf.operator(
            registry=registry(connection, kinds),
            settings=settings(),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            ready_flag=started,
        )
        running = group.create_task(_until_ended(operator))
        running.add_done_callback(lambda _: started.set())
        try:
            await started.wait()
            on_started()
            watchers = await _kopf_watchers(len(kinds) * max(1, len(namespaces)))
            done, _ = await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
            ended = done.pop()
            which = ended.get_name().removeprefix(WATCHER)
            raise WatchEnded(f"{which}: cancelled" if ended.cancelled() else f"{which}: {ended.exception()}")
        finally:
            await _end_watchers()


async def _end_watchers() -> None:
    """Ends kopf's watches of resources, before kopf is told to end.

    kopf cancels each once and waits for ever (kopf 1.45, aiotasks.stop), and a watch that waits for the first answer
    takes a cancellation for a pause, and goes on (clients/api.py, stream).
    """
    while left := _tasks(WATCHER):
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.2)


def _tasks(prefix: str) -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task.get_name().startswith(prefix)}


_STREAMS = {"infinite_watch", "streaming_block", "continuous_watch", "watch_objs", "stream", "iter_jsonlines"}
"""kopf's asynchronous generators, of which a watch consists."""


def _unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Of kopf's tasks that end at once we look at one, and kopf at none: asyncio would complain about the others."""
    task = context.get("future")
    # What stream's callback asserts does not hold in callbacks; nothing follows from it.
    if "request_cancel_callback" in context.get("message", ""):
        return
    # Cancelled while kopf looks at an event, a watch is closed by the event loop, and so is, at the same time, what it
    # stands on: to the one that comes second (kopf 1.45, watching.streaming_block) that looks like a fault.
    if getattr(context.get("asyncgen"), "__name__", "") in _STREAMS:
        log.debug("a watch of kopf ended", error=str(context.get("exception")))
        return
    if isinstance(task, asyncio.Task) and task.get_name().startswith((WATCHER, "multidimensional multitasker")):
        log.debug("a task of kopf ended", task=task.get_name(), error=str(context.get("exception")))
    else:
        loop.default_exception_handler(context)


async def _until_ended(operator: Coroutine[Any, Any, None]) -> None:
    """kopf, of which nobody asks to end other than by cancelling it."""
    try:
        await operator
    except Exception as error:  # such as a login that it takes for hopeless
        raise WatchEnded(f"kopf failed: {error}") from error
    raise WatchEnded("kopf ended")


async def _kopf_watchers(count: int) -> list[asyncio.Task[Any]]:
    """kopf's tasks that watch a resource in a namespace each; it neither hands them out nor looks after them.

    Raises:
        WatchEnded: there are not as many after a while, for example since the CRD was deleted just now.

    """
    found: set[asyncio.Task[Any]] = set()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WATCHERS_SECONDS):
            while len(found) < count and not any(task.done() for task in found):
                found |= _tasks(WATCHER)
                await asyncio.sleep(0.02)
            return list(found)
    raise WatchEnded("kopf does not find the resources")


class _Backoffs:
    """Seconds between kopf's tries of a request: without end, for a watch that is given up is never begun again."""

    def __iter__(self) -> Iterator[float]:
        return chain((0.2, 0.5, 1.0, 2.0, 5.0, 10.0), repeat(15.0))


class _NoDiffs(kopf.DiffBaseStorage):
    """Nothing of ours asks what changed; kopf would copy every object several times to find out."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """No handler of ours has progress to remember."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


def settings() -> kopf.OperatorSettings:
    """kopf's settings, each set for a reason: see its documentation of the same names."""
    chosen = kopf.OperatorSettings()
    chosen.scanning.disabled = True  # no rights on CRDs and namespaces needed
    chosen.posting.enabled = False  # events are posted by our recorder, on transitions only
    chosen.persistence.diffbase_storage = _NoDiffs()
    chosen.persistence.progress_storage = _NoProgress()
    chosen.networking.error_backoffs = _Backoffs()
    chosen.networking.request_timeout = 30
    chosen.networking.connect_timeout = 5
    chosen.watching.connect_timeout = 5
    chosen.watching.server_timeout = 600
    chosen.watching.inactivity_timeout = 120
    chosen.watching.chunk_size = 500
    return chosen


def registry(connection: Connection, kinds: Sequence[Kind]) -> kopf.OperatorRegistry:
    """The handlers: one that logs in as our own client does, and for each kind one that notes changes and does
    nothing else.
    """
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        header = await asyncio.to_thread(connection.authorization)
        scheme, token = (header or " ").split(" ", 1)
        return kopf.ConnectionInfo(
            server=connection.server,
            ca_path=connection.ca_file,
            ca_data=connection.ca_data.encode() if connection.ca_data else None,
            certificate_path=connection.cert_file,
            certificate_data=connection.cert_data.encode() if connection.cert_data else None,
            private_key_path=connection.key_file,
            private_key_data=connection.key_data.encode() if connection.key_data else None,
            insecure=connection.insecure or None,
            scheme=scheme or None,
            token=token or None,
            proxy_url=connection.proxy,
        )

    for kind in kinds:
        _follow(handlers, kind)
    return handlers


def _follow(handlers: kopf.OperatorRegistry, kind: Kind) -> None:
    resource = kind.resource

    @kopf.on.event(resource.group, resource.version, resource.plural, registry=handlers)
    async def changed(event: Mapping[str, Any], **_: Any) -> None:
        note(kind, event["type"], event["object"])


def note(kind: Kind, change: str | None, raw: Mapping[str, Any]) -> None:
    """Keeps what a watch event says."""
    key = (raw["metadata"]["namespace"], raw["metadata"]["name"])
    if change == "DELETED":
        kind.unreadable(key, False)
        kind.remove(key)
        return
    try:
        kind.take(raw)
    except msgspec.ValidationError as error:
        kind.unreadable(key, True)
        words = str(error)
        log.error(  # noqa: TRY400 - a traceback would not help the user
            "not as this operator's CRD has it", kind=kind.resource.kind, namespace=key[0], name=key[1], error=words
        )
    else:
        kind.unreadable(key, False)
