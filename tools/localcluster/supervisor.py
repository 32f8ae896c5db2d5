"""PID 1 of one machine of a local cluster: makes its namespaces, then starts, restarts and reaps its components.

Run as `python -I supervisor.py MACHINE_DIR`, with the standard library alone. The first process enters new mount,
PID, network, UTS and IPC namespaces, forks the one that becomes PID 1 there, and prints one JSON line on stdout:
`{"pid": PID as the caller sees it}` once PID 1 listens, or `{"error": "..."}`. When PID 1 ends, however it ends, the
kernel ends every process of the machine and its mounts and interfaces go with it.

MACHINE_DIR/machine.json says how the machine is made (see `machine.py`, which writes it):
hostname; cgroups: folders to join; binds: [[source, target], ...]; tmpfs: [target, ...]; files: {path: text}, written
after the mounts.

PID 1 listens on MACHINE_DIR/supervisor.sock: one JSON object a line, one answer a line.
`{"op": "apply", "components": [...]}` makes this the machine's list: new ones start, changed ones restart, missing
ones stop. `{"op": "start" | "stop" | "restart", "name": NAME}` and `{"op": "status"}` do what they say. Every answer
is the status, or `{"error": "..."}`. A component is `{"name", "argv", "env": {}, "after": ["tcp:HOST:PORT" |
"unix:PATH", ...]}`: it is started when each of `after` accepts connections.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x20000000,
    0x40000000,
)
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = (
    0x2,
    0x4,
    0x8,
    0x1000,
    0x4000,
    0x40000,
    0x100000,
)
LOG_BYTES = 32 << 20
"""A component's log is kept up to this size, and once more as NAME.log.1."""
STOP_SECONDS = 4.0
"""From SIGTERM to SIGKILL. Short: an API server with open watches takes its time, and tests restart it."""
STEADY_SECONDS = 30.0
"""A component that ran this long is restarted at once when it ends; the delay doubles with each shorter life."""


def restart_delay(quick_ends: int) -> float:
    """Seconds to wait before the next start of a component that ended `quick_ends` times in a row: 0.5 to 10."""
    return 0.0 if quick_ends <= 0 else min(10.0, 0.5 * 2.0 ** (quick_ends - 1))


@dataclass
class Component:
    """A program to keep running, and how it fares. Times are of the monotonic clock, in seconds."""

    name: str
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)
    wanted: bool = True
    pid: int = 0
    started: float = 0.0
    not_before: float = 0.0
    kill_at: float = 0.0
    restarts: int = 0
    quick_ends: int = 0
    last_exit: str = ""

    def state(self) -> str:
        if self.pid:
            return "running" if self.wanted else "stopping"
        return "waiting" if self.wanted else "stopped"

    def spec(self) -> tuple[list[str], dict[str, str], list[str]]:
        return self.argv, self.env, self.after


