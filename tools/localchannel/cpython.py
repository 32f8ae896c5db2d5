"""CPython and its shared libraries as conda packages, from the file system of this project's own base image.

Debian's Python 3.11 and not that of the machine: it is there wherever the base image can be made, is the same
everywhere, and asks for no newer C library than the images have. What Debian changed in it, so that its packages and
the administrator's stay apart (dist-packages, prefix /usr/local), is undone here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenservice.builder.errors import BuildError

from .package import Member, Package
from .requirements import PYTHON
from .wheel_package import PLACEHOLDER

# Counted up when the same base would give other packages.
FORMAT = 2
# Debian's packages -> conda's. Their headers, tools and plugins stay behind.
LIBRARIES: Mapping[str, str] = {
    "libbz2-1.0": "bzip2",
    "libcrypt1": "libxcrypt",
    "libexpat1": "libexpat",
    "libffi8": "libffi",
    "liblzma5": "liblzma",
    "libncursesw6": "ncurses",
    "libreadline8": "readline",
    "libsqlite3-0": "libsqlite",
    "libssl3": "openssl",
    "libtinfo6": "tinfo",
    "libuuid1": "libuuid",
    "zlib1g": "libzlib",
}
_GLIBC = "__glibc >=2.36"
# libtinfo6 under a name of its own, since libreadline and libncursesw share it.
_NEEDS: Mapping[str, tuple[str, ...]] = {"ncurses": ("tinfo",), "readline": ("tinfo",), "libsqlite": ("libzlib",)}
# Their libraries (NIS, Berkeley DB) are large and nobody asks for them.
_NO_MODULES = ("nis.", "_dbm.")
_NO_FILES = ("EXTERNALLY-MANAGED", "sitecustomize.py", "_distutils_system_mod.py", "LICENSE.txt")
_DIST_PACKAGES, _SITE_PACKAGES = "dist-packages", "site-packages"
_SYSCONFIG = "_sysconfigdata__x86_64-linux-gnu.py"
_DEBIAN_LIBRARIES = "/usr/lib/x86_64-linux-gnu"
_PREFIX_KEYS = re.compile(
    r"^( '(?:BINDIR|BINLIBDEST|CONFINCLUDEDIR|CONFINCLUDEPY|DESTLIB|DESTSHARED|INCLUDEDIR|INCLUDEPY|LIBDEST|LIBDIR|"
    r"LIBPC|LIBPL|MACHDESTLIB|MANDIR|SCRIPTDIR|datarootdir|exec_prefix|prefix)': ')/usr(?:/lib/x86_64-linux-gnu)?",
    re.MULTILINE,
)


def libraries(root: Path, patchelf: Path, scratch: Path) -> Iterator[tuple[Package, list[Member], str]]:
    """(package, members, where it is from) of each shared library, from the base's file system at `root`."""
    versions = debian_versions((root / "var/lib/dpkg/status").read_text())
    for debian, name in LIBRARIES.items():
        if debian not in versions:
            raise BuildError(f"the base image has no {debian}, which Python needs")
        members = []
        for path in _listed(root, debian):
            if re.fullmatch(r"/(usr/)?lib/x86_64-linux-gnu/lib[^/]*\.so[^/]*", path):
                members.append(_library(root / path.lstrip("/"), scratch / name, patchelf))
        if not any(not member.link for member in members):
            raise BuildError(f"{debian} of the base image has no shared library")
        version, build = conda_version(versions[debian])
        depends = (_GLIBC, *_NEEDS.get(name, ()))
        yield Package(name, version, build, depends=depends), members, f"Debian's {debian} {versions[debian]}"


def python(root: Path, patchelf: Path, scratch: Path) -> tuple[Package, list[Member], str]:
    """The same of CPython."""
    name = f"python{PYTHON}"
    debian = debian_versions((root / "var/lib/dpkg/status").read_text())[f"{name}-minimal"]
    members = [Member("bin/python", link=name, mode=0o777), Member("bin/python3", link=name, mode=0o777)]
    executable = _copied(root / f"usr/bin/{name}", scratch / "bin" / name)
    executable.write_bytes(with_site_packages(executable.read_bytes()))
    _set_rpath(patchelf, executable, "$ORIGIN/../lib")
    members.append(Member(f"bin/{name}", executable, 0o755))
    top = root / "usr/lib" / name
    for path in sorted(top.rglob("*")):
        inside = path.relative_to(top).as_posix()
        if path.is_dir() or "__pycache__" in inside or inside in _NO_FILES:
            continue
        if inside.startswith("lib-dynload/") and path.name.startswith(_NO_MODULES):
            continue
        members.append(_stdlib_member(path, f"lib/{name}/{inside}", inside, patchelf, scratch))
    license_text = root / "usr/share/doc" / name / "copyright"
    if license_text.is_file():
        members.append(Member("share/doc/python/copyright", license_text))
    version, build = conda_version(debian)
    depends = (_GLIBC, *sorted({*LIBRARIES.values()} - {"tinfo"}))
    index = {"python_site_packages_path": f"lib/{name}/site-packages"}
    package = Package("python", version, build, depends=depends, license="Python-2.0", index=index)
    return package, members, f"Debian's {name} {debian}, laid out as upstream does"


