"""Locking as a user meets it: a channel and a package index over HTTP, an environment, a lock or a reason."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenservice.api.jobs import LockRequest, VirtualPackages
from tokenservice.builder.conda import lock_job
from tokenservice.builder.conda.lock import changes, lock_digest, read_lock, write_lock
from tokenservice.builder.conda.pip import SERVER_REQUIRES
from tokenservice.builder.errors import BuildError
from tokenservice.builder.settings import ChannelSettings, RegistrySettings
from tokenservice.environments.spec import canonical

from tests.support.conda_channel import ChannelServer
from tests.unit.builder.conda.lock_world import World, versions
from tests.unit.builder.standin_registry import StandinRegistry


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ChannelServer(tmp_path / "served") as server:
        yield World(server, tmp_path)


def test_the_newest_that_fits_together_is_locked_with_hashes(world: World) -> None:
    for version in ("1.26.4", "2.1.0"):
        world.channel.add_distribution("numpy", version)
    world.channel.add_distribution("transformers", "4.35.2", depends=["python", "numpy >=1.17,<2"])
    world.server.wheel("sse-starlette", "1.6.1", requires=["starlette"])

    lock = world.lock("python=3.11", "transformers", {"pip": ["sse-starlette"]})

    assert versions(lock) == {
        "python": "3.11.7",
        "numpy": "1.26.4",
        "transformers": "4.35.2",
        "sse-starlette": "1.6.1",
        **{each.partition(">=")[0]: f"{each.partition('>=')[2]}.9" for each in SERVER_REQUIRES},
    }
    assert {package.kind for package in lock.packages} == {"conda", "pypi"}
    assert all(len(package.sha256) == 64 for package in lock.packages)
    assert all(package.size for package in lock.packages)
    assert read_lock(write_lock(lock)) == lock


def test_the_same_is_locked_again_wherever_and_in_whatever_order(world: World) -> None:
    for name in ("a", "b", "c"):
        world.channel.add_distribution(name, "1.0")
    first = world.lock("a", "b", {"pip": ["starlette", "uvicorn"]})
    world.settings = msgspec.structs.replace(world.settings, cache_folder=str(world.folder / "other"))
    second = world.lock("b", "a", {"pip": ["uvicorn", "starlette"]})
    third = world.lock("b", "a", {"pip": ["uvicorn", "starlette"]}, previous=first)
    assert write_lock(first) == write_lock(second) == write_lock(third)
    assert lock_digest(first) == lock_digest(second)


def test_an_edit_moves_as_little_as_possible(world: World) -> None:
    world.channel.add_distribution("numpy", "1.26.4")
    world.server.wheel("click", "8.0")
    before = world.lock("numpy", {"pip": ["click"]})
    world.channel.add_distribution("numpy", "2.1.0")
    world.channel.add_distribution("tqdm", "4.0")
    world.server.wheel("click", "9.0")

    after = world.lock("numpy", "tqdm", {"pip": ["click"]}, previous=before)

    assert changes(before, after) == ["+ tqdm 4.0"]
    assert changes(after, before) == ["- tqdm 4.0"]
    assert changes(before, world.lock("numpy", {"pip": ["click"]})) == [
        "~ click 8.0 -> 9.0 (pip)",
        "~ numpy 1.26.4 -> 2.1.0",
    ]


def test_what_another_channel_gave_is_not_kept(world: World) -> None:
    """Neither once that is asked for no more, nor where a package is asked for from another one."""
    other = world.server.channel("other")
    other.add_python("3.11.7")
    other.add_distribution("numpy", "1.26.4")
    other.index()
    world.channel.add_distribution("numpy", "2.1.0")
    both = ["main", "other"]
    before = world.lock("numpy", channels=both)
    assert versions(before)["numpy"] == "2.1.0"
    for channels, spec in ((["other"], "numpy"), (both, "other::numpy")):
        after = world.lock(spec, channels=channels, previous=before)
        assert versions(after)["numpy"] == "1.26.4", (channels, spec)
        assert all("/main/" not in package.url for package in after.conda if package.name == "numpy")
    kept = world.lock("numpy", "main::python", channels=both, previous=before)
    assert changes(before, kept) == []


def test_what_conda_installed_is_never_replaced_by_pip(world: World) -> None:
    world.channel.add_distribution("numpy", "2.4.6")
    world.server.wheel("numpy", "1.26.4")
    refused = world.refusal("numpy", {"pip": ["numpy<2"]})
    assert refused.reason == "Unsolvable"
    assert "numpy<2" in str(refused)
    assert "numpy==2.4.6 (from conda)" in str(refused)
    assert "numpy" not in {package.name for package in world.lock("numpy", {"pip": ["numpy>2"]}).pypi}


def test_pips_name_decides_not_condas(world: World) -> None:
    """The package pytorch holds the distribution torch."""
    world.channel.add(
        "pytorch",
        "2.0.1",
        depends=["python"],
        files={"lib/python3.11/site-packages/torch-2.0.1+cu118.dist-info/METADATA": "Name: torch\nVersion: 2.0.1\n"},
    )
    world.server.wheel("torch", "2.15.0")
    world.server.wheel("accelerate", "1.0", requires=["torch>=2.0"])
    lock = world.lock("pytorch", {"pip": ["accelerate"]})
    assert "torch" not in versions(lock)
    assert "torch==2.0.1+cu118.conda" in str(world.refusal("pytorch", {"pip": ["torch>=2.1"]}))


def test_an_extra_of_what_conda_installed_adds_just_the_extra(world: World) -> None:
    world.channel.add_distribution("uvicorn", "0.30.0", requires=["click>=7", "httptools>=0.5; extra == 'standard'"])
    world.server.wheel("httptools", "0.6")
    world.server.wheel("click", "8.0")
    lock = world.lock("uvicorn", {"pip": ["uvicorn[standard]"]})
    assert versions(lock)["httptools"] == "0.6"
    assert "click" not in versions(lock), "whether conda's own packages fit together is conda's affair"


def test_token_server_is_a_side_of_a_clash(world: World) -> None:
    world.server.wheel("starlette", "0.20")
    refused = world.refusal("python", {"pip": ["starlette<0.26"]})
    assert refused.reason == "Unsolvable"
    assert "token_server, which serves the model, depends on starlette>=0.26" in str(refused)
    assert "starlette<0.26" in str(refused)


def test_a_contradiction_is_explained_from_the_entries_down(world: World) -> None:
    for version in ("1.26.4", "2.1.0"):
        world.channel.add_distribution("numpy", version)
    world.channel.add_distribution("transformers", "4.35.2", depends=["python", "numpy <2"])
    world.channel.add_distribution("datasets", "3.0", depends=["python", "numpy >=2"])
    refused = world.refusal("transformers", "datasets")
    assert refused.reason == "Unsolvable"
    assert str(refused).splitlines()[0] == "datasets and transformers cannot be installed together"
    assert "numpy >=2" in str(refused)
    assert "numpy <2" in str(refused)


@pytest.mark.parametrize("wanted", ["nump", "main::nump", "nump>=1"])
def test_an_unknown_package_is_named_with_the_nearest(world: World, wanted: str) -> None:
    world.channel.add_distribution("numpy", "1.26.4")
    refused = world.refusal(wanted)
    assert refused.reason == "UnknownPackage"
    assert "no channel has a package named nump; did you mean numpy?" in str(refused)


def test_an_unknown_pip_package_is_named(world: World) -> None:
    refused = world.refusal("python", {"pip": ["sse-starlet"]})
    assert refused.reason == "UnknownPackage"
    assert "sse-starlet" in str(refused).splitlines()[0]


def test_cuda_is_there_only_if_it_is_said(world: World) -> None:
    world.channel.add("gpu-thing", "1.0", depends=["__cuda >=12"])
    assert "virtualPackages.cuda" in str(world.refusal("gpu-thing"))
    assert "gpu-thing" in versions(world.lock("gpu-thing", virtual=VirtualPackages(cuda="12.4")))
    assert world.refusal("gpu-thing", virtual=VirtualPackages(cuda="11.8")).reason == "Unsolvable"


def test_newer_packages_are_left_out_on_demand(world: World) -> None:
    world.channel.add_distribution("numpy", "1.0", timestamp=1_600_000_000_000)
    world.channel.add_distribution("numpy", "2.0", timestamp=1_900_000_000_000)
    assert versions(world.lock("numpy"))["numpy"] == "2.0"
    assert versions(world.lock("numpy", exclude_newer="2025-01-01"))["numpy"] == "1.0"


@pytest.mark.parametrize(("python", "words"), [("3.8.18", "3.9")])
def test_a_python_too_old_for_token_server_is_refused(world: World, python: str, words: str) -> None:
    world.channel.add_python(python)
    refused = world.refusal("python=3.8")
    assert refused.reason == "Unsolvable"
    assert words in str(refused)


def test_the_owner_allows_channels(world: World) -> None:
    allowed = msgspec.structs.replace(world.settings.channels, allow=("main", "https://conda.example.com/*"))
    world.settings = msgspec.structs.replace(world.settings, channels=allowed)
    assert world.lock("python")
    for more in ({"channels": ["main", "other"]}, {"dependencies": ["other::python"]}):
        refused = world.refusal(*more.pop("dependencies", ["python"]), **more)
        assert refused.reason == "ChannelNotAllowed"
        assert "other" in str(refused)
        assert "main, https://conda.example.com/*" in str(refused)


def test_wheels_by_address_need_the_owners_leave(world: World) -> None:
    wheel = world.server.wheel("special", "1.0")
    address = f"{world.server.url('simple/special')}/{wheel.name}"
    refused = world.refusal("python", {"pip": [f"special @ {address}"]})
    assert refused.reason == "ChannelNotAllowed"
    assert "special" in str(refused)


def test_a_mirror_is_asked_and_the_channel_is_locked(world: World) -> None:
    mirrors = {"https://conda.example.com/main": ("http://127.0.0.1:9/gone", world.server.url("main"))}
    channels = ChannelSettings(alias="https://conda.example.com", mirrors=mirrors)
    world.settings = msgspec.structs.replace(world.settings, channels=channels)
    lock = world.lock("python=3.11")
    assert lock.channels == ("https://conda.example.com/main",)
    assert lock.conda[0].url.startswith("https://conda.example.com/main/linux-64/python-3.11.7")


def test_an_index_is_sent_again_only_if_it_changed(world: World) -> None:
    world.settings = msgspec.structs.replace(world.settings, cache_folder=str(world.folder / "cache"))
    world.lock("python")
    world.server.forget()
    world.lock("python")
    assert world.server.paths("repodata.json$")
    assert world.server.sent("repodata.json$") == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 500}, "answers 500"),
        ({"status": 401}, "wants a login"),
        ({"status": 404}, "is not there"),
        ({"dropped": True}, "127.0.0.1"),
    ],
)
def test_a_channel_that_does_not_serve_is_named(world: World, fault: dict[str, Any], words: str) -> None:
    world.server.fault("repodata", **fault)
    refused = world.refusal("python")
    assert refused.reason == "ChannelUnavailable"
    assert "main" in str(refused)
    assert words in str(refused)
    world.server.heal()
    assert world.lock("python")


def test_a_slow_channel_ends_with_the_time_limit(world: World) -> None:
    world.settings = msgspec.structs.replace(world.settings, timeout_seconds=1)
    world.server.fault("repodata", seconds=60.0)
    begun = time.monotonic()
    assert world.refusal("python").reason == "ChannelUnavailable"
    assert time.monotonic() - begun < 20


def test_a_short_outage_is_bridged(world: World) -> None:
    world.settings = msgspec.structs.replace(world.settings, retries=3)
    world.server.fault("linux-64/repodata", status=503, times=1)
    assert world.lock("python")


def test_a_package_index_that_does_not_serve_is_told(world: World) -> None:
    world.server.fault("/simple/", status=500)
    assert world.refusal("python", {"pip": ["starlette"]}).reason == "ChannelUnavailable"


def test_the_job_pushes_the_lock_once(world: World) -> None:
    with StandinRegistry().running() as registry:
        world.settings = msgspec.structs.replace(
            world.settings, registry=RegistrySettings(url=f"{registry.address}/ts")
        )
        world.channel.index()
        request = LockRequest(environment=canonical({"channels": ["main"], "dependencies": ["python"]}).document)
        first = lock_job.run(request, world.settings).lock
        assert first
        assert first.packages == 4
        again = LockRequest(environment=request.environment, previous=first.reference)
        assert lock_job.run(again, world.settings).lock == first
        given = LockRequest(environment={}, lock=first.reference)
        assert lock_job.run(given, world.settings).lock == first
        with pytest.raises(BuildError, match="linux-64, not for linux-aarch64") as refused:
            lock_job.run(LockRequest(environment={}, lock=first.reference, platform="linux-aarch64"), world.settings)
        assert refused.value.reason == "LockUnusable"
        gone = LockRequest(
            environment=request.environment, previous=f"{registry.address}/ts/environments@sha256:{'0' * 64}"
        )
        assert lock_job.run(gone, world.settings).lock == first


def test_a_lock_from_a_channel_that_is_not_allowed_is_refused(world: World) -> None:
    lock = world.lock("python")
    channels = msgspec.structs.replace(world.settings.channels, allow=("other",))
    with pytest.raises(BuildError) as refused:
        lock_job.check_lock(lock, msgspec.structs.replace(world.settings, channels=channels))
    assert refused.value.reason == "ChannelNotAllowed"
    moved = replace(lock.conda[0], url="https://evil.example.com/python.conda")
    channels = msgspec.structs.replace(world.settings.channels, allow=("*",))
    with pytest.raises(BuildError) as refused:
        lock_job.check_lock(
            replace(lock, packages=(moved,)), msgspec.structs.replace(world.settings, channels=channels)
        )
    assert refused.value.reason == "LockUnusable"


def test_a_lock_that_cannot_be_built_or_cannot_serve_is_refused(world: World) -> None:
    lock = world.lock("python", {"pip": ["starlette"]})
    lock_job.check_lock(lock, world.settings)
    queried = replace(lock.pypi[0], url=f"{lock.pypi[0].url}?token=1#sha256=2")
    wheels = tuple(queried if wheel is lock.pypi[0] else wheel for wheel in lock.pypi)
    lock_job.check_lock(replace(lock, packages=(*lock.conda, *wheels)), world.settings)
    source = replace(lock.pypi[0], url="https://files.example.com/starlette-1.0.tar.gz")
    with pytest.raises(
        BuildError, match=r"is no wheel: https://files\.example\.com/starlette-1\.0\.tar\.gz"
    ) as refused:
        lock_job.check_lock(replace(lock, packages=(*lock.conda, source)), world.settings)
    assert refused.value.reason == "LockUnusable"
    with pytest.raises(BuildError, match="the lock has no starlette, uvicorn, prometheus-client: ") as refused:
        lock_job.check_lock(replace(lock, packages=lock.conda), world.settings)
    assert refused.value.reason == "LockUnusable"
