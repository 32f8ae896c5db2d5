"""What runs in a build does its work and reaches nothing but that; where the kernel cannot help, the log says so."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenservice.builder.conda import confine, sandbox
from tokenservice.builder.conda.bytecode import Interpreter, compile_tree
from tokenservice.builder.errors import BuildError

HERE = tuple(dict.fromkeys((*sandbox.TOOLS, sys.base_prefix, sys.prefix)))


def landlock() -> bool:
    try:
        return confine.abi() > 0
    except OSError:
        return False


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    sandbox.confined.cache_clear()
    yield
    sandbox.confined.cache_clear()


def outcome(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """What this Python does with `code` in a sandbox that may write `folder`."""
    folder.mkdir()
    reach = sandbox.Reach(run=HERE, write=(str(folder),))
    return sandbox.run([sys.executable, "-c", code], reach, environ={"LC_ALL": "C.UTF-8"}, cwd=folder)


def guarded(done: subprocess.CompletedProcess[str], said: str, leaked: str) -> None:
    """Kept from it by the kernel, or, where that has no Landlock, told in the log that nothing keeps it."""
    if landlock():
        assert (done.returncode, done.stdout, said) == (1, "", "")
        assert "PermissionError" in done.stderr
    else:
        assert leaked in done.stdout
        assert said.startswith("the kernel has no Landlock")


def test_a_credential_outside_cannot_be_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "password").write_text("planted")
    done = outcome(tmp_path / "own", f"print(open({str(tmp_path / 'password')!r}).read())")
    guarded(done, capfd.readouterr().err, "planted")


def test_a_link_does_not_lead_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "password").write_text("planted")
    done = outcome(tmp_path / "own", "import os; os.symlink('../password', 'link'); print(open('link').read())")
    guarded(done, capfd.readouterr().err, "planted")


@pytest.mark.parametrize("name", ["environ", "maps", "cwd/pyproject.toml"])
def test_the_jobs_own_process_cannot_be_looked_into(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "pyproject.toml").write_text("x")
    monkeypatch.chdir(tmp_path)
    code = f"print(len(open('/proc/{os.getpid()}/{name}', 'rb').read()) > 0)"
    guarded(outcome(tmp_path / "own", code), capfd.readouterr().err, "True")


def test_nothing_outside_can_be_changed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = outcome(tmp_path / "own", f"open({str(tmp_path / 'cached')!r}, 'w').write('x'); print('written')")
    guarded(done, capfd.readouterr().err, "written")
    assert (tmp_path / "cached").exists() is not landlock()


def test_no_connection_is_made_where_the_kernel_can_forbid_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection({server.getsockname()!r}); print('connected')"
        done = outcome(tmp_path / "own", code)
    forbidden = landlock() and confine.abi() >= 4
    assert ("PermissionError" in done.stderr, done.stdout) == ((True, "") if forbidden else (False, "connected\n"))


def test_its_own_folder_is_its_own(tmp_path: Path) -> None:
    code = "import os; os.mkdir('a'); open('a/x', 'w').write('1'); os.replace('a/x', 'y'); print(open('y').read())"
    done = outcome(tmp_path / "own", code)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_the_jobs_variables_are_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:planted@proxy")
    done = outcome(tmp_path / "own", "import json, os; print(json.dumps(dict(os.environ)))")
    assert json.loads(done.stdout) == {"LC_ALL": "C.UTF-8"}


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    interpreter = Interpreter(tmp_path / "bin/python", tmp_path, tmp_path)
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(BuildError, match=r"the environment's Python .*No such file"):
        compile_tree(interpreter, tmp_path, ["a.py"], "/opt/env")


def test_without_landlock_it_goes_on_and_says_so_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(confine, "abi", none)
    assert [outcome(tmp_path / name, "print(1)").stdout for name in ("a", "b")] == ["1\n", "1\n"]
    assert capfd.readouterr().err.count("the kernel has no Landlock (Function not implemented)") == 1


def test_byte_code_is_the_same_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    python = Interpreter(Path(sys.executable), tmp_path / "home", tmp_path / "home")
    monkeypatch.setattr(sandbox, "LIBRARIES", (*sandbox.LIBRARIES, *HERE))
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "m.py").write_text("def f(a={'x', 'y', 'z'}):\n    return a in {'p', 'q', 'r'}, 'some_name'\n")
    made = []
    for confined in (landlock(), False):
        monkeypatch.setattr(sandbox, "confined", lambda confined=confined: confined)
        [path] = compile_tree(python, tree, ["m.py"], "/opt/env")
        made.append((path, (tree / path).read_bytes()))
    monkeypatch.undo()
    assert made[0] == made[1]
