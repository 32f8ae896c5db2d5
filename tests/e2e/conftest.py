"""One cluster with a real node for the whole tier, the images in its registry, and the operator as Helm installs it."""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e.client import Client
from tests.support.api import Api
from tests.support.cluster import BUILD_SECONDS, ROOT, Cluster, localcluster
from tests.support.space import RESTRICTED, Space
from tools.localchannel import in_cluster

CLUSTER = os.environ.get("E2E_CLUSTER", "test-e2e")
SYSTEM = "tokenservice-system"
RELEASE = "tokenservice-operator"
SECOND_NODE = "node-2"
LEAVES_LOST_NODES = [
    {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    for key in ("not-ready", "unreachable")
]
"""Tolerations of a pod that is made anew a second after its node is missed."""
CHANNEL = "conda-channel"
"""Namespace of the conda channels."""
LOGIN = {"username": "builder", "password": "planted-Zq7vX2-never-to-be-shown"}
"""Of the channels' server, which asks for none: to be seen nowhere."""
_KEPT = pytest.StashKey[Cluster]()


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made: Cluster | None = None
    try:
        made = Cluster.up(CLUSTER)
        request.session.stash[_KEPT] = made
        yield made
    finally:
        if made:
            made.down()
        else:
            localcluster("down", "--name", CLUSTER)


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Iterator[Api]:
    made = Api(cluster.kubeconfig)
    yield made
    made.close()


@pytest.fixture(scope="session")
def push(cluster: Cluster) -> Callable[..., str]:
    """Builds an image and pushes it to the cluster's registry; returns its reference by digest."""

    def run(image: str, *arguments: str) -> str:
        command = (sys.executable, "-m", "tokenservice.cli", "image", "push", image, "--plain-http", "--tag", "e2e")
        done = cluster.run(*command, "--registry", cluster.registry, *arguments, seconds=BUILD_SECONDS)
        return str(json.loads(done.stdout.splitlines()[-1])["image"])

    return run


@pytest.fixture(scope="session")
def operator_image(push: Callable[..., str]) -> str:
    return push("operator")


@pytest.fixture(scope="session")
def standin_image(push: Callable[..., str]) -> str:
    """standin_server/: keeps token_server's contract, has no model."""
    return push("token-server-standin")


@pytest.fixture(scope="session")
def base_image(push: Callable[..., str]) -> str:
    """What environments are put on; with a Python of its own that other pods of the tests use."""
    return push("base")


@pytest.fixture(scope="session")
def model_folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with random weights."""
    folder = tmp_path_factory.mktemp("model")
    cluster.run(sys.executable, "tools/make_model.py", str(folder))
    return folder


@pytest.fixture(scope="session")
def model_image(push: Callable[..., str], model_folder: Path) -> str:
    """The same as an image, for image volumes."""
    folder = model_folder
    return push("model", "--from", str(folder), "--name", "tiny")


@pytest.fixture(scope="session")
def operator(cluster: Cluster, api: Api, operator_image: str, base_image: str) -> Cluster:
    """The operator, installed with the chart's own values in a namespace of the restricted standard.

    Environments go to the cluster's registry; their packages come from `channel`, once a test asks for it.
    """
    repository, digest = operator_image.split("@")
    alias, index = in_cluster.urls(CHANNEL)
    values = {
        "image": {"repository": repository, "digest": digest},
        "registry": {"url": f"{cluster.registry}/tokenservice", "plainHTTP": True},
        "builder": {
            "baseImage": base_image,
            "channels": {"alias": alias},
            "pip": {"indexUrl": index},
            "credentials": {alias.removeprefix("http://"): "channel-login"},
            "timeoutSeconds": 5,
            "retries": 1,
        },
    }
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": RESTRICTED}})
    login = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "channel-login"}, "stringData": LOGIN}
    cluster.apply(login, namespace=SYSTEM)
    cluster.helm(
        *("upgrade", "--install", RELEASE, str(ROOT / "charts" / RELEASE), "--namespace", SYSTEM),
        *("--values", "-", "--wait", "--timeout", "3m"),
        input=json.dumps(values),
    )
    return cluster


@pytest.fixture(scope="session")
def channel(operator: Cluster, push: Callable[..., str], base_image: str) -> str:
    """Conda channels and a package index inside the cluster (docs/local-channel.md); the name of their Deployment."""
    command = (sys.executable, "-m", "tools.localchannel", "build")
    folder = operator.run(*command, seconds=BUILD_SECONDS).stdout.strip().splitlines()[-1]
    image = push("model", "--from", folder, "--name", "conda-channel")
    namespace = {"metadata": {"name": CHANNEL, "labels": RESTRICTED}}
    operator.apply({"apiVersion": "v1", "kind": "Namespace", **namespace})

    def kubectl(*arguments: str, text: str | None = None) -> str:
        return operator.kubectl(*arguments, input=text).stdout

    in_cluster.apply(kubectl, image, base_image, CHANNEL)
    return in_cluster.NAME


@pytest.fixture(scope="module")
def module_space(request: pytest.FixtureRequest, operator: Cluster, api: Api) -> Iterator[Space]:
    """A namespace that the tests of a module share."""
    with Space.made(_name(request.module.__name__), operator, api) as made:
        yield made


@pytest.fixture
def space(request: pytest.FixtureRequest, operator: Cluster, api: Api) -> Iterator[Space]:
    """A namespace of one test's own."""
    with Space.made(_name(request.node.name), operator, api) as made:
        yield made


@pytest.fixture
def second_node(cluster: Cluster) -> Iterator[Callable[[], None]]:
    """A node more; the function loses it, as by power failure. At the end it is gone either way."""
    lost = False

    def lose(*more: str) -> None:
        nonlocal lost
        lost = True
        localcluster("remove-node", "--name", cluster.name, "--node", SECOND_NODE, *more)

    localcluster("add-node", "--name", cluster.name, "--node", SECOND_NODE)
    try:
        yield lose
    finally:
        if lost:
            cluster.kubectl("delete", "node", SECOND_NODE)
        else:
            lose("--delete-object")


@pytest.fixture(scope="session")
def client(operator: Cluster, api: Api, standin_image: str) -> Iterator[Client]:
    """A pod in a namespace of its own, from which services are asked."""
    with Space.made(_name("client"), operator, api) as made:
        yield Client.start(made, standin_image)


def _name(of: str) -> str:
    """A namespace's name; with a random end, since a cluster may be kept for several runs (KEEP_CLUSTER)."""
    words = re.sub("[^a-z0-9]+", "-", of.rsplit(".", 1)[-1].lower()).strip("-")
    return f"{words[:50].rstrip('-')}-{secrets.token_hex(2)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure tells what the cluster looked like."""
    report = yield
    kept = item.session.stash.get(_KEPT, None)
    if report.failed and kept and report.when != "teardown":
        report.sections.append(("the operator's log", _operator_log(kept)))
        for space in (each for each in item.funcargs.values() if isinstance(each, Space)):
            report.sections.append((f"namespace {space.name}", _state(kept, space.name)))
    return report


def _operator_log(cluster: Cluster) -> str:
    selector = "app.kubernetes.io/component=manager"
    return _said(cluster, "-n", SYSTEM, "logs", "--selector", selector, "--prefix", "--tail", "60")


def _state(cluster: Cluster, namespace: str) -> str:
    parts = [
        _said(cluster, "-n", namespace, "get", "tsvc,deploy,pods,pvc", "-o", "wide"),
        _said(cluster, "-n", namespace, "describe", "tsvc,cenv"),
        _said(cluster, "-n", SYSTEM, "get", "jobs,pods", "-o", "wide"),
        _said(cluster, "-n", SYSTEM, "logs", "--selector", "tokenservice.dev/job", "--prefix", "--tail", "25"),
        _said(cluster, "-n", namespace, "describe", "pods"),
        _said(cluster, "-n", namespace, "events"),
    ]
    for pod in _said(cluster, "-n", namespace, "get", "pods", "-o", "name").split():
        parts += [f"{pod}:", _said(cluster, "-n", namespace, "logs", pod, "--tail", "25", "--all-containers")]
    return "\n".join(parts)


def _said(cluster: Cluster, *arguments: str) -> str:
    done = cluster.kubectl(*arguments, check=False)
    return (done.stdout + done.stderr)[-8000:]
