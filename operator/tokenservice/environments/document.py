"""An environment file as text: its data, and the line of each entry, so that an error can point at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tokenservice.environments.problems import InvalidEnvironment, Path, Problem, entry

MAX_BYTES = 256 << 10
MAX_DEPTH = 16

Lines = Mapping[Path, int]
"""Line (from 1) of the entry at a path such as ("dependencies", 3, "pip", 0)."""


def read(text: str) -> tuple[dict[str, Any], Lines]:
    """The data in an environment.yml, and where each entry stands.

    Raises:
        InvalidEnvironment: it is no YAML, too large, not a mapping, has a key twice, or uses aliases.

    """
    if len(text.encode()) > MAX_BYTES:
        raise InvalidEnvironment([Problem("the file", f"is larger than {MAX_BYTES >> 10} KiB")])
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise InvalidEnvironment([Problem("the file", "is nested too deep", _line(event))])
            # Ten of them, each made of ten of the one before, are ten thousand million entries.
            if isinstance(event, yaml.AliasEvent):
                raise InvalidEnvironment([Problem(f"*{event.anchor}", "is an alias; write it out", _line(event))])
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = error.problem or str(error)
        raise InvalidEnvironment(
            [Problem("the file", f"is no YAML: {words}", mark.line + 1 if mark else None)]
        ) from None
    except yaml.YAMLError as error:
        raise InvalidEnvironment([Problem("the file", f"is no YAML: {error}")]) from None
    if not isinstance(node, yaml.MappingNode):
        raise InvalidEnvironment([Problem("the file", "has no keys; begin with `channels:` and `dependencies:`", 1)])
    lines: dict[Path, int] = {}
    twice: list[Problem] = []
    data = _value(node, (), lines, twice)
    if twice:
        raise InvalidEnvironment(twice)
    return data, lines


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _value(node: yaml.Node, path: Path, lines: dict[Path, int], twice: list[Problem]) -> Any:
    lines.setdefault(path, _line(node))
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, number), lines, twice) for number, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            below = (*path, key)
            if key in made:
                first = f"is there twice, the first time in line {lines[below]}"
                twice.append(Problem(entry(below), f"{first}; put both into one", _line(key_node)))
                continue
            lines[below] = _line(key_node)
            made[key] = _value(value_node, below, lines, twice)
        return made
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError):  # a tag of a program's own, a date that does not exist
        message = "is neither text nor anything else that an environment has; put it into quotes"
        raise InvalidEnvironment([Problem(entry(path), message, _line(node))]) from None
    finally:
        loader.dispose()
