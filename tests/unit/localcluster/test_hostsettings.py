from __future__ import annotations

from pathlib import Path

import pytest

from tools.localcluster.hostsettings import WANTED, HostSettings


@pytest.fixture
def settings(tmp_path: Path) -> HostSettings:
    for name in WANTED:
        (tmp_path / "kernel" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kernel" / name).write_text("0\n")
    return HostSettings(tmp_path / "state", tmp_path / "kernel", (tmp_path / "mounts/kubelet",))


def values(settings: HostSettings) -> list[int]:
    return [int((settings.kernel / name).read_text()) for name in WANTED]


def test_the_last_cluster_puts_everything_back(settings: HostSettings) -> None:
    for _ in range(2):  # two clusters come
        settings.apply()
    assert values(settings) == list(WANTED.values())
    settings.restore(still_used=lambda: True)
    assert values(settings) == list(WANTED.values())
    assert settings.mount_points[0].is_dir()
    settings.restore(still_used=lambda: False)
    assert values(settings) == [0, 0]
    assert not settings.mount_points[0].exists()
    assert not settings.file.parent.exists()


def test_what_was_so_before_stays(settings: HostSettings) -> None:
    for name in WANTED:
        (settings.kernel / name).write_text("9999")
    settings.mount_points[0].mkdir(parents=True)
    settings.apply()
    settings.restore(still_used=lambda: False)
    assert values(settings) == [9999, 9999]
    assert settings.mount_points[0].is_dir()


def test_clusters_in_the_folder_are_left_alone(settings: HostSettings) -> None:
    settings.apply()
    (settings.file.parent / "demo").mkdir()
    settings.restore(still_used=lambda: False)
    assert (settings.file.parent / "demo").is_dir()
