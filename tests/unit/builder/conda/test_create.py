from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tokenservice.builder.conda import cmd_create
from tokenservice.builder.conda.create import Done, create
from tokenservice.builder.conda.lock import Lock, Locked, make_lock, write_lock
from tokenservice.builder.conda.packages import Sources
from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import Http, Retries

from tests.support.conda_channel import Built, Channel, ChannelServer, Link, Placeholder, Raw

PYTHON = ".".join(map(str, sys.version_info[:2]))
SITE = f"lib/python{PYTHON}/site-packages"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChannelServer]:
    served = ChannelServer(tmp_path / "served").start()
    yield served
    served.stop()


@pytest.fixture
def channel(server: ChannelServer) -> Channel:
    return server.channel("conda-forge")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "env"


def conda(server: ChannelServer, built: Built, noarch: str = "") -> Locked:
    url = f"{server.url('conda-forge')}/{built.subdir}/{built.path.name}"
    site = f"lib/python{'.'.join(built.version.split('.')[:2])}/site-packages" if built.name == "python" else ""
    return Locked(
        "conda", built.name, built.version, url, built.sha256, built.build, built.size, built.subdir, noarch, site=site
    )


def wheel(server: ChannelServer, name: str, version: str, **more: object) -> Locked:
    path = server.wheel(name, version, **more)
    url = f"{server.simple.removesuffix('simple/')}{path.relative_to(server.root).as_posix()}"
    return Locked("pypi", name, version, url, hashlib.sha256(path.read_bytes()).hexdigest())


def locked(*packages: Locked) -> Lock:
    return make_lock("linux-64", ["conda-forge"], packages)


def made(lock: Lock, prefix: Path, **more: object) -> Done:
    sources = Sources(Http(), Retries(attempts=1))
    return create(lock, prefix, prefix.parent / "cache", sources, **more)  # type: ignore[arg-type]


def tree(prefix: Path) -> dict[str, str]:
    """Every file that is not bookkeeping, with what it holds."""
    return {
        str(path.relative_to(prefix)): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(prefix.rglob("*"))
        if (path.is_symlink() or path.is_file()) and "conda-meta" not in path.parts
    }


@pytest.fixture
def python(server: ChannelServer, channel: Channel) -> Locked:
    return conda(server, channel.add_python())


def test_an_environment_is_made(server: ChannelServer, channel: Channel, python: Locked, prefix: Path) -> None:
    lib = channel.add(
        "lib",
        "1.0",
        files={
            "lib/liblib.so.1": b"code",
            "lib/liblib.so": Link("liblib.so.1"),
            "etc/lib.conf": Placeholder("home={prefix}/share\n"),
        },
    )
    tool = channel.add_distribution(
        "tool", "2.0", entry_points=["tool = tool:main"], modules={"tool/__init__.py": "def main(): print('hi')\n"}
    )
    lock = locked(python, conda(server, lib), conda(server, tool, "python"), wheel(server, "click", "8.1.0"))
    assert made(lock, prefix, variables={"GREETING": "hello"}) == Done(4, 0)
    assert (prefix / "lib/liblib.so").read_bytes() == b"code"
    assert (prefix / "etc/lib.conf").read_text() == f"home={prefix}/share\n"
    assert (prefix / "bin/tool").read_text().startswith(f"#!{prefix}/bin/python")
    assert (prefix / SITE / "tool/__init__.py").exists()
    assert (prefix / SITE / "click-8.1.0.dist-info/RECORD").exists()
    records = {
        json.loads(path.read_bytes())["name"]: json.loads(path.read_bytes())
        for path in prefix.glob("conda-meta/*.json")
    }
    assert set(records) == {"python", "lib", "tool"}
    assert records["lib"]["url"] == conda(server, lib).url
    assert records["lib"]["sha256"] == lib.sha256
    assert (prefix / "conda-meta/history").exists(), "conda takes the folder for an environment"
    assert json.loads((prefix / "conda-meta/state").read_bytes())["env_vars"] == {"GREETING": "hello"}


