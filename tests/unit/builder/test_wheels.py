from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import Http, Retries
from tokenservice.builder.wheels import Wheel, WheelCache, check_hashes, locked_hashes, parse_pylock, pip_settings

A, B, C = "a" * 64, "b" * 64, "c" * 64
LOCK = f"""Some_Package[extra]==1.0 \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
other==2.0 ; python_version < '4' \\
    --hash=sha256:{C}
"""
PYLOCK = f"""
lock-version = "1.0"
[[packages]]
name = "some-package"
version = "1.0"
wheels = [{{ url = "https://x.io/some_package-1.0%2Bcpu-py3-none-any.whl", size = 7, hashes = {{ sha256 = "{A}" }} }}]
[[packages]]
name = "other"
version = "2.0"
wheels = [{{ name = "other-2.0-py3-none-any.whl", url = "https://files.example/o", hashes = {{ sha256 = "{C}" }} }}]
"""


def test_the_lock_files_hashes() -> None:
    assert locked_hashes(LOCK) == {"some-package": frozenset({A, B}), "other": frozenset({C})}


def test_a_package_without_a_hash_is_refused() -> None:
    with pytest.raises(BuildError, match="other has no sha256 in the lock file"):
        locked_hashes("other==2.0\n")


def test_the_choice_is_sorted_and_may_lack_sizes() -> None:
    assert [(wheel.name, wheel.filename, wheel.size) for wheel in parse_pylock(PYLOCK)] == [
        ("other", "other-2.0-py3-none-any.whl", 0),
        ("some-package", "some_package-1.0+cpu-py3-none-any.whl", 7),
    ]


def test_a_package_without_a_wheel_is_named() -> None:
    with pytest.raises(BuildError, match=r"x 1\.0 has no wheel for Python 3\.11"):
        parse_pylock('[[packages]]\nname = "x"\nversion = "1.0"\n')


def test_a_hash_that_the_lock_does_not_know_is_refused() -> None:
    wheels = parse_pylock(PYLOCK)
    check_hashes(wheels, locked_hashes(LOCK))
    with pytest.raises(BuildError, match=r"other-2\.0-py3-none-any\.whl with a hash that is not in the lock file"):
        check_hashes(wheels, {"some-package": frozenset({A}), "other": frozenset({A})})


PIP_CONF = """[global]
index-url = https://mirror.example/simple
extra-index-url =
  https://a.example/s
  https://b.example/s
cert = /ca.pem
"""


@pytest.mark.parametrize(
    ("environ", "conf", "wanted"),
    [
        ({}, None, {}),
        (
            {},
            PIP_CONF,
            {
                "UV_DEFAULT_INDEX": "https://mirror.example/simple",
                "UV_INDEX": "https://a.example/s https://b.example/s",
                "SSL_CERT_FILE": "/ca.pem",
            },
        ),
        (
            {"PIP_INDEX_URL": "https://e.example/s", "PIP_CERT": "/c"},
            None,
            {"UV_DEFAULT_INDEX": "https://e.example/s", "SSL_CERT_FILE": "/c"},
        ),
        ({"PIP_INDEX_URL": "https://e.example/s", "UV_INDEX_URL": "https://u.example/s"}, None, {}),
        ({}, "no ini file", {}),
    ],
)
def test_what_pip_was_told_uv_is_told(environ: dict[str, str], conf: str | None, wanted: dict[str, str]) -> None:
    def read(path: Path) -> str | None:
        return conf if path == Path("/h/.config/pip/pip.conf") else None

    assert pip_settings({"HOME": "/h", **environ}, read) == wanted


class Index(ThreadingHTTPServer):
    """A stand-in for a package index's file server. `cut`: answers that end after so many bytes."""

    content = bytes(range(256)) * 20_000
    cut: list[int]
    ranges: list[str]
    logins: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Index

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.ranges.append(asked)
        self.server.logins.append(self.headers.get("Authorization", ""))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/there")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/none":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-") or 0)
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut:
            self.wfile.write(body[: self.server.cut.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)


@pytest.fixture
def index() -> Iterator[Index]:
    server = Index(("127.0.0.1", 0), _Handler)
    server.cut, server.ranges, server.logins = [], [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def a_wheel(index: Index, path: str = "/x", sha256: str = "") -> Wheel:
    digest = sha256 or hashlib.sha256(index.content).hexdigest()
    return Wheel("x", "1", "x-1-py3-none-any.whl", digest, len(index.content), index.url + path)


def a_cache(folder: Path, **environ: str) -> WheelCache:
    return WheelCache(folder, Http(), {"HOME": str(folder), **environ}, Retries(sleep=lambda _: None))


@pytest.mark.parametrize("path", ["/x", "/moved"])
def test_a_wheel_is_downloaded_once(tmp_path: Path, index: Index, path: str) -> None:
    cache, wheel = a_cache(tmp_path), a_wheel(index, path)
    assert cache.fetch([wheel])[0].read_bytes() == index.content
    asked = len(index.ranges)
    assert cache.fetch([wheel]) == [cache.path(wheel)]
    assert len(index.ranges) == asked
    cache.forget([wheel])
    assert not cache.path(wheel).exists()


def test_a_broken_download_goes_on_where_it_was(tmp_path: Path, index: Index) -> None:
    index.cut = [3_000_000]
    assert a_cache(tmp_path).fetch([a_wheel(index)])[0].read_bytes() == index.content
    first, second = index.ranges
    assert first == ""
    assert int(second.removeprefix("bytes=").removesuffix("-")) > 0


def test_another_content_is_refused_and_not_kept(tmp_path: Path, index: Index) -> None:
    cache, wheel = a_cache(tmp_path), a_wheel(index, sha256=A)
    with pytest.raises(BuildError, match=r"x-1-py3-none-any\.whl has another content than the lock file says"):
        cache.fetch([wheel])
    assert not cache.path(wheel).exists()


def test_a_file_that_is_gone_is_not_tried_again(tmp_path: Path, index: Index) -> None:
    with pytest.raises(BuildError, match=r"127\.0\.0\.1 answers 404"):
        a_cache(tmp_path).fetch([a_wheel(index, "/none")])
    assert len(index.ranges) == 1


def test_the_indexs_login_goes_to_its_own_host(tmp_path: Path, index: Index) -> None:
    port = index.server_address[1]
    a_cache(tmp_path, PIP_INDEX_URL=f"http://me:s%40c@127.0.0.1:{port}/simple").fetch([a_wheel(index)])
    assert index.logins == ["Basic bWU6c0Bj"]
    a_cache(tmp_path / "b", PIP_INDEX_URL="http://me:secret@elsewhere.example/simple").fetch([a_wheel(index)])
    assert index.logins[1:] == [""]
