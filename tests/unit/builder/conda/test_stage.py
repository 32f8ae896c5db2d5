from __future__ import annotations

import asyncio
import json
import os
import posixpath
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.builder.conda import sandbox
from tokenservice.builder.conda.archive import checked_path, checked_target, unpack_conda
from tokenservice.builder.conda.link import LINK, Origin, link_conda, replace_binary
from tokenservice.builder.conda.normalise import without_login
from tokenservice.builder.conda.packages import Package
from tokenservice.builder.conda.stage import Stage, Staged
from tokenservice.builder.errors import BuildError

from tests.support.conda_channel import PLACEHOLDER, Built, Channel, Link, Placeholder, Raw, toy_wheel
from tests.unit.builder.conda.toy_build import package

URL = "https://conda.example/forge"


@pytest.fixture
def channel(tmp_path: Path) -> Channel:
    return Channel(tmp_path / "channel")


def staged(tmp_path: Path, built: Built, *more: Built, **fields: object) -> Staged:
    """The first package, staged among the others."""
    files = {each.sha256: each.path for each in (built, *more)}
    packages = [package(built, URL, **fields), *(package(each, URL) for each in more)]

    def fetch(wanted: Sequence[Package]) -> list[Path]:
        return [files[each.sha256] for each in wanted]

    root = tmp_path / "stage"
    number = len(list(root.glob("*"))) if root.exists() else 0
    return Stage(root / str(number), packages, fetch).stage(packages[:1])[0]


# The same files as conda's own installers give


@pytest.mark.parametrize("extension", [".conda", ".tar.bz2"])
def test_what_is_staged_is_what_rattler_installs(tmp_path: Path, channel: Channel, extension: str) -> None:
    import rattler

    python = channel.add_python("3.11.4", extension=extension)
    number = channel.add(
        "number",
        "1.0",
        depends=["python >=3.11"],
        extension=extension,
        files={
            "lib/python3.11/site-packages/number/__init__.py": "x = 1\n",
            "bin/number": Placeholder("#!{prefix}/bin/python\nprint('{prefix}/share')\n", mode=0o755),
            "lib/libnumber.so": Placeholder("\x7fELF{prefix}/lib\0x{prefix}/a:{prefix}/b\0{prefix}", binary=True),
            "lib/libnumber.so.1": Link("libnumber.so"),
            "share/dir": Link("../lib"),
            "etc/number.conf": "plain",
            "share/\N{GREEK SMALL LETTER ALPHA} b": "a name with a blank",
        },
    )
    script = channel.add_distribution(
        "script",
        "2.0",
        extension=extension,
        entry_points=["script = script.cli:main", "deep=script:Class.method"],
        modules={"script/__init__.py": "", "script/cli.py": "def main(): ...\n"},
    )
    channel.index()

    async def install() -> None:
        records = await rattler.solve(
            sources=[rattler.Channel(channel.root.as_uri())],
            specs=[rattler.MatchSpec(name) for name in ("number", "script")],
            platforms=["linux-64", "noarch"],
            gateway=rattler.Gateway(cache_dir=tmp_path / "index"),
            virtual_packages=[],
        )
        await rattler.install(
            records,
            target_prefix=tmp_path / "prefix",
            cache_dir=tmp_path / "cache",
            alternative_target_prefix="/opt/env",
            execute_link_scripts=False,
            show_progress=False,
        )

    asyncio.run(install())
    ours: dict[str, tuple[str, bytes | str, bool]] = {}
    for built, fields in ((python, {}), (number, {"depends": ("python",)}), (script, {"noarch": "python"})):
        others = [each for each in (python, number, script) if each is not built]
        ours.update(content_of(staged(tmp_path, built, *others, **fields).tree))
    assert without_notes(ours) == without_notes(content_of(tmp_path / "prefix"))