def test_nothing_changed_nothing_done(server: ChannelServer, channel: Channel, python: Locked, prefix: Path) -> None:
    lib = conda(server, channel.add("lib", "1.0"))
    lock = locked(python, lib, wheel(server, "click", "8.1.0"))
    made(lock, prefix)
    before, asked = tree(prefix), len(server.requests)
    stamps = {path: path.stat().st_mtime_ns for path in prefix.rglob("*") if path.is_file()}
    assert made(lock, prefix) == Done(0, 0)
    assert tree(prefix) == before
    assert {path: path.stat().st_mtime_ns for path in stamps if ".tokenservice" not in path.name} == {
        path: stamp for path, stamp in stamps.items() if ".tokenservice" not in path.name
    }
    assert len(server.requests) == asked


def test_an_update_removes_what_the_lock_no_longer_has(
    server: ChannelServer, channel: Channel, python: Locked, prefix: Path
) -> None:
    old = conda(server, channel.add("lib", "1.0", files={"share/lib/old": "1", "share/lib/both": "1"}))
    gone = conda(server, channel.add("gone", "1.0", files={"share/gone/x": "1"}))
    click = wheel(server, "click", "8.1.0", files={"click/old.py": "", "click/__init__.py": ""})
    rich = wheel(server, "rich", "13.0")
    made(locked(python, old, gone, click, rich), prefix)
    (prefix / SITE / "click/__pycache__").mkdir()
    (prefix / SITE / "click/__pycache__" / f"old.cpython-{PYTHON.replace('.', '')}.pyc").touch()
    (prefix / "notes.txt").write_text("the developer's own")

    new = conda(server, channel.add("lib", "2.0", files={"share/lib/new": "2", "share/lib/both": "2"}))
    newer = wheel(server, "click", "8.2.0", files={"click/__init__.py": "", "click/new.py": ""})
    extra = conda(server, channel.add("extra", "1.0", files={"share/extra/x": "1"}))
    lock = locked(python, new, extra, newer)
    assert made(lock, prefix) == Done(3, 3)
    found = tree(prefix)
    assert found["share/lib/both"] == hashlib.sha256(b"2").hexdigest()
    assert found["notes.txt"]
    for path in ("share/lib/old", "share/gone/x", f"{SITE}/click/old.py"):
        assert path not in found
    assert not list(prefix.glob(f"{SITE}/click/__pycache__/*"))
    assert not list(prefix.glob(f"{SITE}/rich*"))
    assert [path.name for path in prefix.glob(f"{SITE}/click-*")] == ["click-8.2.0.dist-info"]
    fresh = prefix.parent / "fresh"
    made(lock, fresh)
    there = {path: content for path, content in found.items() if path != "notes.txt"}
    assert there.keys() == tree(fresh).keys(), "as if it were made anew"


def test_another_python_moves_its_packages(server: ChannelServer, channel: Channel, prefix: Path) -> None:
    first, second = (conda(server, channel.add_python(version)) for version in ("3.10.1", "3.12.2"))
    pure = conda(server, channel.add_distribution("pure", "1.0"), "python")
    click = wheel(server, "click", "8.1.0")
    made(locked(first, pure, click), prefix)
    assert (prefix / "lib/python3.10/site-packages/pure/__init__.py").exists()
    made(locked(second, pure, click), prefix)
    found = tree(prefix)
    assert "lib/python3.12/site-packages/pure/__init__.py" in found
    assert "lib/python3.12/site-packages/click-8.1.0.dist-info/RECORD" in found
    assert not [path for path in found if "python3.10" in path]


def interrupted_before_the_record(prefix: Path) -> None:
    next(prefix.glob("conda-meta/lib-*.json")).unlink()


def interrupted_in_a_removal(prefix: Path) -> None:
    (prefix / "share/lib/one").unlink()


def interrupted_in_a_wheel(prefix: Path) -> None:
    (prefix / SITE / "click-8.1.0.dist-info/RECORD").unlink()
    (prefix / SITE / "click/__init__.py").unlink()


def interrupted_in_a_wheels_removal(prefix: Path) -> None:
    (prefix / SITE / "click-8.1.0.dist-info/tokenservice.json").write_text("{}")
    (prefix / SITE / "click/__init__.py").unlink()


