"""A stand-in for the warm servers of simulated pods: answers an assignment as token_server does, and loads nothing.

KWOK's pods have an address and no container. This one process listens for all of them (bench/network.py): at port 8001
it takes PUT /assignment, at port 8000 it says that it serves. What a real server does between the two patches of a
claim, loading a model, is therefore not in the benchmark's figures; bench/child.py runs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from aiohttp import web
from tokenservice import protocol

from bench.child import serve


class _Model(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    source: str
    revision: str = ""
    name: str = ""
    trust_remote_code: bool = False


class _Assignment(msgspec.Struct, forbid_unknown_fields=True):
    """As in operator/tokenservice/protocol/assignment.schema.json."""

    service: str
    model: _Model
    args: tuple[str, ...] = ()


async def assign(request: web.Request) -> web.Response:
    """PUT /assignment: 200 at once for what keeps the contract, whichever the token."""
    if not request.headers.get("Authorization", "").startswith("Bearer "):
        return web.json_response({"error": {"message": "Wrong or missing token."}}, status=401)
    try:
        asked = msgspec.json.decode(await request.read(), type=_Assignment)
    except msgspec.MsgspecError as error:
        return web.json_response({"error": {"message": str(error)}}, status=400)
    name = asked.model.name or asked.model.source.rpartition("/")[2]
    stages = {"weights": 0.0, "total": 0.0}
    return web.json_response({"status": "serving", "model": name, "stages": stages})


async def fine(request: web.Request) -> web.Response:
    """GET /healthz, /readyz, /verifyz: 200."""
    return web.json_response({"status": "ready" if request.path == protocol.READYZ else "ok"})


def assignments() -> web.Application:
    """What listens at ASSIGN_PORT."""
    application = web.Application()
    application.router.add_put(protocol.ASSIGNMENT, assign)
    return application


def servers() -> web.Application:
    """What listens at PORT."""
    application = web.Application()
    for path in (protocol.HEALTHZ, protocol.READYZ, protocol.VERIFYZ):
        application.router.add_get(path, fine)
    return application


async def run(_: bytes, ready: Callable[[], None]) -> None:
    """Listens until it is cancelled."""
    runners = []
    try:
        for application, port in ((assignments(), protocol.ASSIGN_PORT), (servers(), protocol.PORT)):
            runner = web.AppRunner(application, access_log=None)
            await runner.setup()
            runners.append(runner)
            await web.TCPSite(runner, "0.0.0.0", port, backlog=1024).start()
        ready()
        await asyncio.Event().wait()
    finally:
        for runner in runners:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(run))
