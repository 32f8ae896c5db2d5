"""A ValidatingAdmissionPolicy of a namespace, in force for as long as a block runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tests.apiserver.conftest import Plane, Space
from tests.support.wait import eventually

API = "admissionregistration.k8s.io/v1"


@contextlib.contextmanager
def policy(
    plane: Plane, space: Space, resource: str, expression: str, message: str, *, refused: Callable[[], str]
) -> Iterator[None]:
    """Refuses objects for which the CEL expression is false, with the message.

    resource: plural and group, such as "deployments.apps" or "pods". refused: tries something that the policy forbids,
    and returns what the API server says to it.
    """
    plural, _, group = resource.partition(".")
    rule = {"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [plural]}
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space.name}},
            "resourceRules": [rule],
        },
        "validations": [{"expression": expression, "message": message}],
    }
    binding = {"policyName": space.name, "validationActions": ["Deny"]}
    kinds = {"ValidatingAdmissionPolicy": spec, "ValidatingAdmissionPolicyBinding": binding}
    plane.cluster.apply(
        *(
            {"apiVersion": API, "kind": kind, "metadata": {"name": space.name}, "spec": made}
            for kind, made in kinds.items()
        )
    )
    try:
        eventually(lambda: message in refused(), "the policy works")
        yield
    finally:
        for kind in reversed(kinds):
            plane.cluster.kubectl("delete", kind.lower(), space.name)
    eventually(lambda: message not in refused(), "the policy is gone")
