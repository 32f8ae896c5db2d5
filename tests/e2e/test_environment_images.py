"""Images with environments: several in one prebuilt image, and images out of the registry that the chart installs."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import made_images
from tests.e2e.conftest import CHANNEL, RELEASE, SYSTEM
from tests.support.api import Api, Object
from tests.support.cluster import BUILD_SECONDS, ROOT, Cluster, condition
from tests.support.space import RESTRICTED, Space
from tests.support.wait import eventually
from tools.localchannel import in_cluster

ENVIRONMENTS = {"token_nlp": "tqdm", "token_code": "sympy"}
"""Of the one image: name -> the package that only it has."""
AT_OPT_CONDA = 'mount -t tmpfs none /opt && mkdir /opt/conda && mount --bind "$1" /opt/conda && shift && exec "$@"'
EVALUATION, TEAM = "evaluation-system", "evaluation-team"
NODE_PORT = 30555


@contextlib.contextmanager
def served(channel_folder: Path) -> Iterator[str]:
    """The channels on a port of this machine; their URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = (sys.executable, "-m", "tools.localchannel", "serve", "--out", str(channel_folder), "--port", str(port))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _listens(port), "the channels are served")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="module")
def two_in_one(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image laid out as Miniconda's, with both ENVIRONMENTS, each made by `tokenservice env create` at its place.

    In each lies the stand-in in token_server's place, since that needs PyTorch.
    """
    folder = tmp_path_factory.mktemp("two")
    conda = folder / "conda"
    conda.mkdir()
    build = (sys.executable, "-m", "tools.localchannel", "build")
    channel = cluster.run(*build, seconds=BUILD_SECONDS).stdout.strip().splitlines()[-1]
    with served(Path(channel)) as url:
        settings = folder / "settings.yaml"
        settings.write_text(json.dumps({"channels": {"alias": url}, "pip": {"indexUrl": f"{url}/simple/"}}))
        for name, package in ENVIRONMENTS.items():
            file = folder / name / "environment.yml"
            file.parent.mkdir()
            file.write_text(yaml.safe_dump({"channels": ["conda-forge"], "dependencies": ["python=3.11", package]}))
            create = (sys.executable, "-m", "tokenservice.cli", "env", "create", str(file))
            place = ("--prefix", f"/opt/conda/envs/{name}", "--settings", str(settings))
            inside = ("unshare", "--mount", "sh", "-ec", AT_OPT_CONDA, "sh", str(conda))
            environ = {**os.environ, "TOKENSERVICE_CACHE": str(folder / "cache")}
            done = subprocess.run(
                (*inside, *create, *place), env=environ, cwd=ROOT, check=False, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            module = conda / "envs" / name / "lib/python3.11/site-packages/token_server"
            module.mkdir()
            (module / "__init__.py").touch()
            shutil.copy(ROOT / "tests/e2e/standin_server/standin.py", module / "main.py")
    return made_images.push(cluster.registry, "test/two-in-one", {"opt/conda": conda}, folder / "image", on_base=True)


def test_one_of_several_environments_of_an_image(space: Space, two_in_one: str) -> None:
    for name in ENVIRONMENTS:
        space.apply(
            name.replace("_", "-"),
            two_in_one,
            environment={"image": {"reference": two_in_one, "condaEnv": name}},
            model={"source": "file:///opt/conda"},
        )
    tell = """
import importlib.util, json, os, pathlib, sys
records = pathlib.Path(os.environ["CONDA_PREFIX"], "conda-meta").glob("*.json")
found = sorted(each.name.rsplit("-", 2)[0] for each in records)
modules = [name for name in ("tqdm", "sympy") if importlib.util.find_spec(name)]
__import__(modules[0])
print(json.dumps([sys.prefix, os.environ["CONDA_DEFAULT_ENV"], found, modules,
                  pathlib.Path("/proc/1/cmdline").read_text().split("\\0")[:3]]))
"""
    for name, package in ENVIRONMENTS.items():
        service = space.ready(name.replace("_", "-"), seconds=60)
        assert service["status"]["environment"] == {"image": two_in_one, "condaEnv": name}
        pod = space.pod(name.replace("_", "-"))["metadata"]["name"]
        # `python` is found on the PATH, as after `conda activate`.
        prefix, active, installed, modules, command = json.loads(space.kubectl("exec", pod, "--", "python", "-c", tell))
        folder = f"/opt/conda/envs/{name}"
        assert (prefix, active, modules) == (folder, name, [package])
        assert {"python", package, "openssl"} <= set(installed)
        assert not set(installed) & (set(ENVIRONMENTS.values()) - {package})
        assert command == [f"{folder}/bin/python", "-m", "token_server.main"]


@pytest.fixture
def alone(operator: Cluster) -> Iterator[None]:
    """Without the operator of the other tests, which watches all namespaces."""
    scale = ("-n", SYSTEM, "scale", f"deployment/{RELEASE}")
    operator.kubectl(*scale, "--replicas=0")
    try:
        operator.kubectl(
            *("-n", SYSTEM, "wait", "--for=delete", "pod", "--timeout=60s"),
            *("--selector", "app.kubernetes.io/component=manager"),
        )
        yield
    finally:
        operator.kubectl(*scale, "--replicas=2")
        operator.kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{RELEASE}", "--timeout=90s")


@pytest.fixture
def evaluation(cluster: Cluster, alone: None, channel: str, operator_image: str, tmp_path: Path) -> Iterator[Object]:
    """Values for a release with the evaluation registry, and two namespaces for it."""
    assert channel
    (program,) = Path(cluster.facts["bin"]).parent.glob("bin/registry")
    (tmp_path / "registry/bin").mkdir(parents=True)
    shutil.copy(program.resolve(), tmp_path / "registry/bin/registry")
    (tmp_path / "registry/bin/registry").chmod(0o755)
    image = made_images.push(
        cluster.registry, "test/registry", {"": tmp_path / "registry"}, tmp_path / "image", on_base=False
    )
    repository, digest = operator_image.split("@")
    alias, index = in_cluster.urls(CHANNEL)
    host = f"evaluation-tokenservice-operator-registry.{EVALUATION}.svc.cluster.local:5000"
    for namespace in (EVALUATION, TEAM):
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": RESTRICTED}})
    try:
        yield {
            "image": {"repository": repository, "digest": digest},
            "watchNamespaces": [TEAM],
            "crds": {"enabled": False},
            "registry": {"enabled": True, "image": image, "nodePort": NODE_PORT},
            "builder": {
                "baseImage": f"{host}/tokenservice/base:e2e",
                "channels": {"alias": alias},
                "pip": {"indexUrl": index},
                "timeoutSeconds": 5,
                "retries": 1,
            },
        }
    finally:
        cluster.helm("uninstall", "evaluation", "-n", EVALUATION, "--ignore-not-found", "--wait", check=False)
        cluster.kubectl("delete", "namespace", EVALUATION, TEAM, "--timeout=120s")


def test_the_evaluation_registry(cluster: Cluster, api: Api, evaluation: Object) -> None:
    """`registry.enabled=true` alone: what Jobs push, the node pulls, with nothing set up on it."""
    chart = str(ROOT / "charts" / "tokenservice-operator")
    install = ("install", "evaluation", chart, "-n", EVALUATION, "--values", "-", "--wait", "--timeout", "2m")
    cluster.helm(*install, input=json.dumps(evaluation))
    with _forwarded(cluster, "service/evaluation-tokenservice-operator-registry", 5000) as place:
        push = (sys.executable, "-m", "tokenservice.cli", "image", "push", "base", "--plain-http", "--tag", "e2e")
        cluster.run(*push, "--registry", place)

    space = Space(TEAM, cluster, api)
    spec = {
        "channels": ["conda-forge"],
        "dependencies": ["python=3.11"],
        "variables": {"MARK": secrets.token_hex(4)},
    }
    resource = {"apiVersion": "tokenservice.dev/v1alpha1", "kind": "CondaEnvironment", "metadata": {"name": "small"}}
    api.apply(TEAM, {**resource, "spec": spec})

    def built() -> str:
        found = space.there("CondaEnvironment", "small")
        assert condition(found).get("status") == "True", condition(found)
        return str(found["status"]["image"])

    image = eventually(built, "the environment is built", seconds=120)
    assert image.startswith(f"localhost:{NODE_PORT}/environments@sha256:")
    assert space.there("CondaEnvironment", "small")["status"]["bytes"]["pushed"] > 1e6

    safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container: dict[str, Any] = {"name": "it", "image": image, "securityContext": safe}
    container["command"] = ["python", "-c", "import os, starlette; print('runs', os.environ['MARK'])"]
    context = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    space.make("Pod", "it", spec={"containers": [container], "securityContext": context, "restartPolicy": "Never"})
    space.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/it", "--timeout=60s")
    assert space.kubectl("logs", "it").split() == ["runs", spec["variables"]["MARK"]]

    # Nobody pushes from the nodes' side.
    url = f"http://{cluster.facts['address']}:{NODE_PORT}/v2/environments/blobs/uploads/"
    code = cluster.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", url).stdout
    assert code == "405"


@contextlib.contextmanager
def _forwarded(cluster: Cluster, target: str, port: int) -> Iterator[str]:
    command = ("kubectl", "-n", EVALUATION, "port-forward", target, f":{port}")
    with subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()  # Forwarding from 127.0.0.1:41234 -> 5000
            yield line.removeprefix("Forwarding from ").partition(" ")[0]
        finally:
            process.terminate()
