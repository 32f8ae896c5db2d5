"""Flag > variable > default; a mistake names the variable or flag."""

from __future__ import annotations

import dataclasses

import pytest
from token_server.settings import HELP, Settings, SettingsError, default_name, read_settings

WARM = {"TOKEN_SERVER_WARM": "true", "TOKEN_SERVER_ASSIGN_TOKEN_SHA256": "0" * 64}
SOURCE = {"TOKEN_SERVER_MODEL_SOURCE": "hf://org/name"}


def test_defaults() -> None:
    settings = read_settings([], SOURCE)
    assert settings == Settings(model_source="hf://org/name", model_name="org/name")
    assert (settings.port, settings.grace_seconds, settings.drain_delay_seconds) == (8000, 90.0, 5.0)
    assert settings.trust_remote_code is False


def test_variables_over_defaults_and_flags_over_variables() -> None:
    environ = {**SOURCE, "TOKEN_SERVER_PORT": "9000", "TOKEN_SERVER_MAX_QUEUE": "7"}
    settings = read_settings(["--port", "9001", "--dtype=bfloat16"], environ)
    assert (settings.port, settings.max_queue, settings.dtype) == (9001, 7, "bfloat16")


def test_what_the_operator_sets() -> None:
    environ = {
        "TOKEN_SERVER_PORT": "8000",
        "TOKEN_SERVER_MODEL_SOURCE": "file:///var/run/tokenservice/model/llama/",
        "TOKEN_SERVER_MODEL_REVISION": "v1",
        "TOKEN_SERVER_MODEL_NAME": "llama",
        "TOKEN_SERVER_TRUST_REMOTE_CODE": "false",
        "TOKEN_SERVER_API_KEYS_DIR": "/var/run/tokenservice/api-keys",
        "TOKEN_SERVER_GRACE_SECONDS": "120",
        "TOKEN_SERVER_DRAIN_DELAY_SECONDS": "5",
        "HF_TOKEN": "hf_secret",
    }
    settings = read_settings([], environ)
    assert (settings.scheme, settings.model_path) == ("file", "/var/run/tokenservice/model/llama")
    assert (settings.model_revision, settings.model_name) == ("v1", "llama")
    assert (settings.grace_seconds, settings.api_keys_dir) == (120.0, "/var/run/tokenservice/api-keys")
    assert "hf_secret" not in repr(settings)


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        ([], {}, ["TOKEN_SERVER_MODEL_SOURCE", "hf://org/name"]),
        ([], {"TOKEN_SERVER_MODEL_SOURCE": "s3://x/y"}, ["TOKEN_SERVER_MODEL_SOURCE", "s3://x/y"]),
        ([], {"TOKEN_SERVER_MODEL_SOURCE": "hf://"}, ["TOKEN_SERVER_MODEL_SOURCE"]),
        ([], {"TOKEN_SERVER_MODEL_SOURCE": "file://relative/path"}, ["absolute path"]),
        ([], {**SOURCE, "TOKEN_SERVER_PORT": "http"}, ["TOKEN_SERVER_PORT", "'http'", "whole number"]),
        ([], {**SOURCE, "TOKEN_SERVER_PORT": "70000"}, ["TOKEN_SERVER_PORT", "65535"]),
        (["--port", "0"], SOURCE, ["--port", "1 to 65535"]),
        ([], {**SOURCE, "TOKEN_SERVER_GRACE_SECONDS": "-1"}, ["TOKEN_SERVER_GRACE_SECONDS"]),
        ([], {**SOURCE, "TOKEN_SERVER_GRACE_SECONDS": "nan"}, ["TOKEN_SERVER_GRACE_SECONDS"]),
        ([], {**SOURCE, "TOKEN_SERVER_DRAIN_DELAY_SECONDS": "soon"}, ["TOKEN_SERVER_DRAIN_DELAY_SECONDS", "seconds"]),
        ([], {**SOURCE, "TOKEN_SERVER_TRUST_REMOTE_CODE": "maybe"}, ["TOKEN_SERVER_TRUST_REMOTE_CODE", "true"]),
        ([], {**SOURCE, "TOKEN_SERVER_MAX_CONCURRENCY": "0"}, ["TOKEN_SERVER_MAX_CONCURRENCY"]),
        (["--threads", "-1"], SOURCE, ["--threads", "0 to 1024"]),
        (["--dtype", "int4"], SOURCE, ["--dtype", "bfloat16"]),
        (["--device=tpu"], SOURCE, ["--device", "cuda"]),
        (["--tensor-parallel-size", "2"], SOURCE, ["--tensor-parallel-size", "--help"]),
        (["--por", "1"], SOURCE, ["--por"]),
        (["serve"], SOURCE, ["serve"]),
        (["--warm"], {}, ["TOKEN_SERVER_ASSIGN_TOKEN_SHA256"]),
        (["--warm"], {**SOURCE, **WARM}, ["--warm", "name none"]),
        ([], {**WARM, "TOKEN_SERVER_ASSIGN_TOKEN_SHA256": "abc"}, ["TOKEN_SERVER_ASSIGN_TOKEN_SHA256", "SHA-256"]),
        ([], {**WARM, "TOKEN_SERVER_PRELOAD": "LlamaForCausalLM,os.path"}, ["TOKEN_SERVER_PRELOAD", "'os.path'"]),
    ],
)
def test_mistakes_are_named(argv: list[str], environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(argv, environ)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--trust-remote-code"], True),
        (["--trust-remote-code=true"], True),
        (["--trust-remote-code", "false"], False),
        ([], False),
    ],
)
def test_foreign_code_runs_only_if_stated(argv: list[str], value: bool) -> None:
    assert read_settings(argv, SOURCE).trust_remote_code is value


def test_a_warm_server_has_no_model() -> None:
    settings = read_settings([], {**WARM, "TOKEN_SERVER_PRELOAD": " LlamaForCausalLM, ,GPT2LMHeadModel "})
    assert (settings.warm, settings.model_source, settings.model_name) == (True, "", "")
    assert settings.preload == ("LlamaForCausalLM", "GPT2LMHeadModel")
    assert settings.assign_port == 8001


def test_an_empty_variable_counts_as_not_given() -> None:
    environ = {**SOURCE, "TOKEN_SERVER_MODEL_REVISION": "", "TOKEN_SERVER_API_KEYS_DIR": ""}
    settings = read_settings([], environ)
    assert (settings.model_revision, settings.api_keys_dir) == (None, None)


def test_names_from_sources() -> None:
    assert default_name("hf://org/name") == "org/name"
    assert default_name("file:///models/tiny") == "tiny"


def test_every_setting_has_help() -> None:
    assert set(HELP) == {field.name for field in dataclasses.fields(Settings)}
