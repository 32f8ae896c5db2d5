"""conda dependencies as people write them: one form for what is the same, and what to write instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.environments.matchspec import InvalidMatchSpec, MatchSpec, canonical, parse

SAME = [
    ("python=3.9", ["python =3.9", "python = 3.9", "Python=3.9", "python=3.9  # the oldest", "python[version='=3.9']"]),
    ("python=3.9.*", ["python 3.9.*", "python==3.9.*", "python=3.9.*"]),
    ("python==3.9", ["python 3.9", "python == 3.9", "python[version=3.9]"]),
    ("numpy>=1.2,<2", ["numpy >=1.2,<2", "numpy >= 1.2 , < 2", "NumPy>=1.2, <2", 'numpy[version=">=1.2,<2"]']),
    ("scipy~=1.4", ["scipy ~=1.4", "scipy ~= 1.4"]),
    ("scipy!=1.4.1", ["scipy !=1.4.1"]),
    ("mkl 2023.1|2023.2", ["mkl 2023.1 | 2023.2", "mkl  2023.1|2023.2"]),
    ("mkl (>=1,<2)|>3", ["mkl ( >=1, <2 ) | >3"]),
    (
        "pytorch=2.0.1=*cuda118_*",
        [
            "pytorch 2.0.1 *cuda118_*",
            "pytorch=2.0.1 *cuda118_*",
            "pytorch==2.0.1=*cuda118_*",
            "pytorch[version=2.0.1,build='*cuda118_*']",
        ],
    ),
    ("pytorch >=2 *cuda*", ["pytorch>=2=*cuda*", "pytorch >=2[build='*cuda*']"]),
    ("blas=*=openblas", ["blas * openblas", "blas[build=openblas]", "blas=*.*=openblas"]),
    ("pandas", ["pandas *", "pandas=*", "PANDAS", "pandas[]"]),
    ("conda-forge::scipy", ["conda-forge:: scipy", "scipy[channel=conda-forge]"]),
    ("conda-forge/linux-64::scipy=1.11", ["scipy[channel='conda-forge', subdir='linux-64', version='=1.11']"]),
    ("conda-forge/label/rc::scipy", ["conda-forge/label/rc::SciPy"]),
    ("https://conda.example.com/team::scipy>=1", ["https://conda.example.com/team::scipy >=1"]),
    ("scipy[build_number='>=3']", ["scipy[build_number='>=3']", 'scipy [ build_number=">=3" ]']),
    ("scipy[subdir='noarch']", ["scipy[subdir=noarch]"]),
    ("openssl=1!1.1.1_", ["openssl =1!1.1.1_"]),
    ("__cuda>=12", ["__cuda >= 12"]),
]


@pytest.mark.parametrize(("form", "text"), [(form, text) for form, texts in SAME for text in texts])
def test_what_asks_for_the_same_has_one_form(form: str, text: str) -> None:
    assert canonical(text) == form
    assert canonical(form) == form


def test_the_parts_of_a_spec() -> None:
    assert parse("pytorch/linux-64::PyTorch=2.0.1=*cuda118_*") == MatchSpec(
        "pytorch", "2.0.1", "*cuda118_*", "pytorch", "linux-64"
    )
    assert parse("a[license='MIT', md5=" + "0" * 32 + "]").extra == (("license", "MIT"), ("md5", "0" * 32))


def test_the_first_digits_of_a_version_are_not_that_version_alone() -> None:
    assert parse("python=3.9").version == "=3.9"
    assert parse("python==3.9").version == parse("python 3.9").version == "3.9"


REFUSED = [
    ("", "is empty"),
    ("  # only a comment", "is empty"),
    ("-e .", "is an option"),
    ("./package", "is a path"),
    ("../package", "is a path"),
    ("/opt/package", "is a path"),
    ("~/package", "is a path"),
    ("file:///opt/package", "is a path"),
    ("C:\\package", "is a path"),
    ("git+https://example.com/a.git", "is a source"),
    ("https://conda.example.com/noarch/a-1.0-0.conda", "name the package instead: channel::name=version=build"),
    ("a-1.0-0.tar.bz2", "is a package file"),
    ("a[url=https://x.example.com/a.conda]", "is a package file"),
    ("uvicorn[standard]", "belongs below `pip:`"),
    ("uvicorn[standard]>=0.22", "belongs below `pip:`"),
    ('numpy; python_version < "3.9"', "belongs below `pip:`"),
    ("conda-forge:numpy", "conda-forge::numpy"),
    ("::numpy", "no channel before '::'"),
    ("numpy=", "where a version should be"),
    ("numpy>=", "where a version should be"),
    ("numpy===1.2", "where a version should be"),
    ("numpy=>1.2", "versions look like"),
    ("numpy>=1.2 <2", "two constraints need a comma"),
    ("numpy>=1.2<2", "need a comma"),
    ("numpy>1,", "versions look like"),
    ("numpy 1..2", "versions look like"),
    ("numpy >*", "versions look like"),
    ("numpy (>=1.2", "parenthesis"),
    ("numpy )>=1.2(", "versions look like"),
    ("numpy=1.2=", "which is no build"),
    ("numpy 1.2 py_0 more", "which is no build"),
    ("numpy@1.2", "has '@' after the name"),
    ("*", "does not begin with a package's name"),
    ("numpy[version='>=1'", "without a ']'"),
    ("numpy]", "without a '['"),
    ("numpy[colour=red]", "has the key 'colour'; known are version, build"),
    ("numpy[build=a,build=b]", "twice"),
    ("numpy[md5=abc]", "no md5"),
    ("numpy[version]", "extras are pip's"),
    ("numpy[version='>=1 py_0']", "which is no build"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_mistake_is_told_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(InvalidMatchSpec) as caught:
        parse(text)
    assert message in str(caught.value)


@given(st.text(alphabet="aB1_.-*=<>!~|,()[]'\"#:;/@ \t\n\0é") | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        form = canonical(text)
    except InvalidMatchSpec:
        return
    assert canonical(form) == form
