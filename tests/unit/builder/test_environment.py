from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.builder.environment import ALONE, grouped, install_wheel, scaffold
from tokenservice.builder.errors import BuildError
from tokenservice.builder.layers import entries_below, write_layer
from tokenservice.builder.project import project_wheel, source_root
from tokenservice.builder.wheels import Wheel

ROOT = Path(__file__).resolve().parents[3]


def a_wheel(name: str, size: int, sha256: str = "") -> Wheel:
    return Wheel(name, "1", f"{name}-1-py3-none-any.whl", sha256 or name * 8, size, f"https://x.example/{name}")


SMALL = [a_wheel("b", 10), a_wheel("a", 20)]
LARGE = [a_wheel("torch", 500_000_000), a_wheel("cublas", 400_000_000), a_wheel("numpy", 16_000_000)]


def test_large_packages_lie_alone_at_the_bottom() -> None:
    assert [group.comment for group in grouped(SMALL + LARGE)] == [
        "cublas 1",
        "torch 1",
        "numpy 1",
        "2 Python packages",
    ]


@given(st.permutations(SMALL + LARGE))
def test_the_order_of_wheels_does_not_matter(wheels: list[Wheel]) -> None:
    assert [group.key for group in grouped(wheels)] == [group.key for group in grouped(SMALL + LARGE)]


def test_a_slightly_larger_version_keeps_its_place() -> None:
    moved = [a_wheel("torch", 510_000_000, "new"), *LARGE[1:], *SMALL]
    before, after = [group.key for group in grouped(SMALL + LARGE)], [group.key for group in grouped(moved)]
    assert [index for index, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]] == [1]


def test_where_a_wheel_came_from_does_not_matter() -> None:
    other = Wheel("b", "1", "b.whl", SMALL[0].sha256, 10, "https://mirror.example/b")
    assert grouped([SMALL[0]])[0].key == grouped([other])[0].key


def test_the_smallest_that_is_alone() -> None:
    assert [
        len(group.wheels) for group in grouped([a_wheel("x", ALONE), a_wheel("y", ALONE - 1), a_wheel("z", 1)])
    ] == [1, 2]


def make_wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, content)
    return path


def test_scripts_name_the_images_python(tmp_path: Path) -> None:
    script = "[console_scripts]\nrun-x = x:main\n"
    install_wheel(make_wheel(tmp_path, "x", {"x.py": "", "x-1.0.dist-info/entry_points.txt": script}), tmp_path / "env")
    text = (tmp_path / "env/bin/run-x").read_text()
    assert text.startswith("#!/opt/env/bin/python\n")
    assert (tmp_path / "env/lib/python3.11/site-packages/x.py").is_file()
    record = (tmp_path / "env/lib/python3.11/site-packages/x-1.0.dist-info/RECORD").read_text()
    assert str(tmp_path) not in record
    assert (tmp_path / "env/lib/python3.11/site-packages/x-1.0.dist-info/INSTALLER").read_text() == "tokenservice\n"


def test_packages_may_share_files_that_are_equal(tmp_path: Path) -> None:
    install_wheel(make_wheel(tmp_path, "x", {"shared/__init__.py": "", "shared/x.py": ""}), tmp_path / "env")
    install_wheel(make_wheel(tmp_path, "y", {"shared/__init__.py": "", "shared/y.py": ""}), tmp_path / "env")
    with pytest.raises(
        BuildError, match=r"z-1\.0-py3-none-any\.whl and another wheel want different files at shared/x\.py"
    ):
        install_wheel(make_wheel(tmp_path, "z", {"shared/x.py": "other = 1"}), tmp_path / "env")


def test_the_scaffold_is_a_virtual_environment_of_the_base(tmp_path: Path) -> None:
    write_layer(scaffold(), tmp_path / "layer", "gzip")
    with tarfile.open(tmp_path / "layer") as archive:
        assert archive.getmember("opt/env/bin/python").linkname == "/usr/bin/python3.11"
        config = archive.extractfile("opt/env/pyvenv.cfg").read().decode()  # type: ignore[union-attr]
    assert "home = /usr/bin\n" in config


def test_our_own_wheel_has_every_file_of_the_package_and_its_scripts() -> None:
    made = project_wheel(ROOT)
    with zipfile.ZipFile(io.BytesIO(made.content)) as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
        scripts = archive.read(f"tokenservice_operator-{made.version}.dist-info/entry_points.txt").decode()
    source = ROOT / "operator/tokenservice"
    wanted = {
        f"tokenservice/{path.relative_to(source).as_posix()}"
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= names
    assert {name for name in names if not name.startswith("tokenservice/")} == {
        f"tokenservice_operator-{made.version}.dist-info/{name}"
        for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")
    }
    assert "tokenservice = tokenservice.cli:main" in scripts


def test_our_own_wheel_depends_on_content_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        package = tmp_path / name / "src/thing"
        (package / "__pycache__").mkdir(parents=True)
        (package / "__init__.py").write_text("x = 1\n")
        (package / "__init__.py").chmod(0o600 if name == "one" else 0o755)
        (package / "__pycache__/x.pyc").write_text(name)
        (package / "data.yaml").write_text("a: 1\n")
        (tmp_path / name / "pyproject.toml").write_text(
            '[project]\nname = "Thing"\nversion = "1.0"\n[project.scripts]\nrun = "thing:main"\n'
            '[tool.hatch.build.targets.wheel]\npackages = ["src/thing"]\n'
        )
    one, two = project_wheel(tmp_path / "one"), project_wheel(tmp_path / "two")
    assert one == two
    (tmp_path / "two/src/thing/data.yaml").write_text("a: 2\n")
    assert project_wheel(tmp_path / "two").sha256 != one.sha256
    install_wheel(write(tmp_path, one.filename, one.content), tmp_path / "env")
    assert (tmp_path / "env/bin/run").is_file()
    assert {entry.path for entry in entries_below(tmp_path / "env") if entry.path.endswith((".yaml", ".py"))} == {
        "lib/python3.11/site-packages/thing/data.yaml",
        "lib/python3.11/site-packages/thing/__init__.py",
    }


def write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_the_source_tree_is_found_or_asked_for(tmp_path: Path) -> None:
    assert source_root(None) == ROOT
    with pytest.raises(BuildError, match="no source tree of tokenservice-operator: name one with --source"):
        source_root(tmp_path)


def test_keys_are_plain_json() -> None:
    assert json.dumps(grouped(SMALL)[0].key)
