"""The host's side of a cluster's network: a bridge, a cable to every machine, the way out, and its removal."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .addresses import KWOK_PODS, PODS, Resolvers, Subnet, free_subnets, pod_range, used_networks
from .errors import LocalClusterError, UnsupportedError
from .host import PATH

CHAINS = (("filter", "FORWARD"), ("nat", "POSTROUTING"), ("nat", "PREROUTING"))


@dataclass(frozen=True)
class Rule:
    """A firewall rule of the host: `arguments` as iptables takes them. Filter rules go first, others last."""

    table: str
    chain: str
    arguments: tuple[str, ...]


def host_rules(subnet: Subnet, owner: str, resolvers: Resolvers) -> list[Rule]:
    """Traffic from and to the bridge passes, what leaves the host carries the host's address.

    "Not to the bridge itself" matters where bridged frames pass the firewall too: between machines nothing changes.
    """
    mark = ("-m", "comment", "--comment", owner)
    rules = [
        Rule("filter", "FORWARD", ("-i", subnet.bridge, *mark, "-j", "ACCEPT")),
        Rule("filter", "FORWARD", ("-o", subnet.bridge, *mark, "-j", "ACCEPT")),
        Rule("nat", "POSTROUTING", ("-s", str(subnet.network), "!", "-o", subnet.bridge, *mark, "-j", "MASQUERADE")),
    ]
    if resolvers.relayed:
        for protocol in ("udp", "tcp"):
            match = ("-i", subnet.bridge, "-d", f"{subnet.gateway}/32", "-p", protocol, "-m", protocol, "--dport", "53")
            target = ("-j", "DNAT", "--to-destination", f"{resolvers.relayed}:53")
            rules.append(Rule("nat", "PREROUTING", (*match, *mark, *target)))
    return rules


def machine_commands(subnet: Subnet, number: int, others: Sequence[int]) -> list[str]:
    """`ip -batch` lines inside machine `number`: its address, the way out, and the pods of the other machines."""
    lines = [
        f"address replace {subnet.machine(number)}/{subnet.network.prefixlen} dev eth0",
        "link set eth0 up",
        f"route replace default via {subnet.gateway}",
    ]
    if number == 0:
        # Nobody answers there. Without a route, what asks pods that are only simulated would ask the internet.
        lines.append(f"route replace local {KWOK_PODS} dev lo")
    return lines + [
        f"route replace {pod_range(other)} via {subnet.machine(other)}" for other in others if other != number
    ]


def removals(saved: str, owner: str) -> list[list[str]]:
    """iptables arguments that delete the owner's rules, from the text of `iptables -S CHAIN`."""
    found = []
    for line in saved.splitlines():
        words = shlex.split(line)
        if words[:1] == ["-A"] and "--comment" in words and words[words.index("--comment") + 1] == owner:
            found.append(["-D", *words[1:]])
    return found


def run(command: Sequence[str], text: str | None = None, check: bool = True) -> str:
    """Runs a command; raises LocalClusterError with its words if it fails."""
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, env={"PATH": PATH, "LC_ALL": "C"}
    )
    if check and done.returncode != 0:
        words = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise LocalClusterError(f"{' '.join(command[:6])} failed: {words}")
    return done.stdout if done.returncode == 0 else ""


def _json(command: Sequence[str]) -> list[dict[str, Any]]:
    out = run(["ip", "-json", *command], check=False)
    found: list[dict[str, Any]] = json.loads(out or "[]")
    return found


def mtu() -> int:
    """What the way out carries: a larger packet inside would be lost."""
    for route in _json(["-4", "route", "show", "default"]):
        for link in _json(["link", "show", "dev", str(route.get("dev"))]):
            return int(link["mtu"])
    return 1500


def owners() -> dict[str, str]:
    """Bridges of local clusters: owner to interface name."""
    links = _json(["-details", "link", "show", "type", "bridge"])
    return {
        link["ifalias"]: link["ifname"]
        for link in links
        if link.get("ifalias", "").startswith("tokenservice-localcluster ")
    }