def content_of(root: Path) -> dict[str, tuple[str, bytes | str, bool]]:
    """Path -> kind, content or target, whether it can be executed."""
    found: dict[str, tuple[str, bytes | str, bool]] = {}
    for here, folders, names in os.walk(root):
        for name in [*names, *(each for each in folders if Path(here, each).is_symlink())]:
            path = Path(here, name)
            key = str(path.relative_to(root))
            if path.is_symlink():
                found[key] = ("link", str(path.readlink()), False)
            else:
                found[key] = ("file", path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


def without_notes(found: dict[str, tuple[str, bytes | str, bool]]) -> dict[str, tuple[str, bytes | str, bool]]:
    """Without records and byte code, which are ours."""
    return {
        path: each
        for path, each in found.items()
        if not path.startswith("conda-meta/") and "__pycache__" not in path and path != "CACHEDIR.TAG"
    }


def test_packages_older_than_paths_json(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    (folder / "info").mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "info/index.json").write_text('{"name": "old", "version": "1", "build": "0", "build_number": 0}')
    (folder / "info/files").write_text("bin/tool\nbin/other\nplain\n")
    (folder / "info/has_prefix").write_text(f'bin/tool\n"{PLACEHOLDER}" text "bin/other"\n')
    (folder / "bin/tool").write_text("#!/opt/anaconda1anaconda2anaconda3/bin/x\n")
    (folder / "bin/other").write_text(f"{PLACEHOLDER}/y\n")
    (folder / "plain").write_text("z")
    path = tmp_path / "old-1-0.tar.bz2"
    with tarfile.open(path, "w:bz2") as archive:
        archive.add(folder, ".")
    built = Built(path, "old", "1", "0", "linux-64", "0" * 64, 1)
    tree = staged(tmp_path, built).tree
    assert (tree / "bin/tool").read_text() == "#!/opt/env/bin/x\n"
    assert (tree / "bin/other").read_text() == "/opt/env/y\n"


@given(
    st.lists(
        st.one_of(st.binary(max_size=20), st.just(b"/place/holder"), st.just(b"/place/holder/x"), st.just(b"\0")),
        max_size=12,
    )
)
def test_a_binary_keeps_its_length_and_its_other_strings(pieces: list[bytes]) -> None:
    content = b"".join(pieces)
    made = replace_binary(content, b"/place/holder", b"/opt/env")
    assert len(made) == len(content)
    assert b"/place/holder" not in made
    # Every string starts where it was.
    strings, start = content.split(b"\0"), 0
    for string in strings:
        wanted = string.replace(b"/place/holder", b"/opt/env")
        assert made[start : start + len(string)].rstrip(b"\0") == wanted.rstrip(b"\0")
        start += len(string) + 1


def test_a_placeholder_without_room() -> None:
    with pytest.raises(ValueError, match="too short"):
        replace_binary(b"/p", b"/p", b"/opt/env")


# Records


def test_records_hold_nothing_of_the_machine(tmp_path: Path, channel: Channel) -> None:
    built = channel.add("zlib", "1.3", files={"lib/libz.so": "z", "share/x": Placeholder("{prefix}")})
    one = staged(tmp_path, built)
    text = (one.tree / "conda-meta/zlib-1.3-0.json").read_text()
    assert str(tmp_path) not in text
    for word in ("extracted_package_dir", "indexed_timestamp", "requested_spec", '"link"'):
        assert word not in text
    assert '"channel":"https://conda.example/forge"' in text
    assert '"url":"https://conda.example/forge/linux-64/zlib-1.3-0.conda"' in text
    other = staged(tmp_path, built)
    assert (one.known, content_of(one.tree)) == (other.known, content_of(other.tree))


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("https://c.example/t/secret/forge/noarch/x.conda", "https://c.example/forge/noarch/x.conda"),
        ("https://user:secret@c.example/forge/x.conda?token=secret#y", "https://c.example/forge/x.conda"),
        ("https://c.example/forge/x.conda", "https://c.example/forge/x.conda"),
    ],
)
def test_no_login_stands_in_a_record(url: str, plain: str) -> None:
    assert without_login(url) == plain


