"""The client against a stand-in API server: what is sent, what is tried again, what errors say."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tokenservice.api.meta import Object
from tokenservice.kube.client import MERGE, Client, Resource, decode
from tokenservice.kube.connection import ConfigError, Connection
from tokenservice.kube.errors import ApiError, Unreachable

from tests.unit.kube.conftest import Until
from tests.unit.kube.standin_api import WIDGET, StandinApi, error


@pytest.mark.parametrize(
    ("resource", "args", "path"),
    [
        (Resource("", "v1", "pods", "Pod"), (), "/api/v1/pods"),
        (Resource("", "v1", "pods", "Pod"), ("ns",), "/api/v1/namespaces/ns/pods"),
        (Resource("", "v1", "pods", "Pod"), ("ns", "a"), "/api/v1/namespaces/ns/pods/a"),
        (WIDGET, ("ns", "a", "status"), "/apis/tests.example/v1/namespaces/ns/widgets/a/status"),
        (Resource("", "v1", "nodes", "Node", namespaced=False), (None, "n"), "/api/v1/nodes/n"),
        (Resource("", "v1", "nodes", "Node", namespaced=False), ("ignored", "n/../x"), "/api/v1/nodes/n%2F..%2Fx"),
    ],
)
def test_path(resource: Resource, args: tuple[str | None, ...], path: str) -> None:
    assert resource.path(*args) == path


def test_an_object_in_a_namespace_needs_one() -> None:
    with pytest.raises(ValueError, match="needs a namespace"):
        WIDGET.path(None, "a")


async def test_apply_is_a_server_side_apply_of_our_manager(api: StandinApi, client: Client) -> None:
    data = await client.apply(WIDGET, "ns", "a", {"spec": {"x": 1}})
    assert decode(data, Object).metadata.name == "a"
    assert api.requests == [
        ("PATCH", "/apis/tests.example/v1/namespaces/ns/widgets/a?fieldManager=tokenservice-operator&force=true")
    ]
    assert api.headers[0]["Content-Type"] == "application/apply-patch+yaml"
    assert api.headers[0]["User-Agent"].startswith("tokenservice-operator/")
    await client.apply(WIDGET, "ns", "a", b'{"spec":{"x":1}}', force=False)
    assert "force" not in api.requests[1][1]


async def test_status_patch_with_a_precondition(api: StandinApi, client: Client) -> None:
    obj = await api.put("a")
    version = obj["metadata"]["resourceVersion"]
    await client.patch_status(WIDGET, "ns", "a", {"status": {"n": 1}}, resource_version=version)
    assert json.loads(api.bodies[-1]) == {"metadata": {"resourceVersion": version}, "status": {"n": 1}}
    assert api.requests[-1][1].split("?")[0].endswith("/a/status")
    assert api.headers[-1]["Content-Type"] == MERGE
    with pytest.raises(ApiError) as caught:
        await client.patch_status(WIDGET, "ns", "a", b"{}", resource_version=version)
    assert caught.value.is_conflict


async def test_get_create_delete(api: StandinApi, client: Client) -> None:
    await client.create(WIDGET, "ns", {"metadata": {"name": "a"}, "spec": {}})
    assert json.loads(await client.get(WIDGET, "ns", "a"))["metadata"]["name"] == "a"
    with pytest.raises(ApiError) as caught:
        await client.create(WIDGET, "ns", {"metadata": {"name": "a"}})
    assert caught.value.is_already_exists
    assert not caught.value.is_conflict
    await client.delete(WIDGET, "ns", "a", uid="u1")
    assert json.loads(api.bodies[-1])["preconditions"] == {"uid": "u1"}
    with pytest.raises(ApiError) as caught:
        await client.get(WIDGET, "ns", "a")
    assert caught.value.is_not_found


async def test_list_in_chunks(api: StandinApi, client: Client) -> None:
    for number in range(5):
        await api.put(f"w{number}")
    pages = [json.loads(page) async for page in client.list(WIDGET, chunk=2, label_selector="managed=yes")]
    assert [len(page["items"]) for page in pages] == [2, 2, 1]
    assert all("labelSelector=managed%3Dyes" in path for _, path in api.requests)


async def test_too_many_requests_waits_as_told_and_tries_again(api: StandinApi, client: Client) -> None:
    await api.put("a")
    api.answers += [error(429, "TooManyRequests", retry_after=0), error(503, "ServiceUnavailable", retry_after=0)]
    await client.get(WIDGET, "ns", "a")
    assert len(api.requests) == 3


async def test_too_many_requests_gives_up_after_three_tries(api: StandinApi, client: Client) -> None:
    api.answers += [error(429, "TooManyRequests", retry_after=0) for _ in range(4)]
    with pytest.raises(ApiError) as caught:
        await client.get(WIDGET, "ns", "a")
    assert caught.value.is_transient
    assert len(api.requests) == 3


async def test_a_long_retry_after_is_left_to_the_caller(api: StandinApi, client: Client) -> None:
    api.answers.append(error(429, "TooManyRequests", retry_after=60))
    with pytest.raises(ApiError) as caught:
        await client.get(WIDGET, "ns", "a")
    assert caught.value.retry_after == 60
    assert len(api.requests) == 1


async def test_a_creation_is_never_sent_twice(api: StandinApi, client: Client) -> None:
    api.answers += [error(429, "TooManyRequests", retry_after=0)]
    with pytest.raises(ApiError):
        await client.create(WIDGET, "ns", {"metadata": {"name": "a"}})
    assert len(api.requests) == 1


async def test_an_apply_whose_connection_broke_is_sent_again(api: StandinApi, client: Client) -> None:
    async def abort(request):  # type: ignore[no-untyped-def]
        request.transport.abort()
        await asyncio.sleep(0)
        raise ConnectionResetError

    api.answers.append(abort)
    await client.apply(WIDGET, "ns", "a", {"spec": {}})
    assert [method for method, _ in api.requests] == ["PATCH", "PATCH"]


async def test_a_hung_server_is_unreachable(api: StandinApi) -> None:
    api.hang.clear()
    async with Client(Connection(api.url), timeout=0.2) as client:
        with pytest.raises(Unreachable, match="no answer in time"):
            await client.get(WIDGET, "ns", "a")


async def test_nobody_there_is_unreachable(unused_tcp_port: int) -> None:
    counted: list[tuple[str, str, str]] = []
    async with Client(
        Connection(f"http://127.0.0.1:{unused_tcp_port}"), on_request=lambda *a: counted.append(a)
    ) as client:
        with pytest.raises(Unreachable):
            await client.apply(WIDGET, "ns", "a", {})
    assert counted == [("PATCH", f"127.0.0.1:{unused_tcp_port}", "<error>")]


async def test_a_rotated_token_is_read_after_a_minute(api: StandinApi, tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "token"
    file.write_text("first\n")
    async with Client(Connection(api.url, token_file=str(file)), clock=lambda: now) as client:
        await api.put("a")
        await client.get(WIDGET, "ns", "a")
        file.write_text("second\n")
        await client.get(WIDGET, "ns", "a")
        now = 61.0
        await client.get(WIDGET, "ns", "a")
    assert [headers["Authorization"] for headers in api.headers] == ["Bearer first", "Bearer first", "Bearer second"]


async def test_a_refused_token_is_read_again_at_once(api: StandinApi, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    async with Client(Connection(api.url, token_file=str(file))) as client:
        await api.put("a")
        await client.get(WIDGET, "ns", "a")
        api.tokens = {"new"}
        file.write_text("new")
        await client.create(WIDGET, "ns", {"metadata": {"name": "b"}})
        api.tokens = {"another"}
        with pytest.raises(ApiError, match="401"):
            await client.get(WIDGET, "ns", "a")
        assert len(api.requests) == 5  # refused requests went out once more each, with what the file held


async def test_a_missing_token_file_is_no_answer(api: StandinApi, tmp_path: Path) -> None:
    async with Client(Connection(api.url, token_file=str(tmp_path / "none"))) as client:
        with pytest.raises(Unreachable, match="token file"):
            await client.get(WIDGET, "ns", "a")


async def test_no_more_requests_in_flight_than_allowed(api: StandinApi, until: Until) -> None:
    await api.put("a")
    api.hang.clear()
    async with Client(Connection(api.url), max_in_flight=2) as client:
        tasks = [asyncio.create_task(client.get(WIDGET, "ns", "a")) for _ in range(5)]
        urgent = asyncio.create_task(client.request("GET", WIDGET.path("ns", "a"), queue=False))
        await until(lambda: len(api.requests) == 3)
        api.hang.set()
        await asyncio.gather(*tasks, urgent)
    assert api.most_in_flight == 3


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (400, "bad", "invalid"),
        (422, "spec.x: Invalid value", "invalid"),
        (
            500,
            "failed to create typed patch object (ns/a; apps/v1, Kind=Deployment): .spec.x: field not declared",
            "invalid",
        ),
        (500, "failed to convert new object: quantities must match", "invalid"),
        (500, "etcdserver: leader changed", "transient"),
        (503, "", "transient"),
        (429, "", "transient"),
        (408, "", "transient"),
        (403, "", "forbidden"),
        (404, "", "not_found"),
        (409, "", "conflict"),
        (410, "", "expired"),
    ],
)
def test_kinds_of_errors(status: int, message: str, expected: str) -> None:
    answer = ApiError(status, "", message)
    kinds = {
        kind
        for kind in ("invalid", "transient", "forbidden", "not_found", "conflict", "expired")
        if getattr(answer, f"is_{kind}")
    }
    assert kinds == {expected}


def test_causes_and_html() -> None:
    body = {
        "message": "m",
        "details": {
            "causes": [{"reason": "FieldValueInvalid", "message": "must be positive", "field": "spec.n"}],
            "retryAfterSeconds": 3,
        },
    }
    answer = ApiError.from_answer(422, json.dumps(body).encode())
    assert answer.causes == (("spec.n", "must be positive"),)
    assert answer.retry_after == 3
    assert ApiError.from_answer(502, b"<html>bad gateway</html>").message == "<html>bad gateway</html>"
    assert ApiError.from_answer(502, b"[1]").is_transient


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: one
contexts:
- {name: one, context: {cluster: c, user: u, namespace: team}}
- {name: two, context: {cluster: c, user: basic}}
clusters:
- {name: c, cluster: {server: "https://api.example:6443/", certificate-authority: pki/ca.crt}}
users:
- {name: u, user: {tokenFile: /abs/token}}
- {name: basic, user: {username: joe, password: secret}}
"""


