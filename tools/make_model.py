#!/usr/bin/env python3
"""Makes a small causal language model with random weights, without torch and without a hub.

    .venv/bin/python tools/make_model.py DIR [--size tiny|small|big]

The folder is what `from_pretrained` reads: a Llama configuration, weights as safetensors, a byte-level BPE tokenizer
trained on the licence and the Zen of Python, and a chat template. It has learned nothing: it says words of the licence
in random order. The same command writes the same bytes. `big` has 0.57 GB of weights, and is still quick on a CPU.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SEED = 20240229
CONTEXT = 2048  # tokens
ANSWER = 40  # tokens of an answer whose request names no limit
BOS, EOS = "<s>", "</s>"
SPECIAL = (BOS, EOS, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
# Deviation of the scores over the vocabulary before sampling: high enough that tokens whose score is 0 are all but
# never chosen, low enough that answers vary. Only whole words get a score, so that the answers can be read.
SCORE_DEVIATION = 4.0
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """Dimensions in Llama's own terms; `vocabulary` is what the tokenizer is trained to have at most."""

    vocabulary: int = 2000
    hidden: int = 64
    intermediate: int = 176
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2


SIZES = {
    "tiny": Size(),
    "small": Size(hidden=512, intermediate=1408, layers=8, heads=8, kv_heads=4),
    "big": Size(hidden=1024, intermediate=2816, layers=12, heads=16, kv_heads=8),
}


def corpus() -> list[str]:
    """Two texts that every checkout and every Python have, letter for letter."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    licence = (Path(__file__).resolve().parent.parent / "LICENSE").read_text(encoding="utf-8")
    return [*licence.splitlines(), *codecs.decode(this.s, "rot13").splitlines()]


def make_tokenizer(size: Size) -> Tokenizer:
    """Byte-level BPE: every text can be written, whole words of the corpus are one token."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    start = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, start)]
    )
    return tokenizer


def make_weights(size: Size, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Tensors by LlamaForCausalLM's names, float32, shapes (out, in), drawn in this order from one generator."""
    random = np.random.default_rng(SEED)
    count = tokenizer.get_vocab_size()

    def draw(rows: int, columns: int, deviation: float) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * deviation).astype(np.float32)

    kv_width = size.hidden // size.heads * size.kv_heads
    inner = size.hidden**-0.5
    weights = {"model.embed_tokens.weight": draw(count, size.hidden, 1.0)}
    for layer in range(size.layers):
        name = f"model.layers.{layer}"
        weights[f"{name}.self_attn.q_proj.weight"] = draw(size.hidden, size.hidden, inner)
        weights[f"{name}.self_attn.k_proj.weight"] = draw(kv_width, size.hidden, inner)
        weights[f"{name}.self_attn.v_proj.weight"] = draw(kv_width, size.hidden, inner)
        weights[f"{name}.self_attn.o_proj.weight"] = draw(size.hidden, size.hidden, inner)
        weights[f"{name}.mlp.gate_proj.weight"] = draw(size.intermediate, size.hidden, inner)
        weights[f"{name}.mlp.up_proj.weight"] = draw(size.intermediate, size.hidden, inner)
        weights[f"{name}.mlp.down_proj.weight"] = draw(size.hidden, size.intermediate, size.intermediate**-0.5)
        weights[f"{name}.input_layernorm.weight"] = np.ones(size.hidden, dtype=np.float32)
        weights[f"{name}.post_attention_layernorm.weight"] = np.ones(size.hidden, dtype=np.float32)
    weights["model.norm.weight"] = np.ones(size.hidden, dtype=np.float32)
    head = draw(count, size.hidden, SCORE_DEVIATION * inner)
    words = frozenset(" ".join(corpus()).split())
    for token in range(count):
        if not readable(str(tokenizer.id_to_token(token)), words):
            head[token] = 0.0
    weights["lm_head.weight"] = head
    return weights


def readable(token: str, words: frozenset[str]) -> bool:
    """A whole word with the space before it, which byte-level BPE writes as Ġ."""
    return token.startswith("Ġ") and token[1:] in words


def configurations(size: Size, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """The JSON files beside the weights, by file name."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    generation = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 50,
        "max_new_tokens": ANSWER,
    }
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return {"config.json": config, "generation_config.json": generation, "tokenizer_config.json": words}


def tokenizer_file(tokenizer: Tokenizer) -> str:
    """tokenizer.json with merges as "a b", which every version reads; tokenizers before 0.20 knows no other form."""
    content = json.loads(tokenizer.to_str())
    content["model"]["merges"] = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
    ]
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def make_model(folder: Path, size: Size) -> int:
    """Writes the model; returns its number of parameters. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(size)
    weights = make_weights(size, tokenizer)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text(tokenizer_file(tokenizer), encoding="utf-8")
    for name, content in configurations(size, tokenizer).items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)  # a pod's own user reads it
    return sum(tensor.size for tensor in weights.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    given = parser.parse_args()
    try:
        count = make_model(given.folder, SIZES[given.size])
    except OSError as error:
        print(f"make_model: {given.folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{given.folder}: a Llama of {count / 1e6:.1f} million random parameters")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
