"""Why a model could not be loaded, in one line that tells what to do. Pure: works on exceptions and their texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from token_server.log import redact
from token_server.settings import Settings

DETAIL_LENGTH = 300
# (names of exception types, pattern in the text, cause). The first row whose types fit tells the cause, else the first
# whose pattern does; they are those of huggingface_hub 0.17 to 2, transformers 4.35 to 5 and torch 2.
CAUSES: tuple[tuple[frozenset[str], str, str], ...] = (
    (frozenset({"GatedRepoError"}), r"gated repo", "not authorised: the repository is gated; {token}"),
    (
        frozenset({"RevisionNotFoundError"}),
        r"is not a valid git identifier|Invalid rev id",
        "no such revision: {revision}",
    ),
    (
        frozenset({"RepositoryNotFoundError"}),
        r"is not a valid model identifier|Repository Not Found|\b40[14] Client Error",
        "not found: the hub has no such repository, or it is private; {token}",
    ),
    (
        frozenset({"OutOfMemoryError", "MemoryError", "DefaultCPUAllocator"}),
        r"out of memory|can't allocate memory|Cannot allocate memory",
        "out of memory: give the container more (resources.limits), a larger GPU, or a smaller --dtype",
    ),
    (
        frozenset(),
        r"trust_remote_code|contains custom code",
        "its repository brings its own code: set model.trustRemoteCode to true if you trust it",
    ),
    (
        frozenset(),
        r"does not recognize this architecture|Unrecognized (configuration class|model)|model type `[^`]*`",
        "architecture unknown to {transformers}: use a newer transformers in the environment, "
        "or check that it is a causal language model",
    ),
    (
        frozenset(),
        r"requires the following packages|No module named|was not found in your environment|requires the \S+ library",
        "a Python package is missing in the environment: {detail}",
    ),
    (
        frozenset(
            {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectTimeout", "ConnectError"}
        ),
        r"couldn't connect|Connection error|Max retries exceeded|Temporary failure in name resolution|offline mode",
        "the hub cannot be reached from this container: check DNS, egress rules and HF_ENDPOINT",
    ),
    (
        frozenset(),
        r"Couldn't instantiate the backend tokenizer|Can't load (the )?tokenizer",
        "missing file: no usable tokenizer: neither tokenizer.json nor the files it is made from",
    ),
    (
        frozenset(),
        r"untagged enum ModelWrapper",
        "tokenizer.json is of a newer format than the environment's tokenizers package reads: use a newer one",
    ),
    (
        frozenset({"EntryNotFoundError"}),
        r"does not appear to have (a file|files) named|[Nn]o file named",
        "missing file: {detail}",
    ),
    (
        frozenset({"SafetensorError"}),
        r"[Ee]rror while deserializing|InvalidHeader|size mismatch|ignore_mismatched_sizes",
        "a weights file is damaged or does not fit its configuration: {detail}",
    ),
    (frozenset({"PermissionError"}), r"Permission denied", "files cannot be read by the container's user: {detail}"),
)


class LoadError(Exception):
    """The model cannot be loaded; the text is one line that names source and cause."""


def check_folder(settings: Settings) -> None:
    """A file:// source that cannot be a model is told at once, without torch. Raises LoadError."""
    if settings.scheme != "file":
        return
    folder = Path(settings.model_path)
    where = f"cannot load model {settings.model_source}"
    if not folder.exists():
        raise LoadError(f"{where}: not found: there is no folder {folder} in this container")
    if not folder.is_dir():
        raise LoadError(f"{where}: not a folder: {folder} must be the folder that holds config.json")
    if not (folder / "config.json").is_file():
        raise LoadError(f"{where}: missing file: {folder} has no config.json")


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, each once, the outermost first."""
    seen: set[int] = set()
    at: Optional[BaseException] = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def explain(
    settings: Settings,
    error: BaseException,
    *,
    transformers: str = "",
    hf_token: Optional[str] = None,
    doing: str = "load",
) -> str:
    """One line for the operator and its users; never with a token in it."""
    if isinstance(error, LoadError):
        return str(error)
    aim = f"{doing} model {settings.model_source}" if settings.model_source else "become warm"
    errors = list(chain(error))
    names = {cls.__name__ for each in errors for cls in type(each).__mro__}
    text = "\n".join(str(each) for each in errors)
    words = {
        "token": (
            "the token in model.authSecretRef has no access" if hf_token else "give a token in model.authSecretRef"
        ),
        "revision": settings.model_revision or "main",
        "transformers": f"transformers {transformers}".strip(),
        "detail": first_line(error),
    }
    # The types say it for sure; their texts name several causes at once ("private or gated repo").
    for kinds, _, cause in CAUSES:
        if kinds & names:
            return _line(aim, cause.format(**words), hf_token)
    for _, pattern, cause in CAUSES:
        if re.search(pattern, text):
            return _line(aim, cause.format(**words), hf_token)
    return _line(aim, f"{type(error).__name__}: {words['detail']}", hf_token)


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= DETAIL_LENGTH else text[: DETAIL_LENGTH - 1] + "…"


def _line(aim: str, cause: str, hf_token: Optional[str]) -> str:
    return redact(" ".join(f"cannot {aim}: {cause}".split()), hf_token)
