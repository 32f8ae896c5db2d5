"""Changes that turn out bad: what serves stays, or comes back by itself, and the TokenService says why."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tests.e2e.client import Client
from tests.e2e.conftest import LEAVES_LOST_NODES, SECOND_NODE
from tests.e2e.gpus import GPU, node_with_gpus
from tests.support.api import Api, Object
from tests.support.cluster import Cluster
from tests.support.space import Space
from tests.support.wait import eventually

DEADLINE_SECONDS = 10
QUICK = {"progressDeadlineSeconds": DEADLINE_SECONDS}


def serving(*arguments: str) -> dict[str, Any]:
    return {"model": {"source": "file:///opt/standin"}, "engine": {"args": list(arguments)}}


def good(space: Space, image: str, name: str, **spec: Any) -> Object:
    space.apply(name, image, **{"rollout": QUICK, **serving("--version-text", "old"), **spec})
    return space.good(name)


def settled(space: Space, name: str, before: set[str]) -> None:
    """The pods that served before the change serve again, and no others."""
    eventually(lambda: space.uids(name) == before, f"{name} has the pods that it had", seconds=60)


def described(space: Space, name: str, *words: str) -> None:
    text = " ".join(space.kubectl("describe", "tsvc", name).split())
    for each in words:
        assert each in text, text


DIES = "pods that are Ready and then die"
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "a model that no longer loads": (
        {"model": {"source": "file:///opt/gone"}},
        "CrashLoopBackOff",
        "cannot load model file:///opt/gone: not found",
    ),
    "a container that crashes at once": (
        serving("--crash-on-start", "--fail-message", "ImportError: cannot import name 'x'"),
        "CrashLoopBackOff",
        "ImportError: cannot import name 'x'",
    ),
    DIES: (
        serving("--exit-when-ready", "2", "--fail-message", "CUDA error: an illegal memory access"),
        "CrashLoopBackOff",
        "CUDA error: an illegal memory access",
    ),
    "an image that is gone": (
        {"environment": {"image": {"reference": "localhost:1/gone@sha256:" + "0" * 64}}},
        "ImagePullBackOff",
        "localhost:1/gone",
    ),
    "a pod that fits nowhere": (
        {"template": {"spec": {"nodeSelector": {"no": "where"}}}},
        "Unschedulable",
        "nodes are available",
    ),
}


def test_past_the_deadline_it_goes_back_and_says_why(space: Space, client: Client, standin_image: str) -> None:
    """All at once, a TokenService each: most of it is waiting."""
    names = {name: name.replace(" ", "-").lower() for name in BAD}
    for name in names.values():
        space.apply(name, standin_image, rollout=QUICK, **serving("--version-text", "old"))
    urls = {name: client.reach(space.good(name, seconds=90)) for name in names.values()}
    before = {name: space.uids(name) for name in names.values()}
    with contextlib.ExitStack() as clients:
        reports = {
            name: clients.enter_context(client.asking_steadily(url, "standin", each=1))
            for name, url in urls.items()
            if name != names[DIES]  # connections that meet a server at its death are refused until that is noticed
        }
        for case, (change, _, _) in BAD.items():
            space.patch(names[case], **change)
        for case, (_, reason, words) in BAD.items():
            name = names[case]
            told = space.condition(name, "RolledBack", reason, seconds=DEADLINE_SECONDS + 90)
            assert words in told["message"]
            settled(space, name, before[name])
    for case, report in reports.items():
        assert not report.failures, "\n".join([case, *report.failures])
        assert set(report.versions) <= {"old", "stand-in"}
    for case, (_, reason, _) in BAD.items():
        name = names[case]
        space.condition(name, "Ready", "RolledBack")
        assert space.condition(name, "Available", "MinimumReplicasAvailable")["status"] == "True"
        described(space, name, "RolledBack", reason)
        assert space.events_with("RolledBack", name)
        status = space.there("TokenService", name)["status"]
        assert status["lastGoodRevision"] == status["currentRevision"] != status["updateRevision"]
        assert status["environment"]["image"] == standin_image
    # Back to the spec that serves: at once, with the pods that are there.
    old = {"image": {"reference": standin_image}}
    for name in names.values():
        space.patch(name, template=None, environment=old, **serving("--version-text", "old"))
    for name in names.values():
        space.good(name, seconds=20)
        assert space.uids(name) == before[name]


def test_ready_pods_that_answer_nonsense_give_way_before_an_old_one_goes(space: Space, standin_image: str) -> None:
    good(space, standin_image, "sane", rollout={"progressDeadlineSeconds": 600})
    before = space.uids("sane")
    space.patch("sane", **serving("--verify-status", "500", "--fail-message", "the engine returned no token"))
    told = space.condition("sane", "RolledBack", "VerificationFailed", seconds=40)
    assert "answers GET /verifyz with HTTP 500: the engine returned no token" in told["message"]
    settled(space, "sane", before)


def test_what_failed_is_left_until_it_is_asked_for_again(space: Space, standin_image: str) -> None:
    good(space, standin_image, "again")
    before = space.uids("again")
    space.patch("again", **serving("--crash-on-start"))
    space.condition("again", "RolledBack", "CrashLoopBackOff", seconds=DEADLINE_SECONDS + 60)
    settled(space, "again", before)
    space.kubectl("scale", "tsvc", "again", "--replicas=2")
    eventually(lambda: len(space.uids("again")) == 2, "it is scaled", seconds=30)
    space.condition("again", "RolledBack", "CrashLoopBackOff")
    assert before < space.uids("again")
    revision = space.there("TokenService", "again")["status"]["updateRevision"]
    assert "tokenservice.dev/failed" in space.kubectl("get", "controllerrevision", revision, "-o", "yaml")
    space.kubectl("annotate", "tsvc", "again", "tokenservice.dev/retry=1")
    eventually(lambda: len(space.uids("again")) == 3, "it is tried again", seconds=30)
    space.condition("again", "RolledBack", "CrashLoopBackOff", seconds=DEADLINE_SECONDS + 60)
    assert space.events_with("RollingOut", "again")


def test_on_failure_pause_holds_it_where_it_is(space: Space, standin_image: str) -> None:
    good(space, standin_image, "held", rollout={**QUICK, "onFailure": "Pause"})
    before = space.uids("held")
    space.patch("held", **serving("--crash-on-start", "--fail-message", "no"))
    space.condition("held", "Progressing", "CrashLoopBackOff", seconds=DEADLINE_SECONDS + 60)
    assert before < space.uids("held")
    assert space.there("Deployment", "held")["spec"]["paused"] is True
    described(space, "held", "its rollout is held")
    space.patch("held", **serving("--version-text", "mended"))
    space.good("held")
    assert not before & space.uids("held")


def test_a_second_change_in_the_middle_ends_in_the_newest(space: Space, client: Client, standin_image: str) -> None:
    url = client.reach(good(space, standin_image, "hasty", replicas=2))
    with client.asking_steadily(url, "standin") as report:
        space.patch("hasty", **serving("--version-text", "second", "--ready-after", "4"))
        space.condition("hasty", "Progressing", "RollingOut")
        space.patch("hasty", **serving("--version-text", "third"))
        space.good("hasty", seconds=90)
    assert not report.failures, "\n".join(report.failures)
    assert "third" in report.versions
    header, line = space.kubectl("get", "tsvc", "hasty", "-o", "wide").splitlines()
    assert header.split()[-2:] == ["CURRENT", "UPDATE"]
    current, update = line.split()[-2:]
    assert current == update
    history = space.kubectl("get", "controllerrevisions", "-l", "tokenservice.dev/service=hasty", "-o", "name")
    assert len(history.split()) == 3


def test_a_full_node_says_so_and_max_unavailable_decides(
    space: Space, cluster: Cluster, api: Api, standin_image: str
) -> None:
    """Where there is no room for the surge, since the GPUs are all taken."""
    gpu = {"spec": {"containers": [{"name": "server", "resources": {"limits": {GPU: 1}}}]}}
    with node_with_gpus(cluster, api, 1):
        good(space, standin_image, "full", template=gpu, rollout={"progressDeadlineSeconds": 600})
        space.patch("full", **serving("--version-text", "new"))
        space.says("full", "Unschedulable")
        described(space, "full", f"Insufficient {GPU}")
        space.patch("full", rollout={"maxUnavailable": 1})
        space.good("full", seconds=90)


def test_a_node_that_is_lost_in_the_middle(
    space: Space, cluster: Cluster, standin_image: str, second_node: Callable[[], None]
) -> None:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"tokenservice.dev/service": "torn"}},
    }
    template = {"spec": {"topologySpreadConstraints": [spread], "tolerations": LEAVES_LOST_NODES}}
    good(space, standin_image, "torn", replicas=2, template=template, rollout={"progressDeadlineSeconds": 600})
    assert SECOND_NODE in {pod["spec"]["nodeName"] for pod in space.pods("torn")}
    space.patch("torn", **serving("--version-text", "new", "--ready-after", "5"))
    space.condition("torn", "Progressing", "RollingOut")
    second_node()
    # The node is missed after some 50 s; then its pods are made anew on the other one.
    space.good("torn", seconds=240)
    assert {pod["spec"]["nodeName"] for pod in space.pods("torn")} == {cluster.facts["nodes"][0]["name"]}
