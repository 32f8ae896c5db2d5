"""The operator's own small HTTP server: liveness, readiness, metrics."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Check = Callable[[], str | None]
"""Answers None if all is well, else the reason why not, one line."""


class Server:
    """Serves `/healthz`, `/readyz` and `/metrics`; a failing check answers 503 and its reason.

    port: 0 for a free one; `port` holds the real one after `start`. Use `start` and `close`, or `async with`.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        healthy: Check = lambda: None,
        ready: Check = lambda: None,
        host: str | None = None,
        port: int = 8080,
    ) -> None:
        self.port = port
        self._host = host
        self._registry = registry
        self._checks = {"/healthz": healthy, "/readyz": ready}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens. Raises OSError if the port is taken."""
        app = web.Application()
        for path in self._checks:
            app.router.add_get(path, self._check)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self.port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def close(self) -> None:
        """Stops listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _check(self, request: web.Request) -> web.Response:
        reason = self._checks[request.path]()
        return web.Response(text="ok\n") if reason is None else web.Response(status=503, text=f"{reason}\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})
