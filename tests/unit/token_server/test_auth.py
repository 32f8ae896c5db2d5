"""Keys come from a mounted Secret and follow it."""

from __future__ import annotations

from pathlib import Path

import pytest
from token_server.auth import ApiKeys


def mount(folder: Path, version: str, keys: dict[str, str]) -> None:
    """As the kubelet does it: files in a new folder, the link ..data swapped, links to it beside."""
    data = folder / version
    data.mkdir(parents=True)
    for name, key in keys.items():
        (data / name).write_text(key)
    link = folder / "..data_tmp"
    link.symlink_to(version)
    link.rename(folder / "..data")
    for stale in [file for file in folder.iterdir() if not file.name.startswith("..") and file.name not in keys]:
        stale.unlink()
    for name in keys:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


def test_each_file_is_a_key(tmp_path: Path) -> None:
    mount(tmp_path, "..1", {"alice": "key-a\n", "bob": "  key-b"})
    keys = ApiKeys(str(tmp_path))
    assert keys.accepts("Bearer key-a")
    assert keys.accepts("bearer key-b ")


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "key-a", "Basic key-a", "Bearer key", "Bearer key-a2", "Bearer KEY-A", "Bearer é"],
)
def test_everything_else_is_refused(tmp_path: Path, header: str | None) -> None:
    mount(tmp_path, "..1", {"alice": "key-a", "empty": "\n"})
    assert not ApiKeys(str(tmp_path)).accepts(header)


def test_a_changed_secret_counts_at_once(tmp_path: Path) -> None:
    mount(tmp_path, "..1", {"alice": "key-1"})
    keys = ApiKeys(str(tmp_path))
    assert keys.accepts("Bearer key-1")
    mount(tmp_path, "..2", {"alice": "key-2", "bob": "key-b"})
    assert not keys.accepts("Bearer key-1")
    assert keys.accepts("Bearer key-2")
    assert keys.accepts("Bearer key-b")
    mount(tmp_path, "..3", {"bob": "key-b"})
    assert not keys.accepts("Bearer key-2")


def test_no_folder_accepts_nothing(tmp_path: Path) -> None:
    keys = ApiKeys(str(tmp_path / "missing"))
    assert not keys.accepts("Bearer ")
    assert not keys.accepts("Bearer x")
