"""`python -m tokenservice.builder push ...`: the same as `tokenservice image push ...`."""

from __future__ import annotations

import argparse
import sys

from .commands import add_commands


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="tokenservice")
    add_commands(parser.add_subparsers(required=True))
    arguments = parser.parse_args()
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
