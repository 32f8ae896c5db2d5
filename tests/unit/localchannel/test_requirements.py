from __future__ import annotations

import pytest

from tools.localchannel.requirements import Projects, conda_name, glibc_of, is_pure

PURE = "x-1.0-py3-none-any.whl"
COMPILED = "x-1.0-cp311-cp311-manylinux2014_x86_64.manylinux_2_28_x86_64.whl"


def metadata(*requires: str, python: str = "") -> str:
    lines = ["Metadata-Version: 2.1", "Name: x", "Version: 1.0"]
    lines += [f"Requires-Python: {python}"] if python else []
    return "\n".join([*lines, *(f"Requires-Dist: {each}" for each in requires), "", "Requires-Dist: in the text\n"])


@pytest.mark.parametrize(
    ("requirement", "depends"),
    [
        ("Click>=8,<9", ["click <9,>=8"]),
        ("click (>=8)", ["click >=8"]),
        ("click==1.*", ["click 1.*"]),
        ("click===1.2", ["click ==1.2"]),
        ("click~=1.4,!=1.5.*", ["click !=1.5.*,~=1.4"]),
        ("torch>=2", ["pytorch >=2"]),
        ("huggingface-hub", ["huggingface_hub"]),
        ("colorama; sys_platform == 'win32'", []),
        ("tomli; python_version < '3.11'", []),
        ("uvloop; platform_machine == 'x86_64' and python_version >= '3.11'", ["uvloop"]),
        ("pytest; extra == 'test'", []),
        ("triton==3", []),
    ],
)
def test_a_requirement_on_the_target(requirement: str, depends: list[str]) -> None:
    projects = Projects({"x": metadata(requirement)}, replaced=["Triton"])
    assert projects.depends("x", PURE) == sorted([*depends, "python"])


def test_what_an_extra_adds_is_asked_for_and_nothing_of_the_rest() -> None:
    server = metadata("h11", "httptools>=0.6; extra == 'standard'", "colorama; extra == 'standard' and os_name == 'nt'")
    projects = Projects({"x": metadata("uvicorn[standard]>=0.2"), "uvicorn": server})
    assert projects.depends("x", PURE) == ["httptools >=0.6", "python", "uvicorn >=0.2"]


def test_extras_that_name_each_other_end() -> None:
    circle = metadata("x[b]; extra == 'a'", "x[a]; extra == 'b'", "y; extra == 'b'")
    assert Projects({"x": circle, "z": metadata("x[a]")}).depends("z", PURE) == ["python", "x", "y"]


def test_python_and_the_c_library() -> None:
    projects = Projects({"x": metadata(python=">=3.9,!=3.10.1")})
    assert projects.depends("x", PURE) == ["python !=3.10.1,>=3.9"]
    assert projects.depends("x", COMPILED) == ["__glibc >=2.17", "python 3.11.*"]


@pytest.mark.parametrize(
    ("filename", "pure", "glibc"),
    [
        (PURE, True, ""),
        ("x-1.0-py2.py3-none-any.whl", True, ""),
        (COMPILED, False, "2.17"),
        ("x-1.0-cp39-abi3-manylinux_2_31_x86_64.whl", False, "2.31"),
        ("x-1.0-py3-none-manylinux_2_5_x86_64.manylinux1_x86_64.whl", False, "2.5"),
        ("x-1.0-cp311-cp311-linux_x86_64.whl", False, ""),
    ],
)
def test_tags(filename: str, pure: bool, glibc: str) -> None:
    assert (is_pure(filename), glibc_of(filename)) == (pure, glibc)


def test_metadata_does_not_ask_for_what_was_left_out() -> None:
    text = metadata("nvidia-cublas==13", "numpy", "triton==3 ; platform_system == 'Linux'")
    projects = Projects({"x": text}, replaced=["nvidia-cublas", "triton"])
    assert projects.dropped("x") == ["nvidia-cublas==13", "triton==3 ; platform_system == 'Linux'"]
    assert projects.without_dropped("x", text) == metadata("numpy")


def test_names() -> None:
    assert [conda_name(name) for name in ("torch", "Typing_Extensions", "numpy")] == [
        "pytorch",
        "typing_extensions",
        "numpy",
    ]
