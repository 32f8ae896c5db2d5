"""`tokenservice image push`: the command line of the builder."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BuildError

if TYPE_CHECKING:
    from .registry_auth import Login

IMAGES = ("base", "operator", "serving", "serving-cpu-standins", "token-server-standin", "model")


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `image` with its own commands; the parsed arguments have `run`, which takes them and gives the exit code."""
    image = subparsers.add_parser("image", help="make images and push them to a registry, without Docker")
    commands = image.add_subparsers(metavar="COMMAND", required=True)
    push = commands.add_parser("push", help="make an image, push it and print one line of JSON about it")
    push.add_argument("name", choices=IMAGES, metavar="IMAGE", help=f"one of {', '.join(IMAGES)}")
    push.add_argument("--registry", required=True, metavar="HOST[:PORT][/PREFIX]", help="where to push")
    push.add_argument("--tag", required=True, help="the tag to put on it")
    push.add_argument("--ca-bundle", type=Path, metavar="PEM", help="further certificate authorities for the registry")
    push.add_argument("--plain-http", action="store_true", help="HTTP without TLS")
    push.add_argument("--docker-config", type=Path, metavar="FILE", help="a Docker config.json with the login")
    push.add_argument("--gzip", action="store_true", help="layers in gzip, for tools that do not know zstd")
    push.add_argument("--source", type=Path, metavar="DIR", help="the source tree of tokenservice-operator")
    push.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="model: the folder with its files")
    push.add_argument("--name", dest="model", metavar="NAME", help="model: the image is models/NAME")
    push.set_defaults(run=run_push)


def run_push(arguments: argparse.Namespace) -> int:
    """Makes and pushes; 0, or 1 with one line that says what is wrong."""
    try:
        result = _push(arguments)
    except BuildError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _push(arguments: argparse.Namespace) -> object:
    # Imported here, since they need the `builder` extra and every other command of the program does not.
    try:
        from .http import Http
        from .images import MODELS, REPOSITORIES, Builder, Target, push_image
        from .names import check_repository, check_tag, parse_place
        from .project import source_root
        from .registry import Registry
        from .registry_auth import default_docker_config, read_login
        from .store import cache_folder
    except ModuleNotFoundError as error:
        raise BuildError(f"{error.name} is missing: pip install 'tokenservice-operator[builder]'") from error

    begun = time.monotonic()
    place, tag = parse_place(arguments.registry), check_tag(arguments.tag)
    is_model = arguments.name == "model"
    if is_model != bool(arguments.folder) or is_model != bool(arguments.model):
        raise BuildError("--from DIR and --name NAME belong to `image push model`, which needs both")
    repository = check_repository(f"{MODELS}/{arguments.model}") if is_model else REPOSITORIES[arguments.name]
    config = arguments.docker_config or default_docker_config(os.environ)

    def login() -> Login | None:
        return read_login(config, place.host, required=arguments.docker_config is not None)

    # Before minutes of building: a registry that is not there, or not trusted, is told at once.
    registry = Registry(place.host, Http(arguments.ca_bundle), login, arguments.plain_http)
    registry.connect()
    builder = Builder(
        cache_folder(os.environ), source_root(arguments.source), Http(), "gzip" if arguments.gzip else "zstd"
    )
    made = builder.model(arguments.folder, arguments.model) if is_model else builder.make(arguments.name)
    return push_image(made, builder.blob, Target(registry, place, repository, tag), begun).as_json()
