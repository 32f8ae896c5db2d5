"""A converted wheel, installed by py-rattler, is what pip would have made of it."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import subprocess
from pathlib import Path

import pytest
import rattler
from tokenservice.builder.errors import BuildError

from tests.support.conda_channel import Channel
from tests.support.toy_wheel import toy_wheel
from tools.localchannel.package import Package, index, write
from tools.localchannel.requirements import Projects
from tools.localchannel.wheel_package import convert, metadata_of

FILES = {
    "toy/__init__.py": "def main():\n    print('toy runs')\n",
    "toy-1.0.data/scripts/toy-tool": "#!python\nprint('tool runs')\n",
    "toy-1.0.data/scripts/toy-shell": "#!/bin/sh\necho shell\n",
    "toy-1.0.data/data/etc/toy.conf": "x = 1\n",
    "toy-1.0.data/headers/toy.h": "int toy;\n",
    "toy-1.0.data/purelib/toy_extra.py": "y = 2\n",
}
TAGS = ["py3-none-any", "cp311-cp311-manylinux_2_28_x86_64"]


@pytest.fixture(params=TAGS)
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A prefix with a wheel of each kind in it, by way of a conda package."""
    wheel = toy_wheel(
        tmp_path, "toy", "1.0", files=FILES, entry_points=["toy = toy:main"], requires=["gone"], tag=request.param
    )
    projects = Projects({"toy": metadata_of(wheel)}, replaced=["gone"])
    converted = convert("toy", wheel, projects, tmp_path / "scratch")
    subdir = "noarch" if converted.noarch else "linux-64"
    depends = tuple(each for each in projects.depends("toy", wheel.name) if not each.startswith("__"))
    package = Package("toy", "1.0", "0", subdir, depends, noarch=converted.noarch, entry_points=converted.entry_points)
    channel = Channel(tmp_path / "channel")
    channel.add_python("3.11.2")
    write(channel.root / subdir / "toy-1.0-0.conda", package, converted.members)
    index(channel.root)
    made = tmp_path / "env"

    async def install() -> None:
        gateway = rattler.Gateway(cache_dir=tmp_path / "repodata", show_progress=False)
        records = await rattler.solve(
            [rattler.Channel(channel.root.as_uri())],
            [rattler.MatchSpec("toy")],
            gateway=gateway,
            platforms=["linux-64", "noarch"],
        )
        await rattler.install(records, made, cache_dir=tmp_path / "packages", show_progress=False)

    asyncio.run(install())
    return made


def said(*command: str | Path, prefix: Path) -> str:
    environ = {"PYTHONPATH": str(prefix / "lib/python3.11/site-packages"), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout


def test_it_runs_and_lies_where_pip_puts_it(prefix: Path) -> None:
    assert said(prefix / "bin/toy", prefix=prefix) == "toy runs\n"
    assert said(prefix / "bin/toy-tool", prefix=prefix) == "tool runs\n"
    assert said(prefix / "bin/toy-shell", prefix=prefix) == "shell\n"
    assert (prefix / "bin/toy-tool").read_text().startswith(f"#!{prefix}/bin/python")
    assert (prefix / "etc/toy.conf").read_text() == "x = 1\n"
    assert (prefix / "include/python3.11/toy/toy.h").is_file()
    assert (prefix / "lib/python3.11/site-packages/toy_extra.py").is_file()


def test_record_names_every_file_with_its_hash(prefix: Path) -> None:
    site = prefix / "lib/python3.11/site-packages"
    with (site / "toy-1.0.dist-info/RECORD").open() as text:
        rows = {path: (digest, size) for path, digest, size in csv.reader(text)}
    installed = {path.name for path in prefix.rglob("*") if "toy" in path.name and path.is_file()}
    assert {Path(path).name for path in rows} >= {each for each in installed if not each.endswith((".json", ".pyc"))}
    for path, (digest, size) in rows.items():
        content = (site / path).read_bytes()
        if digest:
            found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={found}", str(len(content))), path
    assert (site / "toy-1.0.dist-info/INSTALLER").read_text() == "conda\n"
    assert "gone" not in (site / "toy-1.0.dist-info/METADATA").read_text()


def test_a_member_outside_of_the_wheel_is_refused(tmp_path: Path) -> None:
    wheel = toy_wheel(tmp_path, "toy", "1.0", files={"../evil.py": ""})
    with pytest.raises(BuildError, match=r"\.\./evil\.py"):
        convert("toy", wheel, Projects({"toy": metadata_of(wheel)}), tmp_path / "scratch")
