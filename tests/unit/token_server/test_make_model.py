"""The demo's model: the same bytes each time, and files that belong together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

TOOL = Path(__file__).resolve().parents[3] / "tools/make_model.py"


def make(folder: Path) -> Path:
    subprocess.run([sys.executable, TOOL, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "tiny")


def read(model: Path, name: str) -> Any:
    return json.loads((model / name).read_text())


def test_the_same_bytes_twice(model: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "again")
    names = sorted(file.name for file in model.iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (model / name).read_bytes() == (again / name).read_bytes(), name


def test_the_tokenizer_writes_any_text(model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    for text in ("Hello world", "Grüße, 世界! 🙂\n\ttab", "  spaces  "):
        encoded = tokenizer.encode(text)
        assert encoded.ids[0] == tokenizer.token_to_id("<s>")
        assert tokenizer.decode(encoded.ids) == text


def test_merges_have_the_form_that_old_tokenizers_read(model: Path) -> None:
    merges = read(model, "tokenizer.json")["model"]["merges"]
    assert all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges)


def test_weights_fit_the_configuration(model: Path) -> None:
    config = read(model, "config.json")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    with safe_open(model / "model.safetensors", framework="numpy") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        head = weights.get_tensor("lm_head.weight")
    assert len(shapes) == 3 + 9 * layers
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (config["vocab_size"], hidden)
    assert shapes["model.layers.0.mlp.up_proj.weight"] == (config["intermediate_size"], hidden)
    width = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (width, hidden)
    # Only whole words get a score: no answer ends at once, none is a heap of bytes.
    spoken = [str(tokenizer.id_to_token(token)) for token, row in enumerate(head) if row.any()]
    assert len(spoken) > 100
    assert all(word.startswith("Ġ") for word in spoken)
    assert not head[config["eos_token_id"]].any()


def test_an_answer_has_a_length_of_its_own(model: Path) -> None:
    assert read(model, "generation_config.json")["max_new_tokens"] == 40
    assert "<|assistant|>" in read(model, "tokenizer_config.json")["chat_template"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run([sys.executable, TOOL, tmp_path / "file"], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("make_model: ")
    assert "Traceback" not in done.stderr
