"""The process: listens at once, loads the model (now, or when given one) in a thread, ends well on SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

import uvicorn

from token_server.app import Service, make_app
from token_server.assignment import sync
from token_server.engines import TRANSFORMERS, Engines, warm_up
from token_server.handover import Handover
from token_server.handover import make_app as make_assignment_app
from token_server.lifecycle import Lifecycle, Phase, drain_plan
from token_server.loading import LoadError
from token_server.log import log
from token_server.metrics import Metrics
from token_server.settings import Settings, SettingsError, read_settings
from token_server.start import Start, process_age
from token_server.threads import settle

TERMINATION_LOG = Path("/dev/termination-log")
KEEP_ALIVE_SECONDS = 65  # longer than the idle time of most proxies, so that they close first
PROGRESS_SECONDS = 10.0  # between log lines while the model loads
ABORT_SECONDS = 1.0  # for the error events of answers cut off by the end of the grace period
TELL_SECONDS = 0.5  # for the answer to an assignment that failed, before the process ends


def fail(message: str, code: int = 1) -> None:
    """Ends the process: one line on stderr and in the container's termination message. Does not return."""
    line = " ".join(message.split())
    # "r+" makes no file: the kubelet mounts one, and outside a pod none is wanted.
    with suppress(OSError), TERMINATION_LOG.open("r+", encoding="utf-8") as termination:
        termination.write(line + "\n")
        termination.truncate()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    os._exit(code)  # threads inside torch or a download cannot be asked to end


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; without a host on every IPv4 and IPv6 address, as far as the machine has them. Raises OSError."""
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    if socket.has_dualstack_ipv6():
        with suppress(OSError):
            return socket.create_server(("::", port), family=socket.AF_INET6, backlog=2048, dualstack_ipv6=True)
    return socket.create_server(("0.0.0.0", port), backlog=2048)  # noqa: S104 - a pod's own address is not known yet


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: a drain has its own order."""

    def install_signal_handlers(self) -> None:
        """uvicorn before 0.29."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn since 0.29."""
        yield


def serving(app: Any) -> Server:
    """A server of `app`, without logs of its own."""
    return Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
    )