# Byte code


def test_byte_code_runs_without_sources_and_names_the_images_paths(tmp_path: Path, channel: Channel) -> None:
    python = channel.add_python("3.11.4")
    modules = {"where/__init__.py": "def fail():\n    raise ValueError('here')\n"}
    built = channel.add_distribution("where", "1", modules=modules)
    found = staged(tmp_path, built, python, noarch="python")
    site = found.tree / "lib/python3.11/site-packages"
    (site / "where/__pycache__/__init__.cpython-311.pyc").rename(site / "where/__init__.pyc")
    (site / "where/__init__.py").unlink()
    done = subprocess.run(
        [sys.executable, "-c", "import where; where.fail()"],
        check=False,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert 'File "/opt/env/lib/python3.11/site-packages/where/__init__.py", line 2, in fail' in done.stderr
    assert "ValueError: here" in done.stderr


def test_byte_code_that_a_package_brings_is_replaced(tmp_path: Path, channel: Channel) -> None:
    python = channel.add_python("3.11.4")
    site = "lib/python3.11/site-packages"
    files = {
        f"{site}/m.py": "x = 1\n",
        f"{site}/__pycache__/m.cpython-311.pyc": "stale",
        f"{site}/__pycache__/m.cpython-311.opt-1.pyc": "stale",
        f"{site}/.py": "y = 1\n",
    }
    found = staged(tmp_path, channel.add("m", "1", depends=["python"], files=files), python, depends=("python",))
    cached = found.tree / f"{site}/__pycache__/m.cpython-311.pyc"
    assert cached.read_bytes()[4:8] == b"\1\0\0\0", "unchecked, by hash"
    assert f"{site}/__pycache__/m.cpython-311.opt-1.pyc" not in found.known
    assert "opt-1" not in (found.tree / "conda-meta/m-1-0.json").read_text()


def test_byte_code_does_not_depend_on_what_is_built_beside_it(tmp_path: Path, channel: Channel) -> None:
    python = channel.add_python("3.11.4")
    text = (
        "import os\n\n\ndef f(name, key, value={'a', 'b', 'some_name'}):\n    return name in {'some_name', 'x', 'y'}\n"
    )
    one = channel.add_distribution("one", "1", modules={"one.py": text})
    two = channel.add_distribution(
        "two", "1", modules={f"two{number}.py": text + f"v{number} = 1\n" for number in range(9)}
    )
    alone = staged(tmp_path, one, python, noarch="python")
    files = {each.sha256: each.path for each in (one, two, python)}
    packages = [package(each, URL, noarch="python") for each in (two, one)]
    stage = Stage(
        tmp_path / "both", [*packages, package(python, URL)], lambda wanted: [files[each.sha256] for each in wanted]
    )
    together = stage.stage(packages)[1]
    assert content_of(alone.tree) == content_of(together.tree)


def test_a_wheel(tmp_path: Path, channel: Channel) -> None:
    python = channel.add_python("3.11.4")
    files = {
        "thing/__init__.py": "",
        "thing-1.0.data/data/share/thing/x": "data",
        "thing-1.0.data/scripts/run": "#!python\n",
    }
    path = toy_wheel(tmp_path, "thing", "1.0", files=files, entry_points=["thing = thing:main"])
    item = Package("pypi", "thing", "1.0", f"{URL}/{path.name}", "0" * 64)
    stage = Stage(tmp_path / "stage", [item, package(python, URL)], lambda wanted: [
        path if each is item else python.path for each in wanted
    ])  # fmt: skip
    found = stage.stage([item])[0]
    assert (found.tree / "share/thing/x").read_text() == "data"
    assert (found.tree / "bin/run").read_text() == "#!/opt/env/bin/python3.11\n"
    site = found.tree / "lib/python3.11/site-packages"
    assert (site / "thing-1.0.dist-info/INSTALLER").read_text() == "tokenservice\n"
    record = (site / "thing-1.0.dist-info/RECORD").read_text().splitlines()
    assert record == sorted(record)
    listed = {os.path.normpath(f"lib/python3.11/site-packages/{row.split(',')[0]}") for row in record}
    assert listed == set(found.known)


# What is refused


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://c.example/f/noarch/x-1-0.conda?token=secret#sha256=1", "x-1-0.conda"),
        ("https://c.example/f/x%2B1-1-py3-none-any.whl", "x+1-1-py3-none-any.whl"),
        ("https://c.example/f/..%2F..%2Fx.whl", "x.whl"),
    ],
)
def test_names_of_archives(url: str, name: str) -> None:
    assert Package("conda", "x", "1", url, "").filename == name


