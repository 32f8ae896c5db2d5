"""Where a lock's packages come from: channels and their order, logins, certificates, downloads that are wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.builder.conda.channels import mirrors_of, resolve
from tokenservice.builder.conda.lock import write_lock
from tokenservice.builder.errors import BuildError
from tokenservice.builder.settings import DEFAULT_CHANNELS, ChannelSettings, PipSettings

from tests.support.certificates import server_context
from tests.support.conda_channel import ChannelServer
from tests.unit.builder.conda.lock_world import World, versions

SECRET = "hunter2-of-the-team"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ChannelServer(tmp_path / "served") as server:
        yield World(server, tmp_path)


@pytest.mark.parametrize(
    ("names", "urls"),
    [
        (["conda-forge"], ["https://conda.anaconda.org/conda-forge"]),
        (["defaults"], list(DEFAULT_CHANNELS)),
        (["nvidia/label/cuda-12.4.1"], ["https://conda.anaconda.org/nvidia/label/cuda-12.4.1"]),
        (["https://conda.example.com/main/", "https://conda.example.com/main"], ["https://conda.example.com/main"]),
        (["b", "a", "b"], ["https://conda.anaconda.org/b", "https://conda.anaconda.org/a"]),
    ],
)
def test_names_of_channels_stand_for_addresses(names: list[str], urls: list[str]) -> None:
    assert [channel.url for channel in resolve(names, ChannelSettings())] == urls


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        ("conda-forge", True),
        ("https://conda.anaconda.org/conda-forge", True),
        ("https://conda.anaconda.org/conda-forge/", True),
        ("https://conda.anaconda.org/*", True),
        ("conda", False),
        ("https://conda.anaconda.org", False),
        ("*/conda-forge-of-somebody", False),
    ],
)
def test_the_owners_patterns_are_of_whole_names(pattern: str, allowed: bool) -> None:
    if allowed:
        assert resolve(["conda-forge"], ChannelSettings(allow=(pattern,)))
        return
    with pytest.raises(BuildError) as refused:
        resolve(["conda-forge"], ChannelSettings(allow=(pattern,)))
    assert refused.value.reason == "ChannelNotAllowed"


@given(
    st.lists(st.sampled_from(["http://one", "http://two/x/", "https://three/y"]), unique=True),
    st.text("ab/", max_size=6),
)
def test_mirrors_are_asked_for_the_same_path(mirrors: list[str], rest: str) -> None:
    settings = ChannelSettings(mirrors={"https://conda.example.com/main/": tuple(mirrors)})
    url = f"https://conda.example.com/main/{rest}"
    asked = mirrors_of(url, settings)
    assert list(asked) == ([f"{mirror.rstrip('/')}/{rest}" for mirror in mirrors] if mirrors else [url])
    beside = f"https://conda.example.com/main-of-somebody/{rest}"
    assert mirrors_of(beside, settings) == (beside,)


def test_the_first_channel_that_has_a_package_is_the_one_it_comes_from(world: World) -> None:
    """Even if a later channel has a newer one: conda's strict priority."""
    world.channel.add_distribution("numpy", "1.26.4")
    other = world.server.channel("other")
    other.add_distribution("numpy", "2.1.0")
    other.index()
    assert versions(world.lock("numpy", channels=["main", "other"]))["numpy"] == "1.26.4"
    named = world.lock("other::numpy", channels=["main"])
    assert versions(named)["numpy"] == "2.1.0"
    assert named.channels == (world.server.url("main"), world.server.url("other"))
    assert world.refusal("main::numpy>=2", channels=["other", "main"]).reason == "Unsolvable"


