"""Revisions of a TokenService: what its pods are made from, kept as ControllerRevisions, as StatefulSets keep theirs.

A revision holds what was asked for (its inputs) and the pod template that was rendered from it. It is known by its
inputs, and its template goes on being used as it was rendered: another version of this operator, which renders
differently, rolls nothing. Pure functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from tokenservice.api import names
from tokenservice.api.meta import ControllerRevision, stamp, time_of
from tokenservice.api.v1alpha1 import EnvironmentStatus, TokenService
from tokenservice.kube.apply import with_hash
from tokenservice.pods.manifests import Manifest

KEPT = 10
"""How many revisions are kept, as Deployments do; those in use are kept beyond that."""
STABLE_SECONDS = 5
"""For so long a pod must have been Ready to count."""

_HASH_DIGITS = 10

_canonical = msgspec.json.Encoder(order="deterministic")


class Failed(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Why a revision is not rolled out any more: what its annotation says.

    Attributes:
        reason: of the container that failed, or the operator's own.
        message: its last words.
        at: when that was found, as a timestamp of Kubernetes.
        asked: what was asked for then (`asked`): asked for anything else, it is tried again.

    """

    reason: str
    message: str
    at: str
    asked: str


@dataclass(frozen=True)
class Wanted:
    """The revision that a spec asks for: one that exists, or one to be made."""

    name: str
    number: int
    template: Manifest
    """The pod template, with the label that tells its revision."""
    environment: EnvironmentStatus | None
    manifest: Manifest | None = None
    """The ControllerRevision to create; None if it exists."""
    failed: Failed | None = None
    since: datetime | None = None
    """When it was asked for last; None if it is yet to be made."""


def inputs(service: TokenService, runs_in: EnvironmentStatus) -> dict[str, Any]:
    """Everything of a TokenService that its pods are made from; `replicas` is none of it.

    Defaults are left out, so that fields of later versions change nothing. Hash and lock of the environment are not
    in it: what they lead to is the image.
    """
    spec = service.spec
    found = {
        "model": _given(spec.model),
        "engine": _given(spec.engine),
        "api": _given(spec.api),
        "template": spec.template,
        "image": runs_in.image,
        "condaEnv": runs_in.conda_env,
    }
    return {name: value for name, value in found.items() if value}


def asked(service: TokenService) -> str:
    """A hash of what would be another request to roll out the same: the spec, and the retry annotation.

    Without what says how often and whether to; and without the environment: another one makes another revision, once
    it is built, and until then nothing is to be tried again.
    """
    spec = _given(service.spec)
    for name in ("replicas", "paused", "environment"):
        spec.pop(name, None)
    spec.get("rollout", {}).pop("onFailure", None)
    if not spec.get("rollout"):
        spec.pop("rollout", None)
    return _hash([spec, service.metadata.annotations.get(names.ANNOTATION_RETRY, "")])


def wanted(
    service: TokenService,
    revisions: Iterable[ControllerRevision],
    inputs: Mapping[str, Any],
    template: Manifest,
    runs_in: EnvironmentStatus,
) -> Wanted:
    """The revision for these inputs; `template` is what they are rendered to now.

    Of those that exist one counts that was asked for in the same way, or whose template is the same.
    """
    known = tuple(revisions)
    asks = _canonical.encode(inputs)
    for revision in sorted(known, key=lambda revision: revision.revision, reverse=True):
        same = _normal(bytes(revision.data.inputs)) == asks
        if same or _unlabelled(bytes(revision.data.template)) == _canonical.encode(template):
            return of(revision)
    name = f"{service.metadata.name}-{_hash(inputs)}"
    labelled = _labelled(template, name)
    number = 1 + max((revision.revision for revision in known), default=0)
    manifest: Manifest = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": name,
            "namespace": service.metadata.namespace,
            "labels": names.child_labels(service.metadata.name),
            "ownerReferences": [names.owner("TokenService", service.metadata.name, service.metadata.uid)],
        },
        "revision": number,
        "data": {"inputs": inputs, "template": labelled, "environment": msgspec.to_builtins(runs_in)},
    }
    return Wanted(name, number, labelled, runs_in, manifest)


def of(revision: ControllerRevision) -> Wanted:
    """An existing revision, read."""
    return Wanted(
        name=revision.metadata.name,
        number=revision.revision,
        template=msgspec.json.decode(revision.data.template),
        environment=_environment(bytes(revision.data.environment)),
        failed=failed(revision),
        since=asked_at(revision),
    )


