"""The history of a lock: what is read from an index, and what is counted."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.builder.conda.layer_plan import ALONE, Item

from bench.cluster import BenchError
from bench.history import Change, changes, history, lock_of, releases, result, table


def package(name: str, version: int = 1, size: int = 100) -> Item:
    return Item(name, f"{name}-{version}", size)


def test_a_package_with_a_layer_of_its_own_costs_itself() -> None:
    before = [package("torch", size=1000), package("numpy")]
    assert list(changes([before, [package("torch", 2, 1100), package("numpy")]])) == [Change(1100, 1100)]


def test_a_package_in_a_bucket_costs_its_bucket() -> None:
    large = [package(f"large-{number}", size=10_000) for number in range(ALONE)]
    small = [package(f"small-{number}") for number in range(80)]
    (change,) = changes([[*large, *small], [*large, package("small-0", 2), *small[1:]]])
    assert change.packages == 100
    assert 100 < change.layers < 8_000


def test_what_changes_nothing_or_only_takes_away_is_no_change() -> None:
    both = [package("a"), package("b")]
    assert list(changes([both, both, [package("a")]])) == []


SETS = st.lists(
    st.builds(package, st.sampled_from("abcdefgh"), st.integers(1, 2), st.integers(1, 1 << 20)),
    unique_by=lambda each: each.name,
)


@given(st.lists(SETS, max_size=5))
def test_layers_never_cost_less_than_packages(locks: list[list[Item]]) -> None:
    for change in changes(locks):
        assert change.layers >= change.packages > 0


def test_the_figures() -> None:
    found = history("p", [[package("a")], [package("a", 2), package("b")], [package("a", 2), package("b", 2)]])
    assert (found.locks, found.packages, found.layers, found.ratio, found.median, found.worst) == (3, 2, 2, 1, 1, 1)
    nothing = history("q", [])
    assert (nothing.ratio, nothing.median, nothing.worst) == (None, None, None)
    assert [line.split()[0] for line in table([found, nothing]).splitlines()] == ["project", "p", "q"]
    told = result([found, nothing])
    assert (told["changes"], told["layers_over_packages"]) == (2, 1)
    json.dumps(told)
    assert result([nothing])["layers_over_packages"] is None


def file(name: str, sha256: str | None = "s") -> dict[str, Any]:
    return {"filename": name, "url": name, "hashes": {"sha256": sha256} if sha256 else {}}


def test_releases_in_the_order_of_their_versions() -> None:
    files = [file(f"p-{version}.tar.gz") for version in ("1.10.0", "1.9.0", "2.0.0rc1")]
    others = [file("p-1.9.0-py3-none-any.whl"), file("p-3.0.tar.gz", None), file("nonsense.exe")]
    found = releases("p", {"files": [*files, *others]})
    assert [str(release.version) for release in found] == ["1.9.0", "1.10.0", "2.0.0rc1"]
    with pytest.raises(BenchError, match="p has no source distributions"):
        releases("p", {"files": others})


def test_the_lock_at_the_top_counts() -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name in ("p-1/tests/pixi.lock", "p-1/pixi.lock"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    assert lock_of(made.getvalue()) == b"p-1/pixi.lock"
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w:gz"):
        pass
    assert lock_of(empty.getvalue()) is None
