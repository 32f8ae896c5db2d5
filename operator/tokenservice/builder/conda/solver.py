"""The solver, in a process of its own: it cannot be interrupted, and a crash of it must not take the Job along.

Reads a Question as JSON from standard input and writes an Answer as JSON to standard output. Run by `solve.py`.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

_CANCELLED = "Solve operation has been cancelled"
"""rattler's words when the time is up; in an explanation of a conflict there may be any word."""


class IndexFile(msgspec.Struct):
    channel: str
    subdir: str
    file: str


class Question(msgspec.Struct):
    """`specs` with channels as URLs; `virtual`: name, version, build; `previous`: path of a pixi.lock, "" for none."""

    specs: list[str]
    indexes: list[IndexFile]
    virtual: list[tuple[str, str, str]]
    platform: str
    seconds: float
    exclude_newer: str = ""
    previous: str = ""


class Answer(msgspec.Struct):
    """`packages`: what was chosen, as structs of `lock.Locked`. Or what is wrong.

    `broken`: file of an index that cannot be read -> why; `unknown`: names -> the nearest; `problem`: an explanation.
    """

    packages: list[dict[str, Any]] = []
    broken: dict[str, str] = {}
    unknown: dict[str, list[str]] = {}
    problem: str = ""
    timed_out: bool = False


def answer(question: Question) -> Answer:
    """Solves; whatever rattler says is an answer."""
    import rattler

    indexes = []
    for index in question.indexes:
        try:
            indexes.append(rattler.SparseRepoData(rattler.Channel(index.channel), index.subdir, Path(index.file)))
        except Exception as error:  # noqa: BLE001 - rattler has no finer kinds
            return Answer(broken={index.file: str(error)})
    unknown = _unknown(question.specs, indexes)
    if unknown:
        return Answer(unknown=unknown)
    virtual = [
        rattler.GenericVirtualPackage(rattler.PackageName(name), rattler.Version(version), rattler.BuildString(build))
        for name, version, build in question.virtual
    ]
    try:
        records = asyncio.run(
            rattler.solve_with_sparse_repodata(
                # Not strictly: `numpy=1.23.*` is what conda itself writes.
                [rattler.MatchSpec(spec, strict=False) for spec in question.specs],
                indexes,
                locked_packages=_locked(question),
                virtual_packages=virtual,
                timeout=timedelta(seconds=question.seconds),
                exclude_newer=moment(question.exclude_newer) if question.exclude_newer else None,
            )
        )
    except Exception as error:  # noqa: BLE001 - rattler has no finer kinds
        text = str(error)
        return Answer(problem=text, timed_out=text.strip() == _CANCELLED)
    from tokenservice.builder.conda.lock import from_record

    return Answer(packages=[msgspec.to_builtins(from_record(record)) for record in records])


def moment(text: str) -> datetime:
    """A time, or a day's beginning in UTC, in ISO 8601."""
    found = datetime.fromisoformat(text)
    # In UTC: rattler passes over the offset.
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _locked(question: Question) -> list[Any]:
    """What the previous lock chose, as far as the channels that are asked for now could choose it: rattler prefers it,
    wherever it comes from.
    """
    import rattler

    if not question.previous:
        return []
    environment = rattler.LockFile.from_path(Path(question.previous)).default_environment()
    if environment is None:
        return []
    platform = next((each for each in environment.platforms() if each.name == question.platform), None)
    records = environment.conda_repodata_records_for_platform(platform) if platform else None
    channels = tuple({f"{index.channel.rstrip('/')}/" for index in question.indexes})
    named = _named_channels(question.specs)
    return [
        record for record in records or () if str(record.url).startswith(named.get(record.name.normalized, channels))
    ]


def _named_channels(specs: list[str]) -> dict[str, tuple[str, ...]]:
    """The names of packages for which specs name a channel, and its address."""
    import rattler

    found: dict[str, tuple[str, ...]] = {}
    for spec in specs:
        channel, named, rest = spec.partition("::")
        name = rattler.MatchSpec(rest, strict=False).name if named else None
        if name is not None:
            found[name.normalized] = (f"{channel.rstrip('/')}/",)
    return found


def _unknown(specs: list[str], indexes: list[Any]) -> dict[str, list[str]]:
    """The names that no index has, each with names like it."""
    import rattler

    wanted = {}
    for spec in specs:
        name = rattler.MatchSpec(spec, strict=False).name
        if name is not None and not name.normalized.startswith("__"):
            wanted[name.normalized] = spec
    known: set[str] = set()
    for index in indexes:
        known.update(index.package_names())
    return {name: difflib.get_close_matches(name, known, n=3, cutoff=0.75) for name in sorted(wanted.keys() - known)}


def main() -> None:
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    sys.stdout.buffer.write(msgspec.json.encode(answer(question)))
    sys.stdout.flush()
    # Ending the usual way crashes now and then in rattler's own threads, after all is done.
    os._exit(0)


if __name__ == "__main__":
    main()
