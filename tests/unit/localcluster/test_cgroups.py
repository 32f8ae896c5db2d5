from __future__ import annotations

from pathlib import Path

import pytest

from tools.localcluster import cgroups
from tools.localcluster.errors import UnsupportedError

V1 = """\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpuset rw,relatime shared:9 - cgroup cgroup rw,cpuset
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_with_v1_every_hierarchy_is_used_and_none_passes_controllers_on() -> None:
    found = cgroups.hierarchies(V1)
    assert found.unified is None
    assert [mount.name for mount in found.mounts] == ["cpuset", "memory", "unified"]


def test_with_v2_there_is_one() -> None:
    found = cgroups.hierarchies(V2)
    assert found.mounts == (Path("/sys/fs/cgroup"),)
    assert found.unified == Path("/sys/fs/cgroup")


def test_only_known_controllers_are_passed_on() -> None:
    assert (
        cgroups.delegated("cpuset cpu io memory hugetlb pids rdma misc\n") == "+cpu +cpuset +hugetlb +io +memory +pids"
    )


def test_a_machines_cgroups_take_over_cpus_and_go_with_it(tmp_path: Path) -> None:
    # Ordinary folders stand in for the kernel's: no file appears by itself, and a folder with files cannot be removed.
    (tmp_path / "cpuset.cpus").write_text("0-1")
    top = tmp_path / cgroups.TOP
    for folder in (top, top / "demo", top / "demo/node-1", top / "demo/node-1/machine"):
        folder.mkdir()
        (folder / "cpuset.cpus").write_text("")
    found = cgroups.Hierarchies((tmp_path,), None)
    assert cgroups.create(found, "demo", "node-1") == [top / "demo/node-1/machine"]
    assert (top / "demo/node-1/machine/cpuset.cpus").read_text() == "0-1"
    assert cgroups.clusters(found) == {"demo"}
    for file in top.glob("**/cpuset.cpus"):
        file.unlink()
    cgroups.remove(found, "demo")
    assert not top.exists()


def test_with_v2_a_missing_controller_is_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    with pytest.raises(UnsupportedError, match="cpuset, pids"):
        cgroups.create(cgroups.Hierarchies((tmp_path,), tmp_path), "demo", "node-1")


def test_with_v2_controllers_are_passed_on_down_to_the_machine(tmp_path: Path) -> None:
    folders = [tmp_path / part for part in ("", cgroups.TOP, f"{cgroups.TOP}/demo", f"{cgroups.TOP}/demo/node-1")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpuset cpu memory pids")
    [leaf] = cgroups.create(cgroups.Hierarchies((tmp_path,), tmp_path), "demo", "node-1")
    assert all((folder / "cgroup.subtree_control").read_text() == "+cpu +cpuset +memory +pids" for folder in folders)
    assert not (leaf / "cgroup.subtree_control").exists()


def test_one_machine_is_removed_and_others_stay(tmp_path: Path) -> None:
    found = cgroups.Hierarchies((tmp_path,), None)
    cgroups.create(found, "demo", "node-1")
    cgroups.create(found, "demo", "node-2")
    cgroups.remove(found, "demo", "node-2")
    assert [entry.name for entry in (tmp_path / cgroups.TOP / "demo").iterdir()] == ["node-1"]
