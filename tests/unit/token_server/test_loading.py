"""Why a model does not load, in one line. The exceptions are stand-ins with the names and texts of the libraries'."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_server.loading import LoadError, check_folder, explain
from token_server.settings import Settings

HUB = Settings(model_source="hf://org/name", model_revision="v9")
SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


def named(name: str, text: str, *bases: type[Exception]) -> Exception:
    made: Exception = type(name, bases or (Exception,), {})(text)
    return made


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


NOT_FOUND_TEXT = (
    "org/name is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'\n"
    "If this is a private repository, make sure to pass a token having permission to this repo"
)
NOT_FOUND = type("RepositoryNotFoundError", (OSError,), {})
ENTRY = type("EntryNotFoundError", (Exception,), {})
CASES = [
    (OSError(NOT_FOUND_TEXT), "not found"),
    (caused(OSError("private or gated repo"), NOT_FOUND("401 Client Error")), "not found"),
    (caused(OSError(NOT_FOUND_TEXT), named("GatedRepoError", "403", NOT_FOUND)), "gated"),
    (OSError("You are trying to access a gated repo.\nMake sure to have access to it"), "gated"),
    (OSError("v9 is not a valid git identifier (branch name, tag name or commit id)"), "no such revision: v9"),
    (named("RevisionNotFoundError", "404"), "no such revision: v9"),
    (OSError("org/name does not appear to have a file named config.json. Checkout ..."), "missing file: org/name does"),
    (OSError("Error no file named model.safetensors, or pytorch_model.bin, found in directory /m."), "missing file"),
    (ValueError("Couldn't instantiate the backend tokenizer from one of:\n(1) a file"), "no usable tokenizer"),
    (
        ValueError("The checkpoint you are trying to load has model type `fancy` but Transformers does not recognize"),
        "architecture unknown to transformers 4.35.2",
    ),
    (
        ValueError("Unrecognized configuration class <class 'BertConfig'> for this kind of AutoModel"),
        "architecture unknown",
    ),
    (
        ValueError("Loading org/name requires you to execute the configuration file. Set `trust_remote_code=True`."),
        "model.trustRemoteCode",
    ),
    (named("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB", RuntimeError), "out of memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    (MemoryError(), "out of memory"),
    (ImportError("This modeling file requires the following packages that were not found: einops"), "Python package"),
    (named("SafetensorError", "Error while deserializing header: HeaderTooLarge"), "damaged"),
    (RuntimeError("size mismatch for lm_head.weight: copying a param"), "damaged"),
    (OSError("We couldn't connect to 'https://huggingface.co' to load the files"), "the hub cannot be reached"),
    (caused(OSError("x"), named("LocalEntryNotFoundError", "y", ENTRY)), "the hub cannot be reached"),
    (PermissionError(13, "Permission denied", "/models/x/config.json"), "container's user"),
    (Exception("data did not match any variant of untagged enum ModelWrapper at line 4318"), "newer format"),
    (KeyError("rope_scaling"), "KeyError"),
]


@pytest.mark.parametrize(("error", "words"), CASES, ids=[words for _, words in CASES])
def test_the_cause_in_plain_words(error: Exception, words: str) -> None:
    line = explain(HUB, error, transformers="4.35.2")
    assert line.startswith("cannot load model hf://org/name: ")
    assert words in line
    assert "\n" not in line


def test_advice_depends_on_whether_a_token_was_given() -> None:
    error = named("GatedRepoError", "403")
    assert "give a token in model.authSecretRef" in explain(HUB, error)
    assert "the token in model.authSecretRef has no access" in explain(HUB, error, hf_token=SECRET)


@given(st.text(max_size=200), st.text(max_size=200), st.sampled_from([ValueError, OSError, KeyError, RuntimeError]))
def test_never_a_token_never_two_lines(before: str, after: str, kind: type[Exception]) -> None:
    for secret in (SECRET, "a-token-of-another-form"):
        line = explain(HUB, kind(f"{before} {secret} {after}"), hf_token=secret)
        assert secret not in line
        assert line == " ".join(line.split())


def test_a_long_text_is_cut() -> None:
    assert len(explain(HUB, ValueError("x" * 5000))) < 500


def test_folders_are_checked_first(tmp_path: Path) -> None:
    def problem(path: Path) -> str:
        with pytest.raises(LoadError) as caught:
            check_folder(Settings(model_source=f"file://{path}"))
        return explain(HUB, caught.value)

    assert problem(tmp_path / "x") == (
        f"cannot load model file://{tmp_path}/x: not found: there is no folder {tmp_path}/x in this container"
    )
    (tmp_path / "f").write_text("")
    assert "not a folder" in problem(tmp_path / "f")
    assert f"missing file: {tmp_path} has no config.json" in problem(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    check_folder(Settings(model_source=f"file://{tmp_path}"))
    check_folder(HUB)


def test_what_was_being_done_is_said() -> None:
    assert explain(HUB, MemoryError(), doing="generate with").startswith(
        "cannot generate with model hf://org/name: out"
    )
    assert explain(Settings(warm=True), ImportError("No module named 'torch'")) == (
        "cannot become warm: a Python package is missing in the environment: No module named 'torch'"
    )