@pytest.mark.parametrize(
    "url", ["https://c.example/f/", "https://c.example", "https://c.example/f/%2E%2E", "..", "x/%00"]
)
def test_addresses_that_name_no_archive(url: str) -> None:
    with pytest.raises(BuildError, match="no address of a file for x"):
        _ = Package("conda", "x", "1", url, "").filename


UNSAFE = [
    (Raw("../evil"), "'../evil' leaves the prefix"),
    (Raw("lib/../../evil"), "leaves the prefix"),
    (Raw("/etc/evil"), "'/etc/evil' is absolute"),
    (Raw("lib/link", kind=tarfile.SYMTYPE, linkname="/etc"), "is a link to the absolute path '/etc'"),
    (Raw("lib/link", kind=tarfile.SYMTYPE, linkname="../../etc"), "is a link to '../../etc', which leaves the prefix"),
    (Raw("evil", kind=tarfile.SYMTYPE, linkname=".."), "leaves the prefix"),
    (Raw("lib/hard", kind=tarfile.LNKTYPE, linkname="/etc/passwd"), "is absolute"),
    (Raw("lib/hard", kind=tarfile.LNKTYPE, linkname="../../etc/passwd"), "leaves the prefix"),
    (Raw("lib/hard", kind=tarfile.LNKTYPE, linkname="lib/nothing"), "no file before it"),
    (Raw("dev/null", kind=tarfile.CHRTYPE), "is a device or a pipe"),
    (Raw("pipe", kind=tarfile.FIFOTYPE), "is a device or a pipe"),
]


@pytest.mark.parametrize("extension", [".conda", ".tar.bz2"])
@pytest.mark.parametrize(("raw", "words"), UNSAFE)
def test_members_that_leave_the_prefix(tmp_path: Path, channel: Channel, raw: Raw, words: str, extension: str) -> None:
    built = channel.add("evil", "1", raw=[raw], extension=extension)
    with pytest.raises(BuildError, match=r"evil-1-0\S+ is refused") as raised:
        unpack_conda(built.path, made(tmp_path / "deep/into"))
    assert words in str(raised.value)
    assert raised.value.reason == "UnsafeArchive"
    assert not list((tmp_path / "deep").glob("*evil*"))


def test_members_that_go_through_a_link(tmp_path: Path, channel: Channel) -> None:
    (tmp_path / "outside").mkdir()
    raw = [Raw("way", kind=tarfile.SYMTYPE, linkname="lib"), Raw("way/evil", b"x")]
    with pytest.raises(BuildError, match="'way' is a link, and another member goes through it"):
        unpack_conda(channel.add("evil", "1", raw=raw).path, made(tmp_path / "into"))


