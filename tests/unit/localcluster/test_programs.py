from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.localcluster import build, golang
from tools.localcluster.components import (
    COMPONENTS,
    KUBERNETES,
    Component,
    Program,
    for_shape,
    location,
    needed,
    program_name,
)
from tools.localcluster.errors import LocalClusterError, UnsupportedError


@pytest.mark.parametrize("component", [c for c in COMPONENTS if c.name != "pause"], ids=lambda c: c.name)
def test_go_mod_requires_the_version_that_is_asked_for(component: Component) -> None:
    text = (component.go_mod / "go.mod").read_text()
    assert re.search(rf"\b{re.escape(component.module)} v{re.escape(component.version)}$", text, re.MULTILINE)
    assert (component.go_mod / "go.sum").exists()
    imports = (component.go_mod / "tools.go").read_text()
    assert all(f'"{program.package}"' in imports for program in component.programs)


def test_staging_modules_have_the_version_of_kubernetes() -> None:
    text = (next(c for c in COMPONENTS if c.name == "kubernetes").go_mod / "go.mod").read_text()
    minor = "0." + KUBERNETES.split(".", 1)[1]
    replaced = re.findall(r"^\t(k8s\.io/\S+) => (k8s\.io/\S+) v(\S+)$", text, re.MULTILINE)
    assert len(replaced) == 33
    assert all(old == new and version == minor for old, new, version in replaced)


def test_names_of_programs_are_unique() -> None:
    names = [program_name(c, p) for c in COMPONENTS for p in c.programs]
    assert len(names) == len(set(names))
    assert set(for_shape("node", 1)) == set(names)


def test_what_is_needed_comes_in_the_order_of_building() -> None:
    found = [program_name(c, p) for c, p in needed(["helm", "kubernetes", "etcd"])]
    assert found[0] == "etcd"
    assert found[1] == "kube-apiserver"
    assert found[-1] == "helm"
    with pytest.raises(KeyError, match="nothing"):
        needed(["nothing"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("go1.27", (1, 27, 0)),
        ("1.27rc1", (1, 27, 0)),
        ("no number", None),
    ],
)
def test_versions_of_go(text: str, expected: tuple[int, int, int] | None) -> None:
    assert golang.parse_version(text) == expected


def test_the_newest_go_that_a_component_asks_for_counts() -> None:
    pause = next(c for c in COMPONENTS if c.name == "pause")
    assert golang.required([pause]) == (1, 26, 0)
    assert golang.required(COMPONENTS) >= golang.required([pause])


def fake(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_program_is_missing_until_it_can_be_run(tmp_path: Path) -> None:
    programs = build.Programs(tmp_path, None)
    [(component, program)] = needed(["crane"])
    assert programs.missing(["crane"]) == [(component, program)]
    path = location(tmp_path, component, program)
    fake(path.parent, path.name, "exit 0")
    assert programs.missing(["crane"]) == []
    assert programs.path("crane") == path


def test_test_assets_stand_in_for_what_they_have(tmp_path: Path) -> None:
    fake(tmp_path / "assets", "etcd", "exit 0")
    programs = build.Programs(tmp_path / "cache", tmp_path / "assets")
    assert programs.path("etcd") == tmp_path / "assets/etcd"
    assert [program_name(c, p) for c, p in programs.missing(["etcd", "kubectl"])] == ["kubectl"]


def test_a_program_must_say_its_version(tmp_path: Path) -> None:
    component = Component("thing", "1.2.3", "example.com/thing", (), {}, {})
    build.verify(fake(tmp_path, "right", "echo thing v1.2.3"), component, Program("example.com/thing"))
    wrong = fake(tmp_path, "wrong", "echo thing v1.2.4")
    with pytest.raises(LocalClusterError, match=r"does not say that it is 1\.2\.3: thing v1\.2\.4"):
        build.verify(wrong, component, Program("example.com/thing"))
    assert not wrong.exists()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "linking"),
        (["go: downloading example.com/a v1.0.0"], "1 modules downloaded"),
        (["go: downloading example.com/a v1.0.0", "example.com/a", "example.com/b"], "2 packages compiled"),
    ],
)
def test_what_go_is_doing(lines: list[str], words: str) -> None:
    assert build.activity(lines) == words


def test_too_little_disk_is_said_with_figures(tmp_path: Path) -> None:
    build.check_disk(tmp_path / "not/there", 1, "a test")
    with pytest.raises(UnsupportedError, match=r"GB free and a test needs 1048576 GB"):
        build.check_disk(tmp_path / "not/there", 1 << 50, "a test")


def test_a_folder_of_test_assets_must_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(UnsupportedError, match="KUBEBUILDER_ASSETS"):
        build.programs(tmp_path)
