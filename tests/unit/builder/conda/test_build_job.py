from __future__ import annotations

import json
import os
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tokenservice.builder.conda.layer_build import clashes, group_key, install_order
from tokenservice.builder.conda.link import Python
from tokenservice.builder.conda.packages import Package, Sources
from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import Http

from tests.support.conda_channel import Link, Placeholder
from tests.unit.builder.conda.toy_build import QUICK, REPOSITORY, Toy, package, push_base, wheel

SITE = "opt/env/lib/python3.11/site-packages"


def toy_environment(toy: Toy, **changed: str) -> list[Package]:
    """Python, a compiled package, a noarch one with a script, a library, and a wheel."""
    channel, url = toy.server.channel("conda-forge"), toy.server.url("conda-forge")
    versions = {"numpy": "1.26.4", "click": "8.1.0", "zlib": "1.3", **changed}
    numpy = channel.add(
        "numpy",
        versions["numpy"],
        depends=["python >=3.11"],
        files={
            "lib/python3.11/site-packages/numpy/__init__.py": f"__version__ = {versions['numpy']!r}\n",
            "lib/python3.11/site-packages/numpy/bad.py": "this is no Python\n",
            "lib/libnumpy.so": Placeholder("{prefix}/lib\0rest", binary=True),
        },
        padding=40_000,
    )
    zlib = channel.add(
        "zlib",
        versions["zlib"],
        files={"lib/libz.so.1": "z" + versions["zlib"], "lib/libz.so": Link("libz.so.1")},
        padding=3_000,
    )
    click = channel.add_distribution("click", versions["click"], entry_points=["click = click:main"])
    tool = toy.server.wheel("tool", "2.0", entry_points=["tool = tool:main"], files={"tool/__init__.py": "main = 1\n"})
    return [
        package(channel.add_python("3.11.4"), url),
        package(numpy, url, depends=("python >=3.11",)),
        package(zlib, url),
        package(click, url, noarch="python", depends=("python >=3.9",)),
        wheel(tool, f"{toy.server.simple}tool/{tool.name}"),
    ]


def test_what_a_container_sees(toy: Toy) -> None:
    answer = toy.build(toy_environment(toy), variables={"MODE": "test"})
    files = toy.files(answer)
    assert files["opt/env/bin/click"].startswith(b"#!/opt/env/bin/python3.11\n")
    assert files["opt/env/bin/tool"].startswith(b"#!/opt/env/bin/python3.11\n")
    assert files["opt/env/bin/token-server"].startswith(b"#!/opt/env/bin/python3.11\n")
    assert files["opt/env/lib/libz.so"] == b"-> libz.so.1"
    assert files["opt/env/lib/libnumpy.so"].startswith(b"/opt/env/lib\0\0")
    assert files["base-0"] == b""
    assert f"{SITE}/numpy/__pycache__/__init__.cpython-311.pyc" in files
    assert f"{SITE}/tool/__pycache__/__init__.cpython-311.pyc" in files
    assert f"{SITE}/numpy/__pycache__/bad.cpython-311.pyc" not in files
    everything = b"\0".join(files.values())
    assert str(toy.folder).encode() not in everything, "no path of the machine that builds"
    records = [json.loads(files[path]) for path in files if re.match(r"opt/env/conda-meta/.*\.json", path)]
    assert sorted(each["name"] for each in records) == ["click", "numpy", "python", "zlib"]
    for each in records:
        assert {f"opt/env/{path}" for path in each["files"]} <= files.keys()
        assert each["channel"] == toy.server.url("conda-forge")
    assert "opt/env/conda-meta/history" in files, "conda takes a folder without it for no environment"
    record = files[f"{SITE}/tool-2.0.dist-info/RECORD"].decode()
    assert "tool/__pycache__/__init__.cpython-311.pyc,," in record


