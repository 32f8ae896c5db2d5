"""The commands of the local cluster."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from . import build, cluster, components, host, machine, operations
from .errors import LocalClusterError, UnsupportedError
from .paths import ClusterPaths, cache_folder, state_root
from .progress import say
from .records import SHAPES, Wish


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="localcluster", description="A real Kubernetes on this machine, in namespaces of its own."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], about: str, named: bool = True
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(run=run)
        if named:
            added.add_argument("--name", required=True, help="the cluster's name")
        return added

    building = command("build", run_build, "build the programs that are missing from the cache", named=False)
    building.add_argument("--only", default="", metavar="NAME,...", help="these programs or components alone")
    upping = command("up", run_up, "make a cluster, or complete one")
    upping.add_argument("--shape", choices=SHAPES, help="control-plane has no kubelet; default: node")
    upping.add_argument("--nodes", type=int, help="real nodes, default 1")
    upping.add_argument("--kwok-nodes", type=int, help="nodes that only KWOK keeps alive, tainted; default 0")
    upping.add_argument(
        "--raise-client-limits",
        action="store_true",
        default=None,
        help="let the controller manager and the scheduler send 1000 requests a second, for benchmarks",
    )
    upping.add_argument("--audit", action="store_true", default=None, help="log every write (level Metadata)")
    upping.add_argument(
        "--audit-bodies",
        action="store_true",
        default=None,
        help="with --audit: log what was sent about pods and TokenServices, too (level Request)",
    )
    upping.add_argument("--json", action="store_true", help="print what the cluster is as one JSON object")
    downing = command("down", run_down, "take a cluster down; leaves nothing", named=False)
    which = downing.add_mutually_exclusive_group(required=True)
    which.add_argument("--name", help="the cluster's name")
    which.add_argument("--all", action="store_true", help="all clusters of the state folder")
    telling = command("status", run_status, "tell how clusters fare", named=False)
    telling.add_argument("--name", help="this cluster alone")
    telling.add_argument("--json", action="store_true", help="print a JSON object, or without --name a list")
    for operation in ("start", "stop", "restart"):
        controlling = command(operation, run_control, f"{operation} one component, and wait until that is done")
        controlling.add_argument("--component", required=True, help="such as kube-apiserver, etcd, kubelet, containerd")
        controlling.add_argument("--node", help="of this machine; default: the first one")
        controlling.add_argument("--no-wait", action="store_true", help="return at once")
    adding = command("add-node", run_add_node, "add a real node")
    adding.add_argument("--node", required=True)
    adding.add_argument("--json", action="store_true", help="print what the cluster is as one JSON object")
    removing = command("remove-node", run_remove_node, "lose a real node, as if its power failed")
    removing.add_argument("--node", required=True)
    removing.add_argument("--delete-object", action="store_true", help="delete its Node object too")
    entering = command(
        "exec", run_exec, "run a program inside a machine, such as `exec --name demo -- ctr -n k8s.io images ls`"
    )
    entering.add_argument("--node", help="in this machine; default: the first one")
    entering.add_argument("words", nargs="+", metavar="PROGRAM", help="after --")
    return top


def named(arguments: argparse.Namespace) -> ClusterPaths:
    return ClusterPaths(state_root(), arguments.name)


def run_build(arguments: argparse.Namespace) -> int:
    host.check()
    programs = build.programs(cache_folder())
    only = [name for name in arguments.only.split(",") if name] or [
        component.name for component in components.COMPONENTS
    ]
    try:
        missing = programs.missing(only)
    except KeyError as error:
        known = ", ".join(components.program_name(c, p) for c in components.COMPONENTS for p in c.programs)
        raise UnsupportedError(f"--only {error.args[0]}: there is no such program; there are: {known}.") from None
    build.ensure(programs, only)
    if not missing:
        say("every program is there")
    return 0


def run_up(arguments: argparse.Namespace) -> int:
    wish = Wish(
        shape=arguments.shape,
        nodes=arguments.nodes,
        kwok_nodes=arguments.kwok_nodes,
        raise_client_limits=arguments.raise_client_limits,
        audit=arguments.audit,
        audit_bodies=arguments.audit_bodies,
    )
    return show(cluster.up(named(arguments), cache_folder(), wish), arguments.json)


def show(described: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(described))
    else:
        print(f"export KUBECONFIG={described['kubeconfig']} PATH={described['bin']}:$PATH")
    return 0


def run_down(arguments: argparse.Namespace) -> int:
    host.check()
    root = state_root()
    for name in operations.names(root) if arguments.all else [arguments.name]:
        gone = operations.down(ClusterPaths(root, name))
        say(f"cluster {name} is gone" if gone else f"there is no cluster {name}")
    return 0


def run_status(arguments: argparse.Namespace) -> int:
    root = state_root()
    found = [
        operations.status(ClusterPaths(root, name))
        for name in ([arguments.name] if arguments.name else operations.names(root))
    ]
    if arguments.json:
        print(json.dumps(found[0] if arguments.name else found))
        return 0
    for one in found:
        state = "ready" if one["ready"] else "not ready"
        print(f"{one['name']}: {state}, {one['shape']}, {one['server']}, KUBECONFIG={one['kubeconfig']}")
        for name, fares in one["machines"].items():
            states = ", ".join(f"{component} {now['state']}" for component, now in fares["components"].items())
            print(
                f"  {name}: process {fares['pid']}, {states}"
                if fares["pid"]
                else f"  {name}: not running, run up again"
            )
    if not found:
        print("no clusters")
    return 0


def run_control(arguments: argparse.Namespace) -> int:
    operations.control(named(arguments), arguments.command, arguments.component, arguments.node, not arguments.no_wait)
    return 0


def run_add_node(arguments: argparse.Namespace) -> int:
    return show(operations.add_node(named(arguments), cache_folder(), arguments.node), arguments.json)


def run_remove_node(arguments: argparse.Namespace) -> int:
    operations.remove_node(named(arguments), arguments.node, arguments.delete_object)
    return 0


def run_exec(arguments: argparse.Namespace) -> int:
    paths = named(arguments)
    with operations.existing(paths) as record:
        command = machine.inside(paths.node(arguments.node or record.first), arguments.words, paths.bin)
    return subprocess.run(command, check=False).returncode


def main(words: list[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    try:
        status: int = arguments.run(arguments)
    except LocalClusterError as error:
        say(str(error))
        return error.status
    except KeyboardInterrupt:
        say("interrupted; run the same command again to go on")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
