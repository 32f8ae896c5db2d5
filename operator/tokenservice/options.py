"""Options of the manager: a flag wins over a TOKENSERVICE_* variable, which wins over the default."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

PREFIX = "TOKENSERVICE_"
LEVELS = ("debug", "info", "warning", "error")


class InvalidOptionError(ValueError):
    """An option has a value that cannot be used; the text names the flag and says what it takes."""


def _option(default: Any, doc: str, *, parse: Any = str) -> Any:
    if callable(default):
        return field(default_factory=default, metadata={"doc": doc, "parse": parse})
    return field(default=default, metadata={"doc": doc, "parse": parse})


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise ValueError(f"must be a whole number, not {text!r}")
    return int(text)


def _namespace(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text):
        raise ValueError(f"{text!r} is not the name of a namespace")
    return text


def _namespaces(text: str) -> tuple[str, ...]:
    given = (name.strip() for name in text.split(","))
    return tuple(dict.fromkeys(_namespace(name) for name in given if name))


def _yes_or_no(text: str) -> bool:
    if text.strip().lower() not in ("true", "false"):
        raise ValueError(f"must be true or false, not {text!r}")
    return text.strip().lower() == "true"


def _domain(text: str) -> str:
    """DNS names, of which the names of Leases and pods are a part."""
    label = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    if not re.fullmatch(rf"{label}(\.{label})*", text) or len(text) > 253:
        raise ValueError(f"{text!r} is not a DNS name (a-z, 0-9, '-' and '.')")
    return text


@dataclass(frozen=True)
class Options:
    """What the manager was told, validated once."""

    namespaces: tuple[str, ...] = _option((), "namespaces to watch, comma separated; none means all", parse=_namespaces)
    lease_namespace: str = _option(
        "tokenservice-system", "namespace of the Lease by which one replica leads", parse=_namespace
    )
    lease_name: str = _option("tokenservice-operator", "name of that Lease", parse=_domain)
    lease_duration_seconds: int = _option(15, "seconds after which a leader that does not renew has lost", parse=_whole)
    lease_renew_deadline_seconds: int = _option(
        10, "seconds of failing renewals after which a leader gives up", parse=_whole
    )
    lease_retry_seconds: int = _option(2, "seconds between tries to get or renew the Lease", parse=_whole)
    pod_name: str = _option(socket.gethostname, "identity in the Lease and in events")
    workers: int = _option(16, "resources of a kind reconciled at the same time", parse=_whole)
    http_port: int = _option(8080, "port of /healthz, /readyz and /metrics", parse=_whole)
    cluster_domain: str = _option("cluster.local", "DNS domain of the cluster, for status.url", parse=_domain)
    job_template: str = _option(
        "", "file with the manifest of the Jobs that lock and build environments; none: environments are off"
    )
    job_namespace: str = _option("", "namespace of those Jobs; by default that of the Lease", parse=_namespace)
    token_key_file: str = _option(
        "",
        "file with the key that the tokens of warm pods are made with, 32 bytes or more; none: another one in each "
        "process, and pools are filled anew when it ends",
    )
    collect_images: bool = _option(
        False,
        "true: Jobs delete images and locks that no environment of this cluster names; not for a registry "
        "that others share",
        parse=_yes_or_no,
    )
    keep_images: int = _option(
        3, "earlier images of each environment that are kept in its status, and not deleted", parse=_whole
    )
    log_level: str = _option("info", "one of " + ", ".join(LEVELS), parse=str.lower)
    kubeconfig: str = _option("", "kubeconfig to use outside of a cluster")

    def __post_init__(self) -> None:
        if not self.job_namespace:
            object.__setattr__(self, "job_namespace", self.lease_namespace)
        for name, low, high in (
            ("lease_duration_seconds", 3, 3600),
            ("lease_renew_deadline_seconds", 2, 3600),
            ("lease_retry_seconds", 1, 600),
            ("workers", 1, 1000),
            ("http_port", 1, 65535),
            ("keep_images", 0, 9),  # the CRD takes ten, with the current one
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidOptionError(f"{_flag(name)}: must be from {low} to {high}, not {getattr(self, name)}")
        if self.collect_images and self.namespaces:
            raise InvalidOptionError("--collect-images: needs all namespaces: those of others are in use, too")
        if self.lease_retry_seconds >= self.lease_renew_deadline_seconds:
            raise InvalidOptionError("--lease-retry-seconds: must be less than --lease-renew-deadline-seconds")
        if self.lease_renew_deadline_seconds >= self.lease_duration_seconds:
            raise InvalidOptionError("--lease-renew-deadline-seconds: must be less than --lease-duration-seconds")
        if not self.pod_name:
            raise InvalidOptionError("--pod-name: must not be empty, it tells the replicas apart")
        if self.log_level not in LEVELS:
            raise InvalidOptionError(f"--log-level: must be one of {', '.join(LEVELS)}, not {self.log_level!r}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each option; what the flags leave out comes from the environment."""
    for item in fields(Options):
        parser.add_argument(_flag(item.name), dest=item.name, default=None, metavar="VALUE", help=item.metadata["doc"])


def load(arguments: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Options:
    """Options from parsed flags and the environment.

    Raises:
        InvalidOptionError: a value cannot be used; the text names the flag or the variable.

    """
    values: dict[str, Any] = {}
    for item in fields(Options):
        variable = PREFIX + item.name.upper()
        text, source = getattr(arguments, item.name, None), _flag(item.name)
        if text is None:
            text, source = environ.get(variable), variable
        if text is None or (text == "" and source == variable):
            continue
        try:
            values[item.name] = item.metadata["parse"](text)
        except ValueError as error:
            raise InvalidOptionError(f"{source}: {error}") from None
    return Options(**values)


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Options:
    """Options from a command line of flags alone."""
    parser = argparse.ArgumentParser(prog="tokenservice manager", allow_abbrev=False)
    add_arguments(parser)
    return load(parser.parse_args(argv), environ)
