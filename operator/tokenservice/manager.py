"""The manager: the wiring of watch, caches, queue and controllers. What is decided stands elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvloop

from tokenservice import __version__
from tokenservice.api.meta import Object
from tokenservice.environments.render import InvalidJobTemplateError, Manifest, load_template
from tokenservice.kube.client import Client
from tokenservice.kube.connection import ConfigError, Connection
from tokenservice.kube.errors import ApiError, Unreachable
from tokenservice.kube.events import EventRecorder
from tokenservice.kube.informer import HasMetadata
from tokenservice.kube.lease import Elector, LeaseLost, Timing
from tokenservice.options import Options
from tokenservice.parts import Parts
from tokenservice.runtime.logs import get_logger, setup
from tokenservice.runtime.metrics import Metrics
from tokenservice.runtime.server import Server
from tokenservice.watch import Kind, WatchEnded, watch

T = TypeVar("T", bound=HasMetadata)

RETRY_SECONDS = 5.0
"""Between two looks at what the operator cannot start without, such as the CRD."""

KEY_BYTES = 32
"""That the key of tokens has at least."""

ANEW_SECONDS = 1.0
"""Between the end of the watch and a new beginning."""

log = get_logger("tokenservice.manager")


def run(options: Options) -> int:
    """Runs the manager until SIGTERM or SIGINT. Returns the exit status: 0 told to stop, 1 failed or Lease lost."""
    setup(options.log_level)
    log.info("starting", version=__version__, options=asdict(options))
    try:
        connection = Connection.detect(options.kubeconfig or None)
    except ConfigError as error:
        log.error("no cluster", error=str(error))  # noqa: TRY400 - a traceback would not help the user
        return 1
    try:
        template = load_template(Path(options.job_template)) if options.job_template else None
    except InvalidJobTemplateError as error:
        log.error("the Jobs' template cannot be used", error=str(error))  # noqa: TRY400 - says all
        return 1
    try:
        key = _token_key(options.token_key_file)
    except (OSError, ValueError) as error:
        log.error("the key of tokens cannot be used", file=options.token_key_file, error=str(error))  # noqa: TRY400 - says all
        return 1
    # Its sockets and TLS are C; those of asyncio are Python, and took a good part of a busy operator's time.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Manager(options, connection, template, key).run())


def _token_key(path: str) -> bytes:
    """Raises OSError, or ValueError for a key that is too short."""
    if not path:
        return secrets.token_bytes(KEY_BYTES)
    key = Path(path).read_bytes().rstrip(b"\r\n")
    if len(key) < KEY_BYTES:
        raise ValueError(f"it has {len(key)} bytes and must have {KEY_BYTES} at least")
    return key


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]


class _Manager:
    def __init__(self, options: Options, connection: Connection, template: Manifest | None, key: bytes) -> None:
        self._options = options
        self._connection = connection
        self._template = template
        self._key = key
        self._metrics = Metrics()
        self._stop = asyncio.Event()
        """Set when the process was told to stop."""
        self._leads = False
        self._problem: str | None = "starting"
        """Why the manager is not ready; None if it is. Waiting for the Lease is being ready."""

    async def run(self) -> int:
        self._handle_signals()
        client = Client(self._connection, on_request=self._metrics.request)
        server = Server(self._metrics.registry, ready=lambda: self._problem, port=self._options.http_port)
        try:
            await server.start()
        except OSError as error:
            log.error("cannot listen; choose another --http-port", error=str(error))  # noqa: TRY400 - says all
            return 1
        async with client, contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(server.close)
            work = asyncio.create_task(self._lead_when_elected(client))
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not work.done():
                log.info("stopping")
                work.cancel()
            return await _outcome(work)

    async def _lead_when_elected(self, client: Client) -> None:
        options = self._options
        leading = self._metrics.leading.labels(options.lease_name)

        def told(leads: bool) -> None:
            self._leads = leads
            leading.set(1 if leads else 0)

        elector = Elector(
            client,
            namespace=options.lease_namespace,
            name=options.lease_name,
            # A container that restarts keeps its pod's name, and must not take the Lease of the one before for its own.
            identity=f"{options.pod_name}_{secrets.token_hex(4)}",
            timing=Timing(
                lease_duration=options.lease_duration_seconds,
                renew_deadline=options.lease_renew_deadline_seconds,
                retry_period=options.lease_retry_seconds,
            ),
            on_leading=told,
        )
        self._problem = None
        await elector.run(lambda: self._lead(client))

    async def _lead(self, client: Client) -> None:
        """Reconciles; all anew, with the Lease kept, whenever a watch of our own kinds has ended."""
        while True:
            try:
                await self._reconcile(client)
            except* WatchEnded as ended:
                error = str(_first(ended))
                self._problem = f"a watch ended ({error})"
                log.warning("beginning anew", problem="a watch ended", error=error)
                # A group of tasks that fails while it is being cancelled tells of the failure alone, and
                # Task.cancelling() counts what the group did itself.
                if not self._leads:
                    raise asyncio.CancelledError from None
            await asyncio.sleep(ANEW_SECONDS)

    async def _reconcile(self, client: Client) -> None:
        self._problem = "caches are filling"
        recorder = EventRecorder(
            client, instance=self._options.pod_name, size=10_000, on_dropped=self._metrics.event_dropped
        )
        parts = Parts(self._options, self._metrics, client, recorder, template=self._template, key=self._key)
        async with contextlib.aclosing(parts), asyncio.TaskGroup() as group:
            group.create_task(recorder.run())
            for informer in parts.informers:
                group.create_task(informer.run())
            for kind in parts.kinds:
                plural = f"{kind.resource.kind}s"
                await self._until(
                    lambda kind=kind: _fill(client, kind, self._options.namespaces),  # type: ignore[misc]
                    f"{plural} cannot be listed; is the CRD installed, the role granted?",
                )
            await self._until(parts.schemas.load, "the cluster's OpenAPI document cannot be read")
            for informer in parts.informers:
                self._problem = f"{informer.resource.plural} are being listed"
                await informer.synced.wait()
            parts.ask_all()
            group.create_task(
                watch(self._connection, parts.kinds, self._options.namespaces, on_started=self._handle_signals)
            )
            for controller in parts.controllers:
                group.create_task(controller.run())
            self._problem = None
            log.info("reconciling", namespaces=self._options.namespaces or "all")

    async def _until(self, attempt: Callable[[], Awaitable[Any]], problem: str) -> None:
        """Tries again until `attempt` succeeds; meanwhile /readyz and the log say what is missing."""
        while True:
            try:
                await attempt()
            except (ApiError, Unreachable) as error:
                self._problem = f"{problem} ({error})"
                log.warning("cannot start yet", problem=problem, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._problem = "caches are filling"
                return

    def _handle_signals(self) -> None:
        """Also when kopf has taken the signals: told to stop by one, it waits 5 s for every task of ours to end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)


async def _fill(client: Client, kind: Kind, namespaces: tuple[str, ...]) -> None:
    """Reads all objects of a kind, so that each is complete when it is looked at first.

    kopf lists them again, and with that nothing new. What is deleted in between shows when its children go.
    """
    for namespace in namespaces or (None,):
        async for page in client.list(kind.resource, namespace=namespace):
            for raw in msgspec.json.decode(page, type=_Page).items:
                # One that cannot be read comes again from kopf, and is complained about then.
                try:
                    kind.take(raw)
                except msgspec.ValidationError:
                    metadata = msgspec.json.decode(raw, type=Object).metadata
                    kind.unreadable((metadata.namespace, metadata.name), True)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _outcome(work: asyncio.Task[None]) -> int:
    try:
        await work
    except asyncio.CancelledError:
        return 0
    except LeaseLost as error:
        log.error("lease lost", error=str(error))  # noqa: TRY400 - expected; the text says all
    except Exception as error:  # whatever it is, the process ends and is started again
        log.exception("failed", error=str(error))
    return 1
