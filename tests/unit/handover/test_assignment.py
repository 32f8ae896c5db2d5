"""What a warm pod is given: both sides have to agree on it."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
import pytest
from token_server.assignment import assigned, parse
from token_server.settings import Settings
from tokenservice.api.v1alpha1 import TokenService
from tokenservice.handover.assignment import Document, document

from tests.unit.services.builders import children, service

SCHEMA: dict[str, Any] = json.loads(
    resources.files("tokenservice.protocol").joinpath("assignment.schema.json").read_text()
)

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "of the hub": (
        {"source": "hf://org/tiny"},
        {"source": "hf://org/tiny", "name": "org/tiny", "trustRemoteCode": False},
    ),
    "of the hub, all of it": (
        {
            **{"source": "hf://org/tiny", "revision": "v2", "name": "chat", "trustRemoteCode": True},
            "authSecretRef": {"name": "hub", "key": "token"},
        },
        {"source": "hf://org/tiny", "revision": "v2", "name": "chat", "trustRemoteCode": True},
    ),
    "of a claim": (
        {"source": "pvc://models/llama/7b"},
        {"source": "file:///var/run/tokenservice/model/llama/7b", "name": "7b", "trustRemoteCode": False},
    ),
    "of a claim, at its top": (
        {"source": "pvc://models"},
        {"source": "file:///var/run/tokenservice/model", "name": "models", "trustRemoteCode": False},
    ),
    "in the container": (
        {"source": "file:///models/tiny", "name": "tiny-é"},
        {"source": "file:///models/tiny", "name": "tiny-é", "trustRemoteCode": False},
    ),
}


def given(made: TokenService) -> Document:
    deployment = children(made).deployment
    assert deployment
    return document("team/demo", deployment["spec"]["template"])


@pytest.mark.parametrize(("model", "expected"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("args", [[], ["--max-concurrency", "8", "--dtype=bfloat16"]], ids=["", "args"])
def test_both_sides_agree(model: dict[str, Any], expected: dict[str, Any], args: list[str]) -> None:
    found = given(service(model=model, engine={"args": args}))
    assert found == {"service": "team/demo", "model": expected, "args": args}
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    parsed = parse(json.loads(json.dumps(found)))
    assert parsed.document() == found, "the server keeps it as it is"


@pytest.mark.parametrize(("model", "expected"), MODELS.values(), ids=MODELS)
def test_a_warm_pod_serves_what_a_cold_one_does(model: dict[str, Any], expected: dict[str, Any]) -> None:
    found = assigned(
        Settings(warm=True), parse(given(service(model=model, engine={"args": ["--max-concurrency", "3"]})))
    )
    assert (found.warm, found.model_name, found.max_concurrency) == (False, expected["name"], 3)
    assert found.model_revision == expected.get("revision")
    assert found.trust_remote_code is expected["trustRemoteCode"]


def test_it_is_that_of_the_revision() -> None:
    """Of a container whose variables are in another order, or have no value of their own."""
    server = {
        "name": "server",
        "env": [
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
            {"name": "TOKEN_SERVER_MODEL_NAME", "value": "old"},
            {"name": "TOKEN_SERVER_MODEL_SOURCE", "value": "hf://org/old"},
            {"name": "TOKEN_SERVER_MODEL_REVISION"},
        ],
    }
    template = {"spec": {"containers": [{"name": "logs", "args": ["--all"]}, server]}}
    assert document("team/demo", template) == {
        "service": "team/demo",
        "model": {"source": "hf://org/old", "name": "old", "trustRemoteCode": False},
        "args": [],
    }


def test_no_secret_is_in_it() -> None:
    model = {"source": "hf://org/tiny", "authSecretRef": {"name": "hub", "key": "token"}}
    assert "hub" not in json.dumps(given(service(model=model))).replace("hf://", "")
