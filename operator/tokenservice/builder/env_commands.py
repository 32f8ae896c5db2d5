"""`tokenservice env ...` for developers and CI, and `tokenservice job`, which is what a Job of the operator runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from .errors import BuildError

PLATFORMS = ("linux-64", "linux-aarch64")


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `env` with its own commands, and `job`; the parsed arguments have `run`, which gives the exit code."""
    env = subparsers.add_parser("env", help="lock a conda environment, make an image or a folder of it")
    commands = env.add_subparsers(metavar="COMMAND", required=True)

    lock = commands.add_parser("lock", help="solve an environment.yml and write its lock (pixi.lock)")
    lock.add_argument("file", type=Path, metavar="FILE", help="an environment.yml")
    lock.add_argument("--output", type=Path, metavar="LOCK", help="where to write; without it FILE's folder, pixi.lock")
    lock.add_argument(
        "--previous", type=Path, metavar="LOCK", help="prefer its choices; without it --output if it exists"
    )
    lock.add_argument("--fresh", action="store_true", help="prefer nothing: the newest of everything")
    lock.add_argument("--platform", choices=PLATFORMS, default=PLATFORMS[0], help="default: %(default)s")
    lock.add_argument("--cuda", metavar="VERSION", help="CUDA that the target nodes' driver supports, such as 12.4")
    lock.add_argument("--glibc", metavar="VERSION", help="glibc of the base image, such as 2.36")
    lock.add_argument("--exclude-newer", metavar="DATE", help="ignore packages uploaded after this day or time")
    _add_settings(lock)
    lock.set_defaults(run=_later("lock"))

    layers = commands.add_parser("layers", help="print the layers of a lock's packages, one JSON object a line")
    layers.add_argument("file", type=Path, metavar="FILE", help="a pixi.lock, or a JSON list of {name, sha256, size}")
    layers.add_argument("--platform", choices=PLATFORMS, default=PLATFORMS[0], help="default: %(default)s")
    layers.set_defaults(run=_later("layers"))

    build = commands.add_parser("build", help="make the image of a lock and push it")
    build.add_argument("file", type=Path, metavar="FILE", help="a pixi.lock")
    build.add_argument("--base-image", metavar="IMAGE", help="the image below the environment")
    build.add_argument("--name", default="env", help="the environment's name (default: %(default)s)")
    build.add_argument("--variable", action="append", default=[], metavar="NAME=VALUE", help="set in the image")
    build.add_argument("--platform", choices=PLATFORMS, default=PLATFORMS[0], help="default: %(default)s")
    _add_registry(build)
    _add_settings(build)
    build.set_defaults(run=_later("build"))

    dockerfile = commands.add_parser("dockerfile", help="print a Miniconda Dockerfile for an environment.yml")
    dockerfile.add_argument("file", type=Path, metavar="FILE", help="an environment.yml")
    dockerfile.add_argument("--base-image", metavar="IMAGE", help="default: continuumio/miniconda3")
    _add_settings(dockerfile)
    dockerfile.set_defaults(run=_later("dockerfile"))

    create = commands.add_parser("create", help="make or update the locked environment in a folder of this machine")
    create.add_argument("file", type=Path, metavar="FILE", help="an environment.yml (locked first) or a pixi.lock")
    create.add_argument("--prefix", type=Path, required=True, metavar="DIR", help="the environment's folder")
    create.add_argument("--platform", choices=PLATFORMS, default=None, help="default: this machine's")
    _add_settings(create)
    create.set_defaults(run=_later("create"))

    job = subparsers.add_parser("job", help="lock or build as the operator asks (run by its Jobs)")
    job.set_defaults(run=_later("job"))


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", type=Path, metavar="FILE", help="channels, mirrors, indexes, credentials (YAML)")


def _add_registry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--registry", metavar="HOST[:PORT][/PREFIX]", help="where to push; default: the settings'")
    parser.add_argument("--plain-http", action="store_true", help="HTTP without TLS")


def _later(name: str) -> Callable[[argparse.Namespace], int]:
    """Runs `tokenservice.builder.conda.cmd_NAME.run`, imported when it is asked for: it needs the `builder` extra."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            try:
                module = importlib.import_module(f"tokenservice.builder.conda.cmd_{name}")
            except ModuleNotFoundError as error:
                raise BuildError(f"{error.name} is missing: pip install 'tokenservice-operator[builder]'") from error
            return int(module.run(arguments))
        except BuildError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            return 130

    return run
