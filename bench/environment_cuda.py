"""The same environment with the real CUDA libraries: what its image weighs. Locked and built on this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from tokenservice.builder.settings import ChannelSettings, PipSettings, RegistrySettings, Settings

from bench.cluster import BenchError
from bench.environment_layout import weight
from bench.environment_registry import Registry
from bench.environment_setup import ENVIRONMENT, make_channel, run

PREFIX = "cuda"
START_SECONDS = 30.0


def image_weight(registry: Registry, base: str, folder: Path) -> tuple[int, int]:
    """Bytes of the image's layers, as stored and unpacked. Needs some 20 GB of disk, given back afterwards."""
    channel = make_channel("--with-torch", "cuda", "--out", str(folder / "channel"))
    with _served(channel) as server:
        settings = folder / "settings.json"
        settings.write_bytes(msgspec.json.encode(_settings(registry, base, server, folder)))
        lock = folder / "pixi.lock"
        program = (sys.executable, "-m", "tokenservice.cli", "env")
        common = ("--settings", str(settings))
        run(*program, "lock", str(ENVIRONMENT), "--output", str(lock), *common)
        place = ("--registry", f"{registry.url}/{PREFIX}", "--plain-http")
        said = run(*program, "build", str(lock), *place, *common)
    image = str(json.loads(said.splitlines()[-1])["image"])
    return weight(registry.storage, f"{PREFIX}/environments", image.partition("@")[2])


def _settings(registry: Registry, base: str, server: str, folder: Path) -> Settings:
    return Settings(
        registry=RegistrySettings(url=registry.url, plain_http=True),
        channels=ChannelSettings(alias=server),
        pip=PipSettings(index_url=f"{server}/simple/"),
        base_image=base,
        cache_folder=str(folder / "cache"),
    )


@contextmanager
def _served(channel: Path) -> Iterator[str]:
    """The channel on this machine; its server's URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = (sys.executable, "-I", str(channel / "serve.py"), str(port), "127.0.0.1")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_SECONDS
            while not _answers(f"{url}/conda-forge/noarch/repodata.json"):
                if time.monotonic() > deadline or server.poll() is not None:
                    raise BenchError("the channel's server does not answer")
                time.sleep(0.1)
            yield url
        finally:
            server.terminate()


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
