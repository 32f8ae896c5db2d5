"""HTTP for the builder: the user's proxies and certificate authorities, retries with growing pauses."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import random
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from .errors import BuildError

USER_AGENT = "tokenservice-operator"
# Answers that another try may change: too many requests, and a server that is down or restarting.
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
TIMEOUT = urllib3.Timeout(connect=10.0, read=120.0)


@dataclass(frozen=True)
class Retries:
    """How often and how patiently a request is repeated. Pauses double, in seconds, half of each by chance."""

    attempts: int = 6
    first_pause: float = 0.5
    longest_pause: float = 15.0
    sleep: Callable[[float], None] = time.sleep

    def pause(self, attempt: int, retry_after: str | None = None) -> None:
        """Waits before the next try; `retry_after` is the header of that name, in seconds."""
        wanted = min(self.longest_pause, self.first_pause * 2**attempt)
        wanted *= 0.5 + random.random() / 2  # noqa: S311 - spreads retries, nothing secret
        if retry_after and retry_after.isdigit():
            wanted = max(wanted, min(60.0, float(retry_after)))
        self.sleep(wanted)


def ca_file(environ: Mapping[str, str]) -> str | None:
    """The certificate bundle that the user's other tools are told to use."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"):
        if environ.get(name):
            return environ[name]
    return None


@functools.lru_cache
def tls_context(bundle: Path | None, system: str | None) -> ssl.SSLContext:
    """Trusts the authorities in `system` (None: those of the machine) and in `bundle`, both PEM files."""
    context = ssl.create_default_context(cafile=system)
    if bundle is not None:
        try:
            context.load_verify_locations(cafile=str(bundle))
        except (OSError, ssl.SSLError) as error:
            raise BuildError(f"the CA bundle {bundle} cannot be read: {error}") from error
    return context


def proxy_for(scheme: str, host: str, proxies: Mapping[str, str]) -> str:
    """The proxy's address for a host, or "". `proxies` is as urllib.request.getproxies gives them.

    This machine is never asked through a proxy; no_proxy may hold networks (10.0.0.0/8), as container engines allow.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        direct = host == "localhost" or host.endswith(".localhost")
    else:
        direct = address.is_loopback or any(address in net for net in _networks(proxies.get("no", "")))
    if direct or urllib.request.proxy_bypass_environment(host, dict(proxies)):  # type: ignore[attr-defined]
        return ""
    return proxies.get(scheme, proxies.get("all", ""))


def _networks(no_proxy: str) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for each in no_proxy.split(","):
        if "/" in each:
            with contextlib.suppress(ValueError):
                yield ipaddress.ip_network(each.strip(), strict=False)


@dataclass
class Http:
    """Opens requests, through a proxy where the environment names one for the host.

    `timeout` is for a connection to come about and for each piece of an answer. Safe for several threads.
    """

    ca_bundle: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    timeout: urllib3.Timeout = TIMEOUT
    _pools: dict[str, urllib3.PoolManager] = field(default_factory=dict, init=False)

    def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Any = None,
        timeout: urllib3.Timeout | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """One request; the answer's body is not read. Raises urllib3's HTTPError when there is no answer.

        Redirects are not followed: their target may be another host, which must not get our credentials.
        """
        return self._pool(url).request(
            method,
            url,
            headers={"User-Agent": USER_AGENT, **headers},
            body=body,
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
            timeout=timeout or self.timeout,
        )

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = proxy_for(parts.scheme, parts.hostname or "", urllib.request.getproxies())
        if proxy not in self._pools:
            # One connection to a host is reused for all blobs; maxsize is for what goes on in parallel.
            settings: dict[str, Any] = {"maxsize": 8, "ssl_context": tls_context(self.ca_bundle, ca_file(self.environ))}
            self._pools[proxy] = urllib3.ProxyManager(proxy, **settings) if proxy else urllib3.PoolManager(**settings)
        return self._pools[proxy]
