"""The base of every image: Debian with a whole Python, made by debootstrap, packed as one layer.

The layer is kept in the cache under the recipe's version, the architecture and the package list. Packing is
deterministic; Debian's packages are those of the day it was made.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from .compile import compile_in_root
from .errors import BuildError
from .layers import MEDIA_TYPES, Entry, LayerFile, entries_below
from .oci import ARCHITECTURES, Layer
from .progress import say
from .store import LayerStore, layer_key, locked, scratch_folder
from .unpack import unpack_layer

# Counted up when the same packages would give another base.
RECIPE = 2
SUITE = "bookworm"
PYTHON = "python3.11"
# libgomp1: PyTorch's and scikit-learn's compiled parts. python3.11 has all of the standard library.
PACKAGES = ("ca-certificates", "libgomp1", PYTHON)
USER_ID = 65532

# Folders whose content nobody needs in a container.
_EMPTIED = (
    "boot", "dev", "media", "mnt", "proc", "run", "srv", "sys", "tmp",
    "var/cache", "var/lib/apt/lists", "var/log", "var/tmp",
    "usr/share/bash-completion", "usr/share/bug", "usr/share/info", "usr/share/lintian", "usr/share/locale",
    "usr/share/man",
    "usr/lib/python3.11/test",
)  # fmt: skip
_REMOVED = (
    "etc/hostname", "etc/resolv.conf", "etc/machine-id", "etc/apt/apt.conf.d/90tokenservice", "etc/passwd-",
    "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/.pwd.lock", "var/lib/dpkg/status-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/systemd/random-seed", "debootstrap",
)  # fmt: skip
# Paths whose modes are not 0755 or 0644.
_MODES: Mapping[str, int] = {
    "tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700, "etc/shadow": 0o640, "etc/gshadow": 0o640,
}  # fmt: skip


@dataclass(frozen=True)
class Mirrors:
    """Where Debian's packages come from: the suite's own archive and the security archive ("" for none).

    An empty `main` stands for Debian's own archives, whose address debootstrap knows.
    """

    main: str = ""
    security: str = ""


def parse_sources(texts: Sequence[str], *, suite: str = SUITE) -> Mirrors:
    """The mirrors of `suite` in apt's source files, one-line and deb822 style; Debian's own where they name none.

    A source with credentials or options is passed over: only its plain address could be used here.
    """
    found: dict[str, str] = {}
    for uri, suites in (source for text in texts for source in _sources(text)):
        if not re.match(r"https?://[^@]+$", uri):
            continue
        for name in suites:
            if name == suite:
                found.setdefault("main", uri.rstrip("/"))
            elif name in (f"{suite}-security", f"{suite}/updates"):
                found.setdefault("security", uri.rstrip("/"))
    return Mirrors(found["main"], found.get("security", "")) if "main" in found else Mirrors()


def debians_own(sources: str) -> Mirrors:
    """Debian's own archives, from the source file that debootstrap left: the security archive stands beside the other.

    Raises BuildError if the file names no archive.
    """
    main = parse_sources([sources]).main
    if not main:
        raise BuildError("debootstrap left no source of packages in the base image; name a mirror in apt's sources")
    return Mirrors(main, f"{main}-security")


def _sources(text: str) -> Iterator[tuple[str, list[str]]]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in lines:
        match = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+\S", line)
        if match:
            yield match[1], [match[2]]
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {key.lower(): value for key, value in re.findall(r"^(\w[\w-]*):[ \t]*(.*)$", block, re.MULTILINE)}
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").strip().lower() != "no":
            for uri in fields.get("uris", "").split():
                yield uri, fields.get("suites", "").split()


def host_mirrors(root: Path = Path("/")) -> Mirrors:
    """The mirrors that this machine uses, if it runs Debian."""
    try:
        release = (root / "etc/os-release").read_text()
    except OSError:
        return Mirrors()
    if not re.search(r"^ID=\"?debian\"?$", release, re.MULTILINE):
        return Mirrors()
    files = [root / "etc/apt/sources.list", *sorted((root / "etc/apt/sources.list.d").glob("*.list"))]
    files += sorted((root / "etc/apt/sources.list.d").glob("*.sources"))
    return parse_sources([file.read_text() for file in files if file.is_file()])


def base_key(architecture: str) -> str:
    """The name of the base layer in the cache."""
    return layer_key("base", [RECIPE, SUITE, architecture, *PACKAGES])


def this_architecture() -> str:
    """OCI's name of the architecture that images are made for: this machine's."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise BuildError(f"images for {machine} cannot be made: x86_64 and aarch64 are known")
    return ARCHITECTURES[machine]


class Base:
    """The base layer and, while something is compiled for it, its unpacked file system."""

    def __init__(self, store: LayerStore, mirrors: Callable[[], Mirrors] = host_mirrors) -> None:
        self.store, self._mirrors = store, mirrors
        self.key = base_key(this_architecture())

    def layer(self) -> Layer:
        """The base layer, made if the cache has none."""
        return Layer(self._file(), f"Debian {SUITE}, {PYTHON}")

    def _file(self) -> LayerFile:
        known = self.store.get(self.key)
        if known is not None:
            return known
        require_root("the base image is made by debootstrap, which needs root")
        # The lock is taken before the minutes of debootstrap, so that two builds do not both make it.
        with locked(self.store.root / "locks" / f"{self.key}.recipe"):
            known = self.store.get(self.key)
            if known is not None:
                return known
            with scratch_folder(self.store.root / "scratch") as scratch:
                root = scratch / "root"
                self._fill(root)
                return self.store.make(self.key, lambda: nullcontext(base_entries(root)))

    def _fill(self, root: Path) -> None:
        for compression in MEDIA_TYPES:
            store = LayerStore(self.store.root, compression)
            known = store.get(self.key)
            if known is not None:  # made before, in the other compression
                unpack_layer(store.blob(known.digest), root)
                return
        bootstrap(root, self._mirrors())
        trim(root)
        say("compiling the standard library")
        compile_in_root(root, sorted((root / "usr/lib/python3.11").rglob("*.py")))

    def unpack(self, target: Path) -> None:
        """Unpacks of the base layer what its Python needs to run in the folder `target`."""
        require_root("compiling for the base image's Python needs root (chroot)")
        file = self._file()
        unpack_layer(self.store.blob(file.digest), target, needed_by_python)


