"""Where things lie: the cache that clusters share, and a cluster's own state."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import UnsupportedError

HERE = Path(__file__).resolve().parent
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`$TOKENSERVICE_CACHE`, or tokenservice-operator in the user's cache folder."""
    if chosen := environ.get("TOKENSERVICE_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "tokenservice-operator"


DEFAULT_STATE = Path("/var/lib/tokenservice-localcluster")


def state_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that holds one folder a cluster."""
    return Path(environ.get("TOKENSERVICE_LOCALCLUSTER_STATE") or DEFAULT_STATE).absolute()


@dataclass(frozen=True)
class ClusterPaths:
    """The files of one cluster."""

    root: Path
    name: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UnsupportedError(f"--name {self.name!r}: use at most 32 small letters, digits and '-', such as demo.")

    @property
    def state(self) -> Path:
        return self.root / self.name

    @property
    def record(self) -> Path:
        return self.state / "cluster.json"

    @property
    def certificates(self) -> Path:
        return self.state / "pki"

    @property
    def admin(self) -> Path:
        return self.state / "admin.kubeconfig"

    @property
    def bin(self) -> Path:
        return self.state / "bin"

    @property
    def audit_log(self) -> Path:
        return self.state / "audit.log"

    @property
    def nodes(self) -> Path:
        return self.state / "nodes"

    def node(self, node: str) -> Path:
        return self.nodes / node

    def hostpath(self, node: str) -> Path:
        """For tests: a folder that pods of this node may mount."""
        return self.node(node) / "hostpath"

    @property
    def owner(self) -> str:
        """Says on bridges and firewall rules whose they are; at most 200 characters, which both accept."""
        text = f"tokenservice-localcluster {self.state}"
        return text if len(text) <= 200 else f"tokenservice-localcluster {self.cgroup}"

    @property
    def cgroup(self) -> str:
        """The cluster's folder in every cgroup hierarchy: unique on this machine, whatever the state folder is."""
        return f"{self.name}.{hashlib.sha256(str(self.state).encode()).hexdigest()[:8]}"
