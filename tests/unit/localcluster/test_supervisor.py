"""The supervisor's loop on real processes, without namespaces: it is then a process like any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.localcluster import machine
from tools.localcluster.errors import LocalClusterError
from tools.localcluster.supervisor import restart_delay

SCRIPT = """
import sys
from pathlib import Path
from tools.localcluster import supervisor as module
module.STOP_SECONDS = 0.3
supervisor = module.Supervisor(Path(sys.argv[1]))
supervisor.listen()
supervisor.run()
"""


def component(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "argv": ["sh", "-c", script], **more}


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)  # between two looks


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / ("long" * 30)  # longer than a Unix socket's path may be
    place.mkdir()
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(place)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    until(lambda: machine.alive(place) == process.pid)
    yield place
    for name in machine.ask(place, {"op": "status"}):
        machine.ask(place, {"op": "stop", "name": name})
    process.send_signal(signal.SIGTERM)
    process.wait(10)


def status(folder: Path, name: str) -> dict[str, Any]:
    return machine.ask(folder, {"op": "status"})[name]


def test_delays_double_up_to_ten_seconds() -> None:
    assert [restart_delay(n) for n in (0, 1, 2, 3, 4, 5, 6, 20)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_component_that_ends_is_started_again(folder: Path) -> None:
    machine.ask(folder, {"op": "apply", "components": [component("one", "exec sleep 1000")]})
    until(lambda: status(folder, "one")["state"] == "running")
    first = status(folder, "one")["pid"]
    os.kill(first, signal.SIGKILL)
    until(lambda: status(folder, "one")["pid"] not in (0, first))
    assert status(folder, "one")["restarts"] == 1
    assert status(folder, "one")["last_exit"] == "signal 9"


def test_stop_and_start_and_restart(folder: Path) -> None:
    machine.ask(folder, {"op": "apply", "components": [component("one", "exec sleep 1000")]})
    until(lambda: status(folder, "one")["state"] == "running")
    machine.ask(folder, {"op": "stop", "name": "one"})
    until(lambda: status(folder, "one")["state"] == "stopped")
    machine.ask(folder, {"op": "start", "name": "one"})
    until(lambda: status(folder, "one")["state"] == "running")
    before = status(folder, "one")["pid"]
    machine.ask(folder, {"op": "restart", "name": "one"})
    until(lambda: status(folder, "one")["pid"] not in (0, before))


def test_what_does_not_heed_sigterm_is_killed(folder: Path) -> None:
    machine.ask(
        folder,
        {"op": "apply", "components": [component("deaf", "trap '' TERM; echo deaf; while :; do sleep 1000; done")]},
    )
    log = folder / "log/deaf.log"
    until(lambda: log.exists() and "deaf" in log.read_text())
    machine.ask(folder, {"op": "stop", "name": "deaf"})
    until(lambda: status(folder, "deaf")["state"] == "stopped")
    assert status(folder, "deaf")["last_exit"] == "signal 9"


def test_only_what_changed_is_restarted(folder: Path) -> None:
    specs = [component("same", "exec sleep 1000"), component("changes", "exec sleep 1000")]
    machine.ask(folder, {"op": "apply", "components": specs})
    until(lambda: all(status(folder, name)["state"] == "running" for name in ("same", "changes")))
    same, changes = status(folder, "same")["pid"], status(folder, "changes")["pid"]
    machine.ask(folder, {"op": "apply", "components": [specs[0], component("changes", "exec sleep 1001")]})
    until(lambda: status(folder, "changes")["pid"] not in (0, changes))
    assert status(folder, "same")["pid"] == same
    machine.ask(folder, {"op": "apply", "components": [specs[0]]})
    until(lambda: status(folder, "changes")["state"] == "stopped")


LISTENER = "import signal, socket; s = socket.socket(socket.AF_UNIX); s.bind('there'); s.listen(); signal.pause()"


def test_a_component_waits_for_what_it_comes_after(folder: Path) -> None:
    later = component("later", "exec sleep 1000", after=["unix:there"])
    machine.ask(folder, {"op": "apply", "components": [later]})
    assert status(folder, "later")["state"] == "waiting"
    first = {"name": "first", "argv": [sys.executable, "-c", LISTENER]}
    machine.ask(folder, {"op": "apply", "components": [later, first]})
    until(lambda: status(folder, "later")["state"] == "running")


def test_a_program_that_is_not_there_is_told(folder: Path) -> None:
    machine.ask(folder, {"op": "apply", "components": [{"name": "gone", "argv": ["/nowhere/program"]}]})
    until(lambda: "No such file" in status(folder, "gone")["last_exit"])


def test_a_wrong_request_is_refused_and_the_next_is_answered(folder: Path) -> None:
    with pytest.raises(LocalClusterError, match="no component named 'x'"):
        machine.ask(folder, {"op": "stop", "name": "x"})
    with pytest.raises(LocalClusterError, match="unknown operation 'dance'"):
        machine.ask(folder, {"op": "dance"})
    with machine.connect(folder) as connection:
        connection.sendall(b"not json\n")
        assert "bad request" in json.loads(connection.recv(4096))["error"]
    assert machine.ask(folder, {"op": "status"}) == {}


def test_a_machine_that_is_not_there(tmp_path: Path) -> None:
    assert machine.alive(tmp_path) == 0
    assert machine.find(tmp_path) == []
    with pytest.raises(LocalClusterError, match="run up again"):
        machine.ask(tmp_path, {"op": "status"})
