"""Random specs of a TokenService, drawn from the CRD's schema and the cluster's pod schema, with mistakes in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

Schema = Mapping[str, Any]
Draw = st.DrawFn

REFERENCES = "#/components/schemas/"
NAMES = ("server", "a", "model", "cache", "tmp", "http", "sidecar", "tokenservice.dev/service", "A_b", "", "ü" * 70)
TEXTS = (*NAMES, "true", "1", "null", "/x", "/tmp", "registry.invalid/x:1", "🙂", "a" * 300, "{{ x }}", '"', "a\nb: [")
QUANTITIES = ("1", "500m", "2Gi", 1, 0.5, "0", "-1", "12Gib", "1e3", "", "99999999999999999999", True)
NUMBERS = (0, 1, 2, 80, 8000, 65535, 65536, -1, 2**31 - 1, 2**31, 2**63 - 1)
JUNK: tuple[Any, ...] = (None, "", "text", -1, 1.5, True, [], {}, [None], [[]], {"": None}, {"$patch": "delete"})
KNOWN: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    # Of the CRD's fields: what the API server takes, however odd, and what it must refuse.
    "source": (
        ("hf://org/name", "file:///models/x", "pvc://claim", "pvc://claim/ü/", "file:///'\"{{x}}"),
        ("s3://no", "pvc://claim/a b", "", "file:///a/../b"),
    ),
    "reference": (
        ("registry.invalid/x:1", "x", "localhost:5000/a/b@sha256:" + "0" * 64, "x" * 1000),
        ("UPPER case", "", "x@sha256:12"),
    ),
    "maxSurge": ((1, 2, "25%", "1%", "100%", 2**31 - 1), (0, "101%", -1, "x", True)),
    "maxUnavailable": ((0, 1, "25%", "0%", "100%", 3, 2**31, 2**40), (-1, "1.5%")),
    "progressDeadlineSeconds": ((1, 600, 86_400), (0, 86_401)),
    "replicas": ((0, 1, 2, 10_000), (-1, 10_001, 2**31)),
    "revision": (("main", "a" * 256, "ü", " ", "{{ x }}"), ("",)),
    "name": (("token", "a.b", "x" * 253, "ü", '"', "🙂\n: ["), ("",)),
    "condaEnv": (
        ("token_nlp", "base", "/srv/envs/ü", "/opt/conda/", "-", "a" * 1000, "'{{x}}"),
        ("a b", "envs/a", "/a:b", "..", "/a/../b", "$(HOME)", "", "/"),
    ),
    "key": (("token", "x" * 253, "ü/{{"), ("",)),
}


ENTRIES = (
    "python=3.11",
    "numpy",
    "conda-forge::scipy",
    "a=b=c=d",
    "-e .",
    {"pip": ["fastapi==0.95", "x=1"]},
    {"pip": 1},
    None,
)
INLINE: Mapping[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from([*TEXTS, None]),
    "channels": st.lists(st.sampled_from(["conda-forge", "nodefaults", "https://example.invalid/t/x", ""]), max_size=2),
    "dependencies": st.lists(st.sampled_from(ENTRIES), max_size=4) | st.sampled_from(JUNK),
    "variables": st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TEXTS), max_size=2),
    "prefix": st.just("/opt/conda/envs/x"),
    "baseImage": st.sampled_from(["registry.invalid/base:1", "UPPER case"]),
}


def _environments() -> st.SearchStrategy[Any]:
    """What a spec's environment may be; most are images, for the others never get one here."""
    image = st.sampled_from(KNOWN["reference"][0])
    return st.one_of(
        *[st.fixed_dictionaries({"image": st.fixed_dictionaries({"reference": image})})] * 4,
        st.fixed_dictionaries(
            {
                "image": st.fixed_dictionaries(
                    {"reference": image, "condaEnv": st.sampled_from(KNOWN["condaEnv"][0])},
                )
            }
        ),
        st.fixed_dictionaries({"ref": st.fixed_dictionaries({"name": st.sampled_from(["random-1", "absent", "A/ü"])})}),
        st.fixed_dictionaries({"conda": st.fixed_dictionaries({}, optional=dict(INLINE))}),
    )


