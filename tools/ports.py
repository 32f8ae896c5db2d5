"""A port for a server that a test or a benchmark starts."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

PORTS = range(20_000, 30_000)
"""Below those that the kernel gives to connections (net.ipv4.ip_local_port_range): one of them would be faster."""


def free_port() -> int:
    """One at which nobody listens on the loopback device."""
    while True:
        port = random.choice(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
