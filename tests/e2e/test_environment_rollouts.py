"""An edit of the environment on the real kubelet, under load: it ends in the new version serving, or in the old one.

The environments are real ones, with Python and a package or two; in place of token_server, which needs PyTorch, the
stand-in serves, and imports what the environment should have.
"""

from __future__ import annotations

import json
import secrets

import pytest

from tests.e2e.client import Client
from tests.support.api import Object
from tests.support.cluster import ROOT
from tests.support.space import Space
from tests.support.wait import eventually

NAME = "edited"
CLIENTS = 7
"""Of each of three habits."""
IMPORT_AND_SERVE = "import tqdm, runpy; runpy.run_path('/standin/standin.py', run_name='__main__')"
BUILT_SECONDS = 120.0


@pytest.fixture(scope="module")
def served(module_space: Space, channel: str) -> Space:
    """A TokenService with two replicas in an environment that has an older tqdm; good."""
    assert channel
    program = (ROOT / "tests/e2e/standin_server/standin.py").read_text()
    module_space.make("ConfigMap", "standin", data={"standin.py": program})
    server = {
        "name": "server",
        "command": ["python", "-c", IMPORT_AND_SERVE],
        "volumeMounts": [{"name": "standin", "mountPath": "/standin"}],
    }
    volumes = [{"name": "standin", "configMap": {"name": "standin"}}]
    conda = {
        "channels": ["conda-forge"],
        "dependencies": ["python=3.11", "tqdm=4.67.3"],
        "variables": {"MARK": secrets.token_hex(8)},
    }
    module_space.apply(
        NAME,
        "",
        replicas=2,
        model={"source": "file:///standin"},
        engine={"args": ["--token-interval", "0.02"]},
        environment={"conda": conda},
        template={"spec": {"containers": [server], "volumes": volumes}},
        rollout={"progressDeadlineSeconds": 20},
    )
    module_space.good(NAME, seconds=BUILT_SECONDS)
    return module_space


def edit(space: Space, old: str, new: str) -> None:
    """`kubectl edit`, with an editor that puts `new` in the place of `old`."""
    editor = f"KUBE_EDITOR=sed -i 's/{old}/{new}/'"
    done = space.cluster.run("env", editor, "kubectl", "--namespace", space.name, "edit", "tsvc", NAME)
    assert "edited" in done.stdout, done.stdout


def tqdm_of(space: Space) -> set[str]:
    """The version of tqdm in every pod that is there to stay."""
    ask = ("--", "python", "-c", "import tqdm; print(tqdm.__version__)")
    return {space.kubectl("exec", pod["metadata"]["name"], *ask).strip() for pod in space.pods(NAME)}


def test_an_edit_of_one_version_ends_in_the_new_one_serving(served: Space, client: Client) -> None:
    before, old = served.there("TokenService", NAME), served.uids(NAME)
    url = client.reach(before)
    assert tqdm_of(served) == {"4.67.3"}
    with client.asking_steadily(url, "standin", each=CLIENTS) as report:
        edit(served, "tqdm=4.67.3", "tqdm>4.67.3")
        eventually(lambda: not old & served.uids(NAME), "the pods are new ones", seconds=BUILT_SECONDS)
        after = served.good(NAME, seconds=60)
    assert not report.failures, "\n".join(report.failures)
    assert min(report.answers.values()) > 20
    assert after["status"]["environment"]["image"] != before["status"]["environment"]["image"]
    assert "4.67.3" not in tqdm_of(served)
    told = [each["reason"] for each in served.events_with("Complete", NAME)]
    stages = ["Locking", "Building", "PrePulling", "RollingOut", "Verifying", "Complete"]
    assert [reason for reason in told if reason in stages] == stages, told
    assert not leftovers(served)


def leftovers(space: Space) -> list[Object]:
    """Pods that brought the image to the node."""
    return space.api.list("Pod", space.name, labelSelector=f"tokenservice.dev/pre-pull={NAME}")


def test_an_edit_that_cannot_be_solved_ends_in_the_old_version_serving(served: Space, client: Client) -> None:
    before, pods = served.good(NAME), served.uids(NAME)
    with client.asking_steadily(client.reach(before), "standin", each=CLIENTS) as report:
        edit(served, "tqdm>4.67.3", "tqdm=999")
        told = served.condition(NAME, "EnvironmentReady", "Unsolvable")
        assert served.condition(NAME, "Ready", "Serving")
    assert "tqdm" in told["message"]
    assert not report.failures, "\n".join(report.failures)
    assert served.uids(NAME) == pods
    text = served.kubectl("describe", "tsvc", NAME)
    assert "Unsolvable" in text
    edit(served, "tqdm=999", "tqdm>4.67.3")
    served.good(NAME)
    assert served.uids(NAME) == pods, "the same lock rolls nothing"


def test_an_edit_that_breaks_at_import_ends_in_the_old_version_serving(served: Space, client: Client) -> None:
    before, pods = served.good(NAME), served.uids(NAME)
    with client.asking_steadily(client.reach(before), "standin", each=CLIENTS) as report:
        edit(served, "tqdm>4.67.3", "sse-starlette")
        told = served.condition(NAME, "RolledBack", "CrashLoopBackOff", seconds=BUILT_SECONDS)
        eventually(lambda: served.uids(NAME) == pods, "the old pods are left", seconds=60)
    assert "No module named 'tqdm'" in told["message"]
    assert not report.failures, "\n".join(report.failures)
    text = " ".join(served.kubectl("describe", "tsvc", NAME).split())
    assert "No module named 'tqdm'" in text
    assert json.dumps(served.there("TokenService", NAME)["status"]["lastGoodRevision"]) in json.dumps(before["status"])
    edit(served, "sse-starlette", "tqdm>4.67.3")
    served.good(NAME)
    assert served.uids(NAME) == pods
