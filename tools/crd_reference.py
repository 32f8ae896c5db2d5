"""Makes docs/reference.md, field by field, from crds/, the source of truth.

python -m tools.crd_reference            writes docs/reference.md
python -m tools.crd_reference --check    exits 1 if it is not up to date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tools import generated
from tools.generated import ROOT

SOURCE = ROOT / "crds"
TARGET = ROOT / "docs" / "reference.md"

HEADER = """\
# Resource reference
<!-- Made from crds/ by tools/crd_reference.py (`make crds`): change the files there. -->

The same text is at hand in the cluster: `kubectl explain tokenservice.spec --recursive`, `kubectl explain cenv.spec`.
"""
# Of every Kubernetes object; nothing to say about them here.
COMMON = frozenset({"apiVersion", "kind", "metadata"})

Schema = Mapping[str, Any]


def document(crds: Sequence[Schema]) -> str:
    """The whole page."""
    return "\n".join([HEADER, *(part for crd in crds for part in _resource(crd))])


def _resource(crd: Schema) -> Iterator[str]:
    names = crd["spec"]["names"]
    for version in crd["spec"]["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        yield f"## {names['kind']} (`{crd['spec']['group']}/{version['name']}`)\n"
        words = [f"`{name}`" for name in (names["plural"], *names.get("shortNames", ()), *names.get("categories", ()))]
        yield f"{schema['description']}\nFor kubectl: {', '.join(words)}. Subresources: {_subresources(version)}.\n"
        for name, field in schema["properties"].items():
            if name in COMMON:
                continue
            yield f"### {name}\n\n{field['description']}\n"
            yield _table(list(_fields(field, f"{name}.")))
        yield "### What the API server refuses\n"
        yield "Besides what does not fit a field's type, choices and limits:\n"
        yield "\n".join(f"- `{where}`: {message}" for where, message in _rules(schema, "")) + "\n"
        yield "### Columns of `kubectl get`\n"
        yield _columns(version["additionalPrinterColumns"])


def _subresources(version: Schema) -> str:
    return ", ".join(f"`/{name}`" for name in version.get("subresources", {})) or "none"


def _table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    lines = ["| Field | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


def _fields(schema: Schema, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        default = f"`{json.dumps(field['default'])}`" if "default" in field else ""
        if name in required:
            default = "required"
        yield f"`{prefix}{name}`", _type(field), default, field.get("description", "")
        yield from _fields(field, f"{prefix}{name}.")
        yield from _fields(field.get("items", {}), f"{prefix}{name}[].")


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "type" not in field:  # any type, so that the operator can say what is wrong with it
        return "as in environment.yml"
    text = str(field["type"])
    if text == "array":
        text = f"list of {field['items']['type']}s"
    if "enum" in field:
        text += ": " + ", ".join(f"`{choice}`" for choice in field["enum"])
    if "minimum" in field or "maximum" in field:
        text += f", {field.get('minimum', '')} to {field.get('maximum', '')}"
    if "maxLength" in field:
        text += f", {field.get('minLength', 0)} to {field['maxLength']} characters"
    if "maxItems" in field:
        text += f", at most {field['maxItems']}"
    return text


def _rules(schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        where = f"{path}{rule.get('fieldPath', '')}".lstrip(".")
        message = rule["message"]
        if not where:  # rules of the whole object name the field themselves
            where, _, message = message.partition(": ")
        yield where, message
    for name, field in schema.get("properties", {}).items():
        yield from _rules(field, f"{path}.{name}")
        yield from _rules(field.get("items", {}), f"{path}.{name}[]")


def _columns(columns: Sequence[Schema]) -> str:
    lines = ["| Column | Meaning |", "| --- | --- |"]
    for column in columns:
        wide = " (with `-o wide`)" if column.get("priority") else ""
        text = column.get("description", "Since it was created." if column["type"] == "date" else "")
        lines.append(f"| {column['name']} | {_cell(text)}{wide} |")
    return "\n".join(lines) + "\n"


def _make() -> str:
    return document([yaml.safe_load(path.read_text()) for path in sorted(SOURCE.glob("*.yaml"), key=_place)])


def _place(path: Path) -> tuple[bool, str]:
    """TokenService first: it is what people come for."""
    return "tokenservices" not in path.name, path.name


def main(argv: Sequence[str] | None = None) -> int:
    return generated.main(argv, __doc__, TARGET, SOURCE, _make)


if __name__ == "__main__":
    sys.exit(main())