@pytest.mark.parametrize(
    "interrupted",
    [
        interrupted_before_the_record,
        interrupted_in_a_removal,
        interrupted_in_a_wheel,
        interrupted_in_a_wheels_removal,
    ],
)
def test_a_run_after_an_interruption_completes(
    server: ChannelServer, channel: Channel, python: Locked, prefix: Path, interrupted: object
) -> None:
    lib = conda(server, channel.add("lib", "1.0", files={"share/lib/one": "1", "share/lib/two": "2"}))
    click = wheel(server, "click", "8.1.0", files={"click/__init__.py": "x = 1\n"})
    lock = locked(python, lib, click)
    made(lock, prefix)
    before = tree(prefix)
    interrupted(prefix)  # type: ignore[operator]
    made(lock, prefix)
    assert tree(prefix) == before
    assert made(lock, prefix) == Done(0, 0)


@pytest.mark.parametrize("kind", ["conda", "wheel"])
def test_another_content_than_the_locks_is_never_used(
    server: ChannelServer, channel: Channel, python: Locked, prefix: Path, kind: str
) -> None:
    old = conda(server, channel.add("lib", "1.0"))
    made(locked(python, old), prefix)
    before = tree(prefix)
    wrong = conda(server, channel.add("lib", "2.0")) if kind == "conda" else wheel(server, "click", "8.1.0")
    with pytest.raises(BuildError, match="and the lock says") as raised:
        made(locked(python, *([old] if kind == "wheel" else []), replace(wrong, sha256="0" * 64)), prefix)
    assert raised.value.reason == "ChecksumMismatch"
    assert tree(prefix) == before


def test_an_archive_that_leaves_the_folder_is_refused(
    server: ChannelServer, channel: Channel, python: Locked, prefix: Path
) -> None:
    bad = conda(server, channel.add("bad", "1.0", raw=[Raw("../../outside", b"x")]))
    with pytest.raises(BuildError, match="leaves the prefix") as raised:
        made(locked(python, bad), prefix)
    assert raised.value.reason == "UnsafeArchive"
    assert tree(prefix) == {}
    assert not (prefix.parent / "outside").exists()


