"""The manager's reading of conda dependencies against rattler's, which the solver uses."""

from __future__ import annotations

from typing import Any

import pytest
import rattler
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.environments.matchspec import InvalidMatchSpec, canonical


def meaning(text: str) -> Any:
    """What rattler makes of it. That every version will do can be said in two ways."""
    spec = rattler.MatchSpec(text, strict=False)
    version = str(spec.version) if spec.version is not None else "*"
    channel = spec.channel.base_url if spec.channel else None
    return spec.name.normalized, version, spec.build and str(spec.build), str(spec.build_number), channel, spec.subdir


BOTH_REFUSE = [
    *("*", "*[license=MIT]", "-e .", "./foo", "/foo", "~/foo", "file:///a", "git+https://x/y", "a+b", "numpy]"),
    *("numpy=", "numpy>=", "numpy=>1.2", "numpy=<1.2", "numpy===1.2", "numpy 1..2", "numpy 1.2.", "numpy .1"),
    *("numpy>1,", "numpy>1,,<2", "numpy,>1", "numpy|1", "numpy >1|", "numpy >*", "numpy 1.*.2", "numpy ^1.2$"),
    *("numpy[foo=bar]", "numpy[md5=abc]", "numpy[version='>=1'", "uvicorn[standard]", "numpy 1.2-py_0"),
    *('numpy; python_version<"3"', "numpy(>=1.2)", "numpy/1.2", "numpy @ https://x", "numpy[a,b]"),
]
# rattler reads these, but not as their author meant them: what does not fit becomes the build, a namespace or a name.
ONLY_RATTLER_ACCEPTS = [
    *("numpy>=1.2 <2", "numpy>=1.2<2", "numpy>=1.2 and <2", "numpy 1.2 py_0 extra", "numpy=1.2==py", "numpy=1.2="),
    *("conda-forge:numpy", "::numpy", "numpy=1:2", "numpy=1.2/3", "numpy>=1.2;build=py", "numpy *.2"),
    *("numpy-1.2-py_0.tar.bz2", "https://x/y/numpy-1.2-py_0.conda", ".abc", "-abc", "numpy[extras=[a]]"),
]


@pytest.mark.parametrize("text", BOTH_REFUSE)
def test_both_refuse(text: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - rattler has several kinds
        rattler.MatchSpec(text, strict=False)
    with pytest.raises(InvalidMatchSpec):
        canonical(text)


@pytest.mark.parametrize("text", ONLY_RATTLER_ACCEPTS)
def test_what_would_be_misread_is_refused(text: str) -> None:
    rattler.MatchSpec(text, strict=False)
    with pytest.raises(InvalidMatchSpec):
        canonical(text)


@pytest.mark.parametrize("text", ["numpy = 1.2 = py_0", "numpy 1.2 =py_0"])
def test_blanks_around_the_build_mean_nothing(text: str) -> None:
    """rattler takes them, and the sign, into the build, which no package has then."""
    assert meaning(text) != meaning("numpy=1.2=py_0")
    assert canonical(text) == "numpy=1.2=py_0"


segments = st.from_regex(r"[0-9]{1,4}|[0-9]{1,2}(a|b|rc|post)[0-9]?", fullmatch=True)
numbers = st.lists(segments, min_size=1, max_size=4).map(".".join)
operators = st.sampled_from(["==", ">=", "<=", "!=", ">", "<"])
constraints = st.builds("{}{}{}".format, operators, st.sampled_from(["", " "]), numbers)
ranges = st.lists(constraints, min_size=1, max_size=3).flatmap(
    lambda parts: st.sampled_from([",", ", ", "|"]).map(lambda between: between.join(parts))
)
builds = st.sampled_from(["", "=py_0", "=*cuda118_*", " py39h_1"])
versions = (
    st.builds("{}{}{}{}".format, st.sampled_from(["=", " ", "=="]), numbers, st.sampled_from(["", ".*"]), builds)
    | st.builds("{}{}".format, st.sampled_from(["", " "]).flatmap(lambda b: ranges.map(lambda r: b + r)), builds)
    | st.builds("~={}.{}".format, st.integers(0, 9), numbers)
    | st.sampled_from(["", " *", "=*=mkl", " * *mkl*", "[version='>=1,<2']", "[build_number='>=2']"])
)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9]{0,3}([-._][A-Za-z0-9]{1,3}){0,2}", fullmatch=True)
places = st.sampled_from(["", "conda-forge::", "pkgs/main::", "conda-forge/linux-64::", "https://c.example.com/x::"])
texts = st.builds("{}{}{}".format, places, names, versions)


@given(texts)
def test_the_canonical_text_means_what_the_text_means(text: str) -> None:
    assert meaning(canonical(text)) == meaning(text)


@given(texts, st.data())
def test_what_is_accepted_after_a_change_is_accepted_by_rattler(text: str, data: st.DataObject) -> None:
    """So that a Job never fails over a text that the manager let through."""
    at = data.draw(st.integers(0, len(text)))
    changed = text[:at] + data.draw(st.sampled_from([*"=<>!~,|*.-_[]() 1a:#'", ""])) + text[at + 1 :]
    try:
        form = canonical(changed)
    except InvalidMatchSpec:
        return
    rattler.MatchSpec(form, strict=False)
