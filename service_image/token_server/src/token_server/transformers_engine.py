"""The engine on transformers: loads a causal language model and generates with its own `generate`.

Works with transformers 4.35 to 5 and torch 2. Imported in the loading thread only, since torch takes seconds.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import os
import tempfile
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Optional

import tokenizers
import torch
import transformers

from token_server.engine import FinishReason, Message, OnToken, PromptError, Sampling
from token_server.loading import LoadError, first_line
from token_server.log import log
from token_server.sampling import Choice, Sampler
from token_server.settings import Settings

FALLBACK_CONTEXT = 2048  # tokens, where neither configuration nor tokenizer says
NO_LIMIT = 10**9  # tokenizers write "no limit" as a huge number
CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
# What is decided per request, or by Sampler, and must not come from the model's own defaults. None of these is an
# attribute of every version: only what is there is put back.
NEUTRAL = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


class _Stream(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
    """Hands each token on as it is chosen; generate puts the prompt first."""

    def __init__(self, on_token: OnToken) -> None:
        self._on_token = on_token
        self._prompt = True
        self.stopped = False
        self.last: Optional[int] = None

    def put(self, value: Any) -> None:
        if self._prompt:
            self._prompt = False
            return
        for token in value.reshape(-1).tolist():
            if not self.stopped:
                self.last = int(token)
                self.stopped = not self._on_token(self.last)

    def end(self) -> None:
        """Nothing is held back here."""


class _Stop(transformers.StoppingCriteria):  # type: ignore[misc]
    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002 - generate's interface
        return torch.full((input_ids.shape[0],), self._stream.stopped, dtype=torch.bool, device=input_ids.device)


class TransformersEngine:
    """One model on one device. token_server.engine.Engine says what the methods do."""

    def __init__(self, model: Any, tokenizer: Any, max_context: Optional[int] = None) -> None:
        self._model = model
        self._tokenizer = tokenizer
        # Fast tokenizers refuse to be used from two threads at once ("Already borrowed").
        self._lock = threading.Lock()
        self.context_length = min(max_context or NO_LIMIT, context_length(model.config, tokenizer))
        self.vocabulary_size = int(model.get_input_embeddings().weight.shape[0])
        self._defaults = model.generation_config
        # transformers keeps one cache on the model where it asks for a kind (static, hybrid); requests that run side by
        # side would write into each other's answers.
        shared = getattr(self._defaults, "cache_implementation", None) is not None
        if shared and version() >= (4, 56):  # since then a request's own cache knows of sliding windows
            self._defaults.cache_implementation, shared = None, False
        self._turn: AbstractContextManager[Any] = threading.Lock() if shared else nullcontext()
        self.default_max_tokens: Optional[int] = self._defaults.max_new_tokens
        self._ends = frozenset(_as_list(self._defaults.eos_token_id) or _as_list(tokenizer.eos_token_id))
        # An assistant's turn in a chat ends with the tokenizer's mark even where the configuration knows another.
        self._ends |= frozenset(_as_list(tokenizer.eos_token_id))

    def encode(self, text: str) -> list[int]:
        with self._lock:
            return [int(token) for token in self._tokenizer(text)["input_ids"]]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        if getattr(self._tokenizer, "chat_template", None) is None:
            return self.encode(plain_chat(messages))
        turns = [{"role": message.role, "content": message.content} for message in messages]
        with self._lock:
            try:
                text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # noqa: BLE001
                # A template is the model's own program, and raises what it likes to refuse roles and orders.
                raise PromptError(f"the model's chat template refuses them: {error}") from None
            return [int(token) for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def decode(self, tokens: Sequence[int]) -> str:
        # What ends an answer is no part of it, also where the tokenizer does not mark it as special.
        said = [token for token in tokens if token not in self._ends]
        with self._lock:
            return str(self._tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def generate(self, prompt: Sequence[int], sampling: Sampling, on_token: OnToken) -> FinishReason:
        stream = _Stream(on_token)
        sampler = Sampler(self._choice(sampling), len(prompt), self._model.device)
        input_ids = torch.tensor([list(prompt)], dtype=torch.long, device=self._model.device)
        with self._turn:
            self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=self._config(sampling.max_tokens),
                logits_processor=transformers.LogitsProcessorList([sampler]),
                stopping_criteria=transformers.StoppingCriteriaList([_Stop(stream)]),
                streamer=stream,
            )
        return "stop" if stream.last in self._ends else "length"

    def _config(self, max_tokens: int) -> Any:
        """The model's own configuration, with greedy choice: Sampler has left one token to choose."""
        config = copy.deepcopy(self._defaults)
        neutral = type(config)()
        for name in NEUTRAL:
            if hasattr(config, name):
                setattr(config, name, getattr(neutral, name, None))
        config.do_sample, config.num_beams = False, 1
        config.max_new_tokens, config.max_length = max_tokens, neutral.max_length
        config.min_length, config.min_new_tokens = 0, None
        config.eos_token_id = sorted(self._ends) or None
        if config.pad_token_id is None:
            config.pad_token_id = min(self._ends, default=0)
        return config

    def _choice(self, sampling: Sampling) -> Choice:
        own = self._defaults if self._defaults.do_sample else None
        temperature, top_p = sampling.temperature, sampling.top_p
        if temperature is None:
            temperature = getattr(own, "temperature", None)
        if top_p is None:
            top_p = getattr(own, "top_p", None)
        return Choice(
            temperature=1.0 if temperature is None else temperature,
            top_p=1.0 if top_p is None else top_p,
            top_k=(getattr(own, "top_k", None) or 0) if own is not None else 0,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            seed=sampling.seed,
        )