class Supervisor:
    """The event loop of PID 1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.components: dict[str, Component] = {}
        self.selector = selectors.DefaultSelector()
        self.log_checked = 0.0
        self.ending = False
        (folder / "log").mkdir(exist_ok=True)

    def listen(self) -> None:
        # Bound by a relative name: a Unix socket's path holds 107 bytes only, and a test's folder can be longer.
        os.chdir(self.folder)
        Path("supervisor.sock").unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind("supervisor.sock")
        Path("supervisor.sock").chmod(0o600)
        server.listen(16)
        server.setblocking(False)
        self.selector.register(server, selectors.EVENT_READ, self.accept)
        reader, self.wakeup = socket.socketpair()
        reader.setblocking(False)
        self.wakeup.setblocking(False)
        signal.set_wakeup_fd(self.wakeup.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "ending", True))
        signal.signal(signal.SIGINT, lambda *_: setattr(self, "ending", True))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.selector.register(reader, selectors.EVENT_READ, lambda sock: sock.recv(4096))

    def run(self) -> None:
        while not self.ending:
            for key, _ in self.selector.select(self.pause()):
                key.data(key.fileobj)
            self.reap()
            self.advance()
            self.bound_logs()

    def pause(self) -> float:
        """Seconds until something is due: short while a component waits for another, long when all run."""
        return 0.05 if any(c.wanted != bool(c.pid) or c.kill_at for c in self.components.values()) else 5.0

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for component in self.components.values():
                if component.pid == pid:
                    self.ended(component, status)

    def ended(self, component: Component, status: int) -> None:
        now = time.monotonic()
        code = os.waitstatus_to_exitcode(status)
        component.last_exit = f"exit status {code}" if code >= 0 else f"signal {-code}"
        component.pid, component.kill_at = 0, 0.0
        if component.wanted:
            component.quick_ends = 0 if now - component.started > STEADY_SECONDS else component.quick_ends + 1
            component.not_before = now + restart_delay(component.quick_ends)
            component.restarts += 1
        say(f"{component.name} ended: {component.last_exit}")

    def advance(self) -> None:
        now = time.monotonic()
        for component in self.components.values():
            if component.wanted and not component.pid and now >= component.not_before:
                if all(answers(where) for where in component.after):
                    self.spawn(component)
            elif component.pid and component.kill_at and now >= component.kill_at:
                send(component.pid, signal.SIGKILL)
                component.kill_at = now + STOP_SECONDS

    def spawn(self, component: Component) -> None:
        log = str(self.folder / "log" / f"{component.name}.log")
        appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            component.pid = os.posix_spawnp(
                component.argv[0],
                component.argv,
                {"PATH": os.environ["PATH"], "HOME": "/root", **component.env},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, log, appended, 0o644),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE],
            )
        except OSError as error:
            component.last_exit = str(error)
            component.quick_ends += 1
            component.not_before = time.monotonic() + restart_delay(component.quick_ends)
            say(f"{component.name} cannot start: {error}")
            return
        component.started = time.monotonic()
        say(f"{component.name} started as process {component.pid}")

    def stop(self, component: Component) -> None:
        component.wanted = False
        self.terminate(component)

    def terminate(self, component: Component) -> None:
        if component.pid and not component.kill_at:
            send(component.pid, signal.SIGTERM)
            component.kill_at = time.monotonic() + STOP_SECONDS

    def start(self, component: Component) -> None:
        component.wanted = True
        component.not_before = 0.0
        component.quick_ends = -1 if component.kill_at else 0  # its end is not its own doing

    def restart(self, component: Component) -> None:
        self.terminate(component)
        self.start(component)

    def apply(self, specs: list[dict[str, Any]]) -> None:
        wanted = {
            spec["name"]: Component(spec["name"], spec["argv"], spec.get("env", {}), spec.get("after", []))
            for spec in specs
        }
        for name, component in self.components.items():
            if name not in wanted:
                self.stop(component)
        for name, new in wanted.items():
            old = self.components.get(name)
            if old is None:
                self.components[name] = new
            elif old.spec() != new.spec():
                old.argv, old.env, old.after = new.spec()
                self.restart(old)
            elif not old.wanted:
                self.start(old)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request.get("op")
        if operation == "apply":
            self.apply(request["components"])
        elif operation in ("start", "stop", "restart"):
            component = self.components.get(request.get("name", ""))
            if component is None:
                there = ", ".join(sorted(self.components))
                return {"error": f"no component named {request.get('name')!r}; there are: {there}"}
            if operation == "stop":
                self.stop(component)
            elif operation == "start":
                self.start(component)
            else:
                self.restart(component)
        elif operation != "status":
            return {"error": f"unknown operation {operation!r}"}
        self.advance()
        now = time.monotonic()
        return {
            "components": {
                c.name: {
                    "state": c.state(),
                    "pid": c.pid,
                    "restarts": c.restarts,
                    "seconds": round(now - c.started, 1) if c.pid else 0,
                    "last_exit": c.last_exit,
                }
                for c in self.components.values()
                if c.wanted or c.pid or c.last_exit
            }
        }

    def accept(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.setblocking(False)
        received = bytearray()
        self.selector.register(connection, selectors.EVENT_READ, lambda sock: self.receive(sock, received))

    def receive(self, connection: socket.socket, received: bytearray) -> None:
        try:
            chunk = connection.recv(65536)
            received += chunk
            while b"\n" in received:
                line, _, rest = bytes(received).partition(b"\n")
                received[:] = rest
                try:
                    reply = self.answer(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    reply = {"error": f"bad request: {error}"}
                connection.setblocking(True)
                connection.settimeout(2)
                connection.sendall(json.dumps(reply).encode() + b"\n")
                connection.setblocking(False)
        except OSError:
            chunk = b""
        if not chunk:
            self.selector.unregister(connection)
            connection.close()

    def bound_logs(self) -> None:
        now = time.monotonic()
        if now - self.log_checked < 5:
            return
        self.log_checked = now
        for log in (self.folder / "log").glob("*.log"):
            if log.stat().st_size > LOG_BYTES:
                # Copied and cut, not renamed: the component holds the file open, for appending.
                shutil.copyfile(log, log.with_suffix(".log.1"))
                os.truncate(log, 0)


def say(message: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), message, flush=True)


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def answers(where: str) -> bool:
    """Whether something accepts connections at `tcp:HOST:PORT` or `unix:PATH`."""
    kind, _, rest = where.partition(":")
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    host, _, port = rest.rpartition(":")
    with socket.socket(family) as probe:
        probe.settimeout(0.2)
        try:
            probe.connect(rest if kind == "unix" else (host, int(port)))
        except OSError:
            return False
    return True


def check(result: int, doing: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")


def mount(libc: ctypes.CDLL, source: str, target: str, flags: int, kind: str = "") -> None:
    doing = f"mount {kind or 'bind'} on {target}"
    check(libc.mount(source.encode(), target.encode(), kind.encode(), flags, None), doing)


def furnish(libc: ctypes.CDLL, plan: dict[str, Any]) -> None:
    """The new machine's mounts and name. Nothing here is seen outside: every mount is made private first.

    Then shared among the machine's own processes, which volumes with mount propagation need.
    """
    mount(libc, "none", "/", MS_REC | MS_PRIVATE)
    mount(libc, "none", "/", MS_REC | MS_SHARED)
    mount(libc, "proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "proc")
    for target in plan["tmpfs"]:
        mount(libc, "tmpfs", target, MS_NOSUID | MS_NODEV, "tmpfs")
        Path(target).chmod(0o755)
    for path, text in plan["files"].items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    for source, target in plan["binds"]:
        if Path(target).exists():
            mount(libc, source, target, MS_BIND)
    socket.sethostname(plan["hostname"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def become_pid_1(libc: ctypes.CDLL, folder: Path, plan: dict[str, Any], ready: int) -> None:
    os.setsid()
    log = os.open(folder / "log" / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        furnish(libc, plan)
        supervisor = Supervisor(folder)
        supervisor.listen()
    except (OSError, subprocess.SubprocessError) as error:
        os.write(ready, str(error).encode())
        raise
    os.write(ready, b"ready")
    os.close(ready)
    say(f"machine {plan['hostname']} is up")
    supervisor.run()


def main(folder: Path) -> int:
    plan = json.loads((folder / "machine.json").read_text())
    (folder / "log").mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        for cgroup in plan["cgroups"]:
            (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
        check(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET), "new namespaces")
    except OSError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            become_pid_1(libc, folder, plan, writer)
        finally:
            os._exit(1)
    os.close(writer)
    heard = b""
    while chunk := os.read(reader, 4096):
        heard += chunk
    if heard == b"ready":
        print(json.dumps({"pid": pid}))
        return 0
    print(json.dumps({"error": heard.decode() or "the machine ended while it was being made"}))
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
