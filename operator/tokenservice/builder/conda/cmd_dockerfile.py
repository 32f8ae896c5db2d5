"""`tokenservice env dockerfile FILE`: prints a Miniconda Dockerfile for an environment.yml."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

from tokenservice.builder import settings as owner
from tokenservice.builder.access import open_reference
from tokenservice.builder.base_image import resolve_image
from tokenservice.builder.errors import BuildError
from tokenservice.builder.progress import say
from tokenservice.builder.project import source_root

from .cmd_lock import read_environment
from .dockerfile import MINICONDA, RUNTIME, Inputs, render

# Finding out a digest is a service, for which nobody wants to wait as long as for a build.
_PATIENCE_SECONDS = 10


def run(arguments: argparse.Namespace) -> int:
    """Prints the Dockerfile; warnings go to standard error, too. Raises BuildError."""
    path: Path = arguments.file
    settings = owner.load(os.environ, arguments.settings)
    document = read_environment(path).document
    base, runtime, warnings = arguments.base_image or MINICONDA, RUNTIME, []
    found = []
    for image in (base, runtime):
        name, warning = pinned(image, settings)
        found.append(name)
        if warning:
            warnings.append(warning)
            say(f"warning: {warning}")
    inputs = Inputs(
        file=path.name,
        name=document["name"],
        channels=document["channels"],
        variables=document["variables"],
        base=found[0],
        runtime=found[1],
        server="" if (path.parent / "token_server/pyproject.toml").is_file() else _server(),
        warnings=warnings,
    )
    sys.stdout.write(render(inputs, settings))
    return 0


def pinned(image: str, settings: owner.Settings) -> tuple[str, str]:
    """The image with the digest that it has now; or as it is, with a warning, where the registry does not tell.

    The tag stays for the reader; with a digest beside it, it says nothing to a builder.
    """
    patience = min(settings.timeout_seconds, _PATIENCE_SECONDS)
    hurried = msgspec.structs.replace(settings, timeout_seconds=patience, retries=min(settings.retries, 1))
    registry, reference = open_reference(hurried, image)
    if reference.digest:
        return str(reference), ""
    try:
        return f"{reference}@{resolve_image(registry, reference)}", ""
    except BuildError as error:
        cause = " ".join(str(error).split())
        return str(reference), f"{reference} is not pinned by digest, and may be another image tomorrow ({cause})"


def _server() -> str:
    try:
        return str(source_root(None) / "service_image/token_server")
    except BuildError:
        return "PATH/TO/service_image/token_server"