def test_the_config(toy: Toy) -> None:
    zlib = toy.server.channel("c").add("zlib", "1", files={"etc/conda/env_vars.d/z.json": '{"Z": "1", "MODE": "no"}'})
    packages = [*toy_environment(toy)[:1], package(zlib, toy.server.url("c"))]
    answer = toy.build(packages, name="chat", variables={"MODE": "test"})
    config = toy.config(answer)
    run = config["config"]
    env = dict(each.split("=", 1) for each in run["Env"])
    assert run["Entrypoint"] == ["token-server"]
    assert run["User"] == "65532:65532"
    assert env["PATH"] == "/opt/env/bin:/usr/bin:/bin"
    assert (env["BASE"], env["Z"], env["MODE"]) == ("1", "1", "test")
    assert (env["CONDA_PREFIX"], env["CONDA_DEFAULT_ENV"]) == ("/opt/env", "chat")
    with_layer = [each for each in config["history"] if not each.get("empty_layer")]
    layers = toy.manifest(answer)["layers"]
    assert len(with_layer) == len(layers) == len(config["rootfs"]["diff_ids"]) == answer.layers == 4
    assert toy.manifest(answer)["annotations"]["dev.tokenservice.lock-digest"].startswith("sha256:")
    # The variables of packages stay known when their layers are not made again.
    again = toy.build([*packages, toy_environment(toy)[2]], name="chat", variables={"MODE": "test"})
    assert "Z=1" in toy.config(again)["config"]["Env"]


def test_a_path_of_the_users_own_keeps_the_environment_first(toy: Toy) -> None:
    answer = toy.build(toy_environment(toy)[:1], variables={"PATH": "/x"})
    assert "PATH=/opt/env/bin:/x" in toy.config(answer)["config"]["Env"]


def test_the_same_image_wherever_it_is_built(toy: Toy, tmp_path: Path) -> None:
    packages = toy_environment(toy)
    first = toy.build(packages)
    made = {name: dict(each) for name, each in toy.registry.manifests.items()}
    toy.registry.blobs.pop(REPOSITORY)
    toy.registry.manifests.pop(REPOSITORY)
    other = Toy(toy.server, toy.registry, tmp_path / "elsewhere")
    random.Random(1).shuffle(packages)
    before = os.umask(0o077)
    try:
        again = other.build(packages, archives=tmp_path / "kept")
    finally:
        os.umask(before)
    assert again.image == first.image
    assert toy.registry.manifests[REPOSITORY] == made[REPOSITORY]


@pytest.mark.parametrize("damage", [b"", b"something else"])
def test_an_archive_of_the_cache_that_is_damaged_is_downloaded_again(toy: Toy, tmp_path: Path, damage: bytes) -> None:
    packages, kept = toy_environment(toy), tmp_path / "kept"
    first = toy.build(packages, archives=kept)
    made = [path for path in kept.glob("*/*") if path.is_file() and path.suffix in (".conda", ".bz2", ".whl")]
    assert made
    sound = {path: path.read_bytes() for path in made}
    for path in made:
        path.write_bytes(damage)
    toy.registry.blobs.pop(REPOSITORY)
    toy.registry.manifests.pop(REPOSITORY)
    other = Toy(toy.server, toy.registry, tmp_path / "elsewhere")
    assert other.build(packages, archives=kept).image == first.image
    assert {path: path.read_bytes() for path in made} == sound


def test_an_image_that_is_there_is_answered_at_once(toy: Toy) -> None:
    packages = toy_environment(toy)
    first = toy.build(packages)
    toy.server.forget()
    toy.registry.requests.clear()
    again = toy.build(packages)
    assert again.image == first.image
    assert again.bytes_total == first.bytes_total
    assert (again.bytes_pushed, again.layers) == (0, first.layers)
    assert toy.server.requests == []
    assert {each.method for each in toy.registry.requests} <= {"GET", "HEAD"}


def test_an_image_of_the_same_packages_under_another_name_shares_every_layer(toy: Toy) -> None:
    packages = toy_environment(toy)
    first = toy.build(packages)
    toy.server.forget()
    other = toy.build(packages, name="other")
    assert other.image != first.image
    assert toy.server.requests == []
    assert toy.manifest(other)["layers"] == toy.manifest(first)["layers"]
    assert other.bytes_pushed < 6000
    assert other.bytes_shared == sum(each["size"] for each in toy.manifest(first)["layers"])


