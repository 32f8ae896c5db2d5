"""A registry of the benchmark's own beside the cluster's: emptied at will, with an access log of what went over it.

The log's format is the combined one of Apache; its byte counts are those of answers' bodies. What was sent to the
registry is taken from its storage, by the digests in the log: https://distribution.github.io/distribution/about/architecture/
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bench.cluster import ROOT, BenchError, Cluster
from bench.containerd import LOCALCLUSTER

PORT = 5001
"""On the cluster's first machine, beside the cluster's own registry."""
START_SECONDS = 30.0

_LINE = re.compile(r'"([A-Z]+) (\S+) HTTP/[0-9.]+" (\d{3}) (\d+|-)')
_CONTENT = re.compile(r"/v2/(.+)/(blobs|manifests)/([^/]+)")
_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/[^/]+")


@dataclass(frozen=True)
class Request:
    """A line of the access log; `answered`: bytes of the answer's body."""

    method: str
    path: str
    query: str
    status: int
    answered: int


def parse(line: str) -> Request | None:
    """A line of the access log, None for anything else."""
    found = _LINE.search(line)
    if not found:
        return None
    method, uri, status, count = found.groups()
    parts = urlsplit(uri)
    return Request(method, parts.path, parts.query, int(status), 0 if count == "-" else int(count))


def pulled(requests: Iterable[Request]) -> int:
    """Bytes of layers, configs and manifests that were read."""
    return sum(
        each.answered
        for each in requests
        if each.method == "GET" and each.status in (200, 206) and _CONTENT.fullmatch(each.path)
    )


def pushed(requests: Iterable[Request], size: Callable[[str, str], int]) -> int:
    """Bytes of layers, configs and manifests that were written; what was mounted is not.

    size: of what a repository has under a digest or tag.
    """
    total = 0
    for each in requests:
        if each.method != "PUT" or each.status != 201:
            continue
        if upload := _UPLOAD.fullmatch(each.path):
            total += size(upload[1], parse_qs(each.query)["digest"][0])
        elif (content := _CONTENT.fullmatch(each.path)) and content[2] == "manifests":
            total += size(content[1], content[3])
    return total


@dataclass(frozen=True)
class Storage:
    """The registry's files."""

    folder: Path

    @property
    def _root(self) -> Path:
        return self.folder / "docker" / "registry" / "v2"

    def digest(self, repository: str, reference: str) -> str:
        """The digest of a tag, or the reference itself if it is one."""
        if reference.startswith("sha256:"):
            return reference
        link = self._root / "repositories" / repository / "_manifests" / "tags" / reference / "current" / "link"
        return link.read_text().strip()

    def blob(self, digest: str) -> Path:
        kind, _, value = digest.partition(":")
        return self._root / "blobs" / kind / value[:2] / value / "data"

    def size(self, repository: str, reference: str) -> int:
        """Bytes of what a digest or tag names."""
        return self.blob(self.digest(repository, reference)).stat().st_size

    def manifest(self, repository: str, reference: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.blob(self.digest(repository, reference)).read_bytes())
        return found

    def clear(self) -> None:
        """Empties it. The registry keeps nothing of it in memory."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)


class Registry:
    """The cluster's registry program once more, on its first machine: it ends with the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._name = str(cluster.facts["name"])
        self._address = str(cluster.facts["address"])
        folder = Path(cluster.facts["state"]) / "bench-registry"
        self._folder = folder
        self._log = folder / "access.log"
        self.storage = Storage(folder / "storage")
        self._process: subprocess.Popen[bytes] | None = None
        self._marks = 0

    @property
    def url(self) -> str:
        """As Jobs and this machine reach it, with plain HTTP."""
        return f"{self._address}:{PORT}"

    @property
    def pull_url(self) -> str:
        """As nodes reach it: containerd speaks plain HTTP to localhost without being told."""
        return f"localhost:{PORT}"

    def start(self) -> None:
        """Raises BenchError if it does not answer."""
        self.storage.clear()
        config = self._folder / "config.json"
        config.write_text(json.dumps(_config(self.storage.folder)))
        program = ("env", "OTEL_TRACES_EXPORTER=none", "registry", "serve", str(config))
        command = (*LOCALCLUSTER, "exec", "--name", self._name, "--", *program)
        errors = self._folder / "registry.log"
        with self._log.open("wb") as out, errors.open("wb") as err:
            self._process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True, cwd=ROOT)
        deadline = time.monotonic() + START_SECONDS
        while not self._asked("/v2/"):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise BenchError(f"the registry does not answer: {errors.read_text(errors='replace')[-500:]}")
            time.sleep(0.1)

    def stopped(self) -> None:
        """To be called once the cluster is down: the process that waits for the registry has ended, too."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)

    def mark(self) -> int:
        """A place in the log: everything asked before lies before it."""
        self._marks += 1
        wanted = f"/v2/?mark={self._marks} "
        before = self._log.stat().st_size
        deadline = time.monotonic() + START_SECONDS
        self._asked(wanted.strip())
        while time.monotonic() < deadline:
            with self._log.open("rb") as log:
                log.seek(before)
                content = log.read()
            place = content.find(wanted.encode())
            end = content.find(b"\n", place)
            if place >= 0 and end >= 0:
                return before + end + 1
            time.sleep(0.02)
        raise BenchError("the registry's access log does not grow")

    def since(self, mark: int) -> list[Request]:
        """What was asked since then."""
        end = self.mark()
        with self._log.open("rb") as log:
            log.seek(mark)
            text = log.read(end - mark).decode(errors="replace")
        return [found for line in text.splitlines() if (found := parse(line))]

    def pushed_since(self, mark: int) -> int:
        return pushed(self.since(mark), self.storage.size)

    def pulled_since(self, mark: int) -> int:
        return pulled(self.since(mark))

    def _asked(self, path: str) -> bool:
        connection = http.client.HTTPConnection(self._address, PORT, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def _config(storage: Path) -> dict[str, Any]:
    """JSON is YAML. No cache: the storage is emptied under it."""
    return {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(storage), "maxthreads": 64}, "delete": {"enabled": True}},
        "http": {"addr": f"0.0.0.0:{PORT}", "secret": "of no use to anyone else", "relativeurls": True},
    }