@pytest.mark.parametrize("alone", [True, False])
def test_a_list_of_paths_that_goes_through_a_link(tmp_path: Path, channel: Channel, alone: bool) -> None:
    # Each link is inside; together they lead to the folder above.
    links = {"s/t/root": Link("../.."), "up": Link("s/t/root/.."), "share/x": "x"}
    folder = made(tmp_path / "into")
    unpack_conda(channel.add("evil", "1", files=links).path, folder)
    listed = folder / "info/paths.json"
    content = json.loads(listed.read_text())
    for each in content["paths"]:
        each["_path"] = each["_path"].replace("share/x", "s/t/root/share/x")
    if alone:
        content["paths"] = [each for each in content["paths"] if each["_path"].endswith("/x")]
    listed.write_text(json.dumps(content))
    origin = Origin(f"{URL}/linux-64/evil-1-0.conda", "0" * 64, 1)
    with pytest.raises(BuildError, match=r"'s/t/root' is a link.*and another path goes through it") as raised:
        link_conda(folder, made(tmp_path / "tree"), origin, None)
    assert raised.value.reason == "UnsafeArchive"
    assert (folder / "share/x").exists()


def test_a_later_member_replaces_a_link_and_does_not_write_through_it(tmp_path: Path, channel: Channel) -> None:
    raw = [Raw("a", b"first"), Raw("b", kind=tarfile.SYMTYPE, linkname="a"), Raw("b", b"second")]
    built = channel.add("twice", "1", raw=raw)
    unpack_conda(built.path, made(tmp_path / "into"))
    assert (tmp_path / "into/a").read_bytes() == b"first"
    assert (tmp_path / "into/b").read_bytes() == b"second"


def test_hard_links_become_files(tmp_path: Path, channel: Channel) -> None:
    raw = [Raw("bin/a", b"x", mode=0o755), Raw("bin/b", kind=tarfile.LNKTYPE, linkname="bin/a")]
    unpack_conda(channel.add("hard", "1", raw=raw).path, made(tmp_path / "into"))
    assert (tmp_path / "into/bin/b").read_bytes() == b"x"
    assert (tmp_path / "into/bin/b").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "into/bin/b").stat().st_nlink == 1


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "x/../../evil.py", "x-1.data/scripts/../../evil"])
def test_wheels_whose_members_leave_the_prefix(tmp_path: Path, channel: Channel, name: str) -> None:
    python = channel.add_python("3.11.4")
    path = toy_wheel(tmp_path, "x", "1")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "evil")
    item = Package("pypi", "x", "1", f"{URL}/{path.name}", "0" * 64)
    stage = Stage(tmp_path / "stage", [item, package(python, URL)], lambda _: [path])
    with pytest.raises(BuildError, match=r"x-1-py3-none-any\.whl is refused") as raised:
        stage.stage([item])
    assert raised.value.reason == "UnsafeArchive"


def test_post_link_scripts(tmp_path: Path, channel: Channel) -> None:
    built = channel.add("nccl", "2", post_link="touch $PREFIX/made\n")
    with pytest.raises(BuildError, match=r"nccl wants to run a script .*bin/\.nccl-post-link\.sh") as raised:
        staged(tmp_path, built)
    assert raised.value.reason == "PostLinkScript"
    assert not list(tmp_path.rglob("made"))


def with_script(tmp_path: Path, channel: Channel, script: str) -> Staged:
    """A package whose script may run, and one it depends on."""
    tool = channel.add("tool", "1", files={"bin/tool": "#!/bin/sh\necho made by a tool\n"})
    built = channel.add("nccl", "2", post_link=script, files={"share/config": "old"})
    files = {each.sha256: each.path for each in (tool, built)}
    packages = [package(built, URL, depends=("tool >=1",)), package(tool, URL)]

    def fetch(wanted: Sequence[Package]) -> list[Path]:
        return [files[each.sha256] for each in wanted]

    return Stage(tmp_path / "stage", packages, fetch, ("nccl",)).stage(packages[:1])[0]


