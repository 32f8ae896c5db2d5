"""What the host must be and have: checked before anything is begun."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .errors import LocalClusterError, UnsupportedError
from .progress import Step, say

NETWORK_TOOLS = {"ip": "iproute2", "iptables": "iptables", "nsenter": "util-linux"}
NODE_TOOLS = {"runc": "runc", "conntrack": "conntrack", "ethtool": "ethtool", "socat": "socat", "mount": "mount"}
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
CNI_PLUGINS = ("ptp", "host-local", "portmap", "loopback")
CNI_PACKAGE = "containernetworking-plugins"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MACHINES = ("x86_64", "aarch64")


def release(text: str) -> Mapping[str, str]:
    """The fields of an os-release file."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def debian_like(os_release: Mapping[str, str]) -> bool:
    return bool({"debian", "ubuntu"} & {os_release.get("ID", ""), *os_release.get("ID_LIKE", "").split()})


def check(machine: str = "", uid: int | None = None, os_release: str | None = None) -> None:
    """Raises UnsupportedError with the one reason why no local cluster can run here; tests give the arguments."""
    machine = machine or platform.machine()
    if sys.platform != "linux" or machine not in MACHINES:
        raise UnsupportedError(
            f"a local cluster needs Linux on {' or '.join(MACHINES)}, and this is {sys.platform} on {machine}."
        )
    if (os.geteuid() if uid is None else uid) != 0:
        raise UnsupportedError(
            "a local cluster makes namespaces and networks, which needs root: run this with sudo, or as root."
        )
    path = Path("/etc/os-release")
    text = os_release if os_release is not None else (path.read_text() if path.exists() else "")
    found = release(text)
    if not debian_like(found):
        raise UnsupportedError(
            f"a local cluster needs Debian or Ubuntu, and this is {found.get('PRETTY_NAME', 'another system')}."
        )


def check_namespaces() -> None:
    """Raises UnsupportedError if this machine (often a container) does not let root make namespaces or interfaces."""
    command = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": PATH, "LC_ALL": "C"})
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnsupportedError(f"new namespaces are not allowed here ({words}): in a container, run it privileged.")


def cni_folder() -> Path | None:
    """The folder with every CNI plugin that nodes use."""
    return next((folder for folder in CNI_FOLDERS if all((folder / plugin).exists() for plugin in CNI_PLUGINS)), None)


def missing_packages(node: bool) -> list[str]:
    """Debian packages of which a program is missing. By program: a machine may have runc from elsewhere."""
    tools = NETWORK_TOOLS | (NODE_TOOLS if node else {})
    wanted = {package for tool, package in tools.items() if shutil.which(tool, path=PATH) is None}
    if node and cni_folder() is None:
        wanted.add(CNI_PACKAGE)
    return sorted(wanted)


def install_packages(node: bool) -> None:
    """Installs what is missing with apt-get."""
    packages = missing_packages(node)
    if not packages:
        return
    say(f"installing {', '.join(packages)} from {release(Path('/etc/os-release').read_text()).get('NAME', 'Debian')}")
    options = ["-y", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    install = ["apt-get", "install", *options, "--no-install-recommends", *packages]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": PATH}
    with Step("installing packages"):
        done = subprocess.run(install, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:  # without package lists, or with old ones
            subprocess.run(["apt-get", "update", *options[:2]], capture_output=True, check=False, env=environment)
            done = subprocess.run(install, capture_output=True, text=True, check=False, env=environment)
    left = missing_packages(node)
    if done.returncode != 0 or left:
        words = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LocalClusterError(f"apt-get could not install {', '.join(left or packages)}: {words}")