def _as_list(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(each) for each in value] if isinstance(value, (list, tuple)) else [int(value)]


def plain_chat(messages: Sequence[Message]) -> str:
    """The prompt for a model whose tokenizer has no chat template: one line per message, then the assistant's turn."""
    return "".join(f"{message.role}: {message.content}\n" for message in messages) + "assistant:"


def context_length(config: Any, tokenizer: Any) -> int:
    """Tokens that the model was made for: from its configuration, else its tokenizer, else 2048."""
    text = getattr(config, "text_config", None) or config
    for name in CONTEXT_FIELDS:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit and limit < NO_LIMIT else FALLBACK_CONTEXT


def pick_device(wanted: str) -> str:
    """`auto` is cuda where there is one. Raises LoadError when cuda is asked for and missing."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise LoadError("--device cuda (TOKEN_SERVER_DEVICE): torch sees no CUDA device in this container")
    return wanted


def import_classes(settings: Settings) -> None:
    """Those of a model in a folder: transformers imports them when first asked, for seconds. `load` would, too."""
    if settings.scheme != "file":
        return
    with suppress(Exception):  # of what is wrong, `load` tells
        config = json.loads((Path(settings.model_path) / "config.json").read_text(encoding="utf-8"))
        for name in config.get("architectures") or ():
            getattr(transformers, name)


def prepare(settings: Settings) -> None:
    """What a start costs before it is known which model comes: classes, and a rehearsal. Raises LoadError.

    The rehearsal loads a model of a few hundred weights and generates with it on the device, the way a real one will:
    it imports what transformers imports late, and opens the allocator or the CUDA context.
    """
    for name in settings.preload:
        if not hasattr(transformers, name):
            version = f"transformers {transformers.__version__}"
            raise LoadError(f"TOKEN_SERVER_PRELOAD: {version} has no {name}: use a newer one, or take it out")
    pick_device(settings.device)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _rehearse(dataclasses.replace(settings, model_source=f"file://{folder}"), Path(folder))
    except Exception as error:  # noqa: BLE001 - a rehearsal makes things faster, it does not make them possible
        log("the rehearsal failed: the first model will load more slowly", level="warning", error=first_line(error))


def _rehearse(settings: Settings, folder: Path) -> None:
    words = {"<s>": 0, "</s>": 1, "Hello": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))  # noqa: S106 - no secret
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)  # noqa: S106
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    engine = load(settings)
    engine.generate(engine.encode("Hello"), Sampling(max_tokens=2, temperature=0.0), lambda _: True)


def load(settings: Settings) -> TransformersEngine:
    """Loads configuration, tokenizer and weights; raises what transformers raises (loading.explain reads it)."""
    if settings.threads:  # a warm server's torch was imported before it heard of them
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device)
    common: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.scheme == "hf":
        common.update(revision=settings.model_revision or "main", token=os.environ.get("HF_TOKEN") or None)
    else:
        common["local_files_only"] = True
    place = settings.model_path
    config = transformers.AutoConfig.from_pretrained(place, **common)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, **common)
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    common[dtype_argument()] = dtype
    if device != "cpu" and importlib.util.find_spec("accelerate"):
        common["device_map"] = {"": device}  # straight there; else by way of the container's memory
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        place, config=config, output_loading_info=True, **common
    )
    missing = missing_weights(model, info)
    if missing:
        # transformers would fill them with random numbers, and the server would answer nonsense.
        text = f"{len(missing)} weights are in none of its files ({missing[0]}, ...): not a causal language model?"
        raise LoadError(f"cannot load model {settings.model_source}: {text}")
    model.to(device)
    model.eval()
    return TransformersEngine(model, tokenizer, settings.max_context)


def missing_weights(model: Any, info: Any) -> list[str]:
    """Names of trained parameters that no file had; tied ones count once, buffers not at all."""
    return sorted({name for name, _ in model.named_parameters()} & set(info["missing_keys"]))


def version() -> tuple[int, int]:
    """transformers' own, major and minor."""
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return major, minor


def dtype_argument() -> str:
    """transformers renamed `torch_dtype` to `dtype` in 4.56."""
    return "dtype" if version() >= (4, 56) else "torch_dtype"