def test_an_allowed_script_sees_what_it_depends_on_and_its_files_are_the_packages(
    tmp_path: Path, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED", "secret")
    script = """
        tool > $PREFIX/share/made
        echo "prefix=$PREFIX $PKG_NAME $PKG_VERSION $PLANTED" > $PREFIX/share/config
        ln -s $PREFIX/share/made $PREFIX/share/link
        echo hello > $PREFIX/.messages.txt
    """
    found = with_script(tmp_path, channel, script)
    assert (found.tree / "share/made").read_text() == "made by a tool\n"
    assert (found.tree / "share/config").read_text() == "prefix=/opt/env nccl 2 \n"
    assert found.known["share/link"] == f"{LINK}/opt/env/share/made"
    assert {"share/made", "share/config"} <= found.known.keys()
    assert not {".messages.txt", "bin/tool"} & found.known.keys()


def test_an_allowed_script_has_a_home_and_cannot_read_what_lies_outside(
    tmp_path: Path, channel: Channel, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "password").write_text("planted")
    script = f"""
        cat {tmp_path}/password > $PREFIX/share/config
        file=$(mktemp) && echo x > $file && mv $file $HOME/file && cat $HOME/file > $PREFIX/share/made
        echo y > /dev/null
    """
    found = with_script(tmp_path, channel, script)
    assert (found.tree / "share/made").read_text() == "x\n"
    read = (found.tree / "share/config").read_text()
    assert read == "" if sandbox.confined() else "the kernel has no Landlock" in capfd.readouterr().err


def test_an_allowed_script_that_fails(tmp_path: Path, channel: Channel) -> None:
    with pytest.raises(BuildError, match=r"nccl failed \(3\): no GPU here") as raised:
        with_script(tmp_path, channel, "echo no GPU here >&2; exit 3")
    assert raised.value.reason == "PostLinkScript"


def test_another_packages_script_is_just_a_file(tmp_path: Path, channel: Channel) -> None:
    built = channel.add("doc", "1", files={"bin/.other-post-link.sh": "x"})
    assert "bin/.other-post-link.sh" in staged(tmp_path, built).known


@pytest.mark.parametrize("line", ["x = os:system;evil", "../../evil = a:b", "x = a", "= a:b"])
def test_entry_points_that_are_none(tmp_path: Path, channel: Channel, line: str) -> None:
    built = channel.add_distribution("x", "1", entry_points=[line])
    with pytest.raises(BuildError, match="entry point"):
        staged(tmp_path, built, channel.add_python("3.11.4"), noarch="python")


def test_what_is_no_package(tmp_path: Path) -> None:
    for name, data in {"x-1-0.conda": b"no zip", "x-1-0.tar.bz2": b"no bzip2"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BuildError, match=f"{name} cannot be read"):
            unpack_conda(tmp_path / name, made(tmp_path / f"into-{name}"))
    with zipfile.ZipFile(tmp_path / "y-1-0.conda", "w") as archive:
        archive.writestr("metadata.json", "{}")
    with pytest.raises(BuildError, match="is no conda package"):
        unpack_conda(tmp_path / "y-1-0.conda", made(tmp_path / "into-y"))


SEGMENTS = st.lists(st.sampled_from(["a", "b", "..", ".", "", "c"]), min_size=1, max_size=6)


@given(SEGMENTS.map("/".join))
def test_no_path_that_passes_leaves(path: str) -> None:
    try:
        found = checked_path("x", path)
    except BuildError:
        assert path.startswith("/") or ".." in path.split("/") or not path.strip("./")
        return
    assert os.path.normpath(f"/prefix/{found}").startswith("/prefix/")
    assert found == os.path.normpath(path)


@given(SEGMENTS.map("/".join), SEGMENTS.map("/".join))
def test_no_target_that_passes_leaves(path: str, target: str) -> None:
    try:
        place = checked_path("x", path)
        checked_target("x", place, target)
    except BuildError:
        return
    ends = posixpath.normpath(posixpath.join("/prefix", posixpath.dirname(place), target))
    assert ends == "/prefix" or ends.startswith("/prefix/")


def test_links_are_known_by_their_target(tmp_path: Path, channel: Channel) -> None:
    built = channel.add("l", "1", files={"lib64": Link("lib"), "lib/x": "x"})
    assert staged(tmp_path, built).known["lib64"] == f"{LINK}lib"


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
