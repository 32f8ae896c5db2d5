"""Manifests out of templates: of several packages, and with any value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenservice.pods.manifests import manifest


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packages, each with a template of the same name."""
    for name in ("manifests_of_one", "manifests_of_two"):
        (tmp_path / name / "templates").mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "templates" / "thing.yaml.j2").write_text(f"from: {name}\nvalue: {{{{ value | tojson }}}}\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_each_package_has_templates_of_its_own() -> None:
    one, two = (
        manifest(package, "thing.yaml.j2", {"value": 1}) for package in ("manifests_of_one", "manifests_of_two")
    )
    assert (one, two) == ({"from": "manifests_of_one", "value": 1}, {"from": "manifests_of_two", "value": 1})


@pytest.mark.parametrize("value", ["@0", "a: b", "{{ value }}", "", None, {"@0": ["@1"]}])
def test_a_value_is_taken_as_it_is(value: Any) -> None:
    """Also the object of another template, as a part of this one, whatever its texts look like."""
    inner = manifest("manifests_of_one", "thing.yaml.j2", {"value": value})
    assert inner["value"] == value
    assert manifest("manifests_of_two", "thing.yaml.j2", {"value": inner})["value"] == inner