def reserve(owner: str) -> Subnet:
    """A free network; its bridge is made at once, so that no other process gets the same."""
    used = used_networks(_json(["-4", "route", "show", "table", "all"]), _json(["-4", "address"]))
    for subnet in free_subnets(used):
        made = subprocess.run(
            ["ip", "link", "add", subnet.bridge, "type", "bridge"],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": PATH},
        )
        if made.returncode == 0:
            run(["ip", "link", "set", subnet.bridge, "alias", owner])
            return subnet
        if "not permitted" in made.stderr:
            raise UnsupportedError("new network interfaces are not allowed here: in a container, run it privileged.")
        if "exists" not in made.stderr:
            raise LocalClusterError(f"the bridge {subnet.bridge} cannot be made: {made.stderr.strip()}")
    raise LocalClusterError("no free network is left for a local cluster: take one down.")


def link_exists(interface: str) -> bool:
    return Path("/sys/class/net", interface).exists()


def ensure_bridge(subnet: Subnet, owner: str, resolvers: Resolvers) -> None:
    """The bridge with the host's address on it, and the firewall's rules."""
    if not link_exists(subnet.bridge):
        run(["ip", "link", "add", subnet.bridge, "type", "bridge"])
    prefix = subnet.network.prefixlen
    lines = [
        f'link set {subnet.bridge} alias "{owner}"',
        f"link set {subnet.bridge} mtu {mtu()} up",
        f"address replace {subnet.gateway}/{prefix} dev {subnet.bridge}",
        # Each cluster its own, so that what another takes with it does not matter.
        f"route replace {KWOK_PODS} via {subnet.machine(0)} dev {subnet.bridge} metric {subnet.metric}",
    ]
    run(["ip", "-batch", "-"], "\n".join(lines) + "\n")
    if resolvers.relayed:
        Path("/proc/sys/net/ipv4/conf", subnet.bridge, "route_localnet").write_text("1")
    for rule in host_rules(subnet, owner, resolvers):
        base = ["iptables", "-w", "30", "-t", rule.table]
        known = subprocess.run(
            [*base, "-C", rule.chain, *rule.arguments], capture_output=True, check=False, env={"PATH": PATH}
        )
        if known.returncode != 0:
            run([*base, "-I" if rule.table == "filter" else "-A", rule.chain, *rule.arguments])


def attach(subnet: Subnet, number: int, pid: int, new: bool) -> None:
    """Connects machine `number`, whose first process is `pid`, to the bridge."""
    cable = subnet.veth(number)
    if new and link_exists(cable):  # of its predecessor, whose network namespace the kernel is still taking apart
        run(["ip", "link", "delete", cable], check=False)
    if not link_exists(cable):
        size = mtu()
        run(
            [
                "ip",
                "link",
                "add",
                cable,
                "mtu",
                str(size),
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "mtu",
                str(size),
                "netns",
                str(pid),
            ]
        )
    run(["ip", "link", "set", cable, "master", subnet.bridge, "up"])


def configure(subnet: Subnet, number: int, pid: int, others: Sequence[int]) -> None:
    """Addresses, routes, forwarding and masquerading inside machine `number`."""
    inside = ["nsenter", "--target", str(pid), "--net", "--"]
    run([*inside, "ip", "-batch", "-"], "\n".join(machine_commands(subnet, number, others)) + "\n")
    run([*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
    rule = ["POSTROUTING", "-s", str(PODS), "!", "-d", str(PODS), "-j", "MASQUERADE"]
    table = [*inside, "iptables", "-w", "30", "-t", "nat"]
    run(["sh", "-c", f"{shlex.join([*table, '-C', *rule])} 2>/dev/null || {shlex.join([*table, '-A', *rule])}"])


def detach(subnet: Subnet, number: int) -> None:
    run(["ip", "link", "delete", subnet.veth(number)], check=False)


def teardown(owner: str) -> None:
    """Removes the owner's rules, cables and bridge."""
    for table, chain in CHAINS:
        saved = run(["iptables", "-w", "30", "-t", table, "-S", chain], check=False)
        for arguments in removals(saved, owner):
            run(["iptables", "-w", "30", "-t", table, *arguments], check=False)
    bridge = owners().get(owner)
    if bridge:
        for link in _json(["link", "show", "master", bridge]):
            run(["ip", "link", "delete", link["ifname"]], check=False)
        run(["ip", "link", "delete", bridge], check=False)
