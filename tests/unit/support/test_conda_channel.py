"""The toy channel is believed by real clients: py-rattler solves and installs from it, uv resolves from its index."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import ssl
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rattler
import uv

from tests.support.certificates import server_context
from tests.support.conda_channel import ChannelServer, Link, Placeholder, Raw
from tools.localchannel.package import read_index


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChannelServer]:
    with ChannelServer(tmp_path / "served") as server:
        yield server


async def _solved(server: ChannelServer, *specs: str) -> list[Any]:
    gateway = rattler.Gateway(cache_dir=server.root.parent / "repodata", show_progress=False)
    return await rattler.solve(
        [rattler.Channel(server.url("conda-forge"))],
        [rattler.MatchSpec(spec) for spec in specs],
        gateway=gateway,
        platforms=["linux-64", "noarch"],
    )


async def _installed(records: list[Any], prefix: Path) -> None:
    await rattler.install(records, prefix, cache_dir=prefix.parent / "packages", show_progress=False)


def solved(server: ChannelServer, *specs: str) -> list[Any]:
    return asyncio.run(_solved(server, *specs))


def installed(records: list[Any], prefix: Path) -> None:
    asyncio.run(_installed(records, prefix))


@pytest.mark.parametrize("extension", [".conda", ".tar.bz2"])
def test_rattler_solves_and_installs_from_it(server: ChannelServer, tmp_path: Path, extension: str) -> None:
    channel = server.channel("conda-forge")
    channel.add_python()
    channel.add("libtoy", "1.0", files={"lib/libtoy.so.1": b"\0\1", "lib/libtoy.so": Link("libtoy.so.1")})
    files = {"etc/toy.conf": Placeholder("root={prefix}/etc"), "bin/toy": "#!/bin/sh\n"}
    channel.add("toy", "2.0", depends=["libtoy >=1"], files=files, extension=extension)
    channel.add_distribution("helper", "0.3", entry_points=["helper = helper:main"])
    channel.index()
    records = solved(server, "toy", "helper", "python")
    assert sorted(record.name.normalized for record in records) == ["helper", "libtoy", "python", "toy"]
    prefix = tmp_path / "env"
    installed(records, prefix)
    assert (prefix / "etc/toy.conf").read_text() == f"root={prefix}/etc"
    assert (prefix / "bin/toy").stat().st_mode & 0o111
    assert (prefix / "lib/libtoy.so").readlink() == Path("libtoy.so.1")
    said = subprocess.run([prefix / "bin/python", "-c", "print(6 * 7)"], capture_output=True, text=True, check=True)
    assert said.stdout == "42\n"
    assert f"{prefix}/bin/python" in (prefix / "bin/helper").read_text()
    assert (prefix / "lib/python3.11/site-packages/helper/__init__.py").exists()


def test_what_was_added_is_seen_after_the_index(server: ChannelServer) -> None:
    channel = server.channel("conda-forge")
    channel.add("toy", "1.0")
    channel.index()
    assert [str(record.version) for record in solved(server, "toy")] == ["1.0"]
    channel.add("toy", "1.1", timestamp=1_800_000_000_000)
    channel.index()
    assert [str(record.version) for record in solved(server, "toy")] == ["1.1"]


def test_packages_and_indexes_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    sums = set()
    for name in ("one", "two"):
        with ChannelServer(tmp_path / name) as server:
            channel = server.channel("c")
            built = channel.add("toy", "1", "h_3", files={"bin/x": "x", "lib/y": Link("../bin/x")}, padding=1000)
            channel.index()
            repodata = (channel.root / "linux-64/repodata.json").read_bytes()
            sums.add((built.sha256, hashlib.sha256(repodata).hexdigest()))
            entry = json.loads(repodata)["packages.conda"]["toy-1-h_3.conda"]
            assert (entry["sha256"], entry["size"], entry["build_number"]) == (built.sha256, built.size, 3)
    assert len(sums) == 1


def test_unsafe_members_and_scripts_are_in_the_archive_as_told(tmp_path: Path) -> None:
    with ChannelServer(tmp_path) as server:
        channel = server.channel("c")
        raw = [Raw("../outside", b"x"), Raw("away", kind=tarfile.SYMTYPE, linkname="/etc"), Raw("away/passwd", b"y")]
        built = channel.add("evil", "1", raw=raw, extension=".tar.bz2", post_link="#!/bin/sh\ntouch x\n")
        with tarfile.open(built.path) as archive:
            names = archive.getnames()
            assert archive.getmember("away").linkname == "/etc"
        assert names[-3:] == ["../outside", "away", "away/passwd"]
        assert "bin/.evil-post-link.sh" in names
        assert read_index(built.path)["name"] == "evil"


def test_uv_resolves_from_the_index(server: ChannelServer, tmp_path: Path) -> None:
    server.wheel("top", "1.0", requires=["low>=2; python_version >= '3.9'"])
    wheel = server.wheel("low", "2.5", files={"low.py": "x = 1\n"})
    server.wheel("low", "3.0", uploaded=1_900_000_000)
    command = [
        uv.find_uv_bin(),
        "pip",
        "compile",
        "-",
        "--index-url",
        server.simple,
        "--generate-hashes",
        "--no-header",
    ]
    command += ["--cache-dir", str(tmp_path / "uv"), "--no-config", "--exclude-newer", "2024-01-01", "--no-annotate"]
    done = subprocess.run(command, input="top\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "low==2.5" in done.stdout
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in done.stdout


def ask(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_faults_strike_as_often_as_told_and_heal(server: ChannelServer) -> None:
    (server.root / "file").write_bytes(b"0123456789")
    url = server.url("file")
    server.fault("/file", status=503, times=1)
    server.fault("/file", corrupt=True, times=1)
    server.fault("/file", truncated=True, times=1)
    server.fault("/file", dropped=True)
    assert ask(url)[0] == 503
    code, data = ask(url)
    assert (code, len(data)) == (200, 10)
    assert data != b"0123456789"
    with pytest.raises(http.client.IncompleteRead):
        ask(url)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(url)
    server.heal()
    assert ask(url) == (200, b"0123456789")
    assert ask(url, Range="bytes=4-6") == (206, b"456")
    server.down()
    with pytest.raises(urllib.error.URLError):
        ask(url)
    server.up()
    assert ask(url)[0] == 200
    assert server.sent("/file") >= 10 + 10 + 3 + 10


def test_logins(server: ChannelServer) -> None:
    (server.root / "a").mkdir()
    (server.root / "a/file").write_bytes(b"x")
    server.require("^/a/", basic=("user", "secret"))
    server.require("^/a/", token="tok")
    assert ask(server.url("a/file"))[0] == 401
    assert ask(server.url("a/file"), Authorization="Bearer tok")[0] == 200
    assert ask(server.url("a/file"), Authorization="Basic dXNlcjpzZWNyZXQ=")[0] == 200
    assert ask(server.url("t/tok/a/file"))[0] == 200
    assert ask(server.url("t/wrong/a/file"))[0] == 401
    assert server.paths("^/a/") == ["/a/file"] * 5


def test_tls(tmp_path: Path) -> None:
    context, bundle = server_context(tmp_path / "certificates")
    with ChannelServer(tmp_path / "served", tls=context) as server:
        (server.root / "file").write_bytes(b"x")
        url = server.url("file")
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(url)
        trusting = ssl.create_default_context(cafile=str(bundle))
        with urllib.request.urlopen(url, timeout=10, context=trusting) as answer:
            assert answer.read() == b"x"
