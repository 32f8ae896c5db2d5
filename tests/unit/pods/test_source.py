"""The cluster's schema is fetched once, and again when it may be out of date."""

from __future__ import annotations

import json
from typing import cast

import pytest
from tokenservice.kube.client import Client
from tokenservice.pods.schema import InvalidTemplateError, PodSchema
from tokenservice.pods.source import STALE_SECONDS, SchemaSource

from tests.unit.pods.builders import pod_schema


class Server:
    def __init__(self) -> None:
        self.asked = 0
        self.now = 0.0
        self.source = SchemaSource(cast("Client", self), clock=lambda: self.now)

    async def request(self, method: str, path: str) -> bytes:
        assert (method, path) == ("GET", "/openapi/v3/apis/apps/v1")
        self.asked += 1
        return json.dumps(pod_schema().dump()).encode()


def refuse(_: PodSchema) -> None:
    raise InvalidTemplateError("spec.template.spec.new: unknown field")


async def test_it_is_fetched_once() -> None:
    server = Server()
    for _ in range(3):
        assert isinstance(await server.source.checked(lambda schema: schema), PodSchema)
    assert server.asked == 1


async def test_what_a_fresh_one_refuses_is_refused() -> None:
    server = Server()
    for _ in range(2):
        with pytest.raises(InvalidTemplateError):
            await server.source.checked(refuse)
    assert server.asked == 1


async def test_what_an_old_one_refuses_is_asked_of_a_fresh_one() -> None:
    server = Server()
    await server.source.load()
    server.now = STALE_SECONDS + 1
    with pytest.raises(InvalidTemplateError):
        await server.source.checked(refuse)
    assert server.asked == 2
    await server.source.checked(lambda schema: schema)
    assert server.asked == 2, "what it does not refuse needs no other"
