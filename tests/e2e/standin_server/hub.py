#!/usr/bin/env python3
"""A STAND-IN for the Hugging Face hub, where the real one cannot be reached: serves model folders over its HTTP paths.

    hub.py --port 8080 --model ORG/NAME=FOLDER [--token TOKEN] [--gated ORG/NAME]

Point huggingface_hub at it with HF_ENDPOINT=http://HOST:8080. It answers what `from_pretrained` asks for: files of a
revision (`main` only), and the hub's own X-Error-Code for a repository, revision or file that is not there or gated.
With --token, every repository counts as private and wants `Authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    models: dict[str, Path]
    gated: frozenset[str]
    token: str | None

    def do_HEAD(self) -> None:
        self.serve(body=False)

    def do_GET(self) -> None:
        self.serve(body=True)

    def serve(self, *, body: bool) -> None:
        parts = self.path.split("?", 1)[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        if api:
            parts = parts[2:]
        name = "/".join(parts[:2])
        allowed = self.headers.get("Authorization") == f"Bearer {self.token}"
        if name not in self.models or (self.token and not allowed and name not in self.gated):
            self.refuse(401 if not allowed else 404, "RepoNotFound", "Repository Not Found")
        elif name in self.gated and not allowed:
            self.refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        elif api and parts[2:3] == ["tree"]:
            found = sorted(self.models[name].iterdir())
            tree = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT} for file in found]
            self.send(json.dumps(tree).encode(), body=body)
        elif api and parts[2:3] == ["revision"] and parts[3] not in {"main", COMMIT}:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {parts[3]}")
        elif api:
            files = [{"rfilename": file.name} for file in sorted(self.models[name].iterdir())]
            self.send(json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode(), body=body)
        elif len(parts) < 5 or parts[2] != "resolve":
            self.refuse(404, "EntryNotFound", "no such path")
        elif parts[3] not in {"main", COMMIT}:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {parts[3]}")
        else:
            file = self.models[name] / "/".join(parts[4:])
            if file.is_file() and file.resolve().is_relative_to(self.models[name].resolve()):
                self.send(file.read_bytes(), body=body)
            else:
                self.refuse(404, "EntryNotFound", "Entry not found")

    def send(self, data: bytes, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--model", action="append", default=[], metavar="ORG/NAME=FOLDER")
    parser.add_argument("--gated", action="append", default=[], metavar="ORG/NAME")
    parser.add_argument("--token", default=None)
    given = parser.parse_args()
    models = {name: Path(folder) for name, _, folder in (pair.partition("=") for pair in given.model)}
    handler = type("BoundHub", (Hub,), {"models": models, "gated": frozenset(given.gated), "token": given.token})
    server = ThreadingHTTPServer(("0.0.0.0", given.port), handler)
    sys.stderr.write(f"hub stand-in on port {server.server_port}\n")
    server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