def test_kubeconfig(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(KUBECONFIG)
    connection = Connection.from_kubeconfig(str(file))
    assert connection.server == "https://api.example:6443"
    assert connection.ca_file == str(tmp_path / "pki/ca.crt")
    assert connection.token_file == "/abs/token"
    assert connection.namespace == "team"
    basic = Connection.from_kubeconfig(str(file), "two")
    assert basic.authorization() == "Basic am9lOnNlY3JldA=="
    assert "secret" not in repr(basic)
    with pytest.raises(ConfigError, match=r"no context 'three'; it has: one, two"):
        Connection.from_kubeconfig(str(file), "three")


def test_kubeconfigs_are_merged_first_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("current-context: two\nusers:\n- {name: basic, user: {token: mine}}\n")
    second.write_text(KUBECONFIG)
    connection = Connection.from_kubeconfig(f"{first}:{tmp_path / 'absent'}:{second}")
    assert connection.authorization() == "Bearer mine"


def test_kubeconfig_with_a_login_program(tmp_path: Path) -> None:
    program = tmp_path / "login"
    credential = (
        '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"by-program"}}'
    )
    program.write_text(f"#!/bin/sh\necho '{credential}'\n")
    program.chmod(0o755)
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki/ca.crt").write_text("")
    user = f"{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {program}, interactiveMode: Never}}}}"
    file = tmp_path / "config"
    file.write_text(KUBECONFIG.replace("{tokenFile: /abs/token}", user))
    connection = Connection.from_kubeconfig(str(file))
    assert connection.authorization() == "Bearer by-program"
    assert connection.rotates


def test_in_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("t")
    (tmp_path / "namespace").write_text("system\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    connection = Connection.in_cluster(tmp_path)
    assert connection.server == "https://[fd00::1]:6443"
    assert connection.namespace == "system"
    assert connection.authorization() == "Bearer t"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(ConfigError, match="KUBERNETES_SERVICE_HOST"):
        Connection.in_cluster(tmp_path)
