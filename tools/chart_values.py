"""Makes the table of the chart's values in docs/install.md from charts/tokenservice-operator/values.yaml.

    python -m tools.chart_values            writes the table
    python -m tools.chart_values --check    exits 1 if it is not up to date

The comment lines right above a value are its documentation. A value is a scalar, a list or an empty map, or a map that
has a comment of its own and is documented as a whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from tools import generated
from tools.generated import ROOT

VALUES = ROOT / "charts" / "tokenservice-operator" / "values.yaml"
DOCUMENT = ROOT / "docs" / "install.md"
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->\n"


@dataclass(frozen=True)
class Value:
    """One value of the chart: its dotted path, its default as JSON, and its documentation in one line."""

    path: str
    default: str
    text: str


def values(text: str) -> tuple[Value, ...]:
    """Every documented unit of a values.yaml, in its order; `text` is "" where a comment is missing."""
    root = yaml.compose(text)
    return tuple(_walk(root, text.splitlines(), ())) if root else ()


def _walk(node: yaml.Node, lines: list[str], path: tuple[str, ...]) -> Iterator[Value]:
    for key, child in node.value:
        inner = (*path, key.value)
        text = _comment(lines, key.start_mark.line)
        if isinstance(child, yaml.MappingNode) and child.value and not text:
            yield from _walk(child, lines, inner)
        else:
            default = yaml.safe_load(yaml.serialize(child))
            yield Value(".".join(inner), json.dumps(default), text)


def _comment(lines: list[str], row: int) -> str:
    first = row
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.lstrip().removeprefix("#").strip() for line in lines[first:row])


def table(items: Sequence[Value]) -> str:
    """The values as a Markdown table."""
    rows = [f"| `{item.path}` | `{item.default}` | {item.text.replace('|', chr(92) + '|')} |" for item in items]
    return "\n".join(["| Value | Default | Meaning |", "| --- | --- | --- |", *rows]) + "\n"


def document(text: str, items: Sequence[Value]) -> str:
    """`text` with the table between its two markers; raises ValueError without them."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no {BEGIN.strip()} ... {END.strip()} in the document")
    return head + BEGIN + table(items) + END + tail


def _make() -> str:
    return document(DOCUMENT.read_text(), values(VALUES.read_text()))


def main(argv: Sequence[str] | None = None) -> int:
    return generated.main(argv, __doc__, DOCUMENT, VALUES, _make)


if __name__ == "__main__":
    sys.exit(main())
