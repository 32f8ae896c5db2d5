"""Where engines come from, and what a start does to get one, stage by stage."""

from __future__ import annotations

import importlib
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Callable

from token_server.engine import Engine, Sampling
from token_server.loading import LoadError, check_folder, explain
from token_server.settings import Settings
from token_server.verify import PROMPT

ENGINE_MODULE = "token_server.transformers_engine"
Stage = Callable[[str, float], object]


@dataclass(frozen=True)
class Engines:
    """Where engines come from. Both may take long, run in a thread, and raise LoadError with one clear line.

    Each calls `stage(name, seconds)` for what it has done.
    """

    prepare: Callable[[Settings, Stage], None]
    """Everything that can be done before a model is known."""
    load: Callable[[Settings, Stage], Engine]
    """The model of the settings, with whatever of `prepare` has not been done yet."""


def import_transformers(settings: Settings, stage: Stage) -> Any:
    """The module that needs torch and transformers; imported once, with the model's classes. Raises LoadError."""
    began, known = time.perf_counter(), ENGINE_MODULE in sys.modules
    try:
        import transformers

        with suppress(AttributeError):
            transformers.utils.logging.disable_progress_bar()
        module = importlib.import_module(ENGINE_MODULE)
        if not known:  # a server that is warm loads at once: `load` imports them, and `weights` counts them
            module.import_classes(settings)
    except Exception as error:
        raise LoadError(explain(settings, error)) from error
    if not known:
        stage("imports", time.perf_counter() - began)
    return module


def prepare_transformers(settings: Settings, stage: Stage) -> None:
    """Imports torch, transformers and the architectures asked for, and rehearses. Raises LoadError."""
    module = import_transformers(settings, stage)
    began = time.perf_counter()
    try:
        module.prepare(settings)
    except Exception as error:
        raise LoadError(explain(settings, error)) from error
    stage("prepare", time.perf_counter() - began)


def load_transformers(settings: Settings, stage: Stage) -> Engine:
    """Imports torch and transformers, then loads the model. Raises LoadError with one clear line."""
    check_folder(settings)
    module = import_transformers(settings, stage)
    began = time.perf_counter()
    try:
        engine: Engine = module.load(settings)
    except Exception as error:
        version = sys.modules["transformers"].__version__
        raise LoadError(explain(settings, error, transformers=version, hf_token=os.environ.get("HF_TOKEN"))) from error
    stage("weights", time.perf_counter() - began)
    return engine


def warm_up(settings: Settings, engine: Engine, stage: Stage) -> None:
    """One token, so that no request pays for what a first one costs. Raises LoadError if none comes.

    After the shortest prompt: it needs every weight as any other does, and on a CPU half the time of "Hello".
    """
    began = time.perf_counter()
    try:
        engine.generate(engine.encode(PROMPT)[:1] or [0], Sampling(max_tokens=1, temperature=0.0), lambda _: True)
    except Exception as error:
        raise LoadError(explain(settings, error, doing="generate with")) from error
    stage("warmup", time.perf_counter() - began)


TRANSFORMERS = Engines(prepare_transformers, load_transformers)