def needed_by_python(path: str) -> bool:
    """Whether Python needs this path of the base image to compile something."""
    return path.startswith(("bin", "lib", "usr/lib", "usr/bin/python", "etc/python")) or path in (
        "usr",
        "usr/bin",
        "etc",
    )


def base_entries(root: Path) -> Iterator[Entry]:
    """What goes into the base layer."""
    return entries_below(root, modes=_MODES)


def require_root(why: str) -> None:
    """Raises BuildError unless this process is root."""
    if os.geteuid() != 0:
        raise BuildError(f"{why}: run this as root")


def require_tools(tools: Mapping[str, str]) -> None:
    """Installs what is missing of `tools` (program -> Debian package) with apt."""
    missing = sorted({package for program, package in tools.items() if shutil.which(program) is None})
    if missing:
        _apt_install(missing)


def _apt_install(packages: Sequence[str]) -> None:
    names = " ".join(packages)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BuildError(f"{names} must be installed (apt-get install {names})")
    say(f"installing {names} with apt")
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
    ):
        done = subprocess.run(
            command,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BuildError(f"apt-get cannot install {names}: {last_line(done.stderr or done.stdout)}")


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def bootstrap(root: Path, mirrors: Mirrors) -> None:
    """Debian into the folder `root`, with its security updates."""
    require_tools({"debootstrap": "debootstrap"})
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not keyring.exists():
        _apt_install(["debian-archive-keyring"])
    say(f"making the base image from {mirrors.main or 'Debian'} (a minute or two)")
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", f"--keyring={keyring}"]
    place = [mirrors.main] if mirrors.main else []
    _in_own_mounts([*command, SUITE, str(root), *place], _debootstrap_step, "debootstrap")
    if not mirrors.main:
        mirrors = debians_own((root / "etc/apt/sources.list").read_text())
    lines = [f"deb {mirrors.main} {SUITE} main"]
    if mirrors.security:
        lines.append(f"deb {mirrors.security} {SUITE}-security main")
    (root / "etc/apt/sources.list").write_text("\n".join(lines) + "\n")
    # Without translations and apt's sandbox user, whose network may be closed in a build container.
    (root / "etc/apt/apt.conf.d/90tokenservice").write_text('Acquire::Languages "none";\nAPT::Sandbox::User "root";\n')
    if Path("/etc/resolv.conf").exists():
        shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    say("installing security updates")
    apt = "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o Dpkg::Use-Pty=0 upgrade"
    _in_own_mounts(["chroot", str(root), "sh", "-c", apt], lambda _: None, "apt-get in the base image")
    (root / "usr/sbin/policy-rc.d").unlink()


def _debootstrap_step(line: str) -> None:
    if re.match(r"I: (Validating|Extracting|Configuring) (base-files|python3\.11)\b", line) or "Installing" in line:
        say(line.removeprefix("I: "))


def _in_own_mounts(command: list[str], heard: Callable[[str], None], name: str) -> None:
    """Runs a command in mount and process namespaces of its own: nothing of it outlives it, nor it this process."""
    wrapped = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid"]
    wrapped += ["--fork", "--kill-child", *command]
    # Nothing here has to survive a power cut: dpkg need not wait for the disk at each file.
    env = {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        "DPKG_FORCE": "unsafe-io",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    said: list[str] = []
    with subprocess.Popen(
        wrapped,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=env,
        umask=0o022,
    ) as running:
        for line in running.stdout or ():
            said.append(line.rstrip())
            heard(said[-1])
    if running.returncode != 0:
        errors = [line for line in said if line.startswith(("E:", "W: Failure", "Err:"))]
        raise BuildError(f"{name} failed: {last_line(chr(10).join(errors or said[-5:]))}")


def trim(root: Path) -> None:
    """Takes out what a container does not need, and adds the user that containers run as."""
    for name in _EMPTIED:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in _REMOVED:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    # Licences stay, the rest of the documentation goes.
    for path in sorted((root / "usr/share/doc").rglob("*"), reverse=True):
        if path.is_symlink() or path.is_file():
            if path.name != "copyright":
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()
    for cache in sorted(root.rglob("__pycache__")):
        shutil.rmtree(cache)
    _append(root / "etc/passwd", f"nonroot:x:{USER_ID}:{USER_ID}:nonroot:/tmp:/usr/sbin/nologin\n")
    _append(root / "etc/group", f"nonroot:x:{USER_ID}:\n")
    # The runtime writes these two; as mount points they have to exist on a read-only root.
    for name in ("etc/resolv.conf", "etc/hostname"):
        (root / name).write_text("")


def _append(path: Path, line: str) -> None:
    content = path.read_text()
    if line not in content:
        path.write_text(content + line)
