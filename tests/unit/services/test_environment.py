"""What a TokenService runs in, and what EnvironmentReady says, for whatever its CondaEnvironment does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.v1alpha1 import EnvironmentStatus, TokenService, TokenServiceStatus
from tokenservice.pods.environment import runs_in, verdict
from tokenservice.pods.refusal import Refusal
from tokenservice.services.environment import surroundings

from tests.unit.services.builders import BUILT, CONDA, IMAGE, OLDER, UID, environment, service

REF: dict[str, Any] = {"ref": {"name": "nlp"}}
RAN = EnvironmentStatus(image=OLDER, hash="sha256:older", lock_digest="sha256:olderlock")
EXPLANATION = "nothing provides libfoo >=2\n  which is required by bar"


def asked(environment: dict[str, Any], before: EnvironmentStatus | None = None) -> TokenService:
    return service(environment=environment, status=TokenServiceStatus(environment=before))


RUNS_IN: dict[str, tuple[TokenService, CondaEnvironment | None, EnvironmentStatus | None]] = {
    "a prebuilt image": (asked({"image": {"reference": IMAGE}}, RAN), None, EnvironmentStatus(image=IMAGE)),
    "one environment of an image": (
        asked({"image": {"reference": IMAGE, "condaEnv": "token_nlp"}}),
        None,
        EnvironmentStatus(image=IMAGE, conda_env="token_nlp"),
    ),
    "nothing, as it is to be made": (asked(REF), None, None),
    "nothing, as it is being locked": (asked(REF), environment(reason="Locking"), None),
    "what is built": (
        asked(REF),
        environment(),
        EnvironmentStatus(image=BUILT, hash="sha256:hash", lock_digest="sha256:newest"),
    ),
    "what was built before, while the next is locked": (
        asked(REF, RAN),
        environment(reason="Locking", image=OLDER),
        RAN,
    ),
    "what was built before, while the next cannot be solved": (
        asked(REF, RAN),
        environment(reason="Unsolvable", image=OLDER),
        RAN,
    ),
    "what was built before, seen for the first time": (
        asked(REF),
        environment(reason="Building", image=OLDER, past=BUILT),
        EnvironmentStatus(image=OLDER, lock_digest=f"sha256:of {OLDER}"),
    ),
    "what was built, of a spec that changed since": (
        asked(REF),
        environment(generation=2),
        EnvironmentStatus(image=BUILT, lock_digest=f"sha256:of {BUILT}"),
    ),
    "the same image of another lock": (
        asked(REF, EnvironmentStatus(image=BUILT, hash="sha256:older", lock_digest="sha256:older")),
        environment(),
        EnvironmentStatus(image=BUILT, hash="sha256:hash", lock_digest="sha256:newest"),
    ),
    "what ran before, when the environment is gone": (asked(REF, RAN), None, RAN),
    "what ran before, while a new environment is locked": (asked(REF, RAN), environment(reason="Locking"), RAN),
    "an environment of an image, while a CondaEnvironment is locked": (
        asked(REF, EnvironmentStatus(image=IMAGE, conda_env="token_nlp")),
        environment(reason="Locking"),
        EnvironmentStatus(image=IMAGE, conda_env="token_nlp"),
    ),
}


@pytest.mark.parametrize(("asks", "found", "expected"), RUNS_IN.values(), ids=RUNS_IN)
def test_pods_run_in(asks: TokenService, found: CondaEnvironment | None, expected: EnvironmentStatus | None) -> None:
    assert runs_in(asks, found) == expected


INLINE: dict[str, Any] = {"conda": CONDA}
VERDICTS: dict[str, tuple[TokenService, CondaEnvironment | None, bool, tuple[str, str, str] | None]] = {
    "a prebuilt image has none": (asked({"image": {"reference": IMAGE}}), None, False, None),
    "a name that nothing has": (
        asked(REF),
        None,
        False,
        (
            "False",
            "NotFound",
            "no CondaEnvironment nlp in this namespace; make it, or name another one in spec.environment.ref",
        ),
    ),
    "inline, not made yet": (asked(INLINE), None, True, ("Unknown", "Locking", "CondaEnvironment demo is being made")),
    "inline, changed since": (
        asked(INLINE),
        environment("demo", uid=UID),
        True,
        ("Unknown", "Locking", "CondaEnvironment demo has changed and is about to be looked at"),
    ),
    "changed, nobody looked yet": (
        asked(REF),
        environment(generation=2),
        False,
        ("Unknown", "Locking", "CondaEnvironment nlp has changed and is about to be looked at"),
    ),
    "new, nobody looked yet": (
        asked(REF),
        environment(observed=0),
        False,
        ("Unknown", "Locking", "CondaEnvironment nlp has changed and is about to be looked at"),
    ),
    "locking": (
        asked(REF),
        environment(reason="Locking", message="a Job solves"),
        False,
        ("Unknown", "Locking", "a Job solves"),
    ),
    "building": (
        asked(REF),
        environment(reason="Building", message="3 of 9 layers"),
        False,
        ("Unknown", "Building", "3 of 9 layers"),
    ),
    "unsolvable": (
        asked(REF),
        environment(reason="Unsolvable", message=EXPLANATION, image=OLDER),
        False,
        ("False", "Unsolvable", EXPLANATION),
    ),
    "built": (asked(REF), environment(), False, ("True", "Built", "CondaEnvironment nlp is built")),
}


@pytest.mark.parametrize(("asks", "found", "outdated", "expected"), VERDICTS.values(), ids=VERDICTS)
def test_environment_ready(
    asks: TokenService, found: CondaEnvironment | None, outdated: bool, expected: tuple[str, str, str] | None
) -> None:
    assert verdict(asks, found, None, outdated=outdated) == expected


def test_a_refusal_is_said_whatever_stands_there() -> None:
    refusal = Refusal("InvalidEnvironment", "The API server refuses the CondaEnvironment: too long")
    told = verdict(asked(INLINE), environment("demo", uid=UID), refusal, outdated=True)
    assert told == ("False", "InvalidEnvironment", refusal.message)


@pytest.mark.parametrize(
    ("uid", "managed", "used"),
    [
        (UID, [], True),
        ("another", [], False),
        (None, [], False),
        # Orphaned by hand: made by us, controlled by nobody.
        (None, [{"manager": "tokenservice-operator", "operation": "Apply", "fieldsV1": {}}], True),
        (None, [{"manager": "kubectl", "operation": "Apply", "fieldsV1": {}}], False),
    ],
)
def test_an_inline_environment_never_runs_in_somebody_elses(
    uid: str | None, managed: list[dict[str, Any]], used: bool
) -> None:
    found = environment("demo", uid=uid, managedFields=managed)
    made = surroundings(asked(INLINE), {}, None, get={"demo": found}.get, users_of=lambda _: ())
    assert (made.own, made.used) == (found, found if used else None)
    assert (made.runs_in is not None) is used


def test_one_referred_to_may_be_whosesoever() -> None:
    found = environment(uid="another")
    made = surroundings(asked(REF), None, None, get={"nlp": found}.get, users_of=lambda _: ())
    assert (made.own, made.used) == (None, found)


environments = st.none() | st.builds(
    environment,
    reason=st.sampled_from(["Built", "Locking", "Building", "Unsolvable"]),
    image=st.sampled_from([None, OLDER, BUILT]),
    past=st.sampled_from([None, OLDER, BUILT]),
    observed=st.integers(0, 2),
    generation=st.integers(1, 2),
)
specs: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [REF, INLINE, {"image": {"reference": IMAGE}}, {"image": {"reference": IMAGE, "condaEnv": "a"}}]
)
statuses = st.none() | st.builds(
    EnvironmentStatus,
    image=st.sampled_from([IMAGE, OLDER, BUILT]),
    conda_env=st.sampled_from([None, "a"]),
    hash=st.sampled_from([None, "sha256:h"]),
)


@given(spec=specs, before=statuses, found=environments)
def test_once_written_to_the_status_it_stays(
    spec: dict[str, Any], before: EnvironmentStatus | None, found: CondaEnvironment | None
) -> None:
    first = runs_in(asked(spec, before), found)
    assert runs_in(asked(spec, first), found) == first


@given(spec=specs, before=statuses, found=environments)
def test_what_ran_is_never_taken_away(
    spec: dict[str, Any], before: EnvironmentStatus | None, found: CondaEnvironment | None
) -> None:
    made = runs_in(asked(spec, before), found)
    if before is not None:
        assert made is not None
    # An image of a CondaEnvironment runs as it is: no environment in it is to be chosen.
    if made and made.conda_env and "image" not in spec:
        assert made == before


@given(spec=specs, before=statuses, found=environments, outdated=st.booleans())
def test_what_is_not_ready_says_why(
    spec: dict[str, Any], before: EnvironmentStatus | None, found: CondaEnvironment | None, outdated: bool
) -> None:
    told = verdict(asked(spec, before), found, None, outdated=outdated)
    assert (told is None) == ("image" in spec)
    if told:
        status, reason, _ = told
        assert status in ("True", "False", "Unknown")
        assert reason
        assert (status == "True") == (reason == "Built")
        if status == "True":
            assert found
            assert found.status.image == msgspec.structs.asdict(runs_in(asked(spec, before), found) or RAN)["image"]
