"""Serves the folder that this file lies in: conda channels, and a package index at /simple/.

`python3 serve.py [PORT [ADDRESS]]`. Standard library alone, Python 3.9: it runs in images that have nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_JSON = "application/vnd.pypi.simple.v1+json"
_ALWAYS_ASKED = (".json", ".html")


class Handler(SimpleHTTPRequestHandler):
    """Files with ETags and single ranges. Indexes are asked for anew each time: their files' times say nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body, sent after its headers, waits 40 ms for their acknowledgement

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = Path(self.translate_path(self.path))
        kind = self.guess_type(str(path))
        if path.is_dir():
            as_json = _JSON in self.headers.get("Accept", "") and (path / "index.json").is_file()
            path, kind = (path / "index.json", _JSON) if as_json else (path / "index.html", "text/html")
        if path.name.startswith(".") or not path.is_file():
            self._head(404, {}, 0)
            return
        size = path.stat().st_size
        headers = {"Content-Type": kind, "Accept-Ranges": "bytes"}
        if path.suffix in _ALWAYS_ASKED:
            headers["ETag"] = '"' + hashlib.sha256(path.read_bytes()).hexdigest()[:32] + '"'
            headers["Cache-Control"] = "max-age=0"
            if self.headers.get("If-None-Match") == headers["ETag"]:
                self._head(304, headers, 0)
                return
        first, last = 0, size - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            if first > last:
                self._head(416, {"Content-Range": f"bytes */{size}"}, 0)
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._head(206 if asked else 200, headers, last - first + 1)
        if with_body:
            self._send(path, first, last - first + 1)

    def _head(self, status: int, headers: Mapping[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, path: Path, first: int, count: int) -> None:
        with path.open("rb") as source:
            source.seek(first)
            while count > 0:
                piece = source.read(min(count, 1 << 20))
                if not piece:
                    self.close_connection = True
                    return
                self.wfile.write(piece)
                count -= len(piece)


def main() -> None:
    """Serves until the process is told to end."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    address = sys.argv[2] if len(sys.argv) > 2 else ""
    os.chdir(Path(__file__).resolve().parent)
    with ThreadingHTTPServer((address, port), Handler) as server:
        server.daemon_threads = True
        print(f"serving on port {server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
