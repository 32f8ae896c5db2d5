from __future__ import annotations

import os
from pathlib import Path

import pytest
from tokenservice.builder.base import (
    Mirrors,
    base_entries,
    base_key,
    debians_own,
    host_mirrors,
    needed_by_python,
    parse_sources,
    require_root,
    trim,
)
from tokenservice.builder.errors import BuildError

DEB822 = """Types: deb deb-src
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
"""


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        ([DEB822], Mirrors("http://mirror.example/debian", "http://mirror.example/security")),
        (["deb http://a.example/debian bookworm main\n"], Mirrors("http://a.example/debian", "")),
        (
            ["deb [arch=amd64] https://a.example/d bookworm main\ndeb https://a.example/s bookworm-security main"],
            Mirrors("https://a.example/d", "https://a.example/s"),
        ),
        (["deb http://a.example/debian trixie main\n"], Mirrors()),
        (["# deb http://a.example/debian bookworm main\n"], Mirrors()),
        (["deb https://user:secret@a.example/debian bookworm main\n"], Mirrors()),
        (["deb cdrom:[x]/ bookworm main\n"], Mirrors()),
        (["deb-src http://a.example/debian bookworm main\n"], Mirrors()),
        (["Enabled: no\n" + DEB822.split("\n\n", 1)[0]], Mirrors()),
        ([], Mirrors()),
    ],
)
def test_the_hosts_mirrors(texts: list[str], wanted: Mirrors) -> None:
    assert parse_sources(texts) == wanted


def test_mirrors_of_another_system_are_not_debians(tmp_path: Path) -> None:
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/apt/sources.list").write_text("deb http://a.example/debian bookworm main\n")
    assert host_mirrors(tmp_path) == Mirrors()
    (tmp_path / "etc/os-release").write_text("NAME=x\nID=ubuntu\n")
    assert host_mirrors(tmp_path) == Mirrors()
    (tmp_path / "etc/os-release").write_text("NAME=x\nID=debian\n")
    assert host_mirrors(tmp_path) == Mirrors("http://a.example/debian", "")


def test_a_key_for_each_architecture() -> None:
    assert base_key("amd64") != base_key("arm64")


def test_trimming(tmp_path: Path) -> None:
    for name in (
        "usr/share/doc/x/copyright", "usr/share/doc/x/changelog.gz", "usr/share/doc/y/README", "usr/share/man/man1/x.1",
        "var/lib/apt/lists/x", "var/cache/apt/x.deb", "usr/lib/python3.11/__pycache__/x.pyc", "usr/lib/python3.11/x.py",
        "etc/machine-id", "etc/resolv.conf", "dev/null", "tmp/x",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (tmp_path / "etc/group").write_text("root:x:0:\n")
    (tmp_path / "root").mkdir()
    for _ in range(2):
        trim(tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "usr/share/doc/x/copyright", "usr/lib/python3.11/x.py", "etc/passwd", "etc/group", "etc/resolv.conf",
        "etc/hostname",
    }  # fmt: skip
    assert (tmp_path / "etc/passwd").read_text().splitlines()[1:] == [
        "nonroot:x:65532:65532:nonroot:/tmp:/usr/sbin/nologin"
    ]
    modes = {entry.path: entry.mode for entry in base_entries(tmp_path)}
    assert (modes["tmp"], modes["root"], modes["usr"]) == (0o1777, 0o700, 0o755)


def test_what_python_needs_to_compile() -> None:
    assert all(map(needed_by_python, ["usr/lib/python3.11/os.py", "lib64", "usr/bin/python3.11", "bin"]))
    assert not any(map(needed_by_python, ["usr/share/doc/x", "usr/bin/perl", "var/lib/dpkg/status"]))


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BuildError, match="debootstrap, which needs root: run this as root"):
        require_root("the base image is made by debootstrap, which needs root")


def test_debians_own_archives_are_the_ones_that_debootstrap_used() -> None:
    assert debians_own("deb http://a.example/debian bookworm main\n") == Mirrors(
        "http://a.example/debian", "http://a.example/debian-security"
    )
    with pytest.raises(BuildError, match="name a mirror"):
        debians_own("")
