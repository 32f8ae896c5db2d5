"""TokenServices that run in CondaEnvironments, or in one of several environments of an image.

Nothing is solved or built here, since there are no nodes: where an environment has an image, the test wrote it into its
status, in place of a build Job.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.apiserver.conftest import Plane, Space
from tests.apiserver.test_status import serve
from tests.support.api import Object, RefusedError
from tests.support.cluster import condition
from tests.support.wait import eventually, holds

pytestmark = pytest.mark.usefixtures("operator")

DRIFT_SECONDS = 1.0
TOLD_SECONDS = 10.0
CONDA: Object = {"channels": ["conda-forge"], "dependencies": ["python=3.11", {"pip": ["fastapi==0.95.0"]}]}
INVALID: Object = {**CONDA, "dependancies": ["numpy"]}
INLINE: Object = {"conda": CONDA}
REF: Object = {"ref": {"name": "nlp"}}
PREBUILT: Object = {"image": {"reference": "registry.invalid/serving:1"}}
BUILT = "registry.invalid/environments@sha256:" + "1" * 64


def make(space: Space, name: str = "nlp", **spec: Any) -> Object:
    """Applies a CondaEnvironment as kubectl would."""
    body = {"apiVersion": "tokenservice.dev/v1alpha1", "kind": "CondaEnvironment", "metadata": {"name": name}}
    return space.api.apply(space.name, {**body, "spec": {**CONDA, **spec}})


def fake_build(space: Space, name: str, image: str = BUILT) -> None:
    """Stands in for the Jobs: the environment has this image since some time ago."""
    past = [{"lockDigest": "sha256:" + "2" * 64, "lock": image, "image": image}]
    space.patch("CondaEnvironment", name, {"status": {"image": image, "history": past}}, sub="status")


def environment_ready(space: Space, service: str, *reasons: str, seconds: float = TOLD_SECONDS) -> Object:
    """EnvironmentReady of a service, once it has one of these reasons and speaks of the newest spec."""

    def look() -> Object:
        found = condition(space.there("TokenService", service), "EnvironmentReady")
        assert found.get("reason") in reasons, found
        return found

    return eventually(look, f"EnvironmentReady of {service} says {reasons}", seconds=seconds)


def image_of(space: Space, service: str) -> str | None:
    found = space.get("Deployment", service)
    return str(server(found)["image"]) if found else None


def server(deployment: Object) -> Object:
    [found] = [item for item in deployment["spec"]["template"]["spec"]["containers"] if item["name"] == "server"]
    return dict(found)


def runs(space: Space, service: str, image: str = BUILT) -> None:
    eventually(lambda: image_of(space, service) == image, f"{service} runs {image}", seconds=TOLD_SECONDS)


def test_an_environment_in_the_spec_becomes_a_condaenvironment_and_tells_how_far_it_is(
    plane: Plane, space: Space
) -> None:
    service = space.apply("llm", environment=INLINE)

    def same() -> bool:
        theirs = space.there("CondaEnvironment", "llm")["status"]["conditions"]
        [ready] = [item for item in theirs if item["type"] == "Ready"]
        ours = condition(space.there("TokenService", "llm"), "EnvironmentReady")
        return bool(ready["reason"]) and ours.get("status") != "True" and ours.get("message", "") != ""

    made = eventually(lambda: space.get("CondaEnvironment", "llm"), "it is made")
    eventually(lambda: "conditions" in space.there("CondaEnvironment", "llm").get("status", {}), "it is looked at")
    eventually(same, "the service says why it is not ready")
    assert {name: made["spec"][name] for name in CONDA} == CONDA
    [owner] = made["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == (service["metadata"]["uid"], True)
    assert made["metadata"]["labels"]["tokenservice.dev/service"] == "llm"
    for kind in ("Service", "PodDisruptionBudget"):
        eventually(lambda kind=kind: space.get(kind, "llm"), kind)  # type: ignore[misc]
    ready = space.ready("llm", "EnvironmentNotReady")
    told = condition(space.there("TokenService", "llm"), "EnvironmentReady")
    assert ready["message"] == f"{told['reason']}: {told['message'].splitlines()[0]}"
    assert space.get("Deployment", "llm") is None
    described = plane.cluster.kubectl("describe", "tsvc", "llm", "-n", space.name).stdout
    assert "EnvironmentReady" in described


def test_what_is_wrong_with_it_is_in_describe_within_seconds(plane: Plane, space: Space) -> None:
    space.apply("llm", environment=INLINE)
    space.ready("llm", "EnvironmentNotReady")
    at = time.monotonic()
    space.apply("llm", environment={"conda": INVALID})
    found = environment_ready(space, "llm", "InvalidEnvironment")
    assert time.monotonic() - at < TOLD_SECONDS
    assert "dependancies" in found["message"]
    assert "dependencies" in found["message"]

    def event() -> bool:
        return any(event["reason"] == "InvalidEnvironment" for event in space.events("llm"))

    eventually(event, "an event says it too")
    described = plane.cluster.kubectl("describe", "tsvc", "llm", "-n", space.name).stdout
    assert "dependancies" in described
    # Mended, it is forgotten.
    space.apply("llm", environment=INLINE)

    def mended() -> bool:
        told = condition(space.there("TokenService", "llm"), "EnvironmentReady")
        return bool(told.get("reason", "InvalidEnvironment") != "InvalidEnvironment")

    eventually(mended, "the complaint goes")


def test_one_referred_to_may_come_later_and_go_again(space: Space) -> None:
    space.apply("llm", environment=REF)
    found = environment_ready(space, "llm", "NotFound")
    assert "no CondaEnvironment nlp in this namespace" in found["message"]
    make(space)

    def noticed() -> bool:
        told = condition(space.there("TokenService", "llm"), "EnvironmentReady")
        return bool(told.get("reason", "NotFound") != "NotFound")

    eventually(noticed, "it is noticed")
    assert space.get("Deployment", "llm") is None
    fake_build(space, "nlp")
    runs(space, "llm")
    status = space.there("TokenService", "llm")["status"]["environment"]
    assert status["image"] == BUILT
    space.delete("CondaEnvironment", "nlp")
    environment_ready(space, "llm", "NotFound")
    space.apply("llm", environment=REF, replicas=2)
    eventually(lambda: space.there("Deployment", "llm")["spec"]["replicas"] == 2, "it is scaled all the same")
    assert image_of(space, "llm") == BUILT


def test_a_bad_edit_changes_nothing_that_runs(plane: Plane, space: Space) -> None:
    make(space)
    for service in ("a", "b"):
        space.apply(service, environment=REF)
        environment_ready(space, service, *NOT_BUILT)
    fake_build(space, "nlp")
    for service in ("a", "b"):
        runs(space, service)
        serve(space, service)
        space.ready(service, "Serving")
    before = {service: space.there("Deployment", service)["metadata"]["generation"] for service in ("a", "b")}
    mark = plane.audit.position()
    make(space, dependancies=["numpy"])
    for service in ("a", "b"):
        environment_ready(space, service, "InvalidEnvironment")
        space.ready(service, "Serving")
    holds(
        lambda: (
            before == {service: space.there("Deployment", service)["metadata"]["generation"] for service in ("a", "b")}
        ),
        "no Deployment is touched",
        seconds=1,
    )
    assert not [
        write for write in plane.writes(mark) if write.namespace == space.name and write.resource == "deployments"
    ]
    # A template edit rolls as ever, with the image that is there.
    space.apply("a", environment=REF, template={"metadata": {"annotations": {"example.com/a": "b"}}})

    def edited() -> bool:
        template = space.there("Deployment", "a")["spec"]["template"]
        return bool(template["metadata"].get("annotations", {}).get("example.com/a") == "b")

    eventually(edited, "the template is rolled out")
    assert image_of(space, "a") == BUILT


NOT_BUILT = ("Locking", "Building", "BuilderDisabled")


def test_an_inline_environment_goes_once_no_pod_runs_from_it(space: Space) -> None:
    space.apply("llm", environment=INLINE)
    environment_ready(space, "llm", *NOT_BUILT)
    fake_build(space, "llm")
    runs(space, "llm")
    serve(space, "llm")
    space.ready("llm", "Serving")
    space.apply("llm", environment=PREBUILT)
    runs(space, "llm", "registry.invalid/serving:1")
    assert space.get("CondaEnvironment", "llm"), "pods run from it still"

    def gone() -> bool:
        serve(space, "llm")  # pods of the new template, as they come
        return space.get("CondaEnvironment", "llm") is None

    eventually(gone, "it is deleted", seconds=30)
    assert not condition(space.there("TokenService", "llm"), "EnvironmentReady")
    status = space.there("TokenService", "llm")["status"]["environment"]
    assert status == {"image": "registry.invalid/serving:1"}


def test_it_goes_with_its_tokenservice(space: Space) -> None:
    space.apply("llm", environment=INLINE)
    eventually(lambda: space.get("CondaEnvironment", "llm"), "it is made")
    space.delete("TokenService", "llm")
    eventually(lambda: space.get("CondaEnvironment", "llm") is None, "the garbage collector takes it", seconds=60)


def test_what_somebody_changes_in_it_is_put_back(space: Space) -> None:
    space.apply("llm", environment=INLINE)
    environment_ready(space, "llm", *NOT_BUILT)
    space.patch("CondaEnvironment", "llm", {"spec": {"channels": ["defaults"]}})
    at = time.monotonic()

    def back() -> bool:
        return bool(space.there("CondaEnvironment", "llm")["spec"]["channels"] == ["conda-forge"])

    eventually(back, "the channels are the spec's")
    assert time.monotonic() - at < DRIFT_SECONDS


def test_one_of_somebody_elses_with_its_name_is_left_alone_until_that_is_gone(space: Space) -> None:
    make(space, "llm")
    fake_build(space, "llm")
    before = space.there("CondaEnvironment", "llm")["spec"]
    space.apply("llm", environment={"conda": {**CONDA, "dependencies": ["python=3.12"]}})
    found = environment_ready(space, "llm", "NameConflict")
    assert "is controlled by nobody; it is left alone" in found["message"]
    assert space.there("CondaEnvironment", "llm")["spec"] == before
    assert space.get("Deployment", "llm") is None
    space.delete("CondaEnvironment", "llm")
    environment_ready(space, "llm", *NOT_BUILT)
    assert space.there("CondaEnvironment", "llm")["spec"]["dependencies"] == ["python=3.12"]


def test_one_of_several_environments_of_an_image(space: Space) -> None:
    image = {"reference": "registry.invalid/both:1", "condaEnv": "token_nlp"}
    space.apply("nlp", environment={"image": image})
    space.apply("code", environment={"image": {**image, "condaEnv": "/srv/envs/token_code"}})
    for service, folder in (("nlp", "/opt/conda/envs/token_nlp"), ("code", "/srv/envs/token_code")):
        space.settled(service)
        container = server(space.there("Deployment", service))
        assert container["image"] == "registry.invalid/both:1"
        assert container["command"] == [f"{folder}/bin/python", "-m", "token_server.main"]
        variables = {item["name"]: item.get("value") for item in container["env"]}
        assert str(variables["PATH"]).startswith(f"{folder}/bin:")
        assert variables["CONDA_PREFIX"] == folder
    # One image for all of them again: what was set for the one environment goes.
    space.apply("nlp", environment={"image": {"reference": "registry.invalid/both:1"}})
    eventually(lambda: "command" not in server(space.there("Deployment", "nlp")), "the entry point is the image's")


REFUSED: list[tuple[str, Object, str]] = [
    ("none", {}, "must have exactly one of ref (a CondaEnvironment), conda (an environment.yml) and image"),
    ("two", {**REF, **INLINE}, "must have exactly one of ref"),
    ("three", {**REF, **INLINE, **PREBUILT}, "must have exactly one of ref"),
    ("no name", {"ref": {}}, "spec.environment.ref.name: Required value"),
    *[
        (
            f"condaEnv {name}",
            {"image": {"reference": "registry.invalid/x:1", "condaEnv": name}},
            "spec.environment.image.condaEnv: Invalid value",
        )
        for name in ("a b", "envs/a", "/a:/b", "$(HOME)", "..", "/opt/../x", "#x", "/")
    ],
    ("conda is a text", {"conda": "python=3.11"}, "spec.environment.conda"),
]


@pytest.mark.parametrize(("environment", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_the_api_server_refuses(space: Space, environment: Object, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        space.apply("llm", environment=environment)
    assert message in refused.value.message
