from __future__ import annotations

from pathlib import Path

import pytest
from tokenservice.builder.errors import BuildError

from tools.localchannel.cpython import (
    LIBRARIES,
    conda_version,
    debian_versions,
    libraries,
    python,
    relocated,
    upstream_sysconfig,
    with_site_packages,
)
from tools.localchannel.wheel_package import PLACEHOLDER

SYSCONFIG = """\
    if sys.base_prefix != sys.prefix or hasattr(sys, "real_prefix"):
        # virtual environments
        prefix_scheme = 'posix_prefix'
    else:
        # default to /usr for package builds, /usr/local otherwise
        deb_build = os.environ.get('DEB_PYTHON_INSTALL_LAYOUT', 'posix_local')
        prefix_scheme = 'posix_local'

    return {
        'prefix': prefix_scheme,
"""


@pytest.mark.parametrize(
    ("debian", "version"),
    [
        ("3.11.2-6+deb12u9", ("3.11.2", "deb_6_deb12u9_0")),
        ("1:1.2.13.dfsg-1", ("1.2.13", "deb_1_0")),
        ("1:4.4.33-2", ("4.4.33", "deb_2_0")),
        ("3.0.22-1~deb12u2", ("3.0.22", "deb_1_deb12u2_0")),
        ("5.4.1-1", ("5.4.1", "deb_1_0")),
        ("6.4+20240113-1", ("6.4", "deb_1_0")),
    ],
)
def test_debians_versions_as_condas(debian: str, version: tuple[str, str]) -> None:
    assert conda_version(debian) == version


def test_dpkgs_status() -> None:
    one = "Package: a\nStatus: install ok installed\nVersion: 1-1\n"
    status = f"{one}\nPackage: b\nDescription: x\n Version: 9\nVersion: 2\n"
    assert debian_versions(status) == {"a": "1-1", "b": "2"}


def test_upstreams_scheme_is_the_default() -> None:
    assert upstream_sysconfig(SYSCONFIG) == (
        "    prefix_scheme = 'posix_prefix'\n\n    return {\n        'prefix': prefix_scheme,\n"
    )


def test_an_unknown_python_is_refused_and_not_half_mended() -> None:
    with pytest.raises(BuildError, match=r"sysconfig\.py"):
        upstream_sysconfig("def _get_preferred_schemes():\n    return {}\n")
    with pytest.raises(BuildError, match="dist-packages"):
        with_site_packages(b"\x7fELF")


def test_the_frozen_module_keeps_its_length() -> None:
    assert with_site_packages(b"\x00dist-packages\x00") == b"\x00site-packages\x00"


def test_the_installations_folders_get_the_placeholder_and_others_stay() -> None:
    text = " 'LIBDIR': '/usr/lib/x86_64-linux-gnu',\n 'TZPATH': '/usr/share/zoneinfo',\n 'prefix': '/usr',\n"
    assert relocated(text) == (
        f" 'LIBDIR': '{PLACEHOLDER}/lib',\n 'TZPATH': '/usr/share/zoneinfo',\n 'prefix': '{PLACEHOLDER}',\n"
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The parts of a base image that Python consists of, and a patchelf that notes what it is asked."""
    root = tmp_path / "root"
    library = "usr/lib/x86_64-linux-gnu"
    status = ["Package: python3.11-minimal\nVersion: 3.11.2-6+deb12u9\n"]
    for debian, name in LIBRARIES.items():
        put(root / library / f"lib{name}.so.1.0", "ELF")
        (root / library / f"lib{name}.so.1").symlink_to(f"lib{name}.so.1.0")
        listed = [f"/{library}/lib{name}.so.1.0", f"/{library}/lib{name}.so.1", f"/{library}/engines/x.so", "/usr"]
        put(root / f"var/lib/dpkg/info/{debian}:amd64.list", "\n".join(listed))
        status.append(f"Package: {debian}\nVersion: 1.5-2\n")
    put(root / "var/lib/dpkg/status", "\n".join(status))
    put(root / "usr/bin/python3.11", "ELF dist-packages")
    stdlib = root / "usr/lib/python3.11"
    for name in ("os.py", "EXTERNALLY-MANAGED", "__pycache__/os.pyc", "json/__init__.py", "lib-dynload/nis.x.so"):
        put(stdlib / name, "")
    put(stdlib / "lib-dynload/_ssl.x.so", "ELF")
    put(stdlib / "site.py", "'dist-packages'")
    put(stdlib / "sysconfig.py", SYSCONFIG)
    put(stdlib / "_sysconfigdata__x86_64-linux-gnu.py", " 'prefix': '/usr',\n")
    (stdlib / "sitecustomize.py").symlink_to("/etc/python3.11/sitecustomize.py")
    put(tmp_path / "patchelf", f'#!/bin/sh\necho "$2 ${{3##*/}}" >>{tmp_path}/asked\n')
    (tmp_path / "patchelf").chmod(0o755)
    return root


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_python_is_whole_and_finds_its_libraries_beside_it(base: Path, tmp_path: Path) -> None:
    package, members, source = python(base, tmp_path / "patchelf", tmp_path / "scratch")
    found = {member.path: member for member in members}
    lib = "lib/python3.11"
    assert set(found) == {
        "bin/python", "bin/python3", "bin/python3.11", f"{lib}/os.py", f"{lib}/json/__init__.py", f"{lib}/site.py",
        f"{lib}/lib-dynload/_ssl.x.so", f"{lib}/sysconfig.py", f"{lib}/_sysconfigdata__x86_64-linux-gnu.py",
    }  # fmt: skip
    assert Path(found["bin/python3.11"].content).read_bytes() == b"ELF site-packages"  # type: ignore[arg-type]
    assert (base / "usr/bin/python3.11").read_text() == "ELF dist-packages", "the base itself stays as it is"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["$ORIGIN/../lib python3.11", "$ORIGIN/../.. _ssl.x.so"]
    assert (package.version, package.index["python_site_packages_path"]) == ("3.11.2", f"{lib}/site-packages")
    assert "3.11.2-6+deb12u9" in source


def test_each_library_is_a_package_and_python_asks_for_it(base: Path, tmp_path: Path) -> None:
    made = list(libraries(base, tmp_path / "patchelf", tmp_path / "scratch"))
    names = {package.name for package, _, _ in made}
    wanted = {each.split()[0] for each in python(base, tmp_path / "patchelf", tmp_path / "more")[0].depends}
    wanted |= {each.split()[0] for package, _, _ in made for each in package.depends}
    assert names == wanted - {"__glibc"}
    [members] = [members for package, members, _ in made if package.name == "openssl"]
    assert {member.path: member.link for member in members} == {
        "lib/libopenssl.so.1.0": "",
        "lib/libopenssl.so.1": "libopenssl.so.1.0",
    }


def test_a_base_without_a_library_is_refused(base: Path, tmp_path: Path) -> None:
    status = base / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("Package: libffi8", "Package: libffi9"))
    with pytest.raises(BuildError, match="no libffi8"):
        list(libraries(base, tmp_path / "patchelf", tmp_path / "scratch"))
