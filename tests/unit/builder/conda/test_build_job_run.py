"""The Job and the command, from a lock in the registry or in a file to an answer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import pytest
from tokenservice.api.jobs import BuildRequest, JobResult
from tokenservice.builder.conda import build_job, cmd_build
from tokenservice.builder.conda.artifacts import push_lock
from tokenservice.builder.conda.lock import Lock, Locked, lock_digest, make_lock, write_lock
from tokenservice.builder.errors import BuildError
from tokenservice.builder.settings import ChannelSettings, RegistrySettings, Settings

from tests.unit.builder.conda.test_build_job import toy_environment
from tests.unit.builder.conda.toy_build import REPOSITORY, Toy


def toy_lock(toy: Toy) -> Lock:
    packages = []
    for each in toy_environment(toy):
        kind = "conda" if each.kind == "conda" else "pypi"
        more = None
        if kind == "conda":
            _, build = each.filename.removesuffix(".conda").rsplit("-", 1)
            subdir = "noarch" if each.noarch else "linux-64"
            more = {
                "build_number": 0, "name": each.name, "version": each.version, "build": build, "subdir": subdir,
                **({"noarch": each.noarch} if each.noarch else {}),
            }  # fmt: skip
        packages.append(
            Locked(
                kind,
                each.name,
                each.version,
                each.url,
                each.sha256,
                size=each.size,
                noarch=each.noarch,
                depends=each.depends,
                build=str(more["build"]) if more else "",
                subdir=str(more["subdir"]) if more else "",
                more=more,
            )
        )
    return make_lock("linux-64", [toy.server.url("conda-forge")], packages)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def settings_of(toy: Toy, **more: object) -> Settings:
    registry = RegistrySettings(url=f"{toy.registry.address}/team", pull_url="nodes.example:5000/team")
    return msgspec.structs.replace(Settings(registry=registry, base_image=toy.base), **more)


def push(toy: Toy, lock: Lock) -> BuildRequest:
    reference = push_lock(toy.client(), REPOSITORY, write_lock(lock), lock_digest(lock))
    return BuildRequest(lock=reference, lock_digest=lock_digest(lock), name="chat", variables={"A": "b"})


def run(request: BuildRequest, settings: Settings) -> JobResult:
    return build_job.run(request, settings)


def test_from_a_lock_to_an_image(toy: Toy, scratch: Path) -> None:
    answer = run(push(toy, toy_lock(toy)), settings_of(toy)).build
    assert answer is not None
    host, _, digest = answer.image.partition("@")
    assert host == "nodes.example:5000/team/environments", "as nodes reach the registry"
    assert digest in toy.registry.manifests[REPOSITORY]
    assert "A=b" in toy.config(answer)["config"]["Env"]
    assert answer.base.startswith(f"{toy.registry.address}/library/base@sha256:")
    stored = sum(each["size"] for each in toy.manifest(answer)["layers"])
    assert stored < answer.bytes_total < stored + 10_000
    assert "opt/env/bin/tool" in toy.files(answer)
    assert not list((scratch / "tokenservice-build").iterdir()), "nothing is left behind"


def test_a_cache_folder_keeps_packages(toy: Toy, scratch: Path) -> None:
    request, settings = push(toy, toy_lock(toy)), settings_of(toy, cache_folder=str(scratch / "cache"))
    first = run(request, settings)
    toy.registry.blobs[REPOSITORY] = {}
    toy.registry.manifests[REPOSITORY] = {}
    toy.server.forget()
    request = push(toy, toy_lock(toy))
    assert run(request, settings).build == first.build
    assert toy.server.paths(r"\.(conda|whl)$") == []


def test_a_mirror_is_asked_and_the_lock_keeps_the_channels_own_address(toy: Toy, scratch: Path) -> None:
    lock = toy_lock(toy)
    (toy.server.root / "mirror").symlink_to(toy.server.root / "conda-forge")
    channels = ChannelSettings(mirrors={toy.server.url("conda-forge"): (toy.server.url("mirror"),)})
    answer = run(push(toy, lock), settings_of(toy, channels=channels)).build
    assert answer is not None
    assert toy.server.paths("^/conda-forge/.*conda$") == []
    record = toy.files(answer)["opt/env/conda-meta/zlib-1.3-0.json"]
    assert json.loads(record)["channel"] == toy.server.url("conda-forge")


def test_another_lock_than_the_one_asked_for(toy: Toy, scratch: Path) -> None:
    request = msgspec.structs.replace(push(toy, toy_lock(toy)), lock_digest="sha256:" + "0" * 64)
    with pytest.raises(BuildError, match="is wanted") as raised:
        run(request, settings_of(toy))
    assert raised.value.reason == "LockUnusable"


def test_no_base_image(toy: Toy, scratch: Path) -> None:
    with pytest.raises(BuildError, match="there is no base image"):
        run(push(toy, toy_lock(toy)), settings_of(toy, base_image=""))


def test_a_base_image_that_is_not_there(toy: Toy, scratch: Path) -> None:
    request = msgspec.structs.replace(push(toy, toy_lock(toy)), base_image=f"{toy.registry.address}/library/none:1")
    with pytest.raises(BuildError, match="there is no image") as raised:
        run(request, settings_of(toy))
    assert raised.value.reason == "InvalidEnvironment"


def test_a_base_image_that_the_owner_does_not_allow(toy: Toy, scratch: Path) -> None:
    own, other = toy.base, f"{toy.registry.address}/library/other:1"
    settings = settings_of(toy, base_images=(f"{toy.registry.address}/bases/*",))
    assert run(msgspec.structs.replace(push(toy, toy_lock(toy)), base_image=own), settings).build is not None
    with pytest.raises(BuildError, match=r"does not allow the base image .*/library/other:1; allowed are") as raised:
        run(msgspec.structs.replace(push(toy, toy_lock(toy)), base_image=other), settings)
    assert raised.value.reason == "BaseImageNotAllowed"


@pytest.mark.parametrize(
    ("image", "patterns", "fits"),
    [
        ("debian:12", ("docker.io/library/debian:12",), True),
        ("debian:12", ("docker.io/library/debian",), True),
        ("debian:12", ("docker.io/library/*",), True),
        ("debian:12", ("debian:12",), False),
        ("debian:13", ("docker.io/library/debian:12",), False),
        (f"debian@sha256:{'0' * 64}", ("docker.io/library/debian",), True),
        ("r.example/bases/a:1", ("r.example/bases/*",), True),
        ("r.example/bases-of-others/a:1", ("r.example/bases/*",), False),
        ("r.example.evil.com/bases/a:1", ("r.example/bases/*",), False),
        ("r.example:5000/bases/a:1", ("r.example/bases/*",), False),
        ("R.example/bases/a:1", ("r.example/bases/*",), False),
        ("owners.example/base:1", ("r.example/*",), True),
        ("anything/else", (), True),
    ],
)
def test_base_images_that_the_owner_allows(image: str, patterns: tuple[str, ...], fits: bool) -> None:
    settings = Settings(base_image="owners.example/base:1", base_images=patterns)
    if fits:
        build_job.check_base(image, settings)
        return
    with pytest.raises(BuildError, match="does not allow"):
        build_job.check_base(image, settings)


def test_the_command_and_the_job_make_the_same_image(
    toy: Toy, scratch: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = toy_lock(toy)
    made = run(push(toy, lock), settings_of(toy)).build
    assert made is not None
    monkeypatch.setenv("TOKENSERVICE_CACHE", str(scratch / "cache"))
    (scratch / "pixi.lock").write_bytes(write_lock(lock))
    arguments = argparse.Namespace(
        file=scratch / "pixi.lock", settings=None, platform="linux-64", base_image=toy.base, name="chat",
        variable=["A=b"], registry=f"{toy.registry.address}/other", plain_http=True,
    )  # fmt: skip
    capsys.readouterr()
    assert cmd_build.run(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["image"].partition("@")[2] == made.image.partition("@")[2]
    assert answer["image"].startswith(f"{toy.registry.address}/other/environments@")
    arguments.base_image = None
    with pytest.raises(BuildError, match="--base-image"):
        cmd_build.run(arguments)


@pytest.mark.parametrize("text", ["A", "=b", "1A=b", "A B=c"])
def test_variables_that_are_none(text: str) -> None:
    with pytest.raises(BuildError, match="give NAME=VALUE"):
        cmd_build.variables_of([text])


def test_variables() -> None:
    assert cmd_build.variables_of(["A=b=c", "B="]) == {"A": "b=c", "B": ""}
