"""Which addresses a cluster gets. Pure.

A cluster has a /24 of its own on a bridge of the host: .1 is the host, .10 the first machine, .11 the next. Pods and
services have the same ranges in every cluster: they are seen inside its namespaces only.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from .errors import UnsupportedError

POOLS = ("10.213.{}.0/24", "172.30.{}.0/24", "192.168.{}.0/24")
PODS = IPv4Network("10.244.0.0/16")
SERVICES = IPv4Network("10.96.0.0/16")
DNS = SERVICES[10]
API = SERVICES[1]
KWOK_PODS = IPv4Network("10.250.0.0/16")
FIRST_MACHINE = 10
MACHINES = 40
"""At most this many machines in a cluster."""


@dataclass(frozen=True)
class Subnet:
    """A cluster's network on the host. `bridge` is the interface's name, unique for every network."""

    network: IPv4Network
    bridge: str

    @property
    def gateway(self) -> IPv4Address:
        return self.network[1]

    @property
    def metric(self) -> int:
        """Of the cluster's route to what every cluster has; unlike another's."""
        return 1 + int(self.network.network_address.packed[2])

    def machine(self, number: int) -> IPv4Address:
        """The address of machine 0, 1, ..."""
        if not 0 <= number < MACHINES:
            raise UnsupportedError(f"a local cluster has at most {MACHINES} machines.")
        return self.network[FIRST_MACHINE + number]

    def veth(self, number: int) -> str:
        """The host's end of machine `number`'s cable; an interface's name has at most 15 characters."""
        return f"{self.bridge}m{number}"


def pod_range(number: int) -> IPv4Network:
    """The pods of machine 0, 1, ...: a /24 each."""
    return list(PODS.subnets(new_prefix=24))[number + 1]


@functools.cache
def subnets() -> tuple[Subnet, ...]:
    """Every network that a cluster may get, the preferred first."""
    return tuple(
        Subnet(IPv4Network(pool.format(third)), f"tsc{letter}{third}")
        for letter, pool in zip("abc", POOLS, strict=True)
        for third in range(256)
    )


def subnet_of(network: str) -> Subnet:
    """The subnet with this network, as recorded."""
    found = next((s for s in subnets() if str(s.network) == network), None)
    if found is None:
        raise UnsupportedError(f"{network} is none of the networks that local clusters use.")
    return found


def free_subnets(used: Iterable[IPv4Network]) -> list[Subnet]:
    """Those that overlap nothing in `used`; a default route does not count.

    Where wide routes (a VPN's 10.0.0.0/8, say) cover all of them, those that only such routes cover follow: ours is
    the more specific one, so it costs the VPN 256 addresses while the cluster lives.
    """
    taken = [network for network in used if network.prefixlen > 0]
    narrow = [network for network in taken if network.prefixlen > 16]
    usable = [s for s in subnets() if not any(s.network.overlaps(other) for other in narrow)]
    return sorted(usable, key=lambda s: any(s.network.overlaps(other) for other in taken))


def used_networks(routes: Iterable[dict[str, object]], links: Iterable[dict[str, object]]) -> list[IPv4Network]:
    """What `ip -json -4 route show table all` and `ip -json -4 addr` say is in use."""
    found = []
    for route in routes:
        destination = str(route.get("dst", ""))
        if re.fullmatch(r"[0-9.]+(/\d+)?", destination):
            found.append(IPv4Network(destination, strict=False))
    for link in links:
        addresses = link.get("addr_info")
        for address in addresses if isinstance(addresses, list) else []:
            found.append(IPv4Network(f"{address['local']}/{address['prefixlen']}", strict=False))
    return found


def name_servers(resolv_conf: str) -> list[IPv4Address]:
    """The IPv4 name servers of a resolv.conf, in its order."""
    words = (line.split() for line in resolv_conf.splitlines())
    found = []
    for line in words:
        if len(line) > 1 and line[0] == "nameserver" and re.fullmatch(r"[0-9.]+", line[1]):
            found.append(IPv4Address(line[1]))
    return found


@dataclass(frozen=True)
class Resolvers:
    """The name servers that machines ask; `relayed` is the host's own one, if the gateway passes queries on to it."""

    servers: tuple[IPv4Address, ...]
    relayed: IPv4Address | None = None


def choose_resolvers(resolv_conf: str, upstream: str, gateway: IPv4Address) -> Resolvers:
    """Name servers that can be reached from another network namespace.

    `upstream` is systemd-resolved's list of real servers ("" without it). If the host has a resolver on the loopback
    only, the bridge's address stands in for it and the queries are redirected.
    """
    for text in (resolv_conf, upstream):
        outside = tuple(server for server in name_servers(text) if not server.is_loopback)
        if outside:
            return Resolvers(outside)
    loopback = [server for server in name_servers(resolv_conf) if server.is_loopback]
    return Resolvers((gateway,), loopback[0]) if loopback else Resolvers(())
