"""`tokenservice env build LOCK`: the image of a lock, made and pushed from a developer's machine or CI."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import msgspec

from tokenservice.builder.errors import BuildError
from tokenservice.builder.settings import load
from tokenservice.builder.store import cache_folder

from .artifacts import environments_repository, open_registry
from .build_job import Place, Wanted, build, packages_of
from .channels import sources
from .lock import lock_digest, read_lock


def run(arguments: argparse.Namespace) -> int:
    """Prints one line of JSON: image, base, bytes. 1 with one line that says what is wrong."""
    settings = load(os.environ, arguments.settings)
    try:
        lock = read_lock(arguments.file.read_bytes(), arguments.platform)
    except OSError as error:
        raise BuildError(f"{arguments.file} cannot be read: {error.strerror}") from error
    base = arguments.base_image or settings.base_image
    if not base:
        raise BuildError("an image needs another below it: name one with --base-image, or in the settings as baseImage")
    registry, place = open_registry(settings, arguments.registry or "", plain_http=arguments.plain_http)
    registry.connect()
    cache = Path(settings.cache_folder) if settings.cache_folder else cache_folder(os.environ)
    wanted = Wanted(
        packages_of(lock), lock_digest(lock), lock.platform, base, arguments.name, variables_of(arguments.variable)
    )
    where = Place(
        registry, environments_repository(place), sources(settings), cache / "scratch", archives=cache / "packages"
    )
    answer = build(wanted, where, settings)
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    return 0


def variables_of(given: list[str]) -> dict[str, str]:
    """`NAME=VALUE` taken apart."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise BuildError(f"--variable {text}: give NAME=VALUE")
        found[name] = value
    return found
