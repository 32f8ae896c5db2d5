"""The script that serves the channels, started as it is in a pod; and the manifest that starts it there."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uv
import yaml
from tokenservice.builder.wheels import Wheel

from tests.support.toy_wheel import toy_wheel
from tools.localchannel import in_cluster, serve, simple_index


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A folder and the port that it is served at."""
    root = tmp_path_factory.mktemp("served")
    shutil.copyfile(serve.__file__, root / "serve.py")
    (root / "conda-forge/noarch").mkdir(parents=True)
    (root / "conda-forge/noarch/repodata.json").write_text("{}")
    (root / "conda-forge/noarch/toy.conda").write_bytes(b"0123456789")
    (root / ".made").write_text("notes")
    (root.parent / "outside").write_text("secret")
    command = [sys.executable, "-I", str(root / "serve.py"), "0", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield root, int(process.stdout.readline().rsplit(" ", 1)[1])
        process.terminate()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, answer.headers, data


def test_files_ranges_and_heads(served: tuple[Path, int]) -> None:
    path = "/conda-forge/noarch/toy.conda"
    assert ask(served[1], path)[::2] == (200, b"0123456789")
    assert ask(served[1], path, Range="bytes=2-4")[::2] == (206, b"234")
    assert ask(served[1], path, Range="bytes=8-")[::2] == (206, b"89")
    assert ask(served[1], path, Range="bytes=10-")[0] == 416
    status, headers, data = ask(served[1], path, "HEAD")
    assert (status, headers["Content-Length"], data) == (200, "10", b"")


@pytest.mark.parametrize("path", ["/missing", "/.made", "/../outside", "/%2e%2e/outside", "/conda-forge/"])
def test_nothing_else_is_served(served: tuple[Path, int], path: str) -> None:
    assert ask(served[1], path)[::2] == (404, b"")


def test_an_index_that_changed_is_seen_though_its_time_has_not(served: tuple[Path, int]) -> None:
    path = "/conda-forge/noarch/repodata.json"
    tag = ask(served[1], path)[1]["ETag"]
    assert ask(served[1], path, If_None_Match=tag)[0] == 304
    (served[0] / path.lstrip("/")).write_text('{"info": {}}')
    assert ask(served[1], path, If_None_Match=tag)[::2] == (200, b'{"info": {}}')


def test_uv_resolves_from_the_index(served: tuple[Path, int], tmp_path: Path) -> None:
    root, port = served
    files = [toy_wheel(tmp_path, "top", "1.0", requires=["low"]), *(toy_wheel(tmp_path, "low", v) for v in ("1", "2"))]
    times = ["2024-01-01T00:00:00+00:00", "2024-01-01T00:00:00+00:00", "2025-01-01T00:00:00+00:00"]
    wheels = [
        Wheel(*file.name.split("-")[:2], file.name, hashlib.sha256(file.read_bytes()).hexdigest(), 0, "", time)
        for file, time in zip(files, times, strict=True)
    ]
    simple_index.write(root / "simple", wheels, files)
    url = f"http://127.0.0.1:{port}/simple/"
    command = [uv.find_uv_bin(), "pip", "compile", "-", "--index-url", url, "--no-config", "--no-header"]
    command += ["--no-annotate", "--cache-dir", str(tmp_path / "uv")]
    for date, version in (("2024-06-01", "1"), ("2026-01-01", "2")):
        done = subprocess.run(
            [*command, "--exclude-newer", date], input="top\n", capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [f"low=={version}", "top==1.0"]


def objects() -> dict[str, Any]:
    text = in_cluster.manifest_text("registry.example:5000/models/channel@sha256:1", "registry.example/py:1", "demo")
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def test_the_manifest_holds_to_restricted_pod_security() -> None:
    pod = objects()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_service_and_pod_belong_together() -> None:
    made = objects()
    template = made["Deployment"]["spec"]["template"]
    [container] = template["spec"]["containers"]
    assert made["Service"]["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert made["Deployment"]["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    [port] = made["Service"]["spec"]["ports"]
    [listens] = container["ports"]
    assert port["targetPort"] == listens["name"]
    assert container["command"][-1] == str(listens["containerPort"]) == str(port["port"])  # as the Jobs' policy allows
    [volume] = template["spec"]["volumes"]
    assert volume["image"]["reference"] == "registry.example:5000/models/channel@sha256:1"
    assert container["image"] == "registry.example/py:1"
    assert {each["metadata"]["namespace"] for each in made.values()} == {"demo"}


def test_applying_waits_and_tells_the_addresses() -> None:
    calls: list[tuple[tuple[str, ...], str | None]] = []

    def kubectl(*arguments: str, text: str | None = None) -> str:
        calls.append((arguments, text))
        return ""

    assert in_cluster.apply(kubectl, "a", "b", "demo") == (
        "http://conda-channel.demo.svc",
        "http://conda-channel.demo.svc/simple/",
    )
    assert [arguments[0] for arguments, _ in calls] == ["apply", "rollout"]
