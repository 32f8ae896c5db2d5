"""The chart's values against what the Jobs read of them: the same names, the same defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from tokenservice.builder.settings import ChannelSettings, PipSettings, RegistrySettings, Settings
from tokenservice.options import Options

CHART = Path(__file__).resolve().parents[3] / "charts" / "tokenservice-operator"
BUILDER: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())["builder"]
TEMPLATE = (CHART / "templates" / "_environments.tpl").read_text()


def names(kind: type[msgspec.Struct]) -> list[str]:
    return sorted(item.encode_name for item in msgspec.structs.fields(kind))


def test_the_defaults_are_those_of_the_program() -> None:
    same = ("channels", "pip", "timeoutSeconds", "retries", "solveTimeoutSeconds", "postLinkScripts", "baseImages")
    given = {name: BUILDER[name] for name in same}
    assert msgspec.convert(given, Settings) == Settings()
    assert BUILDER["keepImages"] == Options().keep_images


@pytest.mark.parametrize(("value", "kind"), [("channels", ChannelSettings), ("pip", PipSettings)])
def test_a_group_has_every_name_that_is_read(value: str, kind: type[msgspec.Struct]) -> None:
    assert sorted(BUILDER[value]) == names(kind)


def test_the_settings_have_every_name_that_is_read() -> None:
    body = TEMPLATE.partition('define "tokenservice-operator.settings"')[2].partition("{{/*")[0]
    given = re.findall(r'^  "(\w+)" ', body, re.MULTILINE)
    assert sorted(given) == sorted([*names(Settings), *names(RegistrySettings)])
