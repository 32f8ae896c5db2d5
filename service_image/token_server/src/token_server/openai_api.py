"""OpenAI's completions and chat completions: what a request may say, and what the answers look like.

Source: https://platform.openai.com/docs/api-reference (chat/create, completions/create, streaming). Requests are
checked by hand, not by a model class: every refusal then names the field in OpenAI's own form, whichever pydantic is
there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

from token_server.engine import Message, Sampling
from token_server.errors import ApiError, bad_type, bad_value, too_long, unsupported

COMPLETION_MAX_TOKENS = 16  # OpenAI's default of /v1/completions
MOST_STOPS = 4
MOST_TOKENS = 10_000_000
ROLES = ("developer", "system", "user", "assistant", "tool")
# Accepted and without effect here, as OpenAI documents them: bookkeeping on its own side.
IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
COMMON = frozenset({
    "model", "max_tokens", "temperature", "top_p", "stop", "seed", "n", "presence_penalty", "frequency_penalty",
    "logit_bias", "logprobs", "stream", "stream_options",
})  # fmt: skip
CHAT = COMMON | {
    "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "functions",
    "function_call", "response_format", "modalities", "audio", "prediction", "reasoning_effort", "verbosity",
    "web_search_options",
}  # fmt: skip
COMPLETION = COMMON | {"prompt", "suffix", "echo", "best_of"}
# Fields with a value that asks for nothing, and what to say to every other value.
ONLY: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "one answer per request; send several requests."),
    "best_of": ((1,), "one answer per request."),
    "logprobs": ((False, 0), "log probabilities are not returned."),
    "top_logprobs": ((0,), "log probabilities are not returned."),
    "logit_bias": (({},), "token biases are not applied."),
    "echo": ((False,), "the prompt is not repeated."),
    "suffix": (("",), "text is only continued at its end."),
    "tools": (([],), "the model cannot call tools."),
    "tool_choice": (("none", "auto"), "the model cannot call tools."),
    "parallel_tool_calls": ((True, False), "the model cannot call tools."),
    "functions": (([],), "the model cannot call functions."),
    "function_call": (("none", "auto"), "the model cannot call functions."),
    "response_format": (({"type": "text"},), "answers are plain text."),
    "modalities": ((["text"],), "answers are plain text."),
    "audio": ((), "answers are plain text."),
    "prediction": ((), "predicted output is not used."),
    "reasoning_effort": ((), "the model has no such setting."),
    "verbosity": ((), "the model has no such setting."),
    "web_search_options": ((), "the server does not search."),
}


@dataclass(frozen=True)
class Request:
    """A checked request. `prompt` is text, token ids, or a conversation (chat)."""

    model: str
    prompt: Union[str, tuple[int, ...], tuple[Message, ...]]
    chat: bool
    max_tokens: Optional[int]
    temperature: Optional[float]
    top_p: Optional[float]
    presence_penalty: float
    frequency_penalty: float
    seed: Optional[int]
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool

    @property
    def prompt_field(self) -> str:
        return "messages" if self.chat else "prompt"

    def sampling(self, max_tokens: int) -> Sampling:
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
        )


def parse_chat(body: Any) -> Request:
    """Checks the JSON of POST /v1/chat/completions. Raises ApiError (400) that names the field."""
    return _parse(body, CHAT, chat=True)


def parse_completion(body: Any) -> Request:
    """Checks the JSON of POST /v1/completions. Raises ApiError (400) that names the field."""
    return _parse(body, COMPLETION, chat=False)


def _parse(body: Any, known: frozenset[str], *, chat: bool) -> Request:
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_type")
    for name in body:
        if name not in known and name not in IGNORED:
            raise ApiError(400, f"Unrecognized request argument: '{name}'", code="unknown_parameter", param=name)
    # OpenAI's clients send null for what the caller left open.
    given = {name: value for name, value in body.items() if value is not None}
    model = given.get("model")
    if not isinstance(model, str) or not model:
        raise bad_type("model", "the name of the model")
    prompt = _messages(given.get("messages")) if chat else _prompt(given.get("prompt"))
    for name, (allowed, why) in ONLY.items():
        if name in given and not any(given[name] == value and _same_kind(given[name], value) for value in allowed):
            raise unsupported(name, why)
    limits = [_whole(given, name, 1, MOST_TOKENS) for name in ("max_completion_tokens", "max_tokens")]
    stream = _flag(given, "stream")
    options = given.get("stream_options")
    if options is not None and not stream:
        raise bad_value("stream_options", "only allowed with 'stream': true.")
    return Request(
        model=model,
        prompt=prompt,
        chat=chat,
        max_tokens=next((limit for limit in limits if limit is not None), None),
        temperature=_number(given, "temperature", 0.0, 2.0),
        top_p=_number(given, "top_p", 0.0, 1.0),
        presence_penalty=_number(given, "presence_penalty", -2.0, 2.0) or 0.0,
        frequency_penalty=_number(given, "frequency_penalty", -2.0, 2.0) or 0.0,
        seed=_whole(given, "seed", -(2**63), 2**63 - 1),
        stop=_stops(given.get("stop")),
        stream=stream,
        include_usage=_include_usage(options),
    )


def _same_kind(value: Any, allowed: Any) -> bool:
    """False == 0 and True == 1 in Python, but not in JSON."""
    return isinstance(value, bool) == isinstance(allowed, bool)


def _number(given: Mapping[str, Any], name: str, low: float, high: float) -> Optional[float]:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad_type(name, "a number")
    if not low <= value <= high:
        raise bad_value(name, f"{value} is not within {low:g} to {high:g}.")
    return float(value)


def _whole(given: Mapping[str, Any], name: str, low: int, high: int) -> Optional[int]:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_type(name, "a whole number")
    if not low <= value <= high:
        raise bad_value(name, f"{value} is not within {low} to {high}.")
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise bad_type(name, "true or false")
    return value


def _include_usage(options: Any) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise bad_type("stream_options", "an object")
    for name in options:
        if name not in {"include_usage", "include_obfuscation"}:
            param = f"stream_options.{name}"
            raise ApiError(400, f"Unrecognized request argument: '{param}'", code="unknown_parameter", param=param)
    usage = options.get("include_usage", False)
    if not isinstance(usage, bool):
        raise bad_type("stream_options.include_usage", "true or false")
    return usage


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise bad_type("stop", "a string or a list of strings")
    if len(stops) > MOST_STOPS:
        raise bad_value("stop", f"at most {MOST_STOPS} strings.")
    if "" in stops:
        raise bad_value("stop", "an empty string would stop at once.")
    return tuple(stops)


def _prompt(value: Any) -> Union[str, tuple[int, ...]]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]  # a batch of one
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise bad_type("prompt", "a string or a list of token ids")
    if any(isinstance(part, (str, list)) for part in value):
        raise unsupported("prompt", "one prompt per request; send several requests.")
    if not value or any(isinstance(part, bool) or not isinstance(part, int) or part < 0 for part in value):
        raise bad_type("prompt", "a string or a list of token ids")
    return tuple(value)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise bad_type("messages", "a list of messages")
    if not value:
        raise bad_value("messages", "at least one message is needed.")
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(value))


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise bad_type(place, "an object with role and content")
    role = value.get("role")
    if role not in ROLES:
        raise bad_value(f"{place}.role", f"{role!r} is none of {', '.join(ROLES)}.")
    if value.get("tool_calls") or value.get("function_call"):
        raise unsupported(f"{place}.tool_calls", "the model cannot call tools.")
    content = value.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, list):
        content = "".join(_part(part, f"{place}.content[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise bad_type(f"{place}.content", "a string or a list of text parts")
    return Message("system" if role == "developer" else str(role), content)


def _part(value: Any, place: str) -> str:
    if not isinstance(value, dict):
        raise bad_type(place, "an object with type and text")
    if value.get("type") != "text":
        raise unsupported(f"{place}.type", "messages hold text only.")
    if not isinstance(value.get("text"), str):
        raise bad_type(f"{place}.text", "a string")
    return str(value["text"])


def token_budget(request: Request, prompt_tokens: int, context: int, default: Optional[int]) -> int:
    """How many tokens the answer may have. Raises ApiError (400, context_length_exceeded) when they do not fit.

    `default` is the model's own answer length; without one a chat answer may fill the context, a completion has
    OpenAI's 16. All in tokens.
    """
    left = context - prompt_tokens
    asked = request.max_tokens
    if left < 1 or (asked is not None and asked > left):
        raise too_long(request.prompt_field, context, prompt_tokens, asked if asked is not None else 1)
    if asked is not None:
        return asked
    fallback = left if request.chat else COMPLETION_MAX_TOKENS
    return min(left, fallback if default is None else default)


@dataclass(frozen=True)
class Answer:
    """Builds the objects of one answer; `created` is in seconds since 1970."""

    chat: bool
    identity: str
    created: int
    model: str
    fingerprint: str

    def whole(self, text: str, reason: str, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        part: dict[str, Any] = {"text": text}
        if self.chat:
            part = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {
            **self._head("chat.completion" if self.chat else "text_completion"),
            "choices": [_choice(part, reason)],
            "usage": usage(prompt_tokens, completion_tokens),
        }

    def first(self, *, with_usage: bool) -> Optional[dict[str, Any]]:
        """The chunk that tells the role; completions have none."""
        if not self.chat:
            return None
        return self._chunk([_choice({"delta": {"role": "assistant", "content": ""}}, None)], with_usage=with_usage)

    def piece(self, text: str, *, with_usage: bool) -> dict[str, Any]:
        part: dict[str, Any] = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._chunk([_choice(part, None)], with_usage=with_usage)

    def end(self, reason: str, *, with_usage: bool) -> dict[str, Any]:
        part: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return self._chunk([_choice(part, reason)], with_usage=with_usage)

    def usage(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """The chunk without choices that `stream_options.include_usage` asks for."""
        return {**self._chunk([], with_usage=False), "usage": usage(prompt_tokens, completion_tokens)}

    def _chunk(self, choices: Sequence[Mapping[str, Any]], *, with_usage: bool) -> dict[str, Any]:
        made = {**self._head("chat.completion.chunk" if self.chat else "text_completion"), "choices": list(choices)}
        return {**made, "usage": None} if with_usage else made

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.identity,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def _choice(part: Mapping[str, Any], reason: Optional[str]) -> dict[str, Any]:
    return {"index": 0, **part, "logprobs": None, "finish_reason": reason}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def model_card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "token-server"}
