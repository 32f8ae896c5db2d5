"""What the benchmark of environments makes of what it has seen: a registry's log, Jobs, images."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api.jobs import BuildAnswer, JobResult, LockAnswer, Problem, encode_result
from tokenservice.builder.conda.packages import Package

from bench.cluster import BenchError
from bench.environment import Figures, Pulls, Run, attempt, result, table
from bench.environment_layout import Difference, Layers, difference, from_channel, layers_of, unpacked, weight
from bench.environment_node import Ran, seconds_of
from bench.environment_registry import Request, Storage, parse, pulled, pushed
from bench.environment_setup import ENVIRONMENT, OLDER, older_release, pinned
from bench.environment_watch import JobRun, Moments, stage_seconds

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
LOCK = JobResult(lock=LockAnswer(lock_digest=A, reference=f"host/environments@{A}", packages=3))
BUILD = JobResult(
    build=BuildAnswer(image=f"host/e@{B}", base="base", bytes_total=9, bytes_pushed=1, bytes_shared=8, layers=2)
)
TOO_LATE = JobResult(problem=Problem(reason="ChannelUnavailable", message="no answer"))


def line(method: str, uri: str, status: int = 200, count: int = 0, agent: str = "containerd/v2.4.2") -> str:
    """As CNCF distribution writes it."""
    return f'10.0.0.2 - - [24/Nov/2026:04:18:34 +0000] "{method} {uri} HTTP/1.1" {status} {count} "" "{agent}"'


def requests(*lines: str) -> list[Request]:
    return [found for each in lines if (found := parse(each))]


class TestLog:
    def test_a_line_is_read(self) -> None:
        uri = f"/v2/e/blobs/uploads/1?_state=x%3D&digest={A.replace(':', '%3A')}"
        assert parse(line("PUT", uri, 201)) == Request(
            "PUT", "/v2/e/blobs/uploads/1", f"_state=x%3D&digest={A.replace(':', '%3A')}", 201, 0
        )

    @pytest.mark.parametrize("text", ["", 'time="2026" level=error msg="GET /v2/ HTTP/1.1"', 'half a line "GET /v2/'])
    def test_anything_else_is_none(self, text: str) -> None:
        assert parse(text) is None

    def test_pulled_are_contents_that_were_read(self) -> None:
        log = requests(
            line("GET", f"/v2/team/environments/manifests/{A}", 200, 500),
            line("GET", f"/v2/team/environments/blobs/{B}", 200, 4000),
            line("GET", f"/v2/team/environments/blobs/{B}", 206, 30),
            line("HEAD", f"/v2/team/environments/blobs/{A}", 200, 7777),
            line("GET", f"/v2/team/environments/blobs/{A}", 404, 157),
            line("GET", "/v2/", 200, 2),
            line("GET", "/v2/team/environments/tags/list", 200, 60),
        )
        assert pulled(log) == 4530

    def test_pushed_are_contents_that_were_taken(self) -> None:
        sizes = {("e", A): 4000, ("e", "image-1"): 500, ("e", B): 600}
        log = requests(
            line("POST", "/v2/e/blobs/uploads/", 202),
            line("PUT", f"/v2/e/blobs/uploads/1?digest={A.replace(':', '%3A')}", 201),
            line("POST", f"/v2/e/blobs/uploads/?mount={A}&from=base", 201),  # mounted: nothing was sent
            line("PUT", f"/v2/e/manifests/{B}", 201),
            line("PUT", "/v2/e/manifests/image-1", 201),
            line("PUT", "/v2/e/manifests/refused", 400),
            line("PUT", f"/v2/e/blobs/uploads/2?digest={B.replace(':', '%3A')}", 404),
        )
        assert pushed(log, lambda repository, reference: sizes[repository, reference]) == 5100


def stored(storage: Storage, digest: str, content: bytes) -> None:
    path = storage.blob(digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


def archive(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        folder = tarfile.TarInfo("opt")
        folder.type = tarfile.DIRTYPE
        made.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(f"opt/{name}")
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("opt/link")
        link.type, link.linkname = tarfile.SYMTYPE, "a"
        made.addfile(link)
    return out.getvalue()


class TestImages:
    def test_the_storage_is_read_by_tag_and_by_digest_and_emptied(self, tmp_path: Path) -> None:
        storage = Storage(tmp_path / "storage")
        stored(storage, A, b'{"layers": []}')
        root = storage.folder / "docker/registry/v2/repositories/team/e/_manifests/tags/v1/current"
        root.mkdir(parents=True)
        (root / "link").write_text(f"{A}\n")
        assert storage.size("team/e", "v1") == storage.size("team/e", A) == 14
        assert storage.manifest("team/e", "v1") == {"layers": []}
        storage.clear()
        assert list(storage.folder.iterdir()) == []

    @pytest.mark.parametrize(
        ("pack", "kind"),
        [
            (zstandard.compress, "tar+zstd"),
            (gzip.compress, "tar+gzip"),
            (bytes, "tar"),
            (gzip.compress, "diff.tar.gzip"),
        ],
    )
    def test_what_a_layer_unpacks_to(self, pack: Any, kind: str) -> None:
        assert unpacked(io.BytesIO(pack(archive(a=b"x" * 5000, b=b"y" * 7))), f"application/x.{kind}") == 5007

    def test_an_images_weight(self, tmp_path: Path) -> None:
        storage = Storage(tmp_path)
        packed = zstandard.compress(archive(a=b"x" * 5000))
        stored(storage, B, packed)
        layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": B, "size": len(packed)}
        stored(storage, A, json.dumps({"layers": [layer]}).encode())
        assert weight(storage, "e", A) == (len(packed), 5000)
        assert layers_of(storage.manifest("e", A)) == [(B, len(packed))]

    @pytest.mark.parametrize(
        ("before", "after", "found"),
        [
            ("abcd", "abcd", Difference(0, 0, 0)),
            ("abcd", "abXd", Difference(1, 10, 20)),  # c is another one, d lies above it
            ("abcd", "Xbcd", Difference(1, 10, 40)),
            ("abcd", "abc", Difference(0, 0, 0)),
            ("abcd", "abdc", Difference(0, 0, 20)),  # nothing new, but another chain
            ("", "ab", Difference(2, 20, 20)),
        ],
    )
    def test_what_a_node_lacks(self, before: str, after: str, found: Difference) -> None:
        assert difference(letters(before), letters(after)) == found

    @given(st.lists(st.sampled_from("abcdef"), unique=True), st.lists(st.sampled_from("abcdef"), unique=True))
    def test_what_is_missing_is_never_more_than_the_chain(self, before: list[str], after: list[str]) -> None:
        found = difference(letters("".join(before)), letters("".join(after)))
        assert 0 <= found.bytes <= found.chain <= 10 * len(after)
        assert (found.chain == 0) == (before[: len(after)] == after)

    def test_a_package_is_found_in_the_channels_folder(self, tmp_path: Path) -> None:
        file = tmp_path / "conda-forge/noarch/tqdm-4.0-py_0.conda"
        file.parent.mkdir(parents=True)
        file.touch()
        url = "http://conda-channel.ns.svc/conda-forge/noarch/{}-4.0-py_0.conda"
        assert from_channel(tmp_path, Package("conda", "tqdm", "4.0", url.format("tqdm"), "0")) == file
        with pytest.raises(BenchError, match="click-4"):
            from_channel(tmp_path, Package("conda", "click", "4.0", url.format("click"), "0"))


def letters(text: str) -> Layers:
    return [(letter, 10) for letter in text]


def made(kind: str, uid: str, name: str, **more: Any) -> msgspec.Raw:
    metadata = {"name": name, "uid": uid, "namespace": "ns", **more.pop("metadata", {})}
    return msgspec.Raw(json.dumps({"kind": kind, "metadata": metadata, **more}).encode())


def job(uid: str, stage: str) -> msgspec.Raw:
    return made("Job", uid, f"{stage}-1", metadata={"labels": {"tokenservice.dev/job": stage}})


def pod(job: str, message: str | None) -> msgspec.Raw:
    state = {"running": {}} if message is None else {"terminated": {"message": message}}
    owner = {"kind": "Job", "uid": job}
    status = {"containerStatuses": [{"name": "job", "state": state}]}
    return made("Pod", "p", "pod", metadata={"ownerReferences": [owner]}, status=status)


def environment(generation: int, observed: int, ready: str, image: str) -> msgspec.Raw:
    condition = {"type": "Ready", "status": ready, "reason": "Building", "message": "wait"}
    status = {"observedGeneration": observed, "conditions": [condition], "image": image}
    return made("CondaEnvironment", "u", "tiny", metadata={"generation": generation}, status=status)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class TestMoments:
    def test_a_job_takes_from_its_making_to_its_result(self) -> None:
        clock = Clock()
        moments = Moments(clock)
        for now, take, kind, data in (
            (1.0, moments.take_job, "ADDED", job("1", "lock")),
            (2.0, moments.take_pod, "MODIFIED", pod("1", None)),
            (3.5, moments.take_pod, "MODIFIED", pod("1", encode_result(LOCK).decode())),
            (4.0, moments.take_job, "ADDED", job("1", "lock")),  # the watch began anew
            (5.0, moments.take_pod, "ADDED", pod("1", encode_result(LOCK).decode())),
        ):
            clock.now = now
            take(kind, data)
        assert stage_seconds(moments.runs(), "lock", 0.5) == 2.5
        assert stage_seconds(moments.runs(), "lock", 1.5) is None
        assert stage_seconds(moments.runs(), "build", 0.5) is None

    def test_a_pod_without_a_digest_is_no_result(self) -> None:
        clock = Clock()
        moments = Moments(clock)
        moments.take_job("ADDED", job("1", "build"))
        for now, message in ((1.0, "segmentation fault"), (2.0, encode_result(TOO_LATE).decode())):
            clock.now = now
            moments.take_pod("MODIFIED", pod("1", message))
        assert stage_seconds(moments.runs(), "build", 0.0) is None
        clock.now = 9.0
        moments.take_pod("MODIFIED", pod("1", encode_result(BUILD).decode()))
        assert stage_seconds(moments.runs(), "build", 0.0) == 9.0

    def test_a_job_made_again_counts_from_the_first(self) -> None:
        runs = [JobRun("a", "lock", 1.0, 2.0, TOO_LATE), JobRun("b", "lock", 5.0, 6.0, LOCK)]
        assert stage_seconds(runs, "lock", 0.0) == 5.0

    def test_ready_is_of_the_newest_spec_and_with_another_image(self) -> None:
        clock = Clock()

        async def seen() -> float:
            moments = Moments(clock)
            waiting = asyncio.create_task(moments.until_ready(("ns", "tiny"), 5.0, "old", 30))
            for now, data in (
                (1.0, environment(1, 1, "True", "old")),
                (6.0, environment(2, 1, "True", "old")),
                (7.0, environment(2, 2, "False", "old")),
                (8.0, environment(2, 2, "True", "new")),
                (9.0, environment(2, 2, "True", "new")),
            ):
                clock.now = now
                moments.take_environment("MODIFIED", data)
                moments.changed.set()
                await asyncio.sleep(0)
            return moments.at(await waiting)

        assert asyncio.run(seen()) == 8.0

    def test_what_does_not_become_ready_is_told_with_its_condition(self) -> None:
        async def wait() -> None:
            moments = Moments()
            moments.take_environment("ADDED", environment(1, 1, "False", "old"))
            await moments.until_ready(("ns", "tiny"), 0.0, None, 0.01)

        with pytest.raises(BenchError, match=r"tiny is not Ready \(Building: wait\), after 0.01 s"):
            asyncio.run(wait())

    def test_a_watch_that_ends_for_good_is_told(self) -> None:
        async def wait() -> None:
            moments = Moments()

            async def broken() -> None:
                raise ValueError("no such path")

            asyncio.create_task(broken()).add_done_callback(moments.take_end)
            await moments.until_ready(("ns", "tiny"), 0.0, None, 30)

        with pytest.raises(BenchError, match="no such path"):
            asyncio.run(wait())


@pytest.mark.parametrize(
    ("text", "seconds"), [("312ms", 0.312), ("8.5s", 8.5), ("1m2.5s", 62.5), ("2m0s", 120), ("1h", None), ("", None)]
)
def test_durations_are_read_as_go_writes_them(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


def test_the_change_pins_the_channels_older_release_and_nothing_else() -> None:
    before = yaml.safe_load(ENVIRONMENT.read_text())
    version = older_release(OLDER.read_text())
    after = pinned(before, "tqdm", version)
    assert [each for each in after["dependencies"] if each not in before["dependencies"]] == [f"tqdm={version}"]
    assert [each for each in after["dependencies"] if each in before["dependencies"]] == before["dependencies"]
    assert {**after, "dependencies": 0} == {**before, "dependencies": 0}
    with pytest.raises(BenchError, match="numpy"):
        older_release(OLDER.read_text(), "numpy")


def ran(first: float, unchanged: int, lock: float | None, build: float | None) -> Run:
    return Run(0.5, first, 3.0, first - 4, 700_000_000, unchanged, lock, build, 120_000)


FIGURES = Figures(
    runs=[ran(60.0, 0, 2.0, 3.0), ran(50.0, 0, 4.0, 5.0), ran(70.0, 12, 3.0, 4.0)],
    change=Difference(1, 90_000, 400_000),
    pulls=Pulls(700_000_000, 100_000, Ran(410_000, 0.6, "4.67.3")),
    dockerfile_change=Difference(1, 600_000_000, 600_100_000),
    dockerfile_pulls=Pulls(700_000_000, 600_000_000, None),
    cpu=(650_000_000, 2_000_000_000),
)


class TestResult:
    def test_medians_and_of_what_should_be_none_the_worst(self) -> None:
        assert result(FIGURES) == {
            "first_build_s": 60.0,
            "unchanged_pushed_bytes": 12,
            "one_package_change": {
                "lock_s": 3.0, "build_s": 4.0, "pushed_mb": 0.12, "pulled_mb": 0.1, "chain_mb": 0.4
            },
            "dockerfile_layout_pulled_mb": 600.0,
            "pull_ratio": 0.00017,
            "image_mb": {"cpu": {"compressed": 650.0, "unpacked": 2000.0}, "cuda": None},
        }  # fmt: skip

    def test_what_was_not_measured_is_null(self) -> None:
        figures = Figures(runs=[ran(60.0, 0, None, 3.0), ran(50.0, 0, 4.0, 5.0)])
        found = result(figures)
        change = {"lock_s": None, "build_s": 4.0, "pushed_mb": 0.12, "pulled_mb": None, "chain_mb": None}
        assert found["one_package_change"] == change
        assert found["dockerfile_layout_pulled_mb"] is found["pull_ratio"] is None
        assert found["image_mb"] == {"cpu": None, "cuda": None}
        assert json.loads(json.dumps(found)) == found

    def test_the_table_shows_both_layouts_and_a_dash_for_what_is_missing(self) -> None:
        text = table(FIGURES)
        rows = {row[:44].strip(): row[44:].split() for row in text.splitlines()}
        assert rows["one package changed: lock Job, s"] == ["2.00", "4.00", "3.00"]
        assert rows["pulled, MB"] == ["0.100", "600.000"]
        assert rows["pulled where layers are discarded, MB"] == ["0.410", "-"]
        assert table(Figures(runs=[ran(60.0, 0, None, 3.0)])).count("-") >= 12

    def test_one_failure_leaves_the_other_figures(self, capsys: pytest.CaptureFixture[str]) -> None:
        def fails() -> int:
            raise BenchError("no such image")

        assert asyncio.run(attempt("pulling", fails)) is None
        assert "pulling: not measured: no such image" in capsys.readouterr().err
        assert asyncio.run(attempt("pulling", lambda: 7)) == 7
