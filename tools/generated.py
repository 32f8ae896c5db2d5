"""A file that is made from others: written, or checked to be up to date. What the three tools of `make crds` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None, about: str | None, target: Path, source: Path, make: Callable[[], str]) -> int:
    """The command line of a tool that makes `target`; returns the exit code.

    Args:
        argv: arguments; those of the process if None.
        about: the tool's description.
        target: the file that is written, or with --check is compared.
        source: what it is made from, for messages.
        make: gives the whole text of `target`; a ValueError says what is wrong with the source.

    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is not up to date")
    arguments = parser.parse_args(argv)
    name = target.relative_to(ROOT)
    try:
        wanted = make()
    except ValueError as error:
        print(f"{source.relative_to(ROOT)}: {error}", file=sys.stderr)
        return 1
    if target.exists() and target.read_text() == wanted:
        return 0
    if arguments.check:
        print(f"{name} is not what {source.relative_to(ROOT)} gives; run: make crds", file=sys.stderr)
        return 1
    target.write_text(wanted)
    print(f"wrote {name}")
    return 0
