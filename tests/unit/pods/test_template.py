"""The pod template of a server that belongs to nobody in particular."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from tokenservice import protocol
from tokenservice.api.v1alpha1 import SecretRef
from tokenservice.pods.template import variables

from tests.unit.pods.builders import env, pod_schema, rendered, server


def test_a_server_without_a_model_is_a_pod() -> None:
    made = rendered()
    pod_schema().check(made)
    assert made["metadata"]["labels"] == {"app": "demo"}
    assert "TOKEN_SERVER_MODEL_SOURCE" not in env()
    assert env()["TOKEN_SERVER_PORT"] == "8000"
    assert "command" not in server()
    assert "args" not in server()


def test_what_the_owner_adds_stands_beside_what_every_server_has() -> None:
    port = {"name": "assign", "containerPort": 8001, "protocol": "TCP"}
    made = rendered(
        args=("--dtype=bfloat16",),
        mounts=[{"name": "assignment", "mountPath": "/assignment"}],
        volumes=[{"name": "assignment", "emptyDir": {}}],
        ports=[port],
        key_secret_ref=SecretRef(name="keys"),
    )
    container = made["spec"]["containers"][0]
    assert container["args"] == ["--dtype=bfloat16"]
    assert [item["name"] for item in container["ports"]] == ["http", "assign"]
    assert [item["name"] for item in container["volumeMounts"]] == ["tmp", "cache", "assignment", "api-keys"]
    assert [item["name"] for item in made["spec"]["volumes"]] == ["tmp", "cache", "assignment", "api-keys"]
    assert made["spec"]["volumes"][-1]["secret"] == {"secretName": "keys", "optional": True}


def test_variables_keep_their_order_and_new_ones_follow() -> None:
    """A list in another order would make another template of the same spec."""
    given = variables({"TOKEN_SERVER_WARM": "true", "HF_TOKEN": "x", "TOKEN_SERVER_MODEL_SOURCE": "y", "A": "z"})
    assert list(env(env=given, conda_env="nlp", key_secret_ref=SecretRef(name="keys"))) == [
        "TOKEN_SERVER_PORT",
        "TOKEN_SERVER_MODEL_SOURCE",
        "TOKEN_SERVER_GRACE_SECONDS",
        "TOKEN_SERVER_DRAIN_DELAY_SECONDS",
        "HF_HOME",
        "HOME",
        "TOKEN_SERVER_API_KEYS_DIR",
        "HF_TOKEN",
        "TOKEN_SERVER_WARM",
        "A",
        "PATH",
        "CONDA_PREFIX",
        "CONDA_DEFAULT_ENV",
    ]


@pytest.mark.parametrize(("spec", "seconds"), [(None, 90), ({}, 90), ({"terminationGracePeriodSeconds": 300}, 300)])
def test_the_server_learns_its_grace_period(spec: dict[str, Any] | None, seconds: int) -> None:
    template = None if spec is None else {"spec": spec}
    assert rendered(template)["spec"]["terminationGracePeriodSeconds"] == seconds
    assert env(template)["TOKEN_SERVER_GRACE_SECONDS"] == str(seconds)


def test_without_a_grace_period_the_server_learns_kubernetes_default() -> None:
    template = {"spec": {"terminationGracePeriodSeconds": None}}
    assert "terminationGracePeriodSeconds" not in rendered(template)["spec"]
    assert env(template)["TOKEN_SERVER_GRACE_SECONDS"] == "30"


@pytest.mark.parametrize(
    ("conda_env", "folder"),
    [
        ("token_nlp", "/opt/conda/envs/token_nlp"),
        ("base", "/opt/conda"),
        ("/srv/envs/code", "/srv/envs/code"),
        ("/srv/envs/code/", "/srv/envs/code"),
    ],
)
def test_one_of_several_environments_is_run_by_its_own_interpreter(conda_env: str, folder: str) -> None:
    assert server(conda_env=conda_env)["command"] == [f"{folder}/bin/python", "-m", "token_server.main"]
    told = env(conda_env=conda_env)
    assert told["PATH"].split(":")[0] == f"{folder}/bin"
    assert (told["CONDA_PREFIX"], told["CONDA_DEFAULT_ENV"]) == (folder, conda_env)
    assert env().items() <= told.items()
    own = {"spec": {"containers": [{"name": "server", "command": ["my-server"]}]}}
    assert server(own, conda_env=conda_env)["command"] == ["my-server"]


def test_the_module_that_is_run_is_token_servers() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(protocol.VARIABLE_PREFIX)}
    command = [sys.executable, "-m", protocol.MODULE]
    ended = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("token-server: ")
