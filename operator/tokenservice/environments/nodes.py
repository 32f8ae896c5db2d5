"""The CUDA version that every GPU node's driver can run, from the labels of NVIDIA's GPU feature discovery."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from tokenservice.api.meta import Object
from tokenservice.kube.client import Client, decode
from tokenservice.kube.errors import ApiError
from tokenservice.kube.resources import NODES
from tokenservice.runtime.logs import get_logger

_FULL = "nvidia.com/cuda.runtime-version.full"
_PARTS = (
    ("nvidia.com/cuda.runtime-version.major", "nvidia.com/cuda.runtime-version.minor"),
    ("nvidia.com/cuda.runtime.major", "nvidia.com/cuda.runtime.minor"),  # until 0.15
)

_log = get_logger("tokenservice.environments")


class _Page(msgspec.Struct):
    items: list[Object]


def oldest_cuda(labels: Iterable[Mapping[str, str]]) -> str | None:
    """The oldest version among nodes with these labels, such as "12.4"; None without a GPU node."""
    found = [version for item in labels if (version := _version(item)) is not None]
    return "{}.{}".format(*min(found)) if found else None


async def cuda(client: Client) -> str | None:
    """The version for a lock that does not name its own; None too where nodes cannot be listed.

    Raises:
        ApiError, Unreachable: the API server cannot tell now.

    """
    try:
        return oldest_cuda(
            [node.metadata.labels async for page in client.list(NODES) for node in decode(page, _Page).items]
        )
    except ApiError as error:
        if not error.is_forbidden:
            raise
        _log.info("nodes cannot be listed; locks are made without __cuda where the spec names none")
        return None


def _version(labels: Mapping[str, str]) -> tuple[int, int] | None:
    full = labels.get(_FULL, "").split(".")
    pairs = [(full[0], full[1] if len(full) > 1 else "0")] if full[0] else []
    pairs += [(labels[major], labels.get(minor, "0")) for major, minor in _PARTS if major in labels]
    return next(((int(a), int(b)) for a, b in pairs if a.isdecimal() and b.isdecimal()), None)
