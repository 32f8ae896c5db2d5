"""A stand-in for an image registry, in this process: enough of the distribution specification to test the client.

The client is tested against the real one in tests/apiserver/test_registry.py; here, against what a real one does not do
on demand: failing, asking for logins, forgetting uploads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    method: str
    path: str
    status: int
    authorization: str
    body_bytes: int
    range: str = ""


@dataclass
class StandinRegistry:
    """`trouble` holds answers given instead of the right one: (pattern of "METHOD path", status or "drop" or "cut").

    "cut" sends half of a blob and hangs up. `trouble_body` is what a status of `trouble` comes with. `page` is the
    most tags in an answer; without `links` it does not say that there are more. `keeps_tags`: deleting a digest leaves
    its tags, as `crane registry serve` does. `blobs_at` is another server's address, where blobs are to be fetched.
    """

    authentication: str = ""  # "", "basic" or "bearer"
    users: dict[str, str] = field(default_factory=dict)
    mounts: bool = True
    trouble: list[tuple[str, int | str]] = field(default_factory=list)
    trouble_body: bytes = b'{"errors":[{"code":"TROUBLE","message":"as the test wants"}]}'
    ranges: bool = True
    deletes: bool = True
    keeps_tags: bool = False
    page: int = 1000
    links: bool = True
    blobs_at: str = ""
    blobs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    manifests: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    uploads: int = 0
    address: str = ""
    tls: ssl.SSLContext | None = None

    def seen(self, method: str, pattern: str) -> list[Request]:
        return [each for each in self.requests if each.method == method and re.search(pattern, each.path)]

    def end_tokens(self) -> None:
        self.tokens.clear()

    @contextmanager
    def running(self) -> Iterator[StandinRegistry]:
        handler = type("Handler", (_Handler,), {"registry": self})
        server = _Server(("127.0.0.1", 0), handler)
        if self.tls is not None:
            server.socket = self.tls.wrap_socket(server.socket, server_side=True)
        self.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    registry: StandinRegistry
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer in two pieces waits 40 ms for an acknowledgement
    body = b""
    cut = False

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        asked = self.headers.get("Authorization", "")
        ranged = self.headers.get("Range", "")
        self.registry.requests.append(Request(self.command, self.path, status, asked, len(self.body), ranged))
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            self.connection.close()
        elif self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        registry = self.registry
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.cut = False
        line = f"{self.command} {self.path}"
        for number, (pattern, answer) in enumerate(registry.trouble):
            if re.search(pattern, line):
                del registry.trouble[number]
                if answer == "drop":
                    self.close_connection = True
                    self.connection.close()
                    return
                if answer == "cut":
                    self.cut = True
                    break
                self._answer(int(answer), body=registry.trouble_body)
                return
        if self.path.startswith("/token"):
            self._token()
        elif self._allowed():
            self._serve()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def _login(self) -> bool:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Basic":
            return False
        user, _, password = base64.b64decode(value).decode().partition(":")
        return self.registry.users.get(user) == password

    def _token(self) -> None:
        if self.registry.users and not self._login():
            self._answer(401)
            return
        scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
        token = f"token-{len(self.registry.tokens)}-{hashlib.sha256(self.path.encode()).hexdigest()[:6]}"
        self.registry.tokens[token] = " ".join(scopes)
        self._answer(200, body=json.dumps({"token": token}).encode())

    def _allowed(self) -> bool:
        registry = self.registry
        if not registry.authentication:
            return True
        if registry.authentication == "basic":
            if self._login():
                return True
            self._answer(401, {"WWW-Authenticate": 'Basic realm="here"'})
            return False
        scope = registry.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if scope is not None:
            found = re.match(r"/v2/(.+)/(?:blobs|manifests)/", self.path)
            right = "pull" if self.command in ("GET", "HEAD") else "push"
            wanted = f"repository:{found[1]}:" if found else ""
            if any(each.startswith(wanted) and right in each for each in scope.split(" ")):
                return True
        challenge = f'Bearer realm="http://{registry.address}/token",service="here",scope="x"'
        self._answer(401, {"WWW-Authenticate": challenge})
        return False

    def _serve(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/v2/":
            self._answer(200)
        elif found := re.fullmatch(r"/v2/(.+)/blobs/uploads/(\d*)", url.path):
            self._upload(found[1], found[2], parse_qs(url.query))
        elif found := re.fullmatch(r"/v2/(.+)/blobs/(sha256:\w+)", url.path):
            self._blob(found[1], found[2])
        elif found := re.fullmatch(r"/v2/(.+)/tags/list", url.path):
            self._tags(found[1], parse_qs(url.query))
        elif found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", url.path):
            self._manifest(found[1], found[2])
        else:
            self._answer(404)

    def _blob(self, repository: str, digest: str) -> None:
        content = self.registry.blobs.get(repository, {}).get(digest)
        begin = re.fullmatch(r"bytes=(\d+)-\d+", self.headers.get("Range", ""))
        if content is None:
            self._answer(404)
        elif self.registry.blobs_at and self.command == "GET":
            self._answer(307, {"Location": f"{self.registry.blobs_at}/v2/{repository}/blobs/{digest}"})
        elif begin and self.registry.ranges:
            rest = content[int(begin[1]) :]
            told = f"bytes {begin[1]}-{len(content) - 1}/{len(content)}"
            self._answer(206, {"Content-Range": told}, rest)
        else:
            self._answer(200, body=content)

    def _tags(self, repository: str, query: dict[str, list[str]]) -> None:
        manifests = self.registry.manifests.get(repository)
        if manifests is None:
            self._answer(404, body=b'{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known"}]}')
            return
        last, count = query.get("last", [""])[0], min(int(query.get("n", ["100"])[0]), self.registry.page)
        tags = sorted(tag for tag in manifests if not tag.startswith("sha256:") and tag > last)
        more = f'</v2/{repository}/tags/list?n={count}&last={"".join(tags[:count][-1:])}>; rel="next"'
        body = json.dumps({"name": repository, "tags": tags[:count] or None}).encode()
        self._answer(200, {"Link": more} if len(tags) > count and self.registry.links else {}, body)

    def _upload(self, repository: str, upload: str, query: dict[str, list[str]]) -> None:
        registry = self.registry
        blobs = registry.blobs.setdefault(repository, {})
        if self.command == "POST":
            digest = query.get("mount", [""])[0]
            source = registry.blobs.get(query.get("from", [""])[0], {})
            if registry.mounts and digest in source:
                blobs[digest] = source[digest]
                self._answer(201)
                return
            registry.uploads += 1
            self._answer(202, {"Location": f"/v2/{repository}/blobs/uploads/{registry.uploads}?state=x"})
        elif self.command == "PUT":
            digest = query["digest"][0]
            if f"sha256:{hashlib.sha256(self.body).hexdigest()}" != digest or query["state"] != ["x"]:
                self._answer(400)
                return
            blobs[digest] = self.body
            self._answer(201)
        else:
            self._answer(204)

    def _manifest(self, repository: str, reference: str) -> None:
        manifests = self.registry.manifests.setdefault(repository, {})
        if self.command == "PUT":
            digest = f"sha256:{hashlib.sha256(self.body).hexdigest()}"
            blobs = self.registry.blobs.get(repository, {})
            content = json.loads(self.body)
            wanted = [content["config"], *content["layers"]] if "config" in content else []
            if not all(each["digest"] in blobs for each in wanted):
                self._answer(404, body=b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown"}]}')
                return
            manifests[digest] = manifests[reference] = self.body
            self._answer(201, {"Docker-Content-Digest": digest})
            return
        if self.command == "DELETE":
            self._delete(manifests, reference)
            return
        content_bytes = manifests.get(reference)
        if content_bytes is None:
            self._answer(404)
            return
        digest = f"sha256:{hashlib.sha256(content_bytes).hexdigest()}"
        kind = json.loads(content_bytes).get("mediaType", "application/vnd.oci.image.manifest.v1+json")
        self._answer(200, {"Docker-Content-Digest": digest, "Content-Type": kind}, content_bytes)

    def _delete(self, manifests: dict[str, bytes], reference: str) -> None:
        if not self.registry.deletes:
            self._answer(405, body=b'{"errors":[{"code":"UNSUPPORTED","message":"The operation is unsupported."}]}')
        elif reference not in manifests:
            self._answer(404)
        else:
            content, spread = manifests[reference], reference.startswith("sha256:") and not self.registry.keeps_tags
            for name in [name for name, each in manifests.items() if name == reference or (spread and each == content)]:
                del manifests[name]
            self._answer(202)
