"""What a warm server may be given, what it becomes by it, and that it finds it again."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tokenservice.protocol
from hypothesis import given
from hypothesis import strategies as st
from token_server.assignment import Assignment, assigned, believed, parse, stored, sync, write
from token_server.errors import ApiError
from token_server.settings import SETTLED, Settings, read_settings

SCHEMA: dict[str, Any] = json.loads(
    (importlib.resources.files(tokenservice.protocol) / "assignment.schema.json").read_text()
)
TOKEN = "the-token-of-this-pod"
SHA256 = hashlib.sha256(TOKEN.encode()).hexdigest()
WARM = Settings(warm=True, assign_token_sha256=SHA256, port=9000, grace_seconds=30.0, preload=("LlamaForCausalLM",))
TINY: dict[str, Any] = {"service": "team/chat", "model": {"source": "file:///models/tiny"}}
TEXT = st.text(max_size=20)
MODELS = st.fixed_dictionaries(
    {"source": st.one_of(TEXT.map("file:///{}".format), TEXT.map("hf://org/{}".format))},
    optional={"revision": TEXT, "name": TEXT, "trustRemoteCode": st.booleans()},
)
ASSIGNMENTS = st.fixed_dictionaries(
    {"service": st.text(min_size=1), "model": MODELS}, optional={"args": st.lists(TEXT, max_size=4)}
)


def refusal(document: Any, base: Settings = WARM) -> ApiError:
    with pytest.raises(ApiError) as caught:
        assigned(base, parse(document))
    assert caught.value.status == 400
    return caught.value


@given(ASSIGNMENTS)
def test_whatever_the_operator_may_send_is_understood(document: dict[str, Any]) -> None:
    jsonschema.validate(document, SCHEMA)
    assert parse(document).document() == {"args": [], **document}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (None, None),
        ([], None),
        ({**TINY, "replicas": 2}, "replicas"),
        ({"model": TINY["model"]}, "service"),
        ({**TINY, "service": ""}, "service"),
        ({"service": "a/b"}, "model"),
        ({**TINY, "model": {}}, "model.source"),
        ({**TINY, "model": {"source": ""}}, "model.source"),
        ({**TINY, "model": {"source": "s3://bucket"}}, "model.source"),
        ({**TINY, "model": {"source": "file:///x", "name": 1}}, "model.name"),
        ({**TINY, "model": {"source": "file:///x", "trustRemoteCode": "true"}}, "model.trustRemoteCode"),
        ({**TINY, "model": {"source": "file:///x", "token": "hf_x"}}, "model.token"),
        ({**TINY, "args": "--dtype=float32"}, "args"),
        ({**TINY, "args": [1]}, "args"),
        ({**TINY, "args": ["--dtype", "int4"]}, "args"),
        ({**TINY, "args": ["--tensor-parallel-size", "2"]}, "args"),
        ({**TINY, "args": ["--port", "8080"]}, "args"),
        ({**TINY, "args": ["-h"]}, "args"),
        ({**TINY, "args": ["--help"]}, "args"),
        ({**TINY, "args": ["--grace-seconds", "5"]}, "args"),
    ],
)
def test_what_cannot_be_used_is_named(document: Any, field: str | None) -> None:
    error = refusal(document)
    assert error.param == field
    assert error.message.count("\n") == 0


def test_a_settled_flag_is_told_with_its_value() -> None:
    assert (
        "--port is settled when the server starts; this one has 9000"
        in refusal({**TINY, "args": ["--port", "8080"]}).message
    )


def test_an_assigned_server_is_as_if_started_so() -> None:
    """The same model and arguments, once as variables and flags of a start, once as an assignment."""
    args = ("--max-concurrency", "7", "--dtype=bfloat16", "--port", "9000")
    cold = read_settings(
        args,
        {
            "TOKEN_SERVER_PORT": "9000",
            "TOKEN_SERVER_GRACE_SECONDS": "30",
            "TOKEN_SERVER_MODEL_SOURCE": "hf://org/name/",
            "TOKEN_SERVER_MODEL_REVISION": "v1",
            "TOKEN_SERVER_TRUST_REMOTE_CODE": "true",
        },
    )
    model = {"source": "hf://org/name/", "revision": "v1", "trustRemoteCode": True}
    warm = assigned(WARM, Assignment("team/chat", model, args))
    differ = {name for name in vars(cold) if getattr(cold, name) != getattr(warm, name)}
    assert differ == {"preload", "assign_token_sha256"}
    assert warm.model_name == "org/name"


@given(st.lists(st.sampled_from(["--max-queue=3", "--device=cpu", "--model-name=x", "--dtype=float16"]), max_size=4))
def test_what_is_settled_stays(args: list[str]) -> None:
    made = assigned(WARM, parse({**TINY, "args": args}))
    assert {name: getattr(made, name) for name in SETTLED if name != "warm"} == {
        name: getattr(WARM, name) for name in SETTLED if name != "warm"
    }
    assert not made.warm


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN} ", True),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        (f"Bearer {SHA256}", False),
        ("Bearer ", False),
        ("", False),
        (None, False),
        ("Bearer \udcff", False),
    ],
)
def test_the_token(header: str | None, expected: bool) -> None:
    assert believed(header, SHA256) is expected


@given(ASSIGNMENTS)
def test_an_assignment_is_found_again(tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("pod") / "kept" / "assignment.json"
    assert stored(path) is None
    write(path, parse(document))
    sync(path)
    assert stored(path) == parse(document)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", ["", "{", '{"service": "a/b"}', '{"service": "a/b", "model": {"source": 1}}'])
def test_a_file_that_says_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "assignment.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"assignment\.json: .*[Dd]elete the pod"):
        stored(path)
