"""Names of registries, repositories and tags as users give them; and which registries may be asked in plain HTTP."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import urllib3

from .errors import BuildError

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_HOST = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Place:
    """`HOST[:PORT][/PREFIX]`: a registry, and a path in front of every repository's name."""

    host: str
    prefix: str = ""

    def repository(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name


def parse_place(text: str) -> Place:
    """Reads `HOST[:PORT][/PREFIX]`. Raises BuildError that says what is wrong with it."""
    if "://" in text:
        raise BuildError(
            f"--registry {text}: give HOST[:PORT]/PREFIX without a scheme; --plain-http asks for plain HTTP"
        )
    host, _, prefix = text.strip("/").partition("/")
    if not _HOST.fullmatch(host):
        raise BuildError(f"--registry {text}: {host!r} is no HOST or HOST:PORT")
    if prefix and not _REPOSITORY.fullmatch(prefix):
        raise BuildError(
            f"--registry {text}: {prefix!r} is no repository path (lower case letters, digits, . _ - and /)"
        )
    return Place(host, prefix)


@dataclass(frozen=True)
class Reference:
    """An image or another artifact in a registry: `HOST/REPOSITORY:TAG` or `HOST/REPOSITORY@sha256:...`.

    `digest` is "" where only a tag is given; a tag beside a digest says nothing and is dropped.
    """

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def wanted(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag

    def at(self, digest: str) -> Reference:
        """The same repository's manifest with this digest."""
        return Reference(self.host, self.repository, "", digest)

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


def parse_reference(text: str) -> Reference:
    """Reads an image reference as containerd and Docker do: no host is Docker Hub, no tag is `latest`.

    Raises BuildError that says what is wrong with it.
    """
    name, at, digest = text.strip().removeprefix("oci://").partition("@")
    head, _, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    name = f"{head}/{last}" if head else last
    host, _, repository = name.partition("/")
    # The first part is a host only if it looks like one: `library/debian` is a repository of Docker Hub.
    if not repository or not ("." in host or ":" in host or host == "localhost"):
        host, repository = "docker.io", name
    if host in ("docker.io", "index.docker.io", "registry-1.docker.io") and "/" not in repository:
        repository = f"library/{repository}"
    if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(repository):
        form = "HOST/REPOSITORY:TAG or HOST/REPOSITORY@sha256:..."
        raise BuildError(f"{text!r} is no image reference: {form}", "InvalidEnvironment")
    if at and not _DIGEST.fullmatch(digest):
        raise BuildError(f"{text!r}: after @ stands a digest, sha256: and 64 hexadecimal digits", "InvalidEnvironment")
    if colon and not _TAG.fullmatch(tag):
        form = "at most 128 letters, digits, dots, dashes and underscores"
        raise BuildError(f"{text!r}: {tag!r} is no tag ({form})", "InvalidEnvironment")
    return Reference(host, repository, "" if digest else tag or "latest", digest)


def server_of(host: str) -> str:
    """The host that answers for `host`: Docker Hub's registry has another name than its images."""
    return "registry-1.docker.io" if host in ("docker.io", "index.docker.io") else host


def check_tag(tag: str) -> str:
    """The tag, if it is one."""
    if not _TAG.fullmatch(tag):
        raise BuildError(f"--tag {tag}: a tag has at most 128 letters, digits, dots, dashes and underscores")
    return tag


def check_repository(name: str) -> str:
    """The repository's name, if it is one."""
    if not _REPOSITORY.fullmatch(name):
        raise BuildError(f"{name!r} is no repository name (lower case letters, digits, . _ - and /)")
    return name


def may_be_plain(host: str) -> bool:
    """Whether plain HTTP is tried when `host` (`name[:port]`) speaks no TLS: this machine and private addresses."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    private = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
    return address.is_loopback or any(address in ipaddress.ip_network(net) for net in private)


def speaks_no_tls(error: BaseException) -> bool:
    """Whether a failed connection looks like a server of plain HTTP, and not like a certificate that is not trusted."""
    text = str(error).upper()
    if "CERTIFICATE_VERIFY_FAILED" in text or "CERTIFICATE VERIFY FAILED" in text:
        return False
    signs = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF", "RECORD LAYER FAILURE")
    return any(sign in text for sign in signs) or isinstance(error, urllib3.exceptions.ProtocolError)
