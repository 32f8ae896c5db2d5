"""A static file server on 127.0.0.1 that can fail on demand: conda channels as files, wheels as a package index.

Below `/simple/` it speaks PEP 503 (HTML) and PEP 691 (JSON, with sizes and upload times).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

_JSON = "application/vnd.pypi.simple.v1+json"


@dataclass(frozen=True)
class Request:
    """A request that was answered: `sent` bytes of body. `path` is without a conda token."""

    method: str
    path: str
    status: int
    sent: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass
class Fault:
    """What happens to requests whose path `pattern` (a regular expression) is found in, `times` in all.

    status: they get it. seconds: they wait first (until healed). dropped: the connection closes without an answer.
    corrupt: the body has as many bytes, but wrong ones. truncated: half the body, then the connection closes. stalled:
    half the body, then nothing until healed. None of them but seconds: served as ever, later.
    """

    pattern: str
    status: int = 0
    seconds: float = 0
    dropped: bool = False
    corrupt: bool = False
    truncated: bool = False
    stalled: bool = False
    times: int = 1_000_000
    hits: int = 0


@dataclass(frozen=True)
class _Login:
    pattern: str
    authorization: str
    token: str


class PackageServer:
    """Serves the files below `root` from a thread of its own. Use as a context manager, or `start` and `stop`.

    With `tls` it speaks HTTPS alone; `certificates.server_context` makes one.
    """

    def __init__(self, root: Path, tls: ssl.SSLContext | None = None) -> None:
        self.root, self._tls = root, tls
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._logins: list[_Login] = []
        self._lock = threading.Lock()
        self._healed = threading.Event()
        self._http: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    def start(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        self._serve()
        return self

    def stop(self) -> None:
        self.heal()
        self.down()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def url(self, path: str = "") -> str:
        """The address of a channel, or of what lies at `path`."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._port}/{path.lstrip('/')}".rstrip("/")

    @property
    def simple(self) -> str:
        """The address of the package index."""
        return f"{self.url('simple')}/"

    def down(self) -> None:
        """From now on connections are refused."""
        if self._http is not None and self._thread is not None:
            self._http.shutdown()
            self._http.server_close()
            self._thread.join(10)
            self._http = self._thread = None

    def up(self) -> None:
        """Listens again, at the same port."""
        if self._http is None:
            self._serve()

    def fault(self, pattern: str, **what: object) -> Fault:
        """Requests whose path the regular expression `pattern` is found in fail; the first fault that fits wins."""
        fault = Fault(pattern, **what)  # type: ignore[arg-type]
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """No faults from now on; who waits is answered or cut off."""
        with self._lock:
            self._faults.clear()
            self._healed.set()
            self._healed = threading.Event()

    def require(self, pattern: str = "/", *, basic: tuple[str, str] | None = None, token: str = "") -> None:
        """Paths that match need a login, else 401: user and password, or a token (Bearer, or conda's `/t/TOKEN/`)."""
        header = f"Bearer {token}"
        if basic is not None:
            header = "Basic " + base64.b64encode(":".join(basic).encode()).decode()
        self._logins.append(_Login(pattern, header, token))

    def paths(self, pattern: str = "") -> list[str]:
        """Paths asked for with GET so far, of those that match."""
        with self._lock:
            found = [request.path for request in self.requests if request.method == "GET"]
        return [path for path in found if re.search(pattern, path)]

    def sent(self, pattern: str = "") -> int:
        """Bytes of bodies sent so far for paths that match."""
        with self._lock:
            return sum(request.sent for request in self.requests if re.search(pattern, request.path))

    def forget(self) -> None:
        """Forgets the requests so far."""
        with self._lock:
            self.requests.clear()

    def _serve(self) -> None:
        outer = self

        class Handler(_Handler):
            server_of_packages = outer

        self._http = _Server(("127.0.0.1", self._port), Handler)
        if self._tls is not None:
            # The handshake is the connection's thread's: a client that does not trust us holds up nobody.
            self._http.socket = self._tls.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True, name="packages")
        self._thread.start()

    def _note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def _struck(self, path: str) -> tuple[Fault | None, threading.Event]:
        with self._lock:
            for fault in self._faults:
                if fault.hits < fault.times and re.search(fault.pattern, path):
                    fault.hits += 1
                    return fault, self._healed
            return None, self._healed

    def _admits(self, path: str, token: str, authorization: str) -> bool:
        asked = [login for login in self._logins if re.search(login.pattern, path)]
        return not asked or any(
            authorization == login.authorization or (login.token and token == login.token) for login in asked
        )

    def _body(self, path: str, accept: str) -> tuple[str, bytes] | None:
        """(media type, bytes) of what lies at a path; None for nothing."""
        if re.fullmatch(r"/simple(/[^/]*)?/", path):
            return _listing(self.root / "simple", path.removeprefix("/simple").strip("/"), _JSON in accept)
        file = (self.root / path.lstrip("/")).resolve()
        if not file.is_relative_to(self.root.resolve()) or not file.is_file():
            return None
        return ("application/json" if file.suffix == ".json" else "application/octet-stream"), file.read_bytes()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer in two pieces waits 40 ms for an acknowledgement
    server_of_packages: PackageServer

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):
            self._answer()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Says nothing: tests read `requests`."""

    def _answer(self) -> None:
        server = self.server_of_packages
        path, token = unquote(urlsplit(self.path).path), ""
        if found := re.match(r"/t/([^/]+)(/.*)", path):
            token, path = found.groups()
        fault, healed = server._struck(path)
        if fault is not None and fault.seconds:
            healed.wait(fault.seconds)
        if fault is not None and fault.dropped:
            self._finish(path, 0, 0)
            self._cut()
            return
        if fault is not None and fault.status:
            self._short(path, fault.status)
            return
        if not server._admits(path, token, self.headers.get("Authorization", "")):
            self._short(path, 401, {"WWW-Authenticate": 'Basic realm="packages"'})
            return
        body = server._body(path, self.headers.get("Accept", ""))
        if body is None:
            self._short(path, 404)
            return
        self._send(path, *body, fault, healed)

    def _send(self, path: str, kind: str, data: bytes, fault: Fault | None, healed: threading.Event) -> None:
        if fault is not None and fault.corrupt:
            data = bytes(byte ^ 0x55 for byte in data)
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        # Asked anew each time: a test that adds a package wants to see it.
        headers = {"ETag": tag, "Cache-Control": "max-age=0", "Accept-Ranges": "bytes", "Content-Type": kind}
        if self.headers.get("If-None-Match") == tag:
            self._short(path, 304, headers)
            return
        status = 200
        total = len(data)
        if found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(found[1]) if found[1] else max(0, total - int(found[2] or 0))
            last = min(int(found[2]) if found[1] and found[2] else total - 1, total - 1)
            if first >= total:
                self._short(path, 416, {"Content-Range": f"bytes */{total}"})
                return
            status, data = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        half = fault is not None and (fault.truncated or fault.stalled)
        part = b"" if self.command == "HEAD" else data[: len(data) // 2] if half else data
        self._finish(path, status, len(part))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(part)
        if half:
            self.wfile.flush()
            if fault is not None and fault.stalled:
                healed.wait(600)
            self._cut()

    def _short(self, path: str, status: int, headers: Mapping[str, str] | None = None) -> None:
        body = b"" if status == 304 else f"{status}\n".encode()
        self._finish(path, status, len(body))
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _finish(self, path: str, status: int, sent: int) -> None:
        self.server_of_packages._note(Request(self.command, path, status, sent, dict(self.headers.items())))

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _listing(root: Path, project: str, as_json: bool) -> tuple[str, bytes] | None:
    """The index's list of projects, or of a project's files."""
    if not project:
        names = sorted(path.name for path in root.glob("*/"))
        if as_json:
            data = {"meta": {"api-version": "1.1"}, "projects": [{"name": name} for name in names]}
            return _JSON, json.dumps(data).encode()
        return "text/html", "".join(f'<a href="{name}/">{name}</a>\n' for name in names).encode()
    folder = root / project
    if not folder.is_dir():
        return None
    files: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.whl")):
        content = path.read_bytes()
        files.append(
            {
                "filename": path.name,
                "url": path.name,
                "hashes": {"sha256": hashlib.sha256(content).hexdigest()},
                "size": len(content),
                "upload-time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(path.stat().st_mtime)),
                "yanked": False,
            }
        )
    if as_json:
        versions = sorted({path.name.split("-")[1] for path in folder.glob("*.whl")})
        listed = {"meta": {"api-version": "1.1"}, "name": project, "versions": versions, "files": files}
        return _JSON, json.dumps(listed).encode()
    rows = (
        f'<a href="{each["url"]}#sha256={each["hashes"]["sha256"]}">{html.escape(each["filename"])}</a>\n'
        for each in files
    )
    return "text/html", "".join(rows).encode()
