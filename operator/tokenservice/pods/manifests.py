"""Manifests out of templates. A package has its own in its folder templates/, one object each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import jinja2
import yaml

try:
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML without libyaml: the same result, nine times slower
    from yaml import SafeLoader as Loader  # type: ignore[assignment]

Manifest = dict[str, Any]

_MARK = "@"
"""Begins what stands for a value in a rendered template; no text in the templates begins with it."""


def manifest(package: str, template: str, values: Mapping[str, Any]) -> Manifest:
    """The object that a template describes.

    Args:
        package: whose template it is, such as `tokenservice.pods`.
        template: the name of its file.
        values: what the names in the template stand for. They become part of the object as they are, uncopied.

    """
    held: list[Any] = []
    text = _environment(package).get_template(template).render(values, held=held)
    made: Manifest = _filled(_parsed(text), held)
    return made


@cache
def _environment(package: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - YAML, not HTML; every value goes through tojson
    )
    environment.filters["tojson"] = _to_json
    return environment


@jinja2.pass_context
def _to_json(context: jinja2.runtime.Context, value: Any) -> str:
    """Keeps the value in `held` and leaves a mark in its place; `_filled` puts it there once the YAML is parsed.

    So no value can be misread as YAML, and all objects of one shape give one text, which is parsed once: that takes
    longer than everything else here.
    """
    held: list[Any] = context["held"]
    held.append(value)
    return f'"{_MARK}{len(held) - 1}"'


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=Loader)


def _filled(node: Any, held: Sequence[Any]) -> Any:
    """A copy of `node` with the values in the place of their marks."""
    if isinstance(node, dict):
        return {key: _filled(value, held) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(item, held) for item in node]
    if isinstance(node, str) and node.startswith(_MARK):
        return held[int(node[len(_MARK) :])]
    return node
