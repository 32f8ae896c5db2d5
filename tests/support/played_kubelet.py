"""A STAND-IN for a kubelet: says of pods what one would, without running anything. For tests of a control plane alone.

The scheduler is the real one and binds pods to the node, which has a taint, so that other tests' pods stay away. A pod
whose image has `bad` in its name crashes, one that brings images has done so at once, every other is Ready, and answers
GET /verifyz on this machine. One whose image has `slow` in its name starts after a while, unless it waits in a pool:
then it is Ready, and answers PUT /assignment.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from tests.support.api import Api, Object, RefusedError, path_of

NODE = "played"
TOLERATION = {"key": NODE, "operator": "Exists"}
ADDRESS = "127.0.0.2"
PORT = 8000
ASSIGN_PORT = 8001
SLOW_SECONDS = 12.0
"""After which a pod with a `slow` image starts: longer than a claimed one takes to settle."""
POOL = "tokenservice.dev/pool"
CRASH_MESSAGE = "ImportError: cannot import name 'played'"
PRE_PULL = "tokenservice.dev/pre-pull"
HEARTBEAT_SECONDS = 5.0


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/verifyz" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_PUT(self) -> None:
        """An assignment, in the place of the pod that it is for; which one that is, the token alone tells."""
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = b'{"status": "serving", "stages": {"weights": 0.001, "warmup": 0.001, "total": 0.002}}'
        self.send_response(200 if self.path == "/assignment" else 404)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def played(api: Api) -> Iterator[None]:
    """The node and its kubelet, for as long as the block runs."""
    servers = [ThreadingHTTPServer((ADDRESS, port), _Handler) for port in (PORT, ASSIGN_PORT)]
    over = threading.Event()
    _make_node(api)
    work = [
        *(threading.Thread(target=server.serve_forever, daemon=True) for server in servers),
        threading.Thread(target=_watch, args=(api, over), daemon=True),
        threading.Thread(target=_beat, args=(api, over), daemon=True),
    ]
    for thread in work:
        thread.start()
    try:
        yield
    finally:
        over.set()
        api.delete("Node", None, NODE)
        for server in servers:
            server.shutdown()
            server.server_close()


def _make_node(api: Api) -> None:
    room = {"cpu": "64", "memory": "256Gi", "pods": "500", "ephemeral-storage": "500Gi"}
    taint = {"key": NODE, "effect": "NoSchedule"}
    api.delete("Node", None, NODE)
    api.create("Node", None, {"metadata": {"name": NODE}, "spec": {"taints": [taint]}})
    api.patch("Node", None, NODE, {"status": {"capacity": room, "allocatable": room}}, "status")
    _ready(api)


def _beat(api: Api, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(RefusedError, httpx.HTTPError):
            _ready(api)


def _ready(api: Api) -> None:
    said = {"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": _now()}
    api.patch("Node", None, NODE, {"status": {"conditions": [{**said, "lastTransitionTime": _now()}]}}, "status")


def _watch(api: Api, over: threading.Event) -> None:
    """Until it is over, with another watch where one ends: on a busy machine an answer may be late."""
    while not over.is_set():
        with contextlib.suppress(httpx.HTTPError):
            for event in api.watch("Pod"):
                pod = event["object"]
                if event["type"] != "DELETED" and pod["spec"].get("nodeName") == NODE:
                    if _slow(pod):
                        threading.Thread(target=_play_late, args=(api, pod, over), daemon=True).start()
                    else:
                        _insist(api, pod, over)
        over.wait(0.5)


def _insist(api: Api, pod: Object, over: threading.Event) -> None:
    """Plays the pod; again and again where the API server has too much to do, until the pod is gone."""
    while not over.is_set():
        try:
            return _play(api, pod)
        except RefusedError as error:
            if error.code in (404, 409):
                return None
        except httpx.HTTPError:
            pass
        over.wait(0.5)
    return None


def _slow(pod: Object) -> bool:
    begins = "deletionTimestamp" not in pod["metadata"] and not pod["status"].get("containerStatuses")
    slow = any("slow" in each["image"] for each in pod["spec"]["containers"])
    return begins and slow and POOL not in pod["metadata"].get("labels", {})


def _play_late(api: Api, pod: Object, over: threading.Event) -> None:
    if not over.wait(SLOW_SECONDS):
        _insist(api, pod, over)


def _play(api: Api, pod: Object) -> None:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    if "deletionTimestamp" in pod["metadata"]:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
        api.request("DELETE", path_of("Pod", namespace, name), options)
    elif not pod["status"].get("containerStatuses"):
        api.patch("Pod", namespace, name, {"status": _status(pod)}, "status")


def _status(pod: Object) -> Object:
    containers = pod["spec"]["containers"]
    if PRE_PULL in pod["metadata"].get("labels", {}):
        done = {"terminated": {"exitCode": 0, "reason": "Completed"}}
        return {"phase": "Succeeded", "containerStatuses": [_container(each, done, ready=False) for each in containers]}
    bad = any("bad" in each["image"] for each in containers)
    crashed = {"terminated": {"exitCode": 1, "reason": "Error", "message": CRASH_MESSAGE}}
    state: Object = {"waiting": {"reason": "CrashLoopBackOff"}} if bad else {"running": {"startedAt": _now()}}
    ready = {"type": "Ready", "status": str(not bad), "lastTransitionTime": _now()}
    return {
        "phase": "Running",
        "podIP": ADDRESS,
        "podIPs": [{"ip": ADDRESS}],
        "conditions": [ready, {**ready, "type": "ContainersReady"}],
        "containerStatuses": [
            {**_container(each, state, ready=not bad), **({"lastState": crashed} if bad else {})} for each in containers
        ],
    }


def _container(container: Object, state: Object, *, ready: bool) -> Object:
    known = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
    return {**known, "ready": ready, "state": state}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