@pytest.mark.parametrize("login", [{"username": "team", "password": SECRET}, {"token": SECRET}])
def test_credentials_by_host_open_a_channel_and_an_index_and_show_nowhere(
    world: World, login: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    basic = (login["username"], login["password"]) if "username" in login else None
    world.server.require("/main/", basic=basic, token=login.get("token", ""))
    # An index takes a token as the password of `__token__`, as pip's users know it.
    world.server.require("/simple/", basic=basic or ("__token__", SECRET))
    refused = world.refusal("python")
    assert refused.reason == "ChannelUnavailable"
    assert "credentials" in str(refused)

    commands: list[Any] = []
    start = subprocess.Popen.__init__
    monkeypatch.setattr(
        subprocess.Popen, "__init__", lambda self, *all, **more: (commands.append(all), start(self, *all, **more))[1]
    )
    folder = world.folder / "credentials"
    folder.mkdir()
    for name, text in login.items():
        (folder / name).write_text(f"{text}\n")
    host = world.server.url().removeprefix("http://")
    cache = world.folder / "cache"
    world.settings = msgspec.structs.replace(world.settings, credentials={host: str(folder)}, cache_folder=str(cache))
    world.channel.add_distribution("numpy", "1.26.4")
    lock = world.lock("python", "numpy", {"pip": ["starlette"]})
    world.server.fault("/simple/", status=401)
    unopened = world.refusal("python", {"pip": ["starlette"]})
    assert unopened.reason == "ChannelUnavailable"
    assert "wants a login" in str(unopened).splitlines()[0]
    world.server.fault("repodata", status=403)
    failed = world.refusal("python")

    told = capfd.readouterr()
    assert len(commands) >= 2, "the solver and uv"
    shown = f"{told.out}{told.err}{write_lock(lock).decode()}{refused}{unopened}{failed}{commands}"
    assert SECRET not in shown
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert kept
    assert not any(SECRET.encode() in path.read_bytes() for path in kept)


def test_a_store_that_forbids_what_is_not_there(world: World) -> None:
    """As buckets do that nobody may list."""
    world.channel.add_distribution("numpy", "1.26.4")
    world.server.fault(r"repodata\.json\.zst", status=403)
    assert versions(world.lock("numpy"))["numpy"] == "1.26.4"


def test_an_address_with_a_login_is_locked_and_told_without_it(world: World) -> None:
    """The owner may have put one into the index's address."""
    world.server.require("/simple/", basic=("team", SECRET))
    address = world.server.simple.replace("http://", f"http://team:{SECRET}@")
    world.settings = msgspec.structs.replace(world.settings, pip=PipSettings(index_url=address))
    lock = world.lock("python", {"pip": ["starlette"]})
    assert SECRET not in write_lock(lock).decode()
    for fault in ({"status": 500}, {"dropped": True}, {"status": 401}):
        world.server.fault("/simple/", **fault)
        refused = world.refusal("python", {"pip": ["starlette"]})
        assert SECRET not in str(refused)
        world.server.heal()
    assert SECRET not in str(world.refusal("python", {"pip": ["sse-starlet"]}))
    assert SECRET not in str(world.refusal("python", {"pip": ["starlette<0.1"]}))


def test_a_private_authority_is_trusted_once_the_owner_says_so(tmp_path: Path) -> None:
    context, bundle = server_context(tmp_path / "tls")
    with ChannelServer(tmp_path / "served", context) as server:
        world = World(server, tmp_path)
        refused = world.refusal("python")
        assert refused.reason == "ChannelUnavailable"
        assert "certificate" in str(refused)
        world.settings = msgspec.structs.replace(world.settings, ca_bundle=str(bundle))
        assert world.lock("python")


@pytest.mark.parametrize("fault", [{"corrupt": True}, {"truncated": True}])
def test_a_broken_index_is_not_used(world: World, fault: dict[str, Any]) -> None:
    world.server.fault("repodata", **fault)
    refused = world.refusal("python")
    assert refused.reason == "ChannelUnavailable"
    assert "main" in str(refused)
    world.server.heal()
    assert world.lock("python")


def test_a_broken_package_is_not_used(world: World) -> None:
    world.settings = msgspec.structs.replace(world.settings, cache_folder=str(world.folder / "cache"))
    world.channel.add_distribution("numpy", "1.26.4")
    world.server.fault("numpy-1.26.4", corrupt=True)
    refused = world.refusal("numpy", {"pip": ["starlette"]})
    assert refused.reason == "ChecksumMismatch"
    assert "numpy-1.26.4" in str(refused)
    world.server.heal()
    assert "numpy" in versions(world.lock("numpy", {"pip": ["starlette"]}))


def test_a_package_with_another_hash_is_not_used(world: World) -> None:
    """Its channel's index says one thing, its server sends another: here a package that was built again."""
    world.channel.add_distribution("uvicorn", "0.30.0", requires=["httptools; extra == 'standard'"])
    world.channel.index()
    world.server.wheel("httptools", "0.6")
    index = world.channel.root / "noarch/repodata.json"
    said = index.read_text()
    built = world.channel.add_distribution("uvicorn", "0.30.0", requires=["evil; extra == 'standard'"])
    world.channel.index = lambda: None  # type: ignore[method-assign]
    index.write_text(said)
    refused = world.refusal("uvicorn", {"pip": ["uvicorn[standard]"]})
    assert refused.reason == "ChecksumMismatch"
    assert built.path.name in str(refused)
    assert "it is not used" in str(refused)


def test_a_wheel_by_its_address_is_locked_with_its_hash_where_it_is_allowed(world: World) -> None:
    wheel = world.server.wheel("special", "1.0")
    address = f"{world.server.url('simple/special')}/{wheel.name}"
    pip = msgspec.structs.replace(world.settings.pip, allow=(f"{world.server.url()}/*",))
    world.settings = msgspec.structs.replace(world.settings, pip=pip)
    lock = world.lock("python", {"pip": [f"special @ {address}"]})
    found = next(package for package in lock.pypi if package.name == "special")
    assert (found.version, found.url) == ("1.0", address)
    assert len(found.sha256) == 64


def test_newer_wheels_are_left_out_as_packages_are(world: World) -> None:
    """A day stands for its beginning in UTC, in both."""
    begins = 1_735_689_600  # 2025-01-01T00:00:00Z
    world.server.wheel("click", "1.0", uploaded=begins - 1)
    world.server.wheel("click", "2.0", uploaded=begins + 3600)
    world.channel.add_distribution("numpy", "1.0", timestamp=(begins - 1) * 1000)
    world.channel.add_distribution("numpy", "2.0", timestamp=(begins + 3600) * 1000)
    for day, version in (("2025-01-01", "1.0"), ("2025-01-01T02:00:00Z", "2.0"), ("2025-01-01T02:00:00+02:00", "1.0")):
        found = versions(world.lock("numpy", {"pip": ["click"]}, exclude_newer=day))
        assert (found["numpy"], found["click"]) == (version, version)


def test_an_index_that_hangs_ends_with_the_solvers_time_limit(world: World) -> None:
    world.settings = msgspec.structs.replace(world.settings, solve_timeout_seconds=1, timeout_seconds=60)
    world.server.fault("/simple/", seconds=60.0)
    refused = world.refusal("python", {"pip": ["starlette"]})
    assert refused.reason == "TimedOut"
    assert "within 1 s" in str(refused)
