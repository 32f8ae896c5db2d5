"""What is remembered of a cluster between commands."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from .addresses import MACHINES, Subnet, subnet_of
from .errors import LocalClusterError, UnsupportedError

SHAPES = ("control-plane", "node")


@dataclass(frozen=True)
class Wish:
    """What `up` was asked for; None leaves a cluster that exists as it is."""

    shape: str | None = None
    nodes: int | None = None
    kwok_nodes: int | None = None
    raise_client_limits: bool | None = None
    audit: bool | None = None
    audit_bodies: bool | None = None


@dataclass
class Record:
    """A cluster: its shape, its network and its machines (name to number; 0 has the control plane)."""

    name: str
    shape: str
    network: str
    machines: dict[str, int]
    kwok_nodes: int = 0
    raise_client_limits: bool = False
    audit: bool = False
    audit_bodies: bool = False
    registry_secret: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def subnet(self) -> Subnet:
        return subnet_of(self.network)

    @property
    def first(self) -> str:
        """The machine with the control plane."""
        return next(name for name, number in self.machines.items() if number == 0)

    @property
    def address(self) -> str:
        return str(self.subnet.machine(0))

    @property
    def server(self) -> str:
        return f"https://{self.address}:6443"

    @property
    def registry(self) -> str:
        return f"{self.address}:5000"

    def real_nodes(self) -> list[str]:
        return list(self.machines) if self.shape == "node" else []


def fresh(name: str, wish: Wish, network: str) -> Record:
    """The record of a cluster that does not exist yet."""
    shape = wish.shape or "node"
    machines = {"node-1": 0} if shape == "node" else {"control-plane": 0}
    record = Record(name=name, shape=shape, network=network, machines=machines)
    return merged(record, wish)


def merged(record: Record, wish: Wish) -> Record:
    """The record with what `wish` names changed; raises UnsupportedError if that is not possible."""
    if wish.shape not in (None, record.shape):
        raise UnsupportedError(
            f"cluster {record.name} exists with --shape {record.shape}: take it down first, or choose another --name."
        )
    if record.shape == "control-plane" and (wish.nodes or 0) > 0:
        raise UnsupportedError("--nodes needs --shape node; a control plane alone can have --kwok-nodes.")
    if wish.nodes is not None and record.shape == "node" and not 1 <= wish.nodes <= MACHINES:
        raise UnsupportedError(f"--nodes {wish.nodes}: give 1 to {MACHINES}.")
    if wish.kwok_nodes is not None and not 0 <= wish.kwok_nodes <= 5000:
        raise UnsupportedError(f"--kwok-nodes {wish.kwok_nodes}: give 0 to 5000.")
    if wish.audit_bodies and not (record.audit or wish.audit):
        raise UnsupportedError("--audit-bodies needs --audit.")
    machines = dict(record.machines)
    if record.shape == "node" and wish.nodes is not None:
        if wish.nodes < len(machines):
            raise UnsupportedError(f"cluster {record.name} has {len(machines)} nodes: take some away with remove-node.")
        while len(machines) < wish.nodes:
            name = next(f"node-{k}" for k in range(1, MACHINES + 2) if f"node-{k}" not in machines)
            machines[name] = number_for(name, machines)
    if wish.kwok_nodes is not None and wish.kwok_nodes < record.kwok_nodes:
        raise UnsupportedError(
            f"cluster {record.name} has {record.kwok_nodes} KWOK nodes: take it down first to have fewer."
        )
    return dataclasses.replace(
        record,
        machines=machines,
        kwok_nodes=record.kwok_nodes if wish.kwok_nodes is None else wish.kwok_nodes,
        raise_client_limits=record.raise_client_limits
        if wish.raise_client_limits is None
        else wish.raise_client_limits,
        audit=record.audit if wish.audit is None else wish.audit,
        audit_bodies=record.audit_bodies if wish.audit_bodies is None else wish.audit_bodies,
    )


def number_for(name: str, machines: dict[str, int]) -> int:
    """A number that no machine has: K - 1 for node-K if it is free, else the lowest."""
    taken = set(machines.values())
    usual = [int(name[5:]) - 1] if re.fullmatch(r"node-[1-9]\d?", name) else []
    candidates = [*usual, *range(MACHINES)]
    free: int | None = next((number for number in candidates if number not in taken and number < MACHINES), None)
    if free is None:
        raise UnsupportedError(f"a local cluster has at most {MACHINES} machines.")
    return free


def save(path: Path, record: Record) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n")
    part.replace(path)


def load(path: Path) -> Record | None:
    """The record, or None if there is none."""
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise LocalClusterError(
            f"{path} cannot be read ({error}): take the cluster down and bring it up anew."
        ) from error