def asked_at(revision: ControllerRevision) -> datetime | None:
    """When it was asked for last."""
    try:
        again = time_of(revision.metadata.annotations.get(names.ANNOTATION_ASKED_AT))
    except ValueError:  # somebody else wrote it
        again = None
    return again if again and again.tzinfo else time_of(revision.metadata.creation_timestamp)


def failed(revision: ControllerRevision) -> Failed | None:
    """What its annotation says; None without one, or with one that cannot be read."""
    text = revision.metadata.annotations.get(names.ANNOTATION_FAILED)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Failed)
    except msgspec.MsgspecError:
        return None


def mark(failed: Failed) -> Manifest:
    """The patch of a ControllerRevision that says that its rollout failed."""
    return {"metadata": {"annotations": {names.ANNOTATION_FAILED: msgspec.json.encode(failed).decode()}}}


def again(number: int, now: datetime) -> Manifest:
    """The patch of a ControllerRevision that is asked for again: it is tried as if it were new."""
    annotations = {names.ANNOTATION_FAILED: None, names.ANNOTATION_COLD: None, names.ANNOTATION_ASKED_AT: stamp(now)}
    return {"revision": number, "metadata": {"annotations": annotations}}


def adoption(service: TokenService) -> Manifest:
    """The patch of a ControllerRevision that nobody controls any more."""
    owner = names.owner("TokenService", service.metadata.name, service.metadata.uid)
    return {"metadata": {"ownerReferences": [owner]}}


def label(name: str) -> str:
    """The value of a pod's label for the revision of that name; a name may be too long for a label."""
    return name.rsplit("-", 1)[-1]


def deployment(base: Manifest, revision: Wanted, *, hold: bool, replicas: int) -> Manifest:
    """The Deployment with the template of `revision`.

    Args:
        base: the Deployment as rendered, whatever its template.
        revision: the one that it is to have.
        hold: whether its rollout is held.
        replicas: how many of the TokenService's pods are the Deployment's.

    Pods of a first revision count as soon as they are Ready: nothing is replaced by them. Later ones must stay so for
    a moment first, before an old one goes.

    """
    metadata = base["metadata"]
    annotations = {**(metadata.get("annotations") or {}), names.ANNOTATION_REVISION: revision.name}
    spec = {**base["spec"], "template": revision.template, "replicas": replicas}
    if hold:
        spec["paused"] = True
    if revision.number > 1:
        spec["minReadySeconds"] = min(STABLE_SECONDS, spec["progressDeadlineSeconds"] - 1)  # the API asks for less
    return with_hash({**base, "metadata": {**metadata, "annotations": annotations}, "spec": spec})


def superfluous(
    revisions: Sequence[ControllerRevision], used: Iterable[str | None], coming: int = 0
) -> tuple[ControllerRevision, ...]:
    """The oldest ones beyond those that are kept.

    used: names of those that must stay. coming: how many are being made.
    """
    in_use = set(used)
    others = sorted(
        (revision for revision in revisions if revision.metadata.name not in in_use),
        key=lambda revision: revision.revision,
        reverse=True,
    )
    return tuple(others[max(0, KEPT - coming - (len(revisions) - len(others))) :])


def image(revision: ControllerRevision) -> str | None:
    """The image of the container that serves."""
    environment = _environment(bytes(revision.data.environment))
    return environment.image if environment else None


def _given(value: Any) -> Any:
    """As `msgspec.to_builtins`, without the fields that equal their defaults, wherever they come from."""
    if isinstance(value, msgspec.Struct):
        fields = ((field, getattr(value, field.name)) for field in msgspec.structs.fields(value))
        return {field.encode_name: _given(found) for field, found in fields if found != _default(field)}
    if isinstance(value, list | tuple):
        return [_given(item) for item in value]
    return value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


@lru_cache(maxsize=4096)
def _environment(data: bytes) -> EnvironmentStatus | None:
    return msgspec.json.decode(data, type=EnvironmentStatus | None)


def _labelled(template: Manifest, name: str) -> Manifest:
    metadata = template.get("metadata") or {}
    labels = {**(metadata.get("labels") or {}), names.LABEL_REVISION: label(name)}
    return {**template, "metadata": {**metadata, "labels": labels}}


@lru_cache(maxsize=4096)
def _normal(data: bytes) -> bytes:
    return _canonical.encode(msgspec.json.decode(data))


@lru_cache(maxsize=1024)
def _unlabelled(data: bytes) -> bytes:
    template = msgspec.json.decode(data)
    template.get("metadata", {}).get("labels", {}).pop(names.LABEL_REVISION, None)
    return _canonical.encode(template)


def _hash(value: Any) -> str:
    return hashlib.sha256(_canonical.encode(value)).hexdigest()[:_HASH_DIGITS]
