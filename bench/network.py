"""Where simulated pods can be reached: the network namespace of a local cluster's first machine.

KWOK gives pods addresses of 10.250.0.0/16, and that machine takes all of them for its own
(tools/localcluster/network.py): a server there that listens on 0.0.0.0 answers for every pod. Another local cluster on
this host has the same addresses, so whoever asks pods has to be inside. Nothing has to be added for it, and nothing to
be taken away again.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from bench.cluster import BenchError

CLONE_NEWNET = 0x40000000
"""linux/sched.h; os.setns comes with Python 3.12."""


@contextmanager
def inside(pid: int) -> Iterator[None]:
    """Within the block this thread, and what it starts, is in the network namespace of that process."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise BenchError(f"the cluster's network namespace cannot be entered: {os.strerror(ctypes.get_errno())}")
