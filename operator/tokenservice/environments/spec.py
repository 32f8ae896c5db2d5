"""An environment in its canonical form: what it asks for, without comments, order of entries and white space.

Two environments with the same canonical form are the same: its hash is the environment's identity.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenservice.environments import matchspec, pip_lines, schedule
from tokenservice.environments.document import Lines
from tokenservice.environments.problems import InvalidEnvironment, Path, Problem, entry
from tokenservice.environments.urls import CREDENTIALS_ADVICE, holds_secret

HASH_VERSION = 1
"""Counted up when the same environment would get another hash; nothing rolls for that alone."""

KEYS = ("name", "channels", "dependencies", "variables")
"""What an environment.yml has."""
RESOURCE_KEYS = ("platform", "virtualPackages", "baseImage", "excludeNewer", "lock", "rebuild")
"""What a CondaEnvironment's spec has besides; of no concern here, but for a schedule, which no CRD can check."""

MAX_BYTES = 96 << 10
"""Of the canonical form: it is handed to a Job in one variable, of which Linux takes 128 KiB."""

MAX_ENTRY = 2048
"""Characters of a channel, a dependency or a pip line."""

MAX_SHOWN = 200
"""Characters of an entry that a message repeats."""

_TOO_LONG = f"is longer than {MAX_ENTRY} characters"
_REFUSED = {
    "prefix": "is a folder on one machine; an image has its environment at /opt/env. Leave it out",
    "platforms": "belongs to conda-lock; `platform` of a CondaEnvironment names the one to build for",
    "category": "belongs to conda-lock; leave it out",
}
_RESERVED = re.compile(
    r"(PATH|PYTHONPATH|PYTHONHOME|LD_PRELOAD|LD_LIBRARY_PATH|CONDA_.*|TOKEN_SERVER_.*|TOKENSERVICE_.*)"
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Canonical:
    """`document` is the environment as JSON-able data: name, channels, dependencies, variables."""

    document: dict[str, Any]

    @property
    def hash(self) -> str:
        """`sha256:` over everything but the name."""
        asked = {key: value for key, value in self.document.items() if key != "name"}
        text = json.dumps([HASH_VERSION, asked], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    @property
    def variables(self) -> dict[str, str]:
        return dict(self.document["variables"])


def canonical(environment: Mapping[str, Any], *, lines: Lines | None = None) -> Canonical:
    """The canonical form of an environment.yml's data, or of a CondaEnvironment's spec.

    Args:
        environment: the data; keys of a resource that are no environment.yml's are passed over.
        lines: where each entry stands, if it comes from a file.

    Raises:
        InvalidEnvironment: something in it cannot be used; names every entry.

    """
    reader = _Reader(lines or {})
    # A first look, so that nobody keeps the operator busy with what will be refused in the end.
    if len(json.dumps(dict(environment), default=str)) > 4 * MAX_BYTES:
        raise InvalidEnvironment([_TOO_LARGE])
    for key in environment:
        reader.key(key)
    name = environment.get("name")
    document = {
        "name": reader.name(name),
        "channels": reader.channels(environment.get("channels")),
        "dependencies": reader.dependencies(
            environment.get("dependencies"), locked=lines is None and bool(environment.get("lock"))
        ),
        "variables": reader.variables(environment.get("variables")),
    }
    reader.rebuild(environment.get("rebuild"))
    if not reader.problems and len(json.dumps(document).encode()) > MAX_BYTES:
        raise InvalidEnvironment([_TOO_LARGE])
    if reader.problems:
        raise InvalidEnvironment(reader.problems)
    return Canonical(document)


_TOO_LARGE = Problem("the environment", f"is larger than {MAX_BYTES >> 10} KiB")


class _Reader:
    """Reads the parts and collects what is wrong with them."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.problems: list[Problem] = []

    def add(self, path: Path, message: str, what: str = "") -> None:
        """`what`: the entry's own text, told beside its place."""
        place = entry(path) or "the environment"
        if holds_secret(place):
            place, message = entry(path[:-1]) or "the environment", CREDENTIALS_ADVICE
        if holds_secret(what) or holds_secret(message):
            what, message = "", CREDENTIALS_ADVICE
        # Cut last: half an address may not look like one with a password any more.
        what, place, message = _cut(what, MAX_SHOWN), _cut(place, MAX_SHOWN), _cut(message, 3 * MAX_SHOWN)
        self.problems.append(Problem(f"{place} ({what!r})" if what else place, message, self._lines.get(path)))

    def key(self, key: str) -> None:
        if key in KEYS or key in RESOURCE_KEYS:
            return
        if key in _REFUSED:
            self.add((key,), _REFUSED[key])
            return
        near = difflib.get_close_matches(str(key)[:MAX_SHOWN], [*KEYS, *RESOURCE_KEYS], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(KEYS)}"
        self.add((key,), f"is no key of an environment{hint}")

    def name(self, value: Any) -> str:
        if value is None:
            return "env"
        if not isinstance(value, str) or not re.fullmatch(r"[^/\s:#\0]{1,128}", value):
            self.add(("name",), "must be text (in quotes if it is a number) without blanks and without / : #")
            return "env"
        return value

    def channels(self, value: Any) -> list[str]:
        if value is None:
            return ["defaults"]  # as conda has it
        if not isinstance(value, list):
            self.add(("channels",), "must be a list of names or URLs, each on a line that begins with '- '")
            return []
        for number, item in enumerate(value):
            path = ("channels", number)
            if not isinstance(item, str):
                self.add(path, "must be the name of a channel or a URL, as text", str(item))
            elif len(item) > MAX_ENTRY:
                self.add(path, _TOO_LONG)
            elif holds_secret(item):
                self.add(path, CREDENTIALS_ADVICE)
            elif item.startswith(("/", ".", "~", "file:")) or item == "local":
                self.add(path, "is a folder, and none of yours is there when the image is built", item)
            elif "://" in item and not item.startswith(("https://", "http://")):
                self.add(path, "must be a name, or begin with https://", item)
            elif not matchspec.CHANNEL.fullmatch(item.strip()):
                self.add(path, "is neither the name of a channel nor a URL", item)
        kept = _unique(item.strip().rstrip("/") for item in value if isinstance(item, str))
        # `nodefaults` only keeps conda from adding `defaults`, which nobody adds here.
        return [item for item in kept if item != "nodefaults"] or ["defaults"]

    def dependencies(self, value: Any, *, locked: bool) -> list[Any]:
        """locked: a lock is given, which says it all."""
        if value is None and locked:
            return []
        if not isinstance(value, list):
            if value is None:
                self.add(("dependencies",), "is missing: name at least python, as in `- python=3.11`")
            else:
                self.add(("dependencies",), "must be a list, each entry on a line that begins with '- '")
            return []
        conda: set[str] = set()
        pip: list[str] = []
        pip_at: Path = ()
        for number, item in enumerate(value):
            path = ("dependencies", number)
            if isinstance(item, str):
                self._conda(path, item, conda)
            elif isinstance(item, dict) and set(item) == {"pip"}:
                if pip_at:
                    self.add(
                        (*path, "pip"), f"is a second `pip:` section; put its lines into the first, {entry(pip_at)}"
                    )
                pip_at = pip_at or (*path, "pip")
                pip += self._pip((*path, "pip"), item["pip"])
            elif isinstance(item, dict):
                keys = ", ".join(repr(str(key)) for key in item)
                self.add(
                    path, f"has the key {keys}; below dependencies only `pip:` has lines of its own. {_single(item)}"
                )
            elif item is None:
                self.add(path, "is empty; write a package, or take the line out")
            else:
                self.add(path, "must be text: a package's name, then its version, as in python=3.11", str(item))
        made: list[Any] = sorted(conda)
        return [*made, {"pip": _unique(sorted(pip))}] if pip else made

    def _conda(self, path: Path, text: str, found: set[str]) -> None:
        if len(text) > MAX_ENTRY:
            self.add(path, _TOO_LONG)
            return
        if holds_secret(text):
            self.add(path, CREDENTIALS_ADVICE)
            return
        try:
            found.add(matchspec.canonical(text))
        except matchspec.InvalidMatchSpec as error:
            self.add(path, str(error), text)

    def _pip(self, path: Path, value: Any) -> list[str]:
        if value is None:  # every line below it is a comment
            return []
        if not isinstance(value, list):
            self.add(path, "must be a list, each line beginning with '- '")
            return []
        made = []
        for number, line in enumerate(value):
            if not isinstance(line, str):
                self.add((*path, number), "must be text: a requirement such as fastapi==0.115.0", str(line))
                continue
            if len(line) > MAX_ENTRY:
                self.add((*path, number), _TOO_LONG)
                continue
            try:
                made.append(pip_lines.canonical(line))
            except pip_lines.InvalidPipLine as error:
                self.add((*path, number), str(error), line)
        return made

    def variables(self, value: Any) -> dict[str, str]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.add(("variables",), "must have a line `NAME: value` for each variable")
            return {}
        made: dict[str, str] = {}
        for name, text in value.items():
            path = ("variables", str(name))
            if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
                self.add(path, "is no name of a variable (letters, digits, _)")
            elif _RESERVED.fullmatch(name):
                self.add(path, "is set by the image or the operator; leave it out")
            elif isinstance(text, bool) or not isinstance(text, str | int):
                self.add(path, "must be text; put it into quotes")  # 1.10 is 1.1 for YAML
            elif "\0" in str(text):
                self.add(path, "holds a NUL byte, which no variable can")
            else:
                made[name] = str(text)
        return dict(sorted(made.items()))

    def rebuild(self, value: Any) -> None:
        """It is no part of the canonical form: the lock does not depend on it."""
        if value is None:
            return
        if not isinstance(value, dict):
            self.add(("rebuild",), 'must have a line such as `schedule: "@monthly"`')
            return
        for key in value:
            if key != "schedule":
                self.add(("rebuild", str(key)), "is no key of rebuild; known is schedule")
        path, text = ("rebuild", "schedule"), value.get("schedule")
        if not isinstance(text, str):
            self.add(path, f"must be text; {schedule.ADVICE}")
            return
        try:
            schedule.check(text)
        except schedule.InvalidSchedule as error:
            self.add(path, str(error), text)


def _single(item: Mapping[Any, Any]) -> str:
    if len(item) == 1:
        key, value = next(iter(item.items()))
        if isinstance(value, float):
            return f"Write {key}=VERSION as text; as a number, 3.10 would be 3.1"
        if isinstance(value, str | int) and not isinstance(value, bool):
            return f"Write {key}={value}"
    return "Write name=version"


def _cut(text: str, length: int) -> str:
    return f"{text[:length]}..." if len(text) > length else text


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
