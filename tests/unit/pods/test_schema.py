"""Templates against the pod schema of a real API server: what is refused, with which words, and what a merge gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenservice.pods.reserved import check_reserved
from tokenservice.pods.schema import POD_TEMPLATE, PREFIX, InvalidTemplateError, PodSchema

from tests.unit.pods.builders import pod_schema, rendered

SCHEMA = pod_schema()


def spec(**fields: Any) -> dict[str, Any]:
    return {"spec": fields}


def in_container(**fields: Any) -> dict[str, Any]:
    return spec(containers=[{"name": "server", **fields}])


def test_the_schema_survives_being_dumped() -> None:
    again = PodSchema.from_openapi(SCHEMA.dump())
    assert again.dump() == SCHEMA.dump()
    assert POD_TEMPLATE in again.dump()["components"]["schemas"]


def test_only_what_a_pod_template_needs_is_kept() -> None:
    document = {
        "components": {
            "schemas": {
                POD_TEMPLATE: {
                    "description": "text",
                    "properties": {
                        "description": {"type": "string", "description": "text", "default": ""},
                        "spec": {"allOf": [{"$ref": PREFIX + "Spec"}], "default": {}},
                    },
                },
                "Spec": {"properties": {"default": {"items": {"$ref": PREFIX + "Item"}, "type": "array"}}},
                "Item": {"type": "string"},
                "Other": {"type": "string"},
            }
        }
    }
    assert PodSchema.from_openapi(document).dump()["components"]["schemas"] == {
        POD_TEMPLATE: {
            "properties": {"description": {"type": "string"}, "spec": {"allOf": [{"$ref": PREFIX + "Spec"}]}}
        },
        "Spec": {"properties": {"default": {"items": {"$ref": PREFIX + "Item"}, "type": "array"}}},
        "Item": {"type": "string"},
    }


def test_a_document_without_pods_is_not_a_schema() -> None:
    with pytest.raises(KeyError):
        PodSchema.from_openapi({"components": {"schemas": {}}})


ACCEPTED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "nulls": {"metadata": None, "spec": {"nodeSelector": None, "volumes": None}},
    "GPU": in_container(resources={"limits": {"nvidia.com/gpu": 1, "memory": "1.5Gi", "cpu": 0.5}}),
    "quantities": in_container(
        resources={
            "limits": {"a": "100m", "b": ".5", "c": "5.", "d": "1e3", "e": "1E", "f": "-1", "g": "+1n", "h": "2k"}
        }
    ),
    "quantity outside of resources": spec(volumes=[{"name": "x", "emptyDir": {"sizeLimit": "8Gi"}}]),
    "int or string": in_container(
        readinessProbe={"httpGet": {"port": "http"}}, livenessProbe={"httpGet": {"port": 80}}
    ),
    "labels": {"metadata": {"labels": {"a": "b", "c": None}, "annotations": {"d": ""}}},
    "lists of text": in_container(command=["a", "b"]),
    "nested lists": spec(
        affinity={
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]
                }
            }
        }
    ),
    "directives": spec(
        containers=[{"name": "server", "$patch": "merge", "env": [{"name": "A", "$patch": "delete"}]}],
        hostAliases=[{"$patch": "replace"}, {"ip": "1.2.3.4"}],
        securityContext={"$patch": "replace", "runAsNonRoot": True},
    ),
    "large numbers": spec(priority=2**31 - 1, terminationGracePeriodSeconds=2**63 - 1),
    "a choice": in_container(imagePullPolicy="Always", terminationMessagePolicy=""),
    "ports of two protocols": in_container(
        ports=[{"containerPort": 53}, {"containerPort": 53, "protocol": "UDP"}],
    ),
}


@pytest.mark.parametrize("template", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(template: dict[str, Any]) -> None:
    SCHEMA.check(template)


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown field": (spec(nodeselector={}), "spec.nodeselector: unknown field; did you mean nodeSelector?"),
    "unknown field, nothing near": (spec(xyzzy=1), "spec.xyzzy: unknown field"),
    "unknown field at the root": ({"kind": "Pod"}, "kind: unknown field"),
    "unknown field deep below": (
        in_container(env=[{"name": "A", "valueFrom": {"secretKeyref": {}}}]),
        "spec.containers[0].env[0].valueFrom.secretKeyref: unknown field; did you mean secretKeyRef?",
    ),
    "quantity": (
        in_container(resources={"limits": {"memory": "8GB"}}),
        "spec.containers[0].resources.limits[memory]: '8GB' is not a quantity; write for example 1, 500m or 2Gi",
    ),
    **{
        f"quantity {text!r}": (
            in_container(resources={"limits": {"cpu": text}}),
            f"spec.containers[0].resources.limits[cpu]: {text!r} is not a quantity; write for example 1, 500m or 2Gi",
        )
        for text in ["", " 1", "1 ", "1\n", "1,5", "two", "1.2.3", "Gi", "1ki", "0x10", "١", True, [], {}]
    },
    "text for a number": (spec(priority="high"), "spec.priority: must be a whole number, not a string"),
    "fraction for a number": (spec(priority=1.5), "spec.priority: must be a whole number, not a fraction"),
    "number too large": (spec(priority=2**31), "spec.priority: must be from -2147483648 to 2147483647, not 2147483648"),
    "number too small": (
        spec(terminationGracePeriodSeconds=-(2**63) - 1),
        "spec.terminationGracePeriodSeconds: must be from -9223372036854775808 to 9223372036854775807",
    ),
    "truth for a number": (spec(priority=True), "spec.priority: must be a whole number, not a boolean"),
    "number for a text": (
        in_container(env=[{"name": "A", "value": 1}]),
        "spec.containers[0].env[0].value: must be a string, not a number; put it in quotes",
    ),
    "truth for a text": (
        {"metadata": {"labels": {"gpu": True}}},
        "metadata.labels[gpu]: must be a string, not a boolean; put it in quotes",
    ),
    "map for a text": (spec(runtimeClassName={}), "spec.runtimeClassName: must be a string, not a map"),
    "text for a truth": (spec(hostNetwork="yes"), "spec.hostNetwork: must be true or false, not a string"),
    "list for a map": (spec(nodeSelector=["a"]), "spec.nodeSelector: must be a map, not a list"),
    "text for a map": ({"spec": "x"}, "spec: must be a map, not a string"),
    "map for a list": (spec(tolerations={"key": "a"}), "spec.tolerations: must be a list, not a map"),
    "text in a list of maps": (spec(containers=["server"]), "spec.containers[0]: must be a map, not a string"),
    "list in a list": (in_container(command=[["a"]]), "spec.containers[0].command[0]: must be a string, not a list"),
    "int or string": (
        in_container(readinessProbe={"httpGet": {"port": 1.5}}),
        "spec.containers[0].readinessProbe.httpGet.port: must be a whole number or a string, not a fraction",
    ),
    "choice": (
        in_container(imagePullPolicy="always"),
        "spec.containers[0].imagePullPolicy: must be one of Always, IfNotPresent, Never, not 'always'",
    ),
    "no merge key": (
        spec(containers=[{"image": "x"}]),
        "spec.containers[0].name: is needed, elements are merged by it",
    ),
    "null as merge key": (
        in_container(ports=[{"containerPort": None}]),
        "spec.containers[0].ports[0].containerPort: is needed, elements are merged by it",
    ),
    "null in a list": (spec(volumes=[None]), "spec.volumes[0]: is empty; write an element or take the line out"),
    "null in a list of texts": (in_container(command=["a", None]), "spec.containers[0].command[1]: is empty"),
    "twice": (
        in_container(env=[{"name": "A", "value": "1"}, {"name": "B"}, {"name": "A", "value": "2"}]),
        "spec.containers[0].env[2].name: A is in the list twice",
    ),
    "port twice": (
        in_container(ports=[{"containerPort": 53, "protocol": "TCP"}, {"containerPort": 53}]),
        "spec.containers[0].ports[1].containerPort: 53 is in the list twice",
    ),
    "directive": (spec(securityContext={"$patch": "remove"}), "spec.securityContext.$patch: must be replace, delete"),
    "directive in a map of texts": (
        {"metadata": {"labels": {"$patch": "x"}}},
        "metadata.labels.$patch: must be replace, delete or merge",
    ),
    "directive of no text": (spec(securityContext={"$patch": []}), "spec.securityContext.$patch: must be replace"),
    "directive for no element": (
        spec(volumes=[{"$patch": "delete"}]),
        "spec.volumes[0].name: is needed to know which element is meant",
    ),
    "replace beside fields": (
        spec(volumes=[{"name": "tmp", "$patch": "replace"}]),
        "spec.volumes[0].$patch: replace is for the whole list and stands in an element of its own",
    ),
    "directive in a list that is replaced": (
        spec(tolerations=[{"key": "a", "$patch": "delete"}]),
        "spec.tolerations[0].$patch: this list is replaced as a whole",
    ),
    "other directives": (
        in_container(**{"$setElementOrder/env": []}),
        "spec.containers[0].$setElementOrder/env: unknown field",
    ),
}


@pytest.mark.parametrize(("template", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(template: Any, message: str) -> None:
    with pytest.raises(InvalidTemplateError) as caught:
        SCHEMA.check(template)
    assert str(caught.value).startswith(f"spec.template.{message}")


def test_a_template_is_a_map() -> None:
    with pytest.raises(InvalidTemplateError, match=r"^spec\.template: must be a map, not a list"):
        SCHEMA.check([])


BASE: dict[str, Any] = {
    "metadata": {"labels": {"a": "1", "b": "2"}},
    "spec": {
        "nodeSelector": {"zone": "x"},
        "securityContext": {"runAsNonRoot": True, "fsGroup": 1},
        "tolerations": [{"key": "old", "operator": "Exists"}],
        "containers": [
            {
                "name": "server",
                "image": "i",
                "command": ["a", "b"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
                "ports": [{"containerPort": 53, "name": "dns", "protocol": "UDP"}],
                "volumeMounts": [{"mountPath": "/tmp", "name": "tmp"}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "keys", "secret": {"secretName": "s"}}],
    },
}


def merged(template: dict[str, Any], *path: str | int, base: dict[str, Any] = BASE) -> Any:
    SCHEMA.check(template)
    before = copy.deepcopy((base, template))
    made: Any = SCHEMA.merge(base, template)
    assert (base, template) == before
    for step in path:
        made = made[step]
    return made


def test_nothing_changes_nothing() -> None:
    assert merged({}) == BASE
    assert merged({"metadata": {}, "spec": {"containers": [{"name": "server"}], "volumes": []}}) == BASE


SERVER = ("spec", "containers", 0)
TMP, KEYS = BASE["spec"]["volumes"]
A, B = BASE["spec"]["containers"][0]["env"]

MERGED: dict[str, tuple[dict[str, Any], tuple[str | int, ...], Any]] = {
    "labels": ({"metadata": {"labels": {"b": "3", "c": "4"}}}, ("metadata", "labels"), {"a": "1", "b": "3", "c": "4"}),
    "a label goes": ({"metadata": {"labels": {"b": None}}}, ("metadata", "labels"), {"a": "1"}),
    "a map at a new place": (spec(affinity={"podAffinity": None}), ("spec", "affinity"), {}),
    "a map is replaced": (
        spec(securityContext={"$patch": "replace", "fsGroup": 2}),
        ("spec", "securityContext"),
        {"fsGroup": 2},
    ),
    "a map that was not there is deleted": (
        spec(affinity={"$patch": "delete"}, volumes=None),
        ("spec",),
        {name: value for name, value in BASE["spec"].items() if name != "volumes"},
    ),
    "a map is deleted": (
        in_container(resources={"limits": {"$patch": "delete"}}),
        (*SERVER, "resources"),
        {},
    ),
    "a map that was there is deleted": (
        {"metadata": {"labels": {"$patch": "delete"}}},
        ("metadata",),
        {},
    ),
    "a field goes": (spec(securityContext={"fsGroup": None}), ("spec", "securityContext"), {"runAsNonRoot": True}),
    "containers are merged by name, new ones last": (
        spec(containers=[{"name": "proxy", "image": "p"}, {"name": "server", "workingDir": "/w"}]),
        ("spec", "containers"),
        [{**BASE["spec"]["containers"][0], "workingDir": "/w"}, {"name": "proxy", "image": "p"}],
    ),
    "a list of texts is replaced": (in_container(command=["c"]), (*SERVER, "command"), ["c"]),
    "and emptied": (in_container(command=[]), (*SERVER, "command"), []),
    "a list without a merge key is replaced": (
        spec(tolerations=[{"key": "new", "value": None}]),
        ("spec", "tolerations"),
        [{"key": "new"}],
    ),
    "variables by name": (
        in_container(env=[{"name": "C", "value": "3"}, {"name": "A", "value": "2"}]),
        (*SERVER, "env"),
        [{"name": "A", "value": "2"}, B, {"name": "C", "value": "3"}],
    ),
    "a value becomes a reference": (
        in_container(env=[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "y"}}}]),
        (*SERVER, "env", 0),
        {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "y"}}},
    ),
    "a reference becomes a value": (
        in_container(env=[{"name": "B", "value": "2", "valueFrom": None}]),
        (*SERVER, "env", 1),
        {"name": "B", "value": "2"},
    ),
    "no value given leaves the reference": (in_container(env=[{"name": "B", "value": None}]), (*SERVER, "env", 1), B),
    "a variable goes": (in_container(env=[{"name": "A", "$patch": "delete"}]), (*SERVER, "env"), [B]),
    "all variables go": (
        in_container(env=[{"name": "C", "value": "3"}, {"$patch": "replace"}]),
        (*SERVER, "env"),
        [{"name": "C", "value": "3"}],
    ),
    "a whole list goes": (
        in_container(env=None),
        SERVER,
        {k: v for k, v in BASE["spec"]["containers"][0].items() if k != "env"},
    ),
    "replaced where there was none": (
        spec(hostAliases=[{"$patch": "replace"}, {"ip": "1.2.3.4"}]),
        ("spec", "hostAliases"),
        [{"ip": "1.2.3.4"}],
    ),
    "deleted where there was none": (
        spec(hostAliases=[{"ip": "1.2.3.4", "$patch": "delete"}], affinity={"nodeAffinity": {"$patch": "delete"}}),
        ("spec", "affinity"),
        {},
    ),
    "a volume's source is replaced": (
        spec(volumes=[{"name": "tmp", "hostPath": {"path": "/x"}}]),
        ("spec", "volumes"),
        [{"name": "tmp", "hostPath": {"path": "/x"}}, KEYS],
    ),
    "a volume's source is merged": (
        spec(volumes=[{"name": "keys", "secret": {"defaultMode": 256}}]),
        ("spec", "volumes"),
        [TMP, {"name": "keys", "secret": {"secretName": "s", "defaultMode": 256}}],
    ),
    "a mount by its path": (
        in_container(volumeMounts=[{"mountPath": "/tmp", "name": "big"}]),
        (*SERVER, "volumeMounts"),
        [{"mountPath": "/tmp", "name": "big"}],
    ),
    "ports by number and protocol": (
        in_container(
            ports=[{"containerPort": 53, "name": "tcp"}, {"containerPort": 53, "protocol": "UDP", "name": "u"}]
        ),
        (*SERVER, "ports"),
        [
            {"containerPort": 53, "name": "u", "protocol": "UDP"},
            {"containerPort": 53, "name": "tcp"},
        ],
    ),
    "nulls go at every depth": (
        spec(initContainers=[{"name": "a", "image": None, "env": [{"name": "x", "value": None}]}]),
        ("spec", "initContainers"),
        [{"name": "a", "env": [{"name": "x"}]}],
    ),
    "nulls go in lists that are replaced": (
        spec(readinessGates=[{"conditionType": "a"}], dnsConfig={"options": [{"name": "n", "value": None}]}),
        ("spec", "dnsConfig"),
        {"options": [{"name": "n"}]},
    ),
}


@pytest.mark.parametrize(("template", "path", "expected"), MERGED.values(), ids=MERGED)
def test_merged(template: dict[str, Any], path: tuple[str | int, ...], expected: Any) -> None:
    assert merged(template, *path) == expected


def test_lists_of_texts_that_are_merged_hold_each_once() -> None:
    base = {"metadata": {"finalizers": ["a/a"]}}
    assert merged({"metadata": {"finalizers": ["b/b", "a/a"]}}, base=base) == {
        "metadata": {"finalizers": ["a/a", "b/b"]}
    }


scalars = st.none() | st.booleans() | st.integers(-10, 10) | st.floats(allow_nan=False) | st.text(max_size=3)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3) | st.just("$patch"), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = ["server", "tmp", "other"]


KEYS = {"name", "mountPath", "containerPort", "ip", "topologyKey", "devicePath"}
OFTEN = {
    ".PodTemplateSpec": ["metadata", *["spec"] * 4],
    ".ObjectMeta": ["labels", "annotations"] * 8,
    ".PodSpec": ["containers", "volumes", "tolerations"] * 8,
    ".Container": ["env", "ports", "volumeMounts", "resources"] * 8,
}


@st.composite
def templates(draw: st.DrawFn, schema: dict[str, Any] | None = None, depth: int = 0, *, key: bool = False) -> Any:
    """A value that follows the schema, mostly: names that meet those of the base, directives, nulls, and nonsense."""
    own, name = SCHEMA._resolve(schema or {"$ref": PREFIX + POD_TEMPLATE})
    if depth and not key:
        luck = draw(st.integers(0, 99))
        if luck == 0:
            return draw(anything)
        if luck < 6:
            return None
    if name.endswith(".Quantity"):
        return draw(st.sampled_from(["1", "500m", "2Gi", 3, 0.5]))
    if "oneOf" in own:
        return draw(st.sampled_from([80, "http"]))
    if "properties" in own:
        often = next((keys for end, keys in OFTEN.items() if name.endswith(end)), [])
        rest = [] if name.endswith(".PodTemplateSpec") else sorted(own["properties"])
        chosen = draw(st.lists(st.sampled_from(often + rest), max_size=3, unique=True)) if depth < 9 else []
        chosen += sorted(KEYS & own["properties"].keys() - set(chosen)) if depth > 1 else []
        made = {field: draw(templates(own["properties"][field], depth + 1, key=field in KEYS)) for field in chosen}
        if depth > 1 and draw(st.integers(0, 19)) == 0:
            made["$patch"] = draw(st.sampled_from(["merge", "replace", "delete"]))
        return made
    if own.get("type") == "array":
        same = {"unique_by": lambda item: str({k: item.get(k) for k in KEYS} if isinstance(item, dict) else item)}
        return draw(st.lists(templates(own["items"], depth + 1), max_size=3, **same))  # type: ignore[arg-type]
    if own.get("type") == "object":
        values = templates(own.get("additionalProperties") or {"type": "string"}, depth + 1)
        return draw(st.dictionaries(st.sampled_from(NAMES), values, max_size=2))
    choices = {"string": NAMES, "boolean": [True, False], "integer": [0, 1, 9000], "number": [0.5]}
    return draw(st.sampled_from(own.get("enum") or choices[own.get("type", "string")]))


DESIRED = rendered()


def clean(value: Any) -> bool:
    """No null and no directive is left."""
    if isinstance(value, dict):
        return all(key != "$patch" and item is not None and clean(item) for key, item in value.items())
    return all(item is not None and clean(item) for item in value) if isinstance(value, list) else True


@settings(max_examples=60)
@given(template=templates())
def test_a_template_is_refused_in_words_or_merged(template: Any) -> None:
    try:
        SCHEMA.check(template)
        check_reserved(template or {})
    except InvalidTemplateError as error:
        assert str(error).startswith("spec.template")  # noqa: PT017 - which templates are refused is tested above
        return
    once = SCHEMA.merge(DESIRED, template or {})
    assert clean(once)
    assert SCHEMA.merge(once, template or {}) == once
    SCHEMA.check(once)
    over_nothing = SCHEMA.merge({}, template or {})
    assert clean(over_nothing)
    SCHEMA.check(over_nothing)


@given(value=anything)
def test_nonsense_is_refused_in_words(value: Any) -> None:
    try:
        SCHEMA.check(value)
        SCHEMA.check({"spec": value})
    except InvalidTemplateError as error:
        assert str(error).startswith("spec.template")  # noqa: PT017 - a few of these are even valid
