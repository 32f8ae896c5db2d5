"""`token-server`: listens at once, loads the model in a thread, ends well on SIGTERM."""

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
from token_server.engine import Engine
from token_server.lifecycle import Lifecycle, drain_plan
from token_server.loading import LoadError, check_folder, explain
from token_server.log import log
from token_server.metrics import Metrics
from token_server.settings import Settings, SettingsError, read_settings

TERMINATION_LOG = Path("/dev/termination-log")
KEEP_ALIVE_SECONDS = 65  # longer than the idle time of most proxies, so that they close first
PROGRESS_SECONDS = 10.0  # between log lines while the model loads
ABORT_SECONDS = 1.0  # for the error events of answers cut off by the end of the grace period
Load = Callable[[Settings, Callable[[str, float], None]], Engine]


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


def load_transformers(settings: Settings, stage: Callable[[str, float], None]) -> Engine:
    """Imports torch and transformers, then loads the model. Raises LoadError with one clear line."""
    version = ""
    try:
        check_folder(settings)
        began = time.perf_counter()
        import transformers

        from token_server import transformers_engine

        version = transformers.__version__
        with suppress(AttributeError):
            transformers.utils.logging.disable_progress_bar()
        imported = time.perf_counter()
        stage("imports", imported - began)
        engine = transformers_engine.load(settings)
        stage("weights", time.perf_counter() - imported)
    except Exception as error:
        token = os.environ.get("HF_TOKEN")
        raise LoadError(explain(settings, error, transformers=version, hf_token=token)) from error
    return engine


class Run:
    """One life of the process: start, load, serve, drain."""

    def __init__(self, settings: Settings, load: Load) -> None:
        self.settings = settings
        self.lifecycle = Lifecycle()
        self.metrics = Metrics()
        self.service = Service(settings, self.lifecycle, self.metrics)
        self._load = load
        self._began = time.perf_counter()
        self._loaded = threading.Event()
        config = uvicorn.Config(
            make_app(self.service),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._server = Server(config)
        self._drain: Optional[asyncio.Task[None]] = None

    def load(self) -> None:
        """The loading thread."""
        try:
            engine = self._load(self.settings, self._stage)
        except LoadError as error:
            fail(str(error))
            return
        except BaseException as error:  # noqa: BLE001 - a thread that dies silently would leave the pod loading forever
            fail(f"cannot load model {self.settings.model_source}: {type(error).__name__}")
            return
        self.metrics.describe_environment()
        self._loaded.set()
        seconds = time.perf_counter() - self._began
        self.metrics.stages.labels("total").set(seconds)
        if self.service.serve(engine):
            log("serving", model=self.settings.model_name, start_s=round(seconds, 3), context=engine.context_length)

    def _stage(self, name: str, seconds: float) -> None:
        self.metrics.stages.labels(name).set(seconds)
        log("start stage done", stage=name, duration_s=round(seconds, 3))

    def progress(self) -> None:
        """Says every 10 s that loading goes on, and of a model on the hub how much has been downloaded."""
        while not self._loaded.wait(PROGRESS_SECONDS):
            told: dict[str, Any] = {"duration_s": round(time.perf_counter() - self._began)}
            if self.settings.scheme == "hf":
                told["downloaded_mib"] = folder_size(os.environ.get("HF_HOME", "")) // (1024 * 1024)
            log("loading", **told)

    async def serve(self, listening: socket.socket) -> None:
        """Serves until a signal has drained everything."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        threading.Thread(target=self.load, name="load", daemon=True).start()
        threading.Thread(target=self.progress, name="progress", daemon=True).start()
        await self._server.serve(sockets=[listening])

    def _on_signal(self, number: int) -> None:
        before = self.lifecycle.drain()
        if before is None:
            os._exit(128 + number)  # asked twice: at once
        plan = drain_plan(before, self.settings.grace_seconds, self.settings.drain_delay_seconds)
        log("draining", signal=signal.Signals(number).name, accept_s=plan.accept_s, finish_s=plan.finish_s)
        self._drain = asyncio.ensure_future(self._drained(plan.accept_s, plan.finish_s))

    async def _drained(self, accept: float, finish: float) -> None:
        await asyncio.sleep(accept)
        # uvicorn closes the listening socket and idle connections, and waits for the others.
        self._server.config.timeout_graceful_shutdown = max(1, round(finish - accept + ABORT_SECONDS))
        self._server.should_exit = True
        await asyncio.sleep(finish - accept)
        self.service.abort()


def folder_size(path: str) -> int:
    """Bytes of the files under `path`; 0 if there is none."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118
    return total


def prepare_environment() -> None:
    """Libraries write progress bars and warnings for terminals; a container's log has neither use for them."""
    defaults = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    for name, value in {**defaults, "TOKENIZERS_PARALLELISM": "false"}.items():
        os.environ.setdefault(name, value)


def main(argv: Optional[Sequence[str]] = None, load: Load = load_transformers) -> None:
    """Entry point; ends the process: 0 after a drain, 1 no model or port, 2 wrong settings, 128+N a second signal N."""
    try:
        settings = read_settings(sys.argv[1:] if argv is None else argv, os.environ)
    except SettingsError as error:
        fail(f"token-server: {error}", 2)
        return
    prepare_environment()
    run = Run(settings, load)
    if run.service.keys and not run.service.keys.any():
        # Serving would mean to refuse everybody. The kubelet mounts the Secret's keys before the next start.
        folder = settings.api_keys_dir
        fail(f"no API key in {folder}: the Secret of spec.api.keySecretRef does not exist or is empty")
        return
    try:
        listening = listen(settings.host, settings.port)
    except OSError as error:
        fail(f"cannot listen on port {settings.port} (TOKEN_SERVER_PORT): {os.strerror(error.errno or 0)}")
        return
    log("listening", port=settings.port, model=settings.model_name, source=settings.model_source)
    asyncio.run(run.serve(listening))
    log("ended")
    os._exit(0)  # the loading thread and cut-off generations must not hold the process


if __name__ == "__main__":
    main()
