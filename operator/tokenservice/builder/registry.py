"""A client of image registries: the OCI distribution specification, version 1.1.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlencode, urljoin

from .blob_stream import BlobStream, download
from .errors import BuildError
from .oci import DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST, Descriptor, digest_of
from .progress import Meter, quiet
from .registry_errors import Answer, refused
from .registry_session import Session

MANIFEST_TYPES = (MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST)
_CHUNK = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# Tags asked for at once. A registry may give fewer; its Link header leads to the rest.
_TAGS_PAGE = 1000


class Source(Protocol):
    """What a blob is read from: a file, or another registry's answer."""

    def read(self, size: int, /) -> bytes: ...
    def __enter__(self) -> Source: ...
    def __exit__(self, *_: Any) -> None: ...


Opener = Callable[[], Source]


class Registry(Session):
    """One registry, with what callers do there. Everything raises BuildError with a reason."""

    # Blobs

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether the repository holds the blob."""
        return self.call("HEAD", f"{repository}/blobs/{digest}", pull(repository), {200, 404}).status == 200

    def push_blob(
        self,
        repository: str,
        blob: Descriptor,
        opened: Opener,
        mount_from: Sequence[str] = (),
        meter: Meter = quiet,
    ) -> int:
        """Makes sure that the repository holds the blob; returns the bytes sent, 0 if it or a neighbour had it.

        `opened` gives the content from its beginning, once for each try. `mount_from` names repositories of the same
        registry that may have the blob.
        """
        if self.has_blob(repository, blob.digest):
            return 0
        for other in mount_from:
            if other != repository and self._has_quietly(other, blob.digest) and self._mounted(repository, other, blob):
                return 0
        self._upload(repository, blob, opened, meter)
        return blob.size

    def copy_blob(
        self, repository: str, blob: Descriptor, source: Registry, source_repository: str, meter: Meter = quiet
    ) -> int:
        """Makes sure that the repository holds a blob of another one; returns the bytes sent, 0 if none had to be.

        Mounted where both are in the same registry, else passed on as it comes: neither memory nor disk holds it whole.
        """
        same = self.host == source.host
        return self.push_blob(
            repository,
            blob,
            lambda: source.open_blob(source_repository, blob),
            (source_repository,) if same else (),
            meter,
        )

    def open_blob(self, repository: str, blob: Descriptor) -> BlobStream:
        """A blob to read as it comes, resumed where it breaks off. Its content is not checked."""
        return BlobStream(self, repository, blob, pull(repository))

    def download_blob(self, repository: str, blob: Descriptor, path: Path, meter: Meter = quiet) -> None:
        """A blob into a file, which is there only when it has the right content. Tried twice if it is not."""
        for _ in range(2):
            if download(self.open_blob(repository, blob), blob, path, meter):
                return
        raise self._other_content(repository, blob.digest)

    def get_blob(self, repository: str, digest: str) -> bytes:
        """A small blob's content (a config, a lock), checked."""
        answer = self.call("GET", f"{repository}/blobs/{digest}", pull(repository), {200})
        if digest_of(answer.body) != digest:
            raise self._other_content(repository, digest)
        return answer.body

    # Manifests and tags

    def push_manifest(self, repository: str, manifest: bytes, media_type: str, tag: str) -> int:
        """Puts the manifest by digest, then the tag on it; returns the bytes sent, 0 if the tag was there already."""
        digest = digest_of(manifest)
        sent = 0
        for reference in (digest, tag):
            if self.resolve(repository, reference) == digest:
                continue
            path = f"{repository}/manifests/{reference}"
            self.call("PUT", path, push(repository), {201}, headers={"Content-Type": media_type}, body=manifest)
            sent += len(manifest)
        return sent

    def resolve(self, repository: str, reference: str) -> str | None:
        """The digest that a tag (or a digest) stands for, or None where there is no such manifest."""
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        path = f"{repository}/manifests/{reference}"
        answer = self.call("HEAD", path, pull(repository), {200, 404}, headers=headers)
        if answer.status == 404:
            return None
        digest = answer.headers.get("docker-content-digest", "")
        # The header is optional; the content says it, too.
        return digest if _DIGEST.fullmatch(digest) else digest_of(self.get_manifest(repository, reference)[0])

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """A manifest's bytes and media type, checked against the digest where the reference is one."""
        found = self._manifest(repository, reference, {200})
        assert found is not None  # noqa: S101 - 404 raises
        return found

    def find_manifest(self, repository: str, reference: str) -> bytes | None:
        """A manifest's bytes, in one request, or None where there is none."""
        found = self._manifest(repository, reference, {200, 404})
        return found[0] if found else None

    def _manifest(self, repository: str, reference: str, fine: set[int]) -> tuple[bytes, str] | None:
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        answer = self.call("GET", f"{repository}/manifests/{reference}", pull(repository), fine, headers=headers)
        if answer.status == 404:
            return None
        if _DIGEST.fullmatch(reference) and digest_of(answer.body) != reference:
            raise self._other_content(repository, reference)
        return answer.body, answer.headers.get("content-type", MANIFEST).partition(";")[0].strip()

    def delete_manifest(self, repository: str, digest: str) -> bool:
        """Deletes a manifest, with the tags on it; False where there was none. Its blobs are the registry's to collect.

        Raises BuildError that says how deleting is allowed where the registry does not.
        """
        path = f"{repository}/manifests/{digest}"
        answer = self.call("DELETE", path, delete(repository), {200, 202, 404, 405})
        if answer.status == 405:
            hint = (
                "allow it (distribution/registry: REGISTRY_STORAGE_DELETE_ENABLED=true), or use its own retention rules"
            )
            raise BuildError(f"{self.host} does not let manifests be deleted: {hint}")
        return answer.status != 404

    def delete_tag(self, repository: str, tag: str) -> None:
        """Takes a tag away where it is still there, as far as the registry does that."""
        self.call("DELETE", f"{repository}/manifests/{tag}", delete(repository), {200, 202, 400, 404, 405})

    def list_tags(self, repository: str) -> list[str]:
        """Every tag of the repository, page by page; none where there is no such repository."""
        path = f"{repository}/tags/list?n={_TAGS_PAGE}"
        found: dict[str, None] = {}
        while True:
            answer = self.call("GET", path, pull(repository), {200, 404})
            tags = self._tags(repository, answer) if answer.status == 200 else []
            new = [tag for tag in tags if tag not in found]
            found |= dict.fromkeys(new)
            following = re.match(r'\s*<([^>]+)>\s*;.*\brel="?next\b', answer.headers.get("link", ""))
            if new and following:
                path = urljoin(answer.headers["x-request-url"], following[1])
            elif new and len(tags) >= _TAGS_PAGE:  # a full page, of a registry that does not say whether there is more
                path = f"{repository}/tags/list?{urlencode({'n': _TAGS_PAGE, 'last': tags[-1]})}"
            else:
                return list(found)

    def _tags(self, repository: str, answer: Answer) -> list[str]:
        try:
            return [str(tag) for tag in json.loads(answer.body).get("tags") or ()]
        except (ValueError, AttributeError, TypeError) as error:
            text = f"{self.host}: the tags of {repository} cannot be read"
            raise BuildError(text, "RegistryUnavailable") from error

    def _other_content(self, repository: str, digest: str) -> BuildError:
        return BuildError(f"{self.host}/{repository}@{digest}: the registry sent other content", "ChecksumMismatch")

    # Mount and upload

    def _has_quietly(self, repository: str, digest: str) -> bool:
        # A neighbour that we may not read is no neighbour to mount from, and no error.
        path = f"{repository}/blobs/{digest}"
        return self.call("HEAD", path, pull(repository), {200, 401, 403, 404}).status == 200

    def _mounted(self, repository: str, other: str, blob: Descriptor) -> bool:
        query = urlencode({"mount": blob.digest, "from": other})
        scopes = (*push(repository), *pull(other))
        answer = self.call("POST", f"{repository}/blobs/uploads/?{query}", scopes, {201, 202, 401, 403})
        if answer.status == 202:  # not mounted: it began an upload that nobody will finish
            location = urljoin(answer.headers["x-request-url"], answer.headers.get("location", ""))
            self.call("DELETE", location, push(repository), {204, 404, 405})
        return answer.status == 201

    def _upload(self, repository: str, blob: Descriptor, opened: Opener, meter: Meter) -> None:
        # A broken upload starts anew: not every registry can say how far it came.
        for attempt in range(self.retries.attempts):
            begun = self.call("POST", f"{repository}/blobs/uploads/", push(repository), {202})
            location = urljoin(begun.headers["x-request-url"], begun.headers.get("location", ""))
            target = f"{location}{'&' if '?' in location else '?'}{urlencode({'digest': blob.digest})}"
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
            with opened() as source:
                body = _Metered(source, blob.size, meter)
                last = attempt == self.retries.attempts - 1
                answer = self.once("PUT", target, push(repository), headers, body, raising=last)
            if answer is not None and answer.status == 201:
                return
            # 404: the registry forgot the upload, as one that was restarted does.
            # 401: the token ran out while the content was on its way.
            again = answer is None or answer.passes or answer.status in (401, 404)
            if last or not again:
                raise refused(self.host, "PUT", f"{repository}/blobs/{blob.digest}", answer)
            self.retries.pause(attempt)


def pull(repository: str) -> tuple[str, ...]:
    """The token scope for reading."""
    return (f"repository:{repository}:pull",)


def push(repository: str) -> tuple[str, ...]:
    """The token scope for writing."""
    return (f"repository:{repository}:pull,push",)


def delete(repository: str) -> tuple[str, ...]:
    """The token scope for deleting."""
    return (f"repository:{repository}:pull,push,delete",)


class _Metered:
    """A request body of known length that tells how much of it was read."""

    def __init__(self, source: Source, total: int, meter: Meter) -> None:
        self._source, self._total, self._meter, self._done = source, total, meter, 0

    def read(self, size: int = -1) -> bytes:
        # Larger pieces than the HTTP library's 16 KiB: fewer calls for gigabytes.
        piece = self._source.read(_CHUNK if 0 < size < _CHUNK else size)
        self._done += len(piece)
        self._meter(self._done, self._total)
        return piece


def open_file(path: Path) -> Callable[[], IO[bytes]]:
    """Opens `path` anew at each call, as `push_blob` wants it."""
    return lambda: path.open("rb")
