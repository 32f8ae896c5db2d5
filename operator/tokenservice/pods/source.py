"""The cluster's pod schema, fetched when needed and kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from tokenservice.kube.client import Client
from tokenservice.pods.schema import InvalidTemplateError, PodSchema

T = TypeVar("T")

PATH = "/openapi/v3/apis/apps/v1"
STALE_SECONDS = 600.0
"""A template that fails the check is checked again against a fresh schema if ours is older: clusters are upgraded."""


class SchemaSource:
    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._schema: PodSchema | None = None
        self._loaded = 0.0

    @property
    def stale(self) -> bool:
        return self._schema is None or self._clock() - self._loaded > STALE_SECONDS

    async def checked(self, make: Callable[[PodSchema], T]) -> T:
        """What `make` makes of the schema. If that refuses a template, and the schema may be out of date, it is asked
        once more with a fresh one.

        Raises:
            InvalidTemplateError: from `make`.
            ApiError, Unreachable: the API server did not give the schema.

        """
        try:
            return make(self._schema or await self.load())
        except InvalidTemplateError:
            if not self.stale:
                raise
            return make(await self.load())

    async def load(self) -> PodSchema:
        """Fetches the schema.

        Raises:
            ApiError, Unreachable: the API server did not give it.

        """
        body = await self._client.request("GET", PATH)
        self._schema = PodSchema.from_openapi(msgspec.json.decode(body))
        self._loaded = self._clock()
        return self._schema
