"""An operator that is killed at a write, before it or after it, and the enumeration of such moments."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import httpx
import yaml

from tests.apiserver.conftest import SYSTEM, Plane, write_kubeconfig
from tests.support.faulty_proxy import Asked, Fault, FaultyProxy, Kind
from tests.support.played_kubelet import played
from tests.support.wait import eventually

AT_ONCE = 6
Moment = Literal["before", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "after")
Point = tuple[str, str, int, Moment]
"""Verb, resource, the how manieth of these, and whether before it or after."""


@contextlib.contextmanager
def kubelet(plane: Plane) -> Iterator[None]:
    """The played kubelet; and Leases anywhere, for operators that look after one namespace each."""
    account = f"--serviceaccount={SYSTEM}:op-tokenservice-operator"
    plane.cluster.kubectl("create", "clusterrole", "leases", "--verb=get,create,update", "--resource=leases")
    plane.cluster.kubectl("create", "clusterrolebinding", "leases", "--clusterrole=leases", account)
    try:
        with played(plane.api):
            yield
    finally:
        plane.cluster.kubectl("delete", "clusterrolebinding,clusterrole", "leases")


def run(
    plane: Plane,
    namespace: str,
    folder: Path,
    point: Point | None,
    *,
    begin: Callable[[], object],
    done: Callable[[], bool],
    flags: Sequence[str] = (),
) -> tuple[list[Asked], bool]:
    """A life of an operator of that namespace alone, killed at that point, and of the one after it.

    Args:
        plane: the control plane.
        namespace: the operator's.
        folder: for its kubeconfig.
        point: None for not at all.
        begin: what somebody asks for, once the operator runs.
        done: whether that has come to its end; may raise AssertionError instead of saying no.
        flags: more of the operator's.

    Returns:
        The writes, and whether it came to that point.

    """
    proxy = FaultyProxy(plane.api.server, plane.api.ca)
    proxy.start()
    kubeconfig = folder / f"{namespace}.kubeconfig"
    token = yaml.safe_load(plane.kubeconfig.read_text())["users"][0]["user"]["token"]
    write_kubeconfig(kubeconfig, proxy.url, token)
    own = (f"--namespaces={namespace}", f"--lease-namespace={namespace}", *flags)
    operator = plane.operator(*own, kubeconfig=kubeconfig, name=namespace)
    struck, killed, again = threading.Event(), threading.Event(), threading.Event()
    try:
        operator.start()

        def kill() -> None:
            struck.set()
            operator.kill()
            killed.set()

        if point is not None:
            verb, resource, number, moment = point
            kind: Kind = "cut" if moment == "before" else "lost"
            proxy.inject(Fault(kind, verb, resource, after=number - 1, and_then=kill))
        begin()

        def lives() -> bool:
            """As a kubelet does, starts it again when it was killed, which may be after all seemed done, or ended by
            itself: on a busy machine it may lose its Lease.
            """
            if killed.is_set() and not again.is_set():
                plane.api.delete("Lease", namespace, "tokenservice-operator")  # as if it had run out
                operator.start()
                again.set()
            elif not operator.running and struck.is_set() == again.is_set():
                operator.start()
            return True

        def over() -> bool:
            try:
                return lives() and done()
            except httpx.HTTPError:  # on a busy machine an answer may be late
                return False

        eventually(lambda: killed.is_set() or over(), f"{point}, or the end", seconds=60)
        eventually(over, f"the end, killed at {point}", seconds=90)
        assert not operator.surprises()
    finally:
        operator.end()
        proxy.stop()
    return proxy.writes, struck.is_set()


def points(writes: Sequence[Asked]) -> Iterator[Point]:
    """Before and after each of the writes."""
    for index, write in enumerate(writes):
        number = 1 + sum((one.verb, one.resource) == (write.verb, write.resource) for one in writes[:index])
        for moment in MOMENTS:
            yield write.verb, write.resource, number, moment


def kinds(writes: Iterable[Asked]) -> set[tuple[str, str]]:
    """Verb and resource of each."""
    return {(write.verb, write.resource) for write in writes}


def struck(points_struck: Iterable[Point], moment: Moment) -> set[tuple[str, str]]:
    """Verb and resource of those points of that moment."""
    return {(verb, resource) for verb, resource, _, when in points_struck if when == moment}
