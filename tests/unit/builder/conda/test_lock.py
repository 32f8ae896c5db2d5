"""Locks as files: what is written is read again, by rattler too, and a digest is of packages alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from tokenservice.builder.conda.lock import Lock, Locked, changes, lock_digest, make_lock, read_lock, write_lock
from tokenservice.builder.errors import BuildError

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
# Some hashes, versions and builds look like numbers to one kind of YAML or another.
NUMBERS = st.sampled_from(["1" * 61 + "e12", "0" * 64, "9" * 64])
VERSIONS = st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,2}){0,3}(rc[0-9])?", fullmatch=True)
BUILDS = st.sampled_from(["0", "1e5", "010", "0x1f", "0o17", "py311_0", "1_0", "3.0", "true", "null", "12e03"])
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,6}(-[a-z0-9]{1,4})?", fullmatch=True)
SIZES = st.integers(min_value=1, max_value=2**40)


@st.composite
def conda_packages(draw: st.DrawFn) -> Locked:
    name, version, build = draw(NAMES), draw(VERSIONS), draw(BUILDS)
    noarch = draw(st.sampled_from(["", "python", "generic"]))
    subdir = "noarch" if noarch else "linux-64"
    return Locked(
        "conda",
        name,
        version,
        f"https://conda.example.com/main/{subdir}/{name}-{version}-{build}.conda",
        draw(HEX | NUMBERS),
        build=build,
        size=draw(SIZES),
        subdir=subdir,
        noarch=noarch,
        depends=tuple(draw(st.lists(st.sampled_from(["python >=3.9", "libz", "__glibc >=2.17"]), unique=True))),
        more={
            "build_number": 0,
            **({"noarch": noarch} if noarch else {}),
            "subdir": subdir,
            "name": name,
            "version": version,
            "build": build,
        },
    )


@st.composite
def wheels(draw: st.DrawFn) -> Locked:
    name, version = draw(NAMES), str(Version(draw(VERSIONS)))
    file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    return Locked("pypi", name, version, f"https://pypi.example.com/{file}", draw(HEX | NUMBERS), size=draw(SIZES))


LOCKS = st.lists(conda_packages() | wheels(), max_size=6, unique_by=lambda package: package.key).map(
    lambda packages: make_lock("linux-64", ["https://conda.example.com/main"], packages)
)


@settings(max_examples=60, deadline=None)
@given(LOCKS)
def test_what_is_written_is_read(lock: Lock) -> None:
    data = write_lock(lock)
    found = read_lock(data, "linux-64")
    assert found == lock
    assert write_lock(found) == data


@given(LOCKS, st.randoms(use_true_random=False))
def test_a_digest_is_of_the_packages_alone(lock: Lock, chance: random.Random) -> None:
    packages = list(lock.packages)
    chance.shuffle(packages)
    moved = [replace(each, url=f"{each.url}?other", size=1, depends=()) for each in packages]
    assert lock_digest(Lock("linux-64", (), tuple(moved))) == lock_digest(lock)
    assert lock_digest(Lock("linux-aarch64", (), lock.packages)) != lock_digest(lock)
    for one in lock.packages:
        others = [each for each in lock.packages if each is not one]
        for changed in (others, [*others, replace(one, sha256="ab" * 32)], [*others, replace(one, version="77.7")]):
            assert lock_digest(replace(lock, packages=tuple(changed))) != lock_digest(lock)


@given(LOCKS, LOCKS)
def test_changes_name_what_came_went_and_moved(before: Lock, after: Lock) -> None:
    old = {package.key: package.sha256 for package in before.packages}
    new = {package.key: package.sha256 for package in after.packages}
    signs = [line[0] for line in changes(before, after)]
    assert signs.count("+") == len(new.keys() - old.keys())
    assert signs.count("-") == len(old.keys() - new.keys())
    assert signs.count("~") == sum(old[key] != new[key] for key in old.keys() & new.keys())
    assert changes(after, after) == []
    assert len(changes(None, after)) == len(after.packages)


HEAD = """version: 6
environments:
  default:
    channels: [{url: https://conda.example.com/main/}]
    packages: {linux-64: [{conda: https://conda.example.com/main/linux-64/a-1-0.conda}]}
packages:
- conda: https://conda.example.com/main/linux-64/a-1-0.conda
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no lock", "cannot be read"),
        ("", "cannot be read"),
        ("\0\xff", "cannot be read"),
        (HEAD, "no sha256 for a"),
        (HEAD.replace("linux-64:", "osx-64:"), "for osx-64, not for linux-64"),
        (HEAD.replace("default:", "test:"), "no environment 'default'"),
    ],
)
def test_a_lock_that_cannot_be_used_says_why(text: str, words: str) -> None:
    with pytest.raises(BuildError, match=words) as refused:
        read_lock(text.encode("latin-1"), "linux-64")
    assert refused.value.reason == "LockUnusable"


def test_which_platform_is_meant_must_be_said_if_there_are_several() -> None:
    two = HEAD.replace("packages: {", "packages: {osx-64: [], ")
    with pytest.raises(BuildError, match="say which platform"):
        read_lock(two.encode())
