"""The operator's types and words against crds/ and the documentation: what one side has, the other has too."""

from __future__ import annotations

import importlib.resources
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from tokenservice import protocol
from tokenservice.api import conditions, jobs, names
from tokenservice.api.environments import CondaEnvironment, CondaEnvironmentSpec
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import TokenService

from tools import crd_reference

ROOT = Path(__file__).resolve().parents[2]
CRDS: dict[str, Any] = {
    crd["spec"]["names"]["kind"]: crd
    for crd in (yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml")))
}


def schema_of(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = CRDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


TYPES: dict[str, type[msgspec.Struct]] = {
    "TokenService": TokenService,
    "CondaEnvironment": CondaEnvironment,
    "WarmPool": WarmPool,
}
SCHEMA = schema_of("TokenService")

# The structs of a status leave nothing out, so that what is written is whole; and Condition reads those of Kubernetes'
# own objects too, of which some lack fields that ours always have.
LENIENT = {"Condition": {"lastTransitionTime", "reason", "message"}}


def fields_of(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields_of(field, f"{path}.{name}")
        yield from fields_of(field.get("items", {}), f"{path}.{name}[]")


def compare(kind: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    """What differs between a type and a schema, in words."""
    options = [option for option in typing.get_args(kind) if option is not types.NoneType]
    if isinstance(kind, types.UnionType) and len(options) == 1:
        kind = options[0]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield from compare_struct(kind, schema, path)
        return
    if typing.get_origin(kind) is tuple:
        if schema.get("type") != "array":
            yield f"{path}: {kind} is no array in the CRD"
            return
        yield from compare(typing.get_args(kind)[0], schema["items"], f"{path}[]")
        return
    if typing.get_origin(kind) is typing.Literal:
        if list(typing.get_args(kind)) != schema.get("enum"):
            yield f"{path}: {typing.get_args(kind)} and {schema.get('enum')} differ"
        return
    if kind == int | str:
        fits = schema.get("x-kubernetes-int-or-string")
    elif kind is Any:
        fits = "type" not in schema and schema.get("x-kubernetes-preserve-unknown-fields")
    elif kind == dict[str, Any]:
        fits = schema.get("type") == "object" and schema.get("x-kubernetes-preserve-unknown-fields")
    else:
        fits = schema.get("type") == {str: "string", int: "integer", bool: "boolean", float: "number"}[kind]
    if not fits:
        yield f"{path}: {kind} is not what the CRD has"
    if "enum" in schema and path != ".status.conditions[].status":
        yield f"{path}: the CRD has an enum, the type has none"


def compare_struct(kind: type[msgspec.Struct], schema: dict[str, Any], path: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    properties = {k: v for k, v in schema.get("properties", {}).items() if path or k not in META}
    if not path:
        fields.pop("metadata")
    for name in fields.keys() ^ properties.keys():
        yield f"{path}.{name}: is only in {'the type' if name in fields else 'the CRD'}"
    required = {name for name, field in fields.items() if field.required} | LENIENT.get(kind.__name__, set())
    if required != set(schema.get("required", ())):
        yield f"{path}: required are {sorted(required)} and {sorted(schema.get('required', ()))}"
    for name in fields.keys() & properties.keys():
        field, below = fields[name], properties[name]
        if not path.startswith(".status") and name != "status" and not field.required:
            yield from compare_default(field.default, below, f"{path}.{name}")
        yield from compare(hints[field.name], below, f"{path}.{name}")


def compare_default(default: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    if default is None or default == ():  # absent stays absent
        if "default" in schema:
            yield f"{path}: only the CRD has a default"
        return
    wanted = schema.get("default")
    if isinstance(default, msgspec.Struct) and isinstance(wanted, dict):
        # A CRD's default for a map is filled up with the defaults of its fields.
        wanted = {k: v["default"] for k, v in schema["properties"].items() if "default" in v} | wanted
        default = {f.encode_name: v for f, v in pairs(default) if v not in (None, ())}
    if wanted != default:
        yield f"{path}: defaults are {default!r} and {wanted!r}"


def pairs(struct: msgspec.Struct) -> Iterator[tuple[Any, Any]]:
    for field in msgspec.structs.fields(struct):
        yield field, getattr(struct, field.name)


META = {"apiVersion", "kind", "metadata"}


def differences(kind: str, schema: dict[str, Any]) -> list[str]:
    found = list(compare(TYPES[kind], schema, ""))
    if kind == "CondaEnvironment":  # its spec is kept as it stands, and read by this type
        found += compare(CondaEnvironmentSpec, schema["properties"]["spec"], ".spec")
    return found


@pytest.mark.parametrize("kind", CRDS)
def test_the_types_are_the_crds_schema(kind: str) -> None:
    assert differences(kind, schema_of(kind)) == []


def test_every_kind_has_a_type() -> None:
    assert CRDS.keys() == TYPES.keys()


def removed(schema: dict[str, Any], *path: str) -> dict[str, Any]:
    below = schema["properties"]
    for name in path[:-1]:
        below = below[name]["properties"]
    del below[path[-1]]
    return schema


@pytest.mark.parametrize(
    ("kind", "path", "change", "difference"),
    [
        ("TokenService", ("spec", "model"), {"required": []}, ".spec.model: required are"),
        ("TokenService", ("spec", "model", "source"), {"type": "integer"}, ".spec.model.source: <class 'str'> is not"),
        ("TokenService", ("spec", "model", "source"), {"enum": ["a"]}, ".spec.model.source: the CRD has an enum"),
        ("TokenService", ("spec", "engine", "name"), {"enum": ["vllm"]}, ".spec.engine.name: ('transformers',) and"),
        (
            "TokenService",
            ("spec", "engine", "args"),
            {"type": "string"},
            ".spec.engine.args: tuple[str, ...] is no array",
        ),
        ("TokenService", ("spec", "replicas"), {"default": 2}, ".spec.replicas: defaults are 1 and 2"),
        ("TokenService", ("spec", "paused"), {"default": None}, ".spec.paused: defaults are False and None"),
        (
            "TokenService",
            ("spec", "rollout", "maxSurge"),
            {"default": 2},
            ".spec.rollout.maxSurge: defaults are 1 and 2",
        ),
        ("TokenService", ("spec", "model", "name"), {"default": "x"}, ".spec.model.name: only the CRD has a default"),
        ("TokenService", ("spec", "api"), {"properties": {}}, ".spec.api.keySecretRef: is only in the type"),
        ("TokenService", ("status",), {"properties": {"new": {}}}, ".status.new: is only in the CRD"),
        ("CondaEnvironment", ("spec",), {"x-kubernetes-preserve-unknown-fields": False}, ".spec: dict[str,"),
        ("CondaEnvironment", ("spec", "channels"), {"type": "array"}, ".spec.channels: typing.Any is not"),
        ("CondaEnvironment", ("spec", "platform"), {"enum": ["linux-64"]}, ".spec.platform: ("),
        ("CondaEnvironment", ("spec", "virtualPackages"), {"properties": {}}, ".spec.virtualPackages.cuda: is only in"),
        ("CondaEnvironment", ("status", "bytes"), {"type": "integer", "properties": {}}, ".status.bytes.total: is"),
    ],
)
def test_the_comparison_sees_a_difference(
    kind: str, path: tuple[str, ...], change: dict[str, Any], difference: str
) -> None:
    schema = yaml.safe_load(yaml.safe_dump(schema_of(kind)))
    below = schema
    for name in path:
        below = below["properties"][name]
    below.update(change)
    assert any(found.startswith(difference) for found in differences(kind, schema))


@pytest.mark.parametrize("kind", CRDS)
def test_the_crds_names_are_the_operators(kind: str) -> None:
    spec = CRDS[kind]["spec"]
    assert (spec["group"], spec["versions"][0]["name"]) == (names.GROUP, names.VERSION)
    assert CRDS[kind]["metadata"]["name"] == f"{spec['names']['plural']}.{names.GROUP}"


@pytest.mark.parametrize("kind", CRDS)
def test_every_field_has_a_description(kind: str) -> None:
    bare = [p for p, field in fields_of(schema_of(kind)) if not field.get("description") and p != ".metadata"]
    assert bare == []


@pytest.mark.parametrize("kind", CRDS)
def test_every_rule_says_what_to_do_and_a_failing_field_is_named(kind: str) -> None:
    for path, field in [("", schema_of(kind)), *fields_of(schema_of(kind))]:
        for rule in field.get("x-kubernetes-validations", ()):
            assert rule.get("message"), f"{path}: {rule['rule']}"


REASONS = sorted(
    value
    for name, value in vars(conditions).items()
    if name.isupper() and isinstance(value, str) and value not in ("Ready", "Available", "Progressing")
)
OTHERS = ["ImagePullBackOff", "CrashLoopBackOff", "OOMKilled", "Unschedulable", "CreateContainerConfigError"]


def test_there_are_reasons() -> None:
    assert "Serving" in REASONS
    assert len(REASONS) >= 12


@pytest.mark.parametrize("reason", sorted({*REASONS, *typing.get_args(jobs.Reason), *OTHERS}))
def test_every_reason_has_a_section_in_the_troubleshooting_guide(reason: str) -> None:
    headings = re.findall(r"^#{2,3} (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert any(reason in re.split(r"[ ,]+", heading) for heading in headings)


READY: dict[str, Any] = json.loads((importlib.resources.files(protocol) / "readyz.schema.json").read_text())
STAGES: dict[str, Any] = READY["properties"]["start"]["properties"]["stages"]["properties"]


def test_the_stages_of_a_start_are_those_of_the_schema_and_the_documentation() -> None:
    text = (ROOT / "docs" / "token-server.md").read_text()
    section = text.split("### What a start cost\n", 1)[1].split("\n## ", 1)[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == protocol.START_STAGES == tuple(STAGES)
    example = next(line for line in section.splitlines() if line.startswith("    {"))
    jsonschema.validate(json.loads(example), READY)


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"status": "ready"}, True),  # a server of the user's own
        ({"status": "ready", "start": {"stages": {}, "warm": True}}, True),
        ({"status": "warm"}, False),
        ({"status": "ready", "start": {"stages": {}}}, False),
        ({"status": "ready", "start": {"stages": {"total": -1}, "warm": False}}, False),
        ({"status": "ready", "start": {"stages": {"coffee": 1}, "warm": False}}, False),
    ],
)
def test_what_readyz_may_say(body: dict[str, Any], fits: bool) -> None:
    jsonschema.Draft202012Validator.check_schema(READY)
    assert jsonschema.Draft202012Validator(READY).is_valid(body) is fits


def test_the_reference_is_up_to_date() -> None:
    assert crd_reference.main(["--check"]) == 0
