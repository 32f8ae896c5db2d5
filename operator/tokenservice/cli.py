"""The command line: `tokenservice manager | check | image | env | job ...`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from tokenservice import __version__, options
from tokenservice.builder import commands as image_commands
from tokenservice.builder import env_commands


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 1 failed, 2 called wrongly."""
    parser = argparse.ArgumentParser(prog="tokenservice", description="Language-model token services on Kubernetes.")
    parser.add_argument("--version", action="version", version=f"tokenservice {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    manager = commands.add_parser("manager", help="run the operator")
    options.add_arguments(manager)
    manager.set_defaults(run=_manager)

    check = commands.add_parser("check", help="see whether the cluster takes TokenServices, without changing anything")
    check.add_argument("--namespace", default="default", help="namespace of the trial")
    check.add_argument("--kubeconfig", default="", help="kubeconfig to use outside of a cluster")
    check.set_defaults(run=_check)

    image_commands.add_commands(commands)
    env_commands.add_commands(commands)

    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _manager(arguments: argparse.Namespace) -> int:
    from tokenservice.manager import run

    try:
        chosen = options.load(arguments)
    except options.InvalidOptionError as error:
        print(f"tokenservice manager: {error}", file=sys.stderr)
        return 2
    return run(chosen)


def _check(arguments: argparse.Namespace) -> int:
    from tokenservice.check import check

    problem = asyncio.run(check(arguments.namespace, arguments.kubeconfig))
    print(problem or "ok: the cluster takes TokenServices")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
