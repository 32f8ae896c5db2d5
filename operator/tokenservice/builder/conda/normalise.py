"""What installers write about packages, without what differs from one machine, folder or day to the next."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from tokenservice.builder.oci import canonical_json

if TYPE_CHECKING:
    from .link import Origin

_LEFT_OUT = {"extracted_package_dir", "link", "indexed_timestamp", "package_tarball_full_path"}
"""Fields of a record in conda-meta that hold paths or times of the machine that installs; and requested_spec*."""


def conda_meta(index: Mapping[str, Any], origin: Origin, paths: Iterable[Mapping[str, Any]]) -> bytes:
    """The record of a package in conda-meta, from its own info/index.json and where it came from.

    `conda list`, syft and trivy read name, version, build, channel, url and files of it.
    """
    listed = sorted(paths, key=lambda each: each["_path"])
    kept = {
        name: value
        for name, value in index.items()
        if value is not None and name not in _LEFT_OUT and not name.startswith("requested_spec")
    }
    url = without_login(origin.url)
    folder, _, filename = url.rpartition("/")
    record = {
        **kept,
        "url": url,
        "fn": filename,
        "channel": folder.rpartition("/")[0],
        "sha256": origin.sha256,
        "files": [each["_path"] for each in listed if each["path_type"] != "directory"],
        "paths_data": {"paths_version": 1, "paths": listed},
    }
    if origin.size:
        record["size"] = origin.size
    return canonical_json(record)


def with_bytecode(record: bytes, gone: Iterable[str], made: Iterable[str]) -> bytes:
    """A record in conda-meta with the byte code that is there, in place of what the package brought."""
    content = json.loads(record)
    out = {*gone, *(made := list(made))}
    paths = [each for each in content["paths_data"]["paths"] if each["_path"] not in out]
    paths += [{"_path": path, "path_type": "pyc_file"} for path in made]
    paths.sort(key=lambda each: each["_path"])
    content["paths_data"]["paths"] = paths
    content["files"] = [each["_path"] for each in paths if each["path_type"] != "directory"]
    return canonical_json(content)


def without_login(url: str) -> str:
    """The URL without user, password and conda's `/t/TOKEN/`, should one ever stand there."""
    parts = urlsplit(url)
    path = parts.path
    if path.startswith("/t/"):
        path = "/" + path[3:].partition("/")[2]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))


def with_compiled(record: str, compiled: Iterable[str]) -> str:
    """A wheel's RECORD with rows for its byte code, as pip writes them: without hash and size."""
    rows = sorted({line for line in record.splitlines() if line} | {f"{_quoted(path)},," for path in compiled})
    return "\n".join([*rows, ""])


def _quoted(path: str) -> str:
    return '"' + path.replace('"', '""') + '"' if "," in path or '"' in path else path
