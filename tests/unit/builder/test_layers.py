from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenservice.builder.errors import BuildError
from tokenservice.builder.layers import (
    MTIME,
    Entry,
    entries_below,
    folder,
    link,
    plain_mode,
    text_file,
    with_parents,
    write_layer,
)
from tokenservice.builder.oci import digest_of
from tokenservice.builder.unpack import unpack_layer

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12
)
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map("/".join)
FILES = st.dictionaries(PATHS, st.tuples(st.binary(max_size=200), st.sampled_from([0o644, 0o755])), max_size=8)


def without_clashes(files: dict[str, tuple[bytes, int]]) -> dict[str, tuple[bytes, int]]:
    parents = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
    return {path: value for path, value in files.items() if path not in parents}


def plain(path: Path) -> bytes:
    data = path.read_bytes()
    return (
        gzip.decompress(data)
        if data[:2] == b"\x1f\x8b"
        else zstandard.ZstdDecompressor().decompressobj().decompress(data)
    )


@given(FILES.map(without_clashes), st.randoms())
@settings(deadline=None, max_examples=60)
def test_the_order_of_entries_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[bytes, int]], chance: random.Random
) -> None:
    here = tmp_path_factory.mktemp("layers")
    entries = [Entry(path, mode, content=content) for path, (content, mode) in files.items()]
    first = write_layer(entries, here / "first")
    chance.shuffle(entries)
    assert write_layer(entries, here / "second") == first
    with tarfile.open(fileobj=io.BytesIO(plain(here / "first"))) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]
        names = archive.getnames()
    assert found == {path: content for path, (content, _) in files.items()}
    assert names == sorted(names, key=lambda name: name.split("/"))
    assert len(set(names)) == len(names)


def make_tree(root: Path, umask: int, when: float) -> None:
    before = os.umask(umask)
    try:
        (root / "bin").mkdir(parents=True)
        (root / "bin/tool").write_text("#!/bin/sh\n")
        (root / "bin/tool").chmod(0o4711 if umask else 0o755)
        (root / "b.d").mkdir()
        (root / "b.d/data").write_bytes(b"x" * 70_000)
        (root / "empty").mkdir()
        (root / "to").symlink_to("/bin/tool")
        os.link(root / "b.d/data", root / "hard")
    finally:
        os.umask(before)
    for path in root.rglob("*"):
        os.utime(path, (when, when), follow_symlinks=False)


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_umask_times_and_setuid_do_not_matter(tmp_path: Path, compression: str) -> None:
    made = []
    for number, (umask, when) in enumerate([(0, 1e9), (0o077, 1.5e9)]):
        root = tmp_path / str(number)
        make_tree(root, umask, when)
        made.append(write_layer(entries_below(root, "opt"), tmp_path / f"layer{number}", compression))  # type: ignore[arg-type]
    assert made[0] == made[1]
    assert (tmp_path / "layer0").read_bytes() == (tmp_path / "layer1").read_bytes()


def test_what_is_in_a_layer(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 0o022, 1e9)
    os.mkfifo(tmp_path / "tree/pipe")
    made = write_layer(entries_below(tmp_path / "tree", "opt", {"opt/empty": 0o1777}), tmp_path / "layer")
    data = (tmp_path / "layer").read_bytes()
    assert (made.digest, made.size, made.diff_id) == (digest_of(data), len(data), digest_of(plain(tmp_path / "layer")))
    with tarfile.open(fileobj=io.BytesIO(plain(tmp_path / "layer"))) as archive:
        members = {each.name: each for each in archive}
    assert list(members) == [
        "opt",
        "opt/b.d",
        "opt/b.d/data",
        "opt/bin",
        "opt/bin/tool",
        "opt/empty",
        "opt/hard",
        "opt/to",
    ]
    assert {each.mtime for each in members.values()} == {MTIME}
    assert {(each.uid, each.gid, each.uname, each.gname) for each in members.values()} == {(0, 0, "", "")}
    assert members["opt/bin/tool"].mode == 0o755
    assert members["opt/empty"].mode == 0o1777
    assert members["opt/to"].linkname == "/bin/tool"
    assert members["opt/hard"].isreg()
    assert members["opt/hard"].size == 70_000


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_unpacked_and_packed_again_it_is_the_same(tmp_path: Path, compression: str) -> None:
    make_tree(tmp_path / "tree", 0o022, 1e9)
    first = write_layer(entries_below(tmp_path / "tree"), tmp_path / "layer", compression)  # type: ignore[arg-type]
    unpack_layer(tmp_path / "layer", tmp_path / "again")
    assert write_layer(entries_below(tmp_path / "again"), tmp_path / "second", compression) == first  # type: ignore[arg-type]


def test_only_what_is_wanted_is_unpacked(tmp_path: Path) -> None:
    write_layer([text_file("a/b/c", "1"), text_file("d", "2")], tmp_path / "layer")
    unpack_layer(tmp_path / "layer", tmp_path / "out", lambda path: path.startswith("a/"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert (tmp_path / "out/a/b/c").read_text() == "1"


def test_parents_are_added_and_stand_first() -> None:
    entries = with_parents([text_file("a/x", ""), text_file("a.b", ""), folder("a/c", 0o700)])
    assert [entry.path for entry in entries] == ["a", "a/c", "a/x", "a.b"]
    assert [entry.mode for entry in entries] == [0o755, 0o700, 0o644, 0o644]


def test_two_files_at_one_place_are_refused() -> None:
    with pytest.raises(BuildError, match="two files want the place /a/x"):
        with_parents([text_file("a/x", "1"), link("a/x", "y")])


@pytest.mark.parametrize("path", ["", "/", "../x", "a/../x"])
def test_paths_outside_of_the_image_are_refused(path: str) -> None:
    with pytest.raises(BuildError, match="no path"):
        with_parents([text_file(path, "")])


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [(0o100644, 0o644), (0o100600, 0o644), (0o104755, 0o755), (0o100711, 0o755), (0o100455, 0o644)],
)
def test_modes(mode: int, wanted: int) -> None:
    assert plain_mode(mode) == wanted