@st.composite
def specs(draw: Draw, crd: Schema, pods: Mapping[str, Schema]) -> Any:
    """A TokenService's spec. `crd`: schema of spec; `pods`: definitions of the API server's OpenAPI document."""
    made = _value(draw, crd, {}, "spec", mistakes=250)
    if isinstance(made, dict):
        # Most get what every spec needs, or little else would be tried than the API server's patience.
        if draw(st.integers(0, 9)):
            made["model"] = {**_mapping(made.get("model")), "source": draw(st.sampled_from(KNOWN["source"][0]))}
            if not made["model"]["source"].startswith("hf://"):
                made["model"].pop("revision", None)
                made["model"].pop("authSecretRef", None)
        if draw(st.integers(0, 14)) != 7:  # drawn from the schema it has none or several, which is refused
            made["environment"] = draw(_environments())
        if draw(st.integers(0, 3)):
            template = {"$ref": f"{REFERENCES}io.k8s.api.core.v1.PodTemplateSpec"}
            made["template"] = _value(draw, template, pods, "template", mistakes=90)
        else:
            made.pop("template", None)
    return made


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _value(
    draw: Draw, schema: Schema, definitions: Mapping[str, Schema], name: str, mistakes: int, depth: int = 0
) -> Any:
    """A value of this schema; one in `mistakes` is anything else."""
    if draw(st.integers(1, mistakes)) == mistakes:
        return draw(st.sampled_from(JUNK))
    schema, kind = _resolve(schema, definitions)
    if schema.get("enum"):
        return draw(st.sampled_from([*schema["enum"]]))
    if not definitions and name in KNOWN:
        good, bad = KNOWN[name]
        return draw(st.sampled_from(good if draw(st.integers(0, 14)) else bad))
    if kind.endswith(".Quantity"):
        return draw(st.sampled_from(QUANTITIES))
    if "properties" in schema:
        return _object(draw, schema, definitions, mistakes, depth)
    if schema.get("type") == "array":
        count = draw(st.integers(0 if depth > 3 else 1, 2))
        return [_value(draw, schema["items"], definitions, "", mistakes, depth + 1) for _ in range(count)]
    if schema.get("type") == "object":
        below = schema.get("additionalProperties")
        keys = draw(st.lists(st.sampled_from(TEXTS), max_size=2, unique=True))
        if not isinstance(below, Mapping):
            return dict.fromkeys(keys, "x")
        return {key: _value(draw, below, definitions, "", mistakes, depth + 1) for key in keys}
    if schema.get("type") in ("integer", "number"):
        return draw(st.sampled_from(NUMBERS))
    if schema.get("type") == "boolean":
        return draw(st.booleans())
    if schema.get("format") == "date-time":
        return draw(st.sampled_from(("2026-01-01T00:00:00Z", "yesterday")))
    return draw(st.sampled_from(TEXTS))


def _object(draw: Draw, schema: Schema, definitions: Mapping[str, Schema], mistakes: int, depth: int) -> dict[str, Any]:
    properties = schema["properties"]
    chosen = draw(st.lists(st.sampled_from(sorted(properties)), max_size=1 if depth > 5 else 3, unique=True))
    chosen += [name for name in schema.get("required", ()) if name not in chosen and draw(st.integers(0, 19))]
    if depth == 1 and "containers" in properties and "containers" not in chosen and draw(st.booleans()):
        chosen.append("containers")
    made = {name: _value(draw, properties[name], definitions, name, mistakes, depth + 1) for name in chosen}
    if draw(st.integers(1, mistakes)) == mistakes:
        made[draw(st.sampled_from(["$patch", "unknown", "", *(name + "s" for name in chosen)]))] = "replace"
    return made


def _resolve(schema: Schema, definitions: Mapping[str, Schema]) -> tuple[Schema, str]:
    kind = ""
    while True:
        if "$ref" in schema:
            kind = schema["$ref"].removeprefix(REFERENCES)
            schema = definitions[kind]
        elif len(schema.get("allOf", ())) == 1:
            schema = {**{key: value for key, value in schema.items() if key != "allOf"}, **schema["allOf"][0]}
        else:
            return schema, kind
