"""The solver in its own process, asked directly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenservice.api.jobs import VirtualPackages
from tokenservice.builder.conda.solve import explained, solve, virtual_packages
from tokenservice.builder.conda.solver import IndexFile, Question
from tokenservice.builder.errors import BuildError

CHANNEL = "https://conda.example.com/main"


class Repodata:
    """An index of packages that nobody can download: for solving they need not be there."""

    def __init__(self, folder: Path) -> None:
        self.file, self.packages = folder / "repodata.json", dict[str, object]()

    def add(self, name: str, version: object, *depends: str) -> None:
        self.packages[f"{name}-{version}-0.conda"] = {
            "name": name, "version": str(version), "build": "0", "build_number": 0, "depends": depends,
            "subdir": "linux-64", "sha256": "0" * 64, "size": 1, "timestamp": 1,
        }  # fmt: skip

    def question(self, *specs: str, seconds: float = 30) -> Question:
        self.file.write_text(json.dumps({"info": {"subdir": "linux-64"}, "packages.conda": self.packages}))
        virtual = virtual_packages("linux-64", VirtualPackages())
        return Question(list(specs), [IndexFile(CHANNEL, "linux-64", str(self.file))], virtual, "linux-64", seconds)


@pytest.fixture
def repodata(tmp_path: Path) -> Repodata:
    return Repodata(tmp_path)


def refusal(question: Question) -> BuildError:
    with pytest.raises(BuildError) as refused:
        solve(question)
    return refused.value


def test_a_solve_without_end_is_ended(repodata: Repodata) -> None:
    """14 pigeons into 13 holes: the proof that they do not fit takes a solver as good as for ever."""
    for pigeon in range(14):
        for hole in range(13):
            repodata.add(f"pigeon{pigeon}", hole, f"hole{hole} =={pigeon}")
            repodata.add(f"hole{hole}", pigeon)
    refused = refusal(repodata.question(*(f"pigeon{number}" for number in range(14)), seconds=1))
    assert refused.reason == "TimedOut"
    assert "within 1 s" in str(refused)


def test_a_conflict_over_a_package_with_timeout_in_its_name_is_a_conflict(repodata: Repodata) -> None:
    repodata.add("async-timeout", "4.0")
    repodata.add("aiohttp", "3.8", "async-timeout >=5")
    refused = refusal(repodata.question("aiohttp"))
    assert refused.reason == "Unsolvable"
    assert "async-timeout >=5" in str(refused)


def test_the_first_line_of_an_explanation_can_stand_alone(repodata: Repodata) -> None:
    for version in ("1.26", "2.1"):
        repodata.add("numpy", version)
    repodata.add("a", "1.0", "numpy >=2")
    repodata.add("b", "1.0", "numpy <2")
    assert str(refusal(repodata.question("a", "b"))).splitlines()[0] == "a and b cannot be installed together"
    repodata.add("c", "1.0", "numpy >=3")
    repodata.add("d", "1.0", "c")
    alone = str(refusal(repodata.question("d"))).splitlines()
    assert alone[0] == "d cannot be installed: it leads to numpy >=3, which no channel has"
    assert any("d 1.0 would require" in line for line in alone), "the whole explanation follows"
    one = str(refusal(repodata.question("numpy=1.27"))).splitlines()[0]
    assert "numpy" in one
    assert "1.27" in one


@pytest.mark.parametrize(
    ("problem", "virtual", "newer", "words"),
    [
        ("x needs __cuda >=12", VirtualPackages(), "", "virtualPackages.cuda"),
        ("x needs __glibc >=2.38", VirtualPackages(), "", "virtualPackages.glibc"),
        ("x", VirtualPackages(), "2026-01-31", "packages uploaded after 2026-01-31 are left out"),
    ],
)
def test_hints_name_what_to_set(problem: str, virtual: VirtualPackages, newer: str, words: str) -> None:
    question = Question([], [], virtual_packages("linux-64", virtual), "linux-64", 1, newer)
    assert words in explained(problem, question)


def test_no_hint_for_what_is_set() -> None:
    question = Question([], [], virtual_packages("linux-64", VirtualPackages(cuda="11.8")), "linux-64", 1)
    assert "hint" not in explained("x needs __cuda >=12", question)


def test_virtual_packages_are_those_of_the_target() -> None:
    found = {name: version for name, version, _ in virtual_packages("linux-64", VirtualPackages(glibc="2.28"))}
    assert found["__glibc"] == "2.28"
    assert "__cuda" not in found
    assert ("__archspec", "1", "aarch64") in virtual_packages("linux-aarch64", VirtualPackages())
