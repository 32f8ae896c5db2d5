"""Environment files as text: data, lines, and what YAML allows but an environment must not have."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.environments.document import MAX_BYTES, read
from tokenservice.environments.problems import InvalidEnvironment

TEXT = """\
# What it runs in.
name: tiny
channels:
  - conda-forge

dependencies:
  - python=3.11
  # pip's part
  - pip:
      - fastapi
      - uvicorn
variables: {A: "1"}
"""


def test_every_entry_has_its_line() -> None:
    data, lines = read(TEXT)
    assert data == yaml.safe_load(TEXT)
    assert lines["name",] == 2
    assert lines["channels", 0] == 4
    assert lines["dependencies",] == 6
    assert lines["dependencies", 0] == 7
    assert lines["dependencies", 1, "pip"] == 9
    assert lines["dependencies", 1, "pip", 1] == 11
    assert lines["variables", "A"] == 12


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "begin with `channels:` and `dependencies:`"),
        ("- python\n", 1, "has no keys"),
        ("just text\n", 1, "has no keys"),
        ("name: a\nchannels: [b\n", 3, "is no YAML"),
        ("name: a\n\tchannels: []\n", 2, "is no YAML"),
        ("name: a\n---\nname: b\n", 2, "is no YAML"),
        ("name: a\x07\n", None, "is no YAML"),
        ("name: a\nchannels: []\n\nname: b\n", 4, "name is there twice, the first time in line 1"),
        ("variables:\n  A: 1\n  A: 2\n", 3, "variables.A is there twice, the first time in line 2"),
        ("dependencies:\n- pip: [a]\n  pip: [b]\n", 3, "dependencies[0].pip is there twice, the first time in line 2"),
        (BOMB, 2, "*a is an alias; write it out"),
        ("name: &a [*a]\n", 1, "*a is an alias"),
        ("[" * 5000, 1, "is nested too deep"),
        ("name: 2024-13-45\n", 1, "into quotes"),
        ("name: !!python/name:os.system\n", 1, "name is neither text"),
        ("name: " + "x" * MAX_BYTES, None, "is larger than 256 KiB"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(text: str, line: int | None, message: str) -> None:
    with pytest.raises(InvalidEnvironment) as caught:
        read(text)
    [problem] = caught.value.problems
    assert message in str(problem)
    assert problem.line == line
    assert line is None or str(problem).startswith(f"line {line}: ")


def test_every_key_that_is_there_twice_is_named() -> None:
    with pytest.raises(InvalidEnvironment) as caught:
        read("name: a\nname: b\nchannels: []\nchannels: []\n")
    assert [problem.line for problem in caught.value.problems] == [2, 4]


words = st.text(alphabet="abAB01.-_=<>*: #'", max_size=8)
trees = st.recursive(
    words | st.integers() | st.booleans() | st.none(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(words, below, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(words, trees, min_size=1, max_size=4), st.booleans())
def test_data_comes_back_as_it_was_written(data: dict[str, object], flow: bool) -> None:
    found, lines = read(yaml.safe_dump(data, default_flow_style=flow, sort_keys=False))
    assert found == data
    order = [lines[key,] for key in data]
    assert order == sorted(order)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#? \n0.", max_size=60) | st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        data, lines = read(text)
    except InvalidEnvironment:
        return
    assert isinstance(data, dict)
    assert lines[()] >= 1