def test_scripts_of_packages_do_not_run(
    server: ChannelServer, channel: Channel, python: Locked, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = prefix.parent / "ran"
    made(locked(python, conda(server, channel.add("hooked", "1.0", post_link=f"#!/bin/sh\ntouch {marker}\n"))), prefix)
    assert not marker.exists()
    assert "hooked brings .hooked-post-link.sh, which is not run" in capsys.readouterr().err


def test_what_somebody_installed_with_pip(
    server: ChannelServer, channel: Channel, python: Locked, prefix: Path
) -> None:
    made(locked(python), prefix)
    theirs = prefix / SITE / "theirs-1.0.dist-info"
    clashing = prefix / SITE / "click-7.0.dist-info"
    for info in (theirs, clashing):
        info.mkdir(parents=True)
        name, version = info.name.removesuffix(".dist-info").split("-")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (prefix / SITE / f"{name}_7.py").touch()
        (info / "RECORD").write_text(
            f"{name}_7.py,,\n../../../../outside,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n"
        )
    (prefix.parent / "outside").touch()
    made(locked(python, wheel(server, "click", "8.1.0")), prefix)
    assert theirs.exists(), "not the lock's business"
    assert not clashing.exists(), "two versions of one package"
    assert not (prefix / SITE / "click_7.py").exists()
    assert (prefix.parent / "outside").exists(), "a RECORD reaches no further than the environment"


def test_a_folder_with_something_else_in_it(python: Locked, prefix: Path) -> None:
    prefix.mkdir()
    (prefix / "thesis.tex").touch()
    with pytest.raises(BuildError, match="something in this folder that is no conda environment"):
        made(locked(python), prefix)
    assert [path.name for path in prefix.iterdir()] == ["thesis.tex"]


def test_a_channel_that_is_down_leaves_the_folder_as_it_is(
    server: ChannelServer, channel: Channel, python: Locked, prefix: Path
) -> None:
    old, new = (conda(server, channel.add("lib", version)) for version in ("1.0", "2.0"))
    made(locked(python, old), prefix)
    before = tree(prefix)
    server.fault(r"lib-2\.0", status=503)
    with pytest.raises(BuildError, match=r"lib-2\.0-0\.conda cannot be downloaded") as raised:
        made(locked(python, new), prefix)
    assert raised.value.reason == "ChannelUnavailable"
    assert tree(prefix) == before
    server.heal()
    assert made(locked(python, new), prefix) == Done(1, 0)


# The command


def run(file: Path, prefix: Path) -> int:
    settings = prefix.parent / "settings.yaml"
    settings.write_text(json.dumps({"retries": 0, "cacheFolder": str(prefix.parent / "cache")}))
    return cmd_create.run(argparse.Namespace(file=file, prefix=prefix, platform="linux-64", settings=settings))


def test_a_lock_is_taken_as_it_is(
    server: ChannelServer, channel: Channel, python: Locked, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = prefix.parent / "pixi.lock"
    lib = conda(server, channel.add("lib", "1.0"))
    file.write_bytes(write_lock(locked(python, lib, wheel(server, "click", "8.1.0"))))
    text = file.read_bytes()
    assert run(file, prefix) == 0
    assert "3 installed, 0 removed, 3 packages as locked" in capsys.readouterr().out
    assert run(file, prefix) == 0
    assert "nothing to do, 3 packages as locked" in capsys.readouterr().out
    assert file.read_bytes() == text
    done = subprocess.run([prefix / "bin/python", "-c", "print(6 * 7)"], capture_output=True, text=True, check=True)
    assert done.stdout == "42\n"


def test_a_lock_for_another_platform(python: Locked, prefix: Path) -> None:
    file = prefix.parent / "pixi.lock"
    file.write_bytes(write_lock(replace(locked(python), platform="linux-aarch64")))
    with pytest.raises(BuildError, match="not for linux-64") as raised:
        run(file, prefix)
    assert raised.value.reason == "LockUnusable"
    with pytest.raises(BuildError, match=r"none\.lock cannot be read"):
        run(prefix.parent / "none.lock", prefix)


def test_an_environment_file_is_locked_first(
    server: ChannelServer, channel: Channel, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    channel.add_python()
    channel.add_distribution("numpy", "1.26.4")
    channel.add_distribution("tqdm", "4.0")
    channel.index()
    wheels = {"starlette": "0.30", "uvicorn": "0.30", "prometheus-client": "0.20", "click": "8.1.0"}
    for name, version in wheels.items():
        server.wheel(name, version)
    folder = prefix.parent
    settings = {
        "retries": 0,
        "cacheFolder": str(folder / "cache"),
        "channels": {"alias": server.url()},
        "pip": {"indexUrl": server.simple},
    }
    (folder / "settings.yaml").write_text(json.dumps(settings))
    file = folder / "environment.yml"
    arguments = argparse.Namespace(file=file, prefix=prefix, platform="linux-64", settings=folder / "settings.yaml")

    environment = {"channels": ["conda-forge"], "dependencies": ["python", "numpy", "tqdm", {"pip": ["click"]}]}
    file.write_text(json.dumps({**environment, "variables": {"GREETING": "hello"}}))
    assert cmd_create.run(arguments) == 0
    assert "7 installed, 0 removed, 7 packages as locked" in capsys.readouterr().out
    assert json.loads((prefix / "conda-meta/state").read_bytes())["env_vars"] == {"GREETING": "hello"}
    assert (folder / "pixi.lock").exists()
    assert cmd_create.run(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out

    file.write_text(json.dumps({**environment, "dependencies": ["python", "numpy"]}))
    assert cmd_create.run(arguments) == 0
    assert "0 installed, 2 removed, 5 packages as locked" in capsys.readouterr().out
    assert json.loads((prefix / "conda-meta/state").read_bytes())["env_vars"] == {}
    before = tree(prefix)
    file.write_text(json.dumps({**environment, "dependencies": ["python", "numpy=9"]}))
    with pytest.raises(BuildError, match="numpy"):
        cmd_create.run(arguments)
    assert tree(prefix) == before