def _stdlib_member(path: Path, target: str, inside: str, patchelf: Path, scratch: Path) -> Member:
    if path.is_symlink():
        return Member(target, link=str(path.readlink()))
    if inside.startswith("lib-dynload/"):
        copy = _copied(path, scratch / "lib-dynload" / path.name)
        _set_rpath(patchelf, copy, "$ORIGIN/../..")
        return Member(target, copy)
    if inside == "site.py":
        return Member(target, path.read_text().replace(_DIST_PACKAGES, _SITE_PACKAGES).encode())
    if inside == "sysconfig.py":
        return Member(target, upstream_sysconfig(path.read_text()).encode())
    if inside == _SYSCONFIG:
        return Member(target, relocated(path.read_text()).encode(), placeholder=PLACEHOLDER)
    return Member(target, path, 0o755 if path.stat().st_mode & 0o111 else 0o644)


def with_site_packages(executable: bytes) -> bytes:
    """CPython's program, looking for packages in site-packages.

    The module `site` is frozen into it as byte code, where the two names are strings of the same length. Raises
    BuildError where there is none.
    """
    if _DIST_PACKAGES.encode() not in executable:
        raise BuildError("Debian's Python has no dist-packages in it: tools/localchannel/cpython.py has to learn why")
    return executable.replace(_DIST_PACKAGES.encode(), _SITE_PACKAGES.encode())


def upstream_sysconfig(text: str) -> str:
    """sysconfig.py with upstream's default scheme. Raises BuildError for an unknown one."""
    return _replaced(
        text,
        r'    if sys\.base_prefix != sys\.prefix or hasattr\(sys, "real_prefix"\):\n        # virtual environments\n'
        r"        prefix_scheme = 'posix_prefix'\n    else:\n.*?\n\n",
        "    prefix_scheme = 'posix_prefix'\n\n",
        "sysconfig.py",
    )


def relocated(text: str) -> str:
    """_sysconfigdata with a placeholder where the folders of the installation stand."""

    def put(found: re.Match[str]) -> str:
        return found[1] + PLACEHOLDER + ("/lib" if found[0].endswith(_DEBIAN_LIBRARIES) else "")

    return _PREFIX_KEYS.sub(put, text)


def _replaced(text: str, pattern: str, by: str, name: str) -> str:
    made, count = re.subn(pattern, lambda _: by, text, flags=re.DOTALL)
    if count != 1:
        raise BuildError(
            f"{name} of Debian's Python is not as it is known here: tools/localchannel/cpython.py mends it"
        )
    return made


def debian_versions(status: str) -> dict[str, str]:
    """Package -> version, from dpkg's status file."""
    found = {}
    for block in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version): (.+)$", block, re.MULTILINE))
        if {"Package", "Version"} <= fields.keys():
            found[fields["Package"]] = fields["Version"]
    return found


def conda_version(debian: str) -> tuple[str, str]:
    """(version, build string): `1:1.2.13.dfsg-1` -> (`1.2.13`, `deb_1_0`)."""
    upstream, _, revision = debian.rpartition("-")
    upstream = re.sub(r"[.+~]?dfsg.*$", "", upstream.split(":", 1)[-1])
    version = re.sub(r"[+~].*$", "", upstream)
    return version, f"deb_{re.sub(r'[^A-Za-z0-9.]+', '_', revision) or '0'}_0"


def _listed(root: Path, debian: str) -> list[str]:
    for name in (f"{debian}:amd64.list", f"{debian}.list"):
        file = root / "var/lib/dpkg/info" / name
        if file.is_file():
            return file.read_text().splitlines()
    raise BuildError(f"the base image does not know the files of {debian}")


def _library(path: Path, scratch: Path, patchelf: Path) -> Member:
    target = f"lib/{path.name}"
    if path.is_symlink():
        return Member(target, link=path.readlink().name)
    copy = _copied(path, scratch / path.name)
    _set_rpath(patchelf, copy, "$ORIGIN")
    return Member(target, copy)


def _copied(path: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return target


def _set_rpath(patchelf: Path, file: Path, rpath: str) -> None:
    done = subprocess.run([str(patchelf), "--set-rpath", rpath, str(file)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"patchelf cannot change {file.name}: {done.stderr.strip()}")
