from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.builder.conda.layer_plan import ALONE, BUCKETS, IMAGE_LAYERS, Item, bucket_of, merged, plan, room

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
SIZES = st.one_of(st.integers(1, 100_000), st.integers(1, 3_000_000_000))


def items(names: set[str], chance: random.Random) -> list[Item]:
    return [Item(name, f"{name}-{chance.random()}", int(2 ** chance.uniform(8, 31))) for name in sorted(names)]


ENVIRONMENTS = st.builds(items, st.sets(NAMES, max_size=200), st.randoms(use_true_random=False))
LIMITS = st.integers(1, ALONE + BUCKETS)


@given(ENVIRONMENTS, LIMITS)
def test_each_package_is_in_one_layer_and_there_are_not_too_many(packages: list[Item], limit: int) -> None:
    groups = plan(packages, limit)
    assert sorted((each for group in groups for each in group.packages), key=lambda each: each.name) == packages
    assert len(groups) <= limit
    assert all(group.packages for group in groups)


@given(ENVIRONMENTS, LIMITS, st.randoms(use_true_random=False))
def test_the_order_of_packages_does_not_matter(packages: list[Item], limit: int, chance: random.Random) -> None:
    shuffled = list(packages)
    chance.shuffle(shuffled)
    assert plan(shuffled, limit) == plan(packages, limit)


@given(ENVIRONMENTS.filter(len), LIMITS, st.data())
def test_another_build_of_one_package_changes_one_layer_and_moves_none(
    packages: list[Item], limit: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(packages) - 1))
    old = packages[index]
    # Another size of the same class, as another build of the same version has it.
    size = data.draw(st.integers(1 << (old.size.bit_length() - 1), (1 << old.size.bit_length()) - 1))
    changed = [*packages[:index], Item(old.name, "another", size), *packages[index + 1 :]]
    before, after = plan(packages, limit), plan(changed, limit)
    assert [group.name for group in before] == [group.name for group in after]
    differ = [one.name for one, other in zip(before, after, strict=True) if one != other]
    assert len(differ) == (old.sha256 != "another")


@given(ENVIRONMENTS, NAMES, st.integers(1, 200))
def test_a_small_package_more_changes_at_most_one_layer(packages: list[Item], name: str, size: int) -> None:
    packages = [each for each in packages if each.name != name]
    before, after = plan(packages), plan([*packages, Item(name, "new", size)])
    kept = {group.packages for group in before} & {group.packages for group in after}
    assert len(kept) >= len(before) - 1


@given(ENVIRONMENTS)
def test_large_packages_lie_alone_and_low(packages: list[Item]) -> None:
    groups = plan(packages)
    alone = [group.size.bit_length() for group in groups[: min(ALONE, len(packages))]]
    assert alone == sorted(alone, reverse=True)
    shared = [each.size.bit_length() for group in groups[len(alone) :] for each in group.packages]
    assert len(alone) + len(shared) == len(packages)
    assert not shared or min(alone) >= max(shared)


@pytest.mark.parametrize("base", range(90))
def test_base_packages_and_token_server_fit_into_one_image(base: int) -> None:
    packages = [Item(f"p{number}", str(number), number + 1) for number in range(400)]
    fits = room(base)
    if base < IMAGE_LAYERS - 1:
        assert fits >= 1
        assert base + len(plan(packages, fits)) + 1 <= IMAGE_LAYERS
    else:
        assert fits == 0


def test_bases_of_up_to_three_layers_share_a_plan() -> None:
    assert [room(base) for base in range(5)] == [76, 76, 76, 76, 75]


def test_conda_and_pip_may_have_packages_of_the_same_name() -> None:
    both = [Item("attrs", "a", 10), Item("attrs", "b", 10, kind="pypi")]
    assert [group.packages[0].kind for group in plan(both)] == ["conda", "pypi"]


def test_the_bucket_of_a_name_is_fixed() -> None:
    # Other buckets would make every node pull every small package again.
    assert [bucket_of(name, 8) for name in ("numpy", "zlib", "tqdm")] == [2, 0, 3]


def test_groups_that_clash_become_one_in_the_place_of_the_lowest() -> None:
    groups = plan([Item(name, name, size) for name, size in [("a", 900), ("b", 500), ("c", 200), ("d", 100)]])
    found = merged(groups, [{1, 3}, {3, 2}])
    assert [[each.name for each in group.packages] for group in found] == [["a"], ["b", "c", "d"]]
    assert merged(groups, []) == groups
    assert merged(groups, [{1, 2, 3}]) == found