def test_a_change_of_one_package_moves_its_layer_alone(toy: Toy) -> None:
    first = toy.build(toy_environment(toy))
    changed = toy_environment(toy, zlib="1.4")
    toy.server.forget()
    second = toy.build(changed)
    before, after = (toy.manifest(each)["layers"] for each in (first, second))
    assert [one == other for one, other in zip(before, after, strict=True)].count(False) == 1
    assert toy.server.paths(r"\.conda$") == ["/conda-forge/linux-64/zlib-1.4-0.conda"], "nothing else is downloaded"
    size = next(new["size"] for old, new in zip(before, after, strict=True) if old != new)
    assert size < second.bytes_pushed < size + 8000
    assert toy.files(second)["opt/env/lib/libz.so.1"] == b"z1.4"


def test_a_changed_python_package_is_compiled_as_in_a_whole_build(toy: Toy) -> None:
    toy.build(toy_environment(toy))
    changed = toy_environment(toy, click="8.2.0")
    toy.server.forget()
    second = toy.build(changed)
    assert sorted(toy.server.paths()) == [
        "/conda-forge/linux-64/python-3.11.4-0_cpython3.11.conda",
        "/conda-forge/noarch/click-8.2.0-pyh_0.conda",
    ]
    toy.registry.manifests.pop(REPOSITORY)
    toy.registry.blobs.pop(REPOSITORY)
    assert toy.build(changed).image == second.image


def test_environments_share_layers(toy: Toy) -> None:
    first = toy.build(toy_environment(toy))
    second = toy.build(toy_environment(toy)[:3], name="smaller")
    ours = {each["digest"] for each in toy.manifest(second)["layers"]}
    assert ours <= {each["digest"] for each in toy.manifest(first)["layers"]}


@pytest.mark.parametrize("pushed", [1, 3])
def test_a_build_that_is_cut_off_repeats_no_finished_upload(toy: Toy, pushed: int) -> None:
    packages = toy_environment(toy)
    seen = [0]

    class StopError(Exception):
        pass

    client = toy.client()
    upload = client.push_blob

    def push_blob(*args: object, **more: object) -> int:
        sent = upload(*args, **more)  # type: ignore[arg-type]
        seen[0] += bool(sent)
        if seen[0] >= pushed * 2:  # a layer, and the config of its note
            raise StopError
        return sent

    client.push_blob = push_blob  # type: ignore[method-assign, assignment]
    toy.client = lambda: client  # type: ignore[method-assign]
    with pytest.raises(StopError):
        toy.build(packages)
    finished = [each.path for each in toy.registry.seen("PUT", "/blobs/uploads/") if each.status == 201]
    assert finished
    there = set(toy.registry.blobs[REPOSITORY])
    del toy.client
    toy.registry.requests.clear()
    toy.build(packages)
    again = {each.path.rpartition("digest=")[2].replace("%3A", ":") for each in toy.registry.seen("PUT", "uploads/")}
    assert again
    assert not again & there


def test_packages_that_want_different_files_at_one_path_share_a_layer(toy: Toy) -> None:
    channel, url = toy.server.channel("c"), toy.server.url("c")
    one = package(channel.add("one", "1", files={"share/x": "1", "share/first": "1"}, padding=9000), url)
    two = package(channel.add("two", "1", depends=["one"], files={"share/x": "2"}), url, depends=("one",))
    three = package(channel.add("three", "1", files={"share/same": "3"}), url)
    four = package(channel.add("four", "1", files={"share/same": "3"}), url)
    python = toy_environment(toy)[:1]
    alone = toy.build([*python, one], name="one")
    assert toy.files(alone)["opt/env/share/x"] == b"1"
    both = toy.build([*python, two, one, three, four])
    members = [layer for layer in toy.layers(both) if "opt/env/share/x" in layer]
    assert len(members) == 1
    assert "opt/env/share/first" in members[0]
    assert toy.files(both)["opt/env/share/x"] == b"2", "the package that depends on the other one wins"
    assert both.layers == 1 + 1 + 1 + 2 + 1, "base, python, the two that clash, two that share an equal file, top"
    toy.server.forget()
    again = toy.build([*python, one, two, three, four], name="again")
    assert toy.manifest(again)["layers"] == toy.manifest(both)["layers"]
    assert toy.server.requests == [], "what clashes is known by the notes"


