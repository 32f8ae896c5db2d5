"""What a request may say: every refusal names its field."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_server.engine import Message
from token_server.errors import ApiError
from token_server.openai_api import CHAT, COMPLETION, ONLY, Request, parse_chat, parse_completion, token_budget

HELLO = [{"role": "user", "content": "Hello"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def chat(**fields: Any) -> Request:
    return parse_chat({"model": "tiny", "messages": HELLO, **fields})


def completion(**fields: Any) -> Request:
    return parse_completion({"model": "tiny", "prompt": "Hello", **fields})


def refusal(parse: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


def test_a_plain_chat() -> None:
    request = chat()
    assert request.prompt == (Message("user", "Hello"),)
    assert (request.stream, request.max_tokens, request.temperature, request.stop) == (False, None, None, ())


def test_null_means_not_given() -> None:
    nulls: dict[str, Any] = dict.fromkeys(CHAT - {"model", "messages"})
    assert chat(**nulls) == chat()
    nulls = dict.fromkeys(COMPLETION - {"model", "prompt"})
    assert completion(**nulls) == completion()


def test_the_newer_name_of_the_limit_goes_first() -> None:
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_completion_tokens=6).max_tokens == 6
    assert chat(max_completion_tokens=6, max_tokens=5).max_tokens == 6


def test_sampling_as_asked() -> None:
    request = chat(temperature=0, top_p=0.5, seed=-3, presence_penalty=1, frequency_penalty=-2.0, stop=["a", "b"])
    sampling = request.sampling(9)
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens) == (0.0, 0.5, -3, 9)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -2.0)
    assert request.stop == ("a", "b")


def test_text_parts_and_developers() -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Good "}, {"type": "text", "text": "day"}]},
        {"role": "assistant", "content": None},
    ]
    assert chat(messages=messages).prompt == (
        Message("system", "Be kind."),
        Message("user", "Good day"),
        Message("assistant", ""),
    )


@pytest.mark.parametrize(
    ("given_prompt", "prompt"),
    [("text", "text"), (["text"], "text"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2)), ("", "")],
)
def test_prompts(given_prompt: Any, prompt: Any) -> None:
    assert completion(prompt=given_prompt).prompt == prompt


@pytest.mark.parametrize("prompt", [None, 5, [], [[]], [-1], [True], [1.5], {"text": "x"}, ["a", "b"], [[1], [2]]])
def test_other_prompts_are_refused(prompt: Any) -> None:
    assert refusal(completion, prompt=prompt).param == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [*HELLO, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": True}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"top_k": 5}, "top_k"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_chat_refusals_name_the_field(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert error.param == param
    assert f"'{param}'" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": HELLO}, "messages"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_completion_refusals_name_the_field(fields: dict[str, Any], param: str) -> None:
    assert refusal(completion, **fields).param == param


def test_values_that_ask_for_nothing_are_accepted() -> None:
    allowed = {name: values[0] for name, (values, _) in ONLY.items() if values}
    chat(**{name: value for name, value in allowed.items() if name in CHAT}, user="u", metadata={"a": "b"})
    completion(**{name: value for name, value in allowed.items() if name in COMPLETION}, user="u")


@pytest.mark.parametrize("body", [None, [], "x", 5])
def test_the_body_is_an_object(body: Any) -> None:
    assert refusal(lambda: parse_chat(body)).code == "invalid_type"


@given(st.dictionaries(st.sampled_from(sorted(CHAT | COMPLETION)), JSON, max_size=6))
def test_no_json_crashes_the_check(fields: dict[str, Any]) -> None:
    for parse in (parse_chat, parse_completion):
        with suppress(ApiError):
            assert parse({"model": "tiny", "messages": HELLO, "prompt": "x", **fields}).model


@pytest.mark.parametrize(
    ("of_chat", "asked", "prompt", "default", "budget"),
    [
        (True, None, 10, None, 90),
        (True, None, 10, 40, 40),
        (True, None, 80, 40, 20),
        (True, 5, 10, 40, 5),
        (True, 90, 10, None, 90),
        (False, None, 10, None, 16),
        (False, None, 90, None, 10),
        (False, None, 10, 40, 40),
    ],
)
def test_how_long_an_answer_may_be(
    of_chat: bool, asked: int | None, prompt: int, default: int | None, budget: int
) -> None:
    request = chat(max_tokens=asked) if of_chat else completion(max_tokens=asked)
    assert token_budget(request, prompt, 100, default) == budget


@pytest.mark.parametrize(("asked", "prompt"), [(91, 10), (None, 100), (1, 100), (None, 250)])
def test_what_does_not_fit_the_context(asked: int | None, prompt: int) -> None:
    error = refusal(lambda: token_budget(chat(max_tokens=asked), prompt, 100, None))
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert "maximum context length is 100 tokens" in error.message
