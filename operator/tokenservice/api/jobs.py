"""The contract between the manager and the Jobs that lock, build and collect environments; both import these types.

A request goes in as JSON in the variable TOKENSERVICE_REQUEST, a result comes out as the container's termination
message, and in full as the last line of its log.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tokenservice.api.meta import Struct

REQUEST_VARIABLE = "TOKENSERVICE_REQUEST"
SETTINGS_VARIABLE = "TOKENSERVICE_SETTINGS"

EXIT_DONE = 0
EXIT_PASSING = 1
"""What failed may pass by itself: the Job is tried again."""
EXIT_TERMINAL = 2
"""Trying again cannot help before somebody changes something: the Job fails at once."""

RESULT_BYTES = 4096
"""What Kubernetes keeps of a termination message."""

MESSAGE_BYTES = 30 << 10
"""How much of an explanation goes into a condition, whose message may have 32,768 characters."""

Reason = Literal[
    # What the user must change.
    "InvalidEnvironment",  # an entry cannot be read, or is refused by name
    "Unsolvable",  # the constraints contradict each other
    "UnknownPackage",  # no channel has such a package
    "ChannelNotAllowed",  # the cluster's owner does not allow this channel or index
    "BaseImageNotAllowed",  # nor this base image
    "LockUnusable",  # the given lock cannot be read, or does not fit the platform
    "PostLinkScript",  # a package wants to run a script that the owner has not allowed
    "UnsafeArchive",  # an archive's member leaves the prefix
    # What may pass, or what the cluster's owner must change.
    "ChannelUnavailable",  # a channel or index does not answer, or not in time
    "ChecksumMismatch",  # a download has another content than the lock or the index says
    "RegistryUnavailable",
    "RegistryUnauthorized",
    "RegistryFull",
    "DiskFull",
    "TimedOut",
    "Failed",  # anything else, in the program's own words
]
TERMINAL: frozenset[Reason] = frozenset(
    {
        "InvalidEnvironment",
        "Unsolvable",
        "UnknownPackage",
        "ChannelNotAllowed",
        "BaseImageNotAllowed",
        "LockUnusable",
        "PostLinkScript",
        "UnsafeArchive",
    }
)


class VirtualPackages(Struct, frozen=True, kw_only=True):
    """What the target nodes offer: versions, for example cuda "12.4" (for `__cuda`) and glibc "2.36"."""

    cuda: str | None = None
    glibc: str | None = None


class LockRequest(Struct, frozen=True, kw_only=True, tag_field="kind", tag="lock"):
    """Solve this environment and push the lock.

    Attributes:
        environment: the canonical environment, as tokenservice.environments.spec makes it (an environment.yml as JSON).
        platform: conda's name of it, such as linux-64.
        previous: OCI reference (in our own repository, by digest) of the lock whose choices are preferred.
        lock: OCI reference of a lock to use as it is, in place of solving.

    """

    environment: dict[str, object]
    platform: str = "linux-64"
    virtual_packages: VirtualPackages = VirtualPackages()
    exclude_newer: str | None = None
    previous: str | None = None
    lock: str | None = None


class BuildRequest(Struct, frozen=True, kw_only=True, tag_field="kind", tag="build"):
    """Make the image of this lock and push it.

    Attributes:
        lock: OCI reference of the lock in our own repository, by digest.
        base_image: reference of the base; None for the owner's default.
        variables: set in the image's config.
        name: the environment's name, for CONDA_DEFAULT_ENV and a label of the image.

    """

    lock: str
    lock_digest: str
    platform: str = "linux-64"
    base_image: str | None = None
    variables: dict[str, str] = msgspec.field(default_factory=dict)
    name: str = "env"


class CollectRequest(Struct, frozen=True, kw_only=True, tag_field="kind", tag="collect"):
    """Delete images, locks and layer notes of the repository that nothing needs.

    Attributes:
        keep: digests (`sha256:...`) of every image and lock that is in use or among the last few of its environment.

    """

    keep: tuple[str, ...] = ()


class LockAnswer(Struct, frozen=True, kw_only=True):
    """What a lock Job made.

    Attributes:
        lock_digest: over the packages, see the lock's module.
        reference: `HOST/REPOSITORY@sha256:...` of the lock artifact, as Jobs reach the registry.
        packages: how many packages it names.

    """

    lock_digest: str
    reference: str
    packages: int


class BuildAnswer(Struct, frozen=True, kw_only=True):
    """What a build Job made.

    Attributes:
        image: `HOST/REPOSITORY@sha256:...` as nodes reach the registry.
        base: the base image by digest.
        bytes_total: bytes of the whole image as stored in the registry (compressed).
        bytes_pushed: bytes sent to the registry by this Job.
        bytes_shared: bytes of layers that the registry had already.
        layers: how many layers the image has.

    """

    image: str
    base: str
    bytes_total: int
    bytes_pushed: int
    bytes_shared: int
    layers: int


class CollectAnswer(Struct, frozen=True, kw_only=True):
    """What a collect Job did: manifests deleted, and manifests that stay."""

    deleted: int
    kept: int


class Problem(Struct, frozen=True, kw_only=True):
    """Why there is no result. message: in full in the log, cut in the termination message (then `truncated`)."""

    reason: Reason
    message: str
    truncated: bool = False

    @property
    def terminal(self) -> bool:
        return self.reason in TERMINAL


class JobResult(Struct, frozen=True, kw_only=True):
    """Exactly one of the four is there; `seconds` is how long the Job worked."""

    lock: LockAnswer | None = None
    build: BuildAnswer | None = None
    collect: CollectAnswer | None = None
    problem: Problem | None = None
    seconds: float = 0.0


Request = LockRequest | BuildRequest | CollectRequest


def decode_request(text: str) -> Request:
    """Raises msgspec.ValidationError for anything else than a request."""
    request: Request = msgspec.json.decode(text, type=Request)
    return request


def encode_request(request: Request) -> str:
    """The value of `REQUEST_VARIABLE`, without a `$`: Kubernetes would read `$(NAME)` and `$$` as its own."""
    return msgspec.json.encode(request).decode().replace("$", "\\u0024")


def decode_result(text: str | bytes) -> JobResult | None:
    """The result in a termination message or a line of the log; None where there is none."""
    try:
        found = msgspec.json.decode(text, type=JobResult)
    except msgspec.DecodeError:
        return None
    return found if found.lock or found.build or found.collect or found.problem else None


def encode_result(result: JobResult, limit: int | None = None) -> bytes:
    """JSON of at most `limit` bytes: a problem's message is cut to fit."""
    data = msgspec.json.encode(result)
    problem = result.problem
    if limit is None or len(data) <= limit or problem is None:
        return data
    low, high = 0, len(problem.message)
    while low < high:  # the longest message that fits; characters take one to six bytes in JSON
        middle = (low + high + 1) // 2
        if len(_cut(result, problem, middle)) <= limit:
            low = middle
        else:
            high = middle - 1
    return _cut(result, problem, low)


def _cut(result: JobResult, problem: Problem, characters: int) -> bytes:
    cut = msgspec.structs.replace(problem, message=problem.message[:characters], truncated=True)
    return msgspec.json.encode(msgspec.structs.replace(result, problem=cut))
