"""A blob read from a registry as it comes, in pieces; a broken download goes on where it broke."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Self

import urllib3

from .errors import BuildError
from .oci import Descriptor
from .progress import Meter, quiet, say
from .registry_errors import plain_cause, refused, unreachable
from .registry_session import RefusedError, Session

_CHUNK = 1 << 20


class BlobStream:
    """A readable file over `GET /v2/REPOSITORY/blobs/DIGEST`. The content is not checked: its reader does that.

    Reading raises BuildError when the registry refuses, or breaks off more often in a row than its retries say.
    """

    def __init__(self, session: Session, repository: str, blob: Descriptor, scopes: tuple[str, ...]) -> None:
        self._session, self._scopes = session, scopes
        self._path = f"{repository}/blobs/{blob.digest}"
        self._size = blob.size
        self._done = 0
        self._response: urllib3.BaseHTTPResponse | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes (some mebibytes where it is not given); b"" at the end."""
        retries = self._session.retries
        for attempt in range(retries.attempts):
            last = attempt == retries.attempts - 1
            try:
                if self._response is None:
                    self._response = self._open()
                piece = self._response.read(size if size > 0 else _CHUNK) or b""
                if not piece and self._done < self._size:
                    raise urllib3.exceptions.ProtocolError("the connection was closed too early")
            except RefusedError as refusal:
                if last or not refusal.answer.passes:
                    raise refused(self._session.host, "GET", self._path, refusal.answer) from None
                cause = str(refusal.answer.status)
            except urllib3.exceptions.HTTPError as error:
                if last or isinstance(error, urllib3.exceptions.SSLError):
                    raise unreachable(self._session.host, error) from error
                cause = plain_cause(error)
            else:
                self._done += len(piece)
                return piece
            self._drop()
            say(f"{self._session.host}: a download broke off ({cause}), going on from byte {self._done}")
            retries.pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        self._drop()

    def _drop(self) -> None:
        # A connection with an unread rest is of no more use.
        if self._response is not None:
            self._response.close()
            self._response = None

    def _open(self) -> urllib3.BaseHTTPResponse:
        # With an end, since some registries do not understand a range that has none.
        headers = {"Range": f"bytes={self._done}-{self._size - 1}"} if self._done and self._size else {}
        response = self._session.stream(self._path, self._scopes, headers)
        try:
            begins = self._done if response.status == 206 and self._is_rest(response) else 0
            # A registry without ranges sends everything again: what is known already is read over.
            while begins < self._done:
                piece = response.read(min(_CHUNK, self._done - begins))
                if not piece:
                    raise urllib3.exceptions.ProtocolError("the connection was closed too early")
                begins += len(piece)
        except BaseException:
            response.close()
            raise
        return response

    def _is_rest(self, response: urllib3.BaseHTTPResponse) -> bool:
        told = response.headers.get("Content-Range", "")
        if told.startswith(f"bytes {self._done}-"):
            return True
        raise BuildError(f"{self._session.host}: asked from byte {self._done}, it sent {told!r}", "RegistryUnavailable")


def download(stream: BlobStream, blob: Descriptor, path: Path, meter: Meter = quiet) -> bool:
    """Writes the stream to `path`, which appears by rename; False (and no file) where its digest is another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    summed, done = hashlib.sha256(), 0
    try:
        with stream, part.open("wb") as file:
            while piece := stream.read(_CHUNK):
                file.write(piece)
                summed.update(piece)
                done += len(piece)
                meter(done, blob.size)
        if f"sha256:{summed.hexdigest()}" != blob.digest:
            return False
        part.replace(path)
        return True
    finally:
        part.unlink(missing_ok=True)