class Run:
    """One life of the process: start, load or wait for a model to load, serve, drain."""

    def __init__(self, settings: Settings, engines: Engines) -> None:
        self.settings = settings
        self.lifecycle = Lifecycle()
        self.metrics = Metrics()
        self.service = Service(settings, self.lifecycle, self.metrics)
        self.service.on_lost = fail  # the container starts again, and the model with it
        self._engines = engines
        self._start = Start()
        self._handover: Optional[Handover] = None
        self._servers = [serving(make_app(self.service))]
        self._drain: Optional[asyncio.Task[None]] = None

    def _thread(self, work: Callable[[Settings, float], None], settings: Settings) -> None:
        """Runs `work`, which loads something, and meanwhile says that it does."""
        began, done = time.perf_counter(), threading.Event()

        def run() -> None:
            try:
                work(settings, began)
            except LoadError as error:
                self._failed(str(error))
            except BaseException as error:  # noqa: BLE001 - a thread that dies silently would leave the pod loading
                what = f"load model {settings.model_source}" if settings.model_source else "become warm"
                self._failed(f"cannot {what}: {type(error).__name__}")
            finally:
                done.set()

        threading.Thread(target=run, name="load", daemon=True).start()
        threading.Thread(target=progress, args=(settings, began, done), name="progress", daemon=True).start()

    def _load(self, settings: Settings, began: float) -> None:
        warm = self.lifecycle.phase is Phase.ASSIGNED  # else the model was known when the process started
        engine = self._engines.load(settings, self.stage)
        warm_up(settings, engine, self.stage)
        self.metrics.describe_environment()
        total = self.stage("total", time.perf_counter() - began)
        if self.service.serve(engine, settings, self._start.report(warm=warm)):
            log("serving", model=settings.model_name, start_s=total, context=engine.context_length)
            if self._handover:
                report = {"status": "serving", "model": settings.model_name, "stages": self._start.stages()}
                self._handover.done(report)
                with suppress(OSError):
                    sync(Path(settings.assignment_file))  # 0.2 s on a busy disk, for which nobody should wait

    def _prepare(self, settings: Settings, began: float) -> None:
        self._engines.prepare(settings, self.stage)
        self.metrics.describe_environment()
        if self.lifecycle.warm():
            log("warm", start_s=round(time.perf_counter() - began, 3))

    def _failed(self, message: str) -> None:
        if self._handover:
            self._handover.failed(message)
            threading.Event().wait(TELL_SECONDS)
        fail(message)

    def stage(self, name: str, seconds: float) -> float:
        """A stage of the start is done; returns how long it took, as it is told everywhere."""
        rounded = self._start.add(name, seconds)
        self.metrics.stages.labels(name).set(seconds)
        if name != "total":
            log("start stage done", stage=name, duration_s=rounded)
        return rounded

    async def serve(self, listening: socket.socket, assigning: Optional[socket.socket] = None) -> None:
        """Serves until a signal has drained everything; a warm server takes its assignment at the second socket."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        if assigning is None:
            self._thread(self._load, self.settings)
            await self._servers[0].serve(sockets=[listening])
            return
        self._handover = Handover(self.settings, self.lifecycle, lambda settings: self._thread(self._load, settings))
        self._servers.append(serving(make_assignment_app(self._handover, self.settings.assign_token_sha256)))
        try:
            given = self._handover.resume()
        except ValueError as error:
            fail(str(error))
            return
        self._thread(self._load if given else self._prepare, given or self.settings)
        await asyncio.gather(self._servers[0].serve(sockets=[listening]), self._servers[1].serve(sockets=[assigning]))

    def _on_signal(self, number: int) -> None:
        before = self.lifecycle.drain()
        if before is None:
            os._exit(128 + number)  # asked twice: at once
        plan = drain_plan(before, self.settings.grace_seconds, self.settings.drain_delay_seconds)
        log("draining", signal=signal.Signals(number).name, accept_s=plan.accept_s, finish_s=plan.finish_s)
        if self._handover:
            self._handover.stop()
        self._drain = asyncio.ensure_future(self._drained(plan.accept_s, plan.finish_s))

    async def _drained(self, accept: float, finish: float) -> None:
        await asyncio.sleep(accept)
        # uvicorn closes the listening socket and idle connections, and waits for the others.
        for server in self._servers:
            server.config.timeout_graceful_shutdown = max(1, round(finish - accept + ABORT_SECONDS))
            server.should_exit = True
        await asyncio.sleep(finish - accept)
        self.service.abort()


def progress(settings: Settings, began: float, done: threading.Event) -> None:
    """Says every 10 s that loading goes on, and of a model on the hub how much has been downloaded."""
    while not done.wait(PROGRESS_SECONDS):
        told: dict[str, Any] = {"duration_s": round(time.perf_counter() - began)}
        if settings.scheme == "hf":
            told["downloaded_mib"] = folder_size(os.environ.get("HF_HOME", "")) // (1024 * 1024)
        log("loading", **told)


def folder_size(path: str) -> int:
    """Bytes of the files under `path`; 0 if there is none."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118
    return total


def prepare_environment(threads: int) -> str:
    """What the libraries read when they are imported; returns how many threads torch will have.

    They write progress bars and warnings for terminals, of which a container's log has no use.
    """
    defaults = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    for name, value in {**defaults, "TOKENIZERS_PARALLELISM": "false"}.items():
        os.environ.setdefault(name, value)
    return settle(threads, os.environ)


def run(argv: Optional[Sequence[str]] = None, engines: Engines = TRANSFORMERS) -> None:
    """Ends the process: 0 after a drain, 1 no model or port, 2 wrong settings, 128+N a second signal N."""
    try:
        settings = read_settings(sys.argv[1:] if argv is None else argv, os.environ)
    except SettingsError as error:
        fail(f"token-server: {error}", 2)
        return
    threads = prepare_environment(settings.threads)
    life = Run(settings, engines)
    if life.service.keys and not life.service.keys.any():
        # Serving would mean to refuse everybody. The kubelet mounts the Secret's keys before the next start.
        folder = settings.api_keys_dir
        fail(f"no API key in {folder}: the Secret of spec.api.keySecretRef does not exist or is empty")
        return
    ports: dict[str, Any] = {"port": settings.port}
    if settings.warm:
        ports["assign_port"] = settings.assign_port
    sockets = []
    for name, port in ports.items():
        try:
            sockets.append(listen(settings.host, port))
        except OSError as error:
            variable = f"TOKEN_SERVER_{name.upper()}"
            fail(f"cannot listen on port {port} ({variable}): {os.strerror(error.errno or 0)}")
            return
    model = {} if settings.warm else {"model": settings.model_name, "source": settings.model_source}
    before = process_age()
    if before is not None:
        life.stage("process", before)
    log("listening", **ports, **model, threads=threads)
    asyncio.run(life.serve(*sockets))
    log("ended")
    os._exit(0)  # the loading thread and cut-off generations must not hold the process