def test_files_below_anothers_link_lie_where_it_leads(toy: Toy) -> None:
    channel, url = toy.server.channel("c"), toy.server.url("c")
    one = package(channel.add("one", "1", files={"lib64": Link("lib"), "lib/a": "a"}), url)
    two = package(channel.add("two", "1", files={"lib64/b": "b"}), url)
    files = toy.files(toy.build([*toy_environment(toy)[:1], one, two]))
    assert files["opt/env/lib64"] == b"-> lib"
    assert files["opt/env/lib/b"] == b"b"
    assert "opt/env/lib64/b" not in files


def test_a_base_with_many_layers_leaves_less_room(toy: Toy) -> None:
    channel, url = toy.server.channel("c"), toy.server.url("c")
    packages = [package(channel.add(f"p{number}", "1"), url) for number in range(12)]
    toy.base = push_base(toy.registry, 74)
    answer = toy.build([*toy_environment(toy)[:1], *packages])
    assert answer.layers <= 80
    assert len(toy.manifest(answer)["layers"]) == answer.layers
    toy.base = push_base(toy.registry, 79)
    with pytest.raises(BuildError, match=r"has 79 layers, too many") as raised:
        toy.build(packages + toy_environment(toy)[:1])
    assert raised.value.reason == "InvalidEnvironment"


def test_a_lock_without_python_is_refused(toy: Toy) -> None:
    with pytest.raises(BuildError, match="no python") as raised:
        toy.build(toy_environment(toy)[2:3])
    assert raised.value.reason == "LockUnusable"


