"""A channel and a package index over HTTP, and the settings to lock environments from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenservice.builder.conda import lock_job
from tokenservice.builder.conda.lock import Lock
from tokenservice.builder.conda.lock_job import Wish
from tokenservice.builder.conda.pip import SERVER_REQUIRES
from tokenservice.builder.errors import BuildError
from tokenservice.builder.settings import ChannelSettings, PipSettings, Settings
from tokenservice.environments.spec import canonical

from tests.support.conda_channel import ChannelServer


class World:
    """A channel `main` and an index that have what token_server needs, and the owner's settings for them."""

    def __init__(self, server: ChannelServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.channel = server.channel("main")
        self.channel.add_python("3.11.7")
        for requirement in SERVER_REQUIRES:
            name, _, version = requirement.partition(">=")
            server.wheel(name, f"{version}.9")
        self.settings = Settings(
            channels=ChannelSettings(alias=server.url()),
            pip=PipSettings(index_url=server.simple),
            retries=0,
            timeout_seconds=5,
            solve_timeout_seconds=20,
        )

    def lock(self, *dependencies: Any, previous: Lock | None = None, **more: Any) -> Lock:
        self.channel.index()
        more.setdefault("channels", ["main"])
        wish = {key: more.pop(key) for key in ("virtual", "exclude_newer") if key in more}
        document = canonical({"dependencies": list(dependencies), **more}).document
        return lock_job.lock(Wish(document, "linux-64", previous=previous, **wish), self.settings)

    def refusal(self, *dependencies: Any, **more: Any) -> BuildError:
        with pytest.raises(BuildError) as refused:
            self.lock(*dependencies, **more)
        return refused.value


def versions(lock: Lock) -> dict[str, str]:
    return {package.name: package.version for package in lock.packages}
