from __future__ import annotations

import fcntl
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tokenservice.builder.layers import Entry, text_file
from tokenservice.builder.store import LayerStore, cache_folder, layer_key, scratch_folder


class Staged:
    def __init__(self, *entries: Entry) -> None:
        self.entries, self.calls = entries, 0

    @contextmanager
    def __call__(self) -> Iterator[tuple[Entry, ...]]:
        self.calls += 1
        yield self.entries


def test_a_layer_is_made_once(tmp_path: Path) -> None:
    store, staged = LayerStore(tmp_path), Staged(text_file("a", "1"))
    key = layer_key("test", ["x"])
    made = store.make(key, staged)
    assert store.make(key, staged) == made
    assert LayerStore(tmp_path).get(key) == made
    assert staged.calls == 1
    assert store.blob(made.digest).stat().st_size == made.size
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_blob_is_not_read_again(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    made = store.make("k", Staged(text_file("a", "1")))
    store.blob(made.digest).chmod(0)
    assert store.get("k") == made


@pytest.mark.parametrize("damage", ["blob gone", "blob cut", "index gone", "index garbage"])
def test_what_is_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    store, staged = LayerStore(tmp_path), Staged(text_file("a", "1"))
    made = store.make("k", staged)
    blob, index = store.blob(made.digest), next((tmp_path / "index").iterdir())
    {
        "blob gone": blob.unlink,
        "blob cut": lambda: blob.write_bytes(b"x"),
        "index gone": index.unlink,
        "index garbage": lambda: index.write_text("{"),
    }[damage]()
    assert store.make("k", staged) == made
    assert staged.calls == 2
    assert blob.stat().st_size == made.size


def test_compressions_do_not_share_an_index(tmp_path: Path) -> None:
    zstd = LayerStore(tmp_path).make("k", Staged(text_file("a", "1")))
    plain = LayerStore(tmp_path, "gzip").make("k", Staged(text_file("a", "1")))
    assert zstd.digest != plain.digest
    assert zstd.diff_id == plain.diff_id


def test_a_failed_making_leaves_nothing(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    with pytest.raises(FileNotFoundError):
        store.make("k", Staged(Entry("a", 0o644, source=tmp_path / "missing")))
    assert store.get("k") is None
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "blobs").exists()


def _make_slowly(root: Path, begin: object, count: object) -> None:
    @contextmanager
    def staged() -> Iterator[list[Entry]]:
        with count.get_lock():  # type: ignore[attr-defined]
            count.value += 1  # type: ignore[attr-defined]
        yield [text_file(f"f{number}", "x" * 1000) for number in range(500)]

    begin.wait()  # type: ignore[attr-defined]
    LayerStore(root).make("k", staged)


def test_of_several_processes_one_makes_the_layer(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begin, count = context.Barrier(4), context.Value("i", 0)
    processes = [context.Process(target=_make_slowly, args=(tmp_path, begin, count)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert count.value == 1


def test_scratch_of_the_dead_is_removed_and_of_the_living_kept(tmp_path: Path) -> None:
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead.lock").touch()
    (tmp_path / "alive").mkdir()
    with (tmp_path / "alive.lock").open("w") as held:
        # flock belongs to the open file: the same process asking again is another holder, as another process is.
        fcntl.flock(held, fcntl.LOCK_EX)
        with scratch_folder(tmp_path) as mine, scratch_folder(tmp_path) as other:
            assert mine != other
            assert mine.is_dir()
            assert not (tmp_path / "dead").exists()
            assert (tmp_path / "alive").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", "alive.lock"]


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"TOKENSERVICE_CACHE": "/c", "HOME": "/h"}, "/c"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/tokenservice-operator"),
        ({"HOME": "/h"}, "/h/.cache/tokenservice-operator"),
        ({"TOKENSERVICE_CACHE": "", "HOME": "/h"}, "/h/.cache/tokenservice-operator"),
    ],
)
def test_cache_folder(environ: dict[str, str], wanted: str) -> None:
    assert cache_folder(environ) == Path(wanted)


def test_keys_depend_on_kind_and_parts() -> None:
    assert layer_key("a", [1]) == layer_key("a", [1])
    assert len({layer_key("a", [1]), layer_key("b", [1]), layer_key("a", [2])}) == 3