def test_a_full_disk(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokenservice.builder.conda.layer_build.write_layer", full)
    with pytest.raises(BuildError, match="the disk of this Job is full") as raised:
        toy.build(toy_environment(toy))
    assert raised.value.reason == "DiskFull"


@pytest.mark.parametrize(
    ("status", "reason"), [(507, "RegistryFull"), (403, "RegistryUnauthorized"), (503, "RegistryUnavailable")]
)
def test_a_registry_that_takes_nothing(toy: Toy, status: int, reason: str) -> None:
    toy.registry.trouble += [("^POST", status)] * 40
    with pytest.raises(BuildError) as raised:
        toy.build(toy_environment(toy))
    assert raised.value.reason == reason
    toy.registry.trouble.clear()
    assert toy.build(toy_environment(toy)).bytes_pushed > 0


def test_progress_names_packages_bytes_and_rate(toy: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    toy.build(toy_environment(toy))
    said = capfd.readouterr().err
    assert re.search(r"5 of 5 layers are to be made, of [\d.]+ KiB of packages", said)
    assert re.search(r"layer \d of 5: numpy 1\.26\.4: packed in [\d.]+ s, pushed [\d.]+ KiB, [\d.]+ [KM]iB/s", said)
    assert re.search(r"image sha256:[0-9a-f]{64}: 5 packages in 7 layers, [\d.]+ KiB, of which [\d.]+ KiB", said)


def test_scripts_of_activation_are_named(toy: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    more = toy.server.channel("c").add("gcc", "1", files={"etc/conda/activate.d/gcc.sh": "export CC=1"})
    toy.build([*toy_environment(toy)[:1], package(more, toy.server.url("c"))])
    assert "are not run: etc/conda/activate.d/gcc.sh" in capfd.readouterr().err


# Downloads


def test_a_wrong_download_is_never_used(toy: Toy) -> None:
    packages = toy_environment(toy)
    toy.server.fault(r"zlib", corrupt=True)
    with pytest.raises(BuildError, match=r"zlib-1\.3-0\.conda from 127\.0\.0\.1:\d+ has the sha256") as raised:
        toy.build(packages)
    assert raised.value.reason == "ChecksumMismatch"
    toy.server.heal()
    assert b"z1.3" in toy.files(toy.build(packages)).values()


def test_a_mirror_that_has_something_else_is_passed_over(toy: Toy) -> None:
    packages = toy_environment(toy)
    toy.server.fault(r"^/mirror/.*zlib", corrupt=True)
    (toy.server.root / "mirror").symlink_to(toy.server.root / "conda-forge")
    url, mirror = toy.server.url("conda-forge"), toy.server.url("mirror")
    sources = Sources(Http(), QUICK, lambda each: (each.replace(url, mirror), each))
    toy.build(packages, sources=sources)
    assert toy.server.paths(r"zlib") == ["/mirror/linux-64/zlib-1.3-0.conda", "/conda-forge/linux-64/zlib-1.3-0.conda"]


@pytest.mark.parametrize("fault", [{"dropped": True}, {"truncated": True}, {"status": 503}])
def test_a_download_that_breaks_off_goes_on(toy: Toy, fault: dict[str, object]) -> None:
    packages = toy_environment(toy)
    toy.server.fault(r"numpy", times=2, **fault)
    assert toy.build(packages).bytes_pushed > 0


def test_a_channel_that_is_down_is_named(toy: Toy) -> None:
    packages = toy_environment(toy)
    toy.server.fault(r"numpy", status=500)
    with pytest.raises(BuildError, match=r"numpy-1\.26\.4-0\.conda cannot be downloaded from 127.*500") as raised:
        toy.build(packages)
    assert raised.value.reason == "ChannelUnavailable"


def test_logins_go_to_their_host_alone(toy: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    packages = toy_environment(toy)
    toy.server.require("conda-forge", basic=("me", "planted-secret"))
    with pytest.raises(BuildError, match=r"answers 401"):
        toy.build(packages)
    header = {"Authorization": "Basic bWU6cGxhbnRlZC1zZWNyZXQ="}
    answer = toy.build(packages, sources=Sources(Http(), QUICK, login=lambda _: header))
    told = capfd.readouterr().err + str(answer) + json.dumps(toy.config(answer))
    assert "planted" not in told
    assert "bWU6" not in told
    assert not any(b"planted" in content for content in toy.files(answer).values())


def test_each_package_is_downloaded_once_and_not_kept(toy: Toy) -> None:
    channel, url = toy.server.channel("c"), toy.server.url("c")
    libraries = [package(channel.add(f"lib{number}", "1"), url) for number in range(6)]
    python, *others = toy_environment(toy)
    needs = tuple(each.name for each in libraries)
    toy.build([replace(python, depends=needs), *others, *libraries])
    asked = toy.server.paths(r"\.(conda|whl)$")
    assert len(asked) == len(set(asked)) == len(others) + 1 + len(libraries)
    assert not list((toy.folder / "scratch").iterdir())


# What decides


def test_clashes() -> None:
    assert clashes([{"a": "1", "b": "2"}, {"c": "1"}]) == []
    assert clashes([{"a": "1"}, {"a": "1"}]) == []
    assert clashes([{"a": "1"}, {"b": "1"}, {"a": "2"}]) == [{0, 2}]
    assert clashes([{"lib64": "link lib"}, {"lib64/x/y": "1"}]) == [{0, 1}]
    assert clashes([{"lib64": "link lib", "lib/x": "1"}, {"lib/y": "1"}]) == []


def test_a_layers_key() -> None:
    noarch = Package("conda", "click", "8", "https://c/noarch/click-8-0.conda", "a" * 64, 1, noarch="python")
    library = Package("conda", "zlib", "1", "https://c/linux-64/zlib-1-0.conda", "b" * 64, 1)
    py311, py312 = Python("3.11", "lib/python3.11/site-packages"), Python("3.12", "lib/python3.12/site-packages")
    assert group_key([noarch], py311) != group_key([noarch], py312)
    assert group_key([library], py311) == group_key([library], py312), "libraries are shared between Pythons"
    assert group_key([library, noarch], py311) == group_key([noarch, library], py311)
    assert group_key([library], py311) != group_key([library], py311, "gzip")
    moved = Package("conda", "zlib", "1", "https://user:secret@c/linux-64/zlib-1-0.conda", "b" * 64, 1)
    assert group_key([library], None) == group_key([moved], None)


def test_the_order_of_installing() -> None:
    a = Package("conda", "a", "1", "", "", depends=("b >=1", "__glibc"))
    b = Package("conda", "b", "1", "", "", depends=("c",))
    c = Package("conda", "c", "1", "", "", depends=("b",))
    w = Package("pypi", "a", "1", "", "")
    assert [each.name for each in install_order([w, c, a, b])] == ["c", "b", "a", "a"]
    assert install_order([w, c, a, b])[-1].kind == "pypi"
