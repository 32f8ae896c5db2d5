"""What the operator says and what the server hears: the same names and defaults on both sides."""

from __future__ import annotations

import dataclasses

import httpx
from token_server import handover, start
from token_server.settings import PREFIX, Settings
from tokenservice import protocol

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}


def test_every_variable_of_the_operator_is_a_setting() -> None:
    variables = [value for name, value in vars(protocol).items() if name.startswith("VAR_")]
    ours = {variable for variable in variables if variable.startswith(PREFIX)}
    assert protocol.VARIABLE_PREFIX == PREFIX
    assert {variable.removeprefix(PREFIX).lower() for variable in ours} <= set(DEFAULTS)
    assert set(variables) - ours == {"HF_TOKEN", "HF_HOME"}, "read by huggingface_hub itself"


def test_the_defaults_agree() -> None:
    assert DEFAULTS["port"] == protocol.PORT
    assert DEFAULTS["assign_port"] == protocol.ASSIGN_PORT
    assert str(DEFAULTS["assignment_file"]).rsplit("/", 1)[0] == protocol.ASSIGNMENT_MOUNT
    assert handover.PATH == protocol.ASSIGNMENT
    assert DEFAULTS["grace_seconds"] == protocol.GRACE_SECONDS
    assert DEFAULTS["drain_delay_seconds"] == protocol.DRAIN_DELAY_SECONDS


def test_the_stages_of_a_start_agree() -> None:
    assert start.STAGES == protocol.START_STAGES


async def test_the_operators_paths_answer(client: httpx.AsyncClient) -> None:
    for path in (protocol.HEALTHZ, protocol.READYZ, protocol.VERIFYZ, protocol.METRICS):
        assert (await client.get(path)).status_code == 200
