"""The lines below `pip:` as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from tokenservice.environments.pip_lines import InvalidPipLine, canonical

SAME = [
    ("fastapi==0.95.*", ["fastapi ==0.95.*", "FastAPI == 0.95.*", "fastapi==0.95.*  # the newest then"]),
    ("uvicorn[standard,watch]<1,>=0.22", ["uvicorn[watch,standard]>=0.22,<1", "Uvicorn [standard, watch] <1, >= 0.22"]),
    ("sse-starlette", ["sse_starlette", "SSE.Starlette"]),
    ("torch==2.0.1+cu118", ["torch == 2.0.1+cu118"]),
    ('tomli ; python_version < "3.11"', ["tomli;python_version<'3.11'", 'tomli ; python_version  < "3.11"']),
    (
        "thing @ https://files.example.com/thing-1.0-py3-none-any.whl",
        ["Thing@https://files.example.com/thing-1.0-py3-none-any.whl"],
    ),
    ("https://files.example.com/thing-1.0-py3-none-any.whl", ["https://files.example.com/thing-1.0-py3-none-any.whl"]),
]


@pytest.mark.parametrize(("form", "line"), [(form, line) for form, lines in SAME for line in lines])
def test_what_asks_for_the_same_has_one_form(form: str, line: str) -> None:
    assert canonical(line) == form
    assert canonical(form) == form


REFUSED = [
    ("fastapi=0.95", "for pip write fastapi==0.95"),
    ("uvicorn[standard] = 0.22.0", "for pip write uvicorn[standard]==0.22.0"),
    ("", "is empty"),
    ("# nothing", "is empty"),
    ("fastapi 0.95", "is no requirement"),
    ("fastapi>=0.95<1", "is no requirement"),
    ("fastapi[all", "is no requirement"),
    ("fastapi\nuvicorn", "several lines"),
    ("-e .", "-e installs a folder"),
    ("--editable=./x", "--editable installs a folder"),
    ("-e git+https://example.com/a.git", "-e installs a folder"),
    ("-r requirements.txt", "write its lines here"),
    ("-rrequirements.txt", "write its lines here"),
    ("--requirement requirements.txt", "write its lines here"),
    ("-c constraints.txt", "-c reads a file"),
    ("--index-url https://pypi.example.com/simple", "the cluster owner's choice"),
    ("-i https://pypi.example.com/simple", "the cluster owner's choice"),
    ("--extra-index-url=https://pypi.example.com/simple", "the cluster owner's choice"),
    ("--find-links /wheels", "the cluster owner's choice"),
    ("-f /wheels", "the cluster owner's choice"),
    ("--trusted-host pypi.example.com", "CA bundle"),
    ("--pre", "cannot be set for all"),
    ("--no-binary :all:", "compiles from source"),
    ("--unheard-of", "is an option of pip"),
    ("fastapi==0.95 --hash=sha256:00", "hashes stand in the lock"),
    (".", "is a path"),
    ("./package", "is a path"),
    ("../package", "is a path"),
    ("/opt/package", "is a path"),
    ("~/package", "is a path"),
    ("file:///opt/package", "is a path"),
    ("FILE:///opt/package", "is a path"),
    ("package @ file:///opt/package", "is a path"),
    ("package @ ./package", "is a path"),
    ("thing-1.0-py3-none-any.whl", "is a path"),
    ("thing-1.0.tar.gz", "is a path"),
    ("git+https://example.com/a.git", "built from its source"),
    ("thing @ git+https://example.com/a.git@v1", "built from its source"),
    ("git+ssh://git@example.com/a.git", "built from its source"),
    ("https://example.com/thing-1.0.tar.gz", "built from its source"),
    ("https://[example.com/a.whl", "is no address"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_a_mistake_is_told_with_what_to_write(line: str, message: str) -> None:
    with pytest.raises(InvalidPipLine) as caught:
        canonical(line)
    assert message in str(caught.value)


@given(st.text(alphabet="aB1_.-*=<>!~,()[]'\"#:;/@ \n+é") | st.text())
def test_any_text_is_read_or_refused(line: str) -> None:
    try:
        form = canonical(line)
    except InvalidPipLine:
        return
    assert canonical(form) == form
    assert form.startswith("https://") or str(Requirement(form))
