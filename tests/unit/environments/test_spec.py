"""Environments as people declare them: what is the same, what is refused, and with which words."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.environments.document import read
from tokenservice.environments.problems import InvalidEnvironment
from tokenservice.environments.spec import MAX_BYTES, Canonical, canonical

ROOT = Path(__file__).resolve().parents[3]

# As the article prints it.
ARTICLE = """\
name: token_service
channels:
  - pytorch
  - conda-forge
  - defaults
dependencies:
  - python=3.9
  - pytorch::pytorch=2.0.1=*cuda118_*
  - pytorch::torchvision
  - pytorch::torchaudio
  - conda-forge::transformers=4.35.2
  - conda-forge::datasets=2.14.*
  - conda-forge::numpy=1.23.*
  - conda-forge::scipy
  - conda-forge::pandas
  - conda-forge::tokenizers
  - pip
  - pip:
    - torchmetrics=0.11.0
    - fastapi=0.95
    - uvicorn[standard]
    - sse-starlette
"""


def from_text(text: str) -> Canonical:
    data, lines = read(text)
    return canonical(data, lines=lines)


def refusal(text: str) -> InvalidEnvironment:
    with pytest.raises(InvalidEnvironment) as caught:
        from_text(text)
    return caught.value


def test_the_articles_file_as_printed_is_refused_for_its_pip_lines_alone() -> None:
    assert str(refusal(ARTICLE)).splitlines() == [
        "line 19: dependencies[11].pip[0] ('torchmetrics=0.11.0') is conda's way to write it; "
        "for pip write torchmetrics==0.11.0",
        "line 20: dependencies[11].pip[1] ('fastapi=0.95') is conda's way to write it; for pip write fastapi==0.95",
    ]


def test_the_articles_file_with_its_pip_lines_mended_is_accepted() -> None:
    mended = ARTICLE.replace("torchmetrics=", "torchmetrics==").replace("fastapi=", "fastapi==")
    document = from_text(mended).document
    assert document["channels"] == ["pytorch", "conda-forge", "defaults"]
    assert "pytorch::pytorch=2.0.1=*cuda118_*" in document["dependencies"]
    assert document["dependencies"][-1] == {
        "pip": ["fastapi==0.95", "sse-starlette", "torchmetrics==0.11.0", "uvicorn[standard]"]
    }


@pytest.mark.parametrize("name", ["service_image/environment.yml", "examples/environment-tiny.yml"])
def test_our_own_files_are_accepted(name: str) -> None:
    assert from_text((ROOT / name).read_text()).document["dependencies"]


def test_the_examples_are_accepted() -> None:
    found = []
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        for item in filter(None, yaml.safe_load_all(path.read_text())):
            if item["kind"] == "CondaEnvironment":
                found.append(canonical(item["spec"]))
            elif item["kind"] == "TokenService" and "conda" in item["spec"]["environment"]:
                found.append(canonical(item["spec"]["environment"]["conda"]))
    assert found


def test_the_canonical_document() -> None:
    assert canonical(
        {
            "name": "mine",
            "channels": ["b", "nodefaults", "a/", "b"],
            "dependencies": ["Zlib", "numpy >=1.2", "numpy <2", "numpy>=1.2", {"pip": ["B>=1,<2", "a", "A"]}],
            "variables": {"B": 1, "A": "x"},
            "platform": "linux-64",
            "virtualPackages": {"cuda": "12.4"},
        }
    ).document == {
        "name": "mine",
        "channels": ["b", "a"],
        "dependencies": ["numpy<2", "numpy>=1.2", "zlib", {"pip": ["a", "b<2,>=1"]}],
        "variables": {"A": "x", "B": "1"},
    }


def test_what_is_absent_is_as_conda_has_it() -> None:
    document = canonical({"dependencies": ["python"]}).document
    assert document == {"name": "env", "channels": ["defaults"], "dependencies": ["python"], "variables": {}}


BASE = {
    "name": "a",
    "channels": ["x", "y"],
    "dependencies": ["python=3.11", "numpy>=1.2,<2", {"pip": ["fastapi>=0.95", "uvicorn"]}],
    "variables": {"A": "1"},
}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "b"},
        {"name": None},
        {"channels": ["x", "nodefaults", "y/"]},
        {"dependencies": [{"pip": ["Uvicorn", "fastapi >= 0.95"]}, "numpy >=1.2, <2", "Python = 3.11  # the newest"]},
        {"dependencies": [*BASE["dependencies"], "python=3.11"]},
        {"platform": "linux-aarch64"},
        {"excludeNewer": "2026-01-01"},
        {"rebuild": {"schedule": "@monthly"}},
    ],
)
def test_what_makes_no_other_environment_keeps_the_hash(change: dict[str, Any]) -> None:
    assert canonical(BASE | change).hash == canonical(BASE).hash


@pytest.mark.parametrize(
    "change",
    [
        {"channels": ["y", "x"]},
        {"channels": ["x"]},
        {"dependencies": [*BASE["dependencies"], "scipy"]},
        {"dependencies": [*BASE["dependencies"], "python>=3.11.4"]},
        {"dependencies": ["python=3.11", "numpy>=1.2,<2", {"pip": ["fastapi>=0.95", "uvicorn<1"]}]},
        {"dependencies": ["python=3.11", "numpy>=1.2,<2", "fastapi>=0.95", "uvicorn"]},
        {"variables": {"A": "2"}},
    ],
)
def test_what_makes_another_environment_changes_the_hash(change: dict[str, Any]) -> None:
    assert canonical(BASE | change).hash != canonical(BASE).hash


def test_the_hash_is_that_of_version_1() -> None:
    """Another hash for the same environment needs another HASH_VERSION, or every environment is locked anew."""
    assert canonical(BASE).hash == "sha256:08c94d3102ecee00acb9c4b66d4f50de495e90f50780177241cf8bf3d49df88c"


def test_a_lock_needs_nothing_beside_it() -> None:
    found = canonical({"lock": "registry.example.com/team/environments@sha256:" + "1" * 64, "variables": {"A": "b"}})
    assert (found.document["dependencies"], found.variables) == ([], {"A": "b"})
    with pytest.raises(InvalidEnvironment, match="dependencies is missing"):
        canonical({"lock": "registry.example.com/team/locks:v7"}, lines={})  # in a file it is passed over
    with pytest.raises(InvalidEnvironment, match="must be a list"):
        canonical({"lock": "registry.example.com/team/locks:v7", "dependencies": "python"})


REFUSED = [
    ("chanels: []\ndependencies: [a]\n", "line 1: chanels is no key of an environment; did you mean 'channels'?"),
    ("dependencies: [a]\ncolour: red\n", "line 2: colour is no key of an environment; known are name, channels,"),
    ("dependencies: [a]\nbaseimage: x\n", "line 2: baseimage is no key of an environment; did you mean 'baseImage'?"),
    ("dependencies: [a]\nprefix: /opt/x\n", "line 2: prefix is a folder on one machine"),
    ("name: 3\ndependencies: [a]\n", "line 1: name must be text"),
    ("name: a/b\ndependencies: [a]\n", "line 1: name must be text"),
    ("channels: []\n", "dependencies is missing: name at least python"),
    ("dependencies: python\n", "line 1: dependencies must be a list"),
    ("dependencies: {python: 3.9}\n", "line 1: dependencies must be a list"),
    ("dependencies:\n- python: 3.9\n", "line 2: dependencies[0] has the key 'python'; below dependencies only `pip:`"),
    ("dependencies:\n- python: 3.9\n", "Write python=VERSION as text; as a number, 3.10 would be 3.1"),
    ("dependencies:\n- python: 3.9.1\n", "Write python=3.9.1"),
    ("dependencies:\n- numpy: 2\n", "Write numpy=2"),
    ("dependencies:\n- numpy: [a]\n", "Write name=version"),
    ("dependencies:\n- 3.9\n", "line 2: dependencies[0] ('3.9') must be text: a package's name"),
    ("dependencies:\n-\n- a\n", "line 2: dependencies[0] is empty"),
    ("dependencies:\n- a\n- [b]\n", "line 3: dependencies[1] (\"['b']\") must be text"),
    ("dependencies:\n- a\n- b=>1\n", "line 3: dependencies[1] ('b=>1') has '=>1' where a version should be"),
    ("dependencies:\n- -e .\n", "line 2: dependencies[0] ('-e .') is an option"),
    ("dependencies:\n- ./x\n", "line 2: dependencies[0] ('./x') is a path"),
    ("dependencies:\n- a\n- pip:\n  - -r r.txt\n", "line 4: dependencies[1].pip[0] ('-r r.txt') -r reads a file"),
    ("dependencies:\n- a\n- pip: fastapi\n", "line 3: dependencies[1].pip must be a list"),
    ("dependencies:\n- a\n- pip:\n  - 1.5\n", "line 4: dependencies[1].pip[0] ('1.5') must be text"),
    (
        "dependencies:\n- pip: [a]\n- pip: [b]\n",
        "line 3: dependencies[1].pip is a second `pip:` section; put its lines into the first, dependencies[0].pip",
    ),
    ("channels: conda-forge\ndependencies: [a]\n", "line 1: channels must be a list"),
    ("channels: [1]\ndependencies: [a]\n", "line 1: channels[0] ('1') must be the name of a channel or a URL"),
    ("channels:\n- ./mine\ndependencies: [a]\n", "line 2: channels[0] ('./mine') is a folder"),
    ("channels: [local]\ndependencies: [a]\n", "channels[0] ('local') is a folder"),
    ("channels: ['file:///x']\ndependencies: [a]\n", "channels[0] ('file:///x') is a folder"),
    ("channels: ['ftp://x.example.com']\ndependencies: [a]\n", "must be a name, or begin with https://"),
    ("channels: ['a b']\ndependencies: [a]\n", "channels[0] ('a b') is neither the name of a channel nor a URL"),
    ("dependencies: [a]\nvariables: [A=1]\n", "line 2: variables must have a line `NAME: value`"),
    ("dependencies: [a]\nvariables:\n  A-B: x\n", "line 3: variables.A-B is no name of a variable"),
    ("dependencies: [a]\nvariables: {PATH: /x}\n", "line 2: variables.PATH is set by the image or the operator"),
    ("dependencies: [a]\nvariables: {A: yes}\n", "line 2: variables.A must be text; put it into quotes"),
    ("dependencies: [a]\nvariables: {A: 1.10}\n", "line 2: variables.A must be text; put it into quotes"),
    ("dependencies: [a]\nvariables: {A: 2026-01-01}\n", "line 2: variables.A must be text; put it into quotes"),
    ('dependencies: [a]\nvariables: {A: "\\0"}\n', "line 2: variables.A holds a NUL byte"),
    ("dependencies: [a]\nrebuild: monthly\n", 'line 2: rebuild must have a line such as `schedule: "@monthly"`'),
    ("dependencies: [a]\nrebuild: {}\n", "rebuild.schedule must be text; write minute, hour,"),
    ("dependencies: [a]\nrebuild:\n  schedule: 3\n", "line 3: rebuild.schedule must be text; write minute, hour,"),
    ("dependencies: [a]\nrebuild: {cron: '@daily'}\n", "line 2: rebuild.cron is no key of rebuild; known is schedule"),
    (
        "dependencies: [a]\nrebuild: {schedule: '0 0 31 2 *'}\n",
        "line 2: rebuild.schedule ('0 0 31 2 *') names no possible day-of-month; write minute, hour,",
    ),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_mistake_is_told_with_its_line_and_what_to_write(text: str, message: str) -> None:
    assert message in str(refusal(text))


def test_all_mistakes_are_told_at_once() -> None:
    found = refusal("prefix: /x\nchannels: [a b]\ndependencies:\n- b=\n- pip: [c=1]\nvariables: {1: x}\n")
    assert [problem.line for problem in found.problems] == [1, 2, 4, 5, 6]


def test_without_a_file_a_mistake_is_told_by_its_place() -> None:
    with pytest.raises(InvalidEnvironment, match=r"^dependencies\[1\]\.pip\[0\] \('a=1'\) is conda's way"):
        canonical({"dependencies": ["python", {"pip": ["a=1"]}]})


@pytest.mark.parametrize("text", ["./" + "x" * 1500, "x" * 90000, "x =" * 30000, "((((" * 20000])
def test_a_long_entry_is_neither_repeated_whole_nor_studied(text: str) -> None:
    with pytest.raises(InvalidEnvironment) as caught:
        canonical({"channels": [text], "dependencies": [text, {text: text}, {"pip": [text]}]} | {text: ""})
    assert len(str(caught.value)) < 3000


def test_a_pip_section_of_comments_alone_is_empty() -> None:
    assert from_text("dependencies:\n- a\n- pip:\n  # - fastapi\n").document["dependencies"] == ["a"]


def test_an_environment_that_would_not_fit_into_a_variable_is_refused() -> None:
    with pytest.raises(InvalidEnvironment, match="larger than 96 KiB"):
        canonical({"dependencies": [f"package-{number:05}" for number in range(MAX_BYTES // 16)]})


SECRET = "hunter2hunter2"
HOLDERS = [
    f"https://someone:{SECRET}@conda.example.com/team",
    f"https://{SECRET}@conda.example.com/team",
    f"https://conda.example.com/team?token={SECRET}",
    f"https://conda.example.com/team?a=b&API_KEY={SECRET}",
    f"https://conda.example.com/team/a.whl?X-Amz-Signature={SECRET}",
    f"https://conda.example.com/t/{SECRET}/team",
    f"https://conda.example.com/t/{SECRET}",
    f"https://conda.example.com/x/t/ab-{SECRET.encode().hex()}/team",
    f"https://someone:{SECRET}@[conda.example.com/team",
]
PLACES = [
    "channels: ['{0}']\ndependencies: [a]\n",
    "dependencies: ['{0}::a']\n",
    "dependencies: ['a[channel=\"{0}\"]']\n",
    "dependencies: ['{0}/a-1.0-0.conda']\n",
    "dependencies: [{{channel: '{0}'}}]\n",
    "dependencies: [{{'{0}': a}}]\n",
    "dependencies: [['{0}']]\n",
    "dependencies: [{{pip: ['{0}']}}]\n",
    "dependencies: [{{pip: ['a @ {0}']}}]\n",
    "dependencies: [{{pip: ['a @ git+{0}']}}]\n",
    "dependencies: [{{pip: ['--extra-index-url {0}']}}]\n",
    "dependencies: [{{pip: ['--index-url={0}']}}]\n",
    "dependencies: [{{pip: [['{0}']]}}]\n",
    "dependencies: [a]\n'{0}': x\n",
    "dependencies: [a]\nvariables: {{'{0}': x}}\n",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_password_in_an_address_is_refused_and_not_repeated(holder: str, place: str) -> None:
    found = refusal(place.format(holder))
    assert SECRET not in str(found)
    assert SECRET not in repr(found.problems)
    assert any("Secret for that host" in problem.message or "choice" in problem.message for problem in found.problems)


@pytest.mark.parametrize(
    "line",
    [
        "https://files.example.com/packages/source/t/torch/torch-1.0-py3-none-any.whl",
        "a @ https://files.example.com/a-1.0-py3-none-any.whl#sha256=" + "0" * 64,
    ],
)
def test_an_address_without_a_secret_is_left_to_the_clusters_owner(line: str) -> None:
    assert canonical({"dependencies": ["a", {"pip": [line]}]}).document["dependencies"][1]


names = st.sampled_from(["python", "Numpy", "scipy", "mkl", "_x"])
specs = st.builds(
    "{}{}".format, names, st.sampled_from(["", "=1.2", " 1.2", ">=1,<2", " >= 1", "=1=*b*", "[build=b]", " # x"])
)
pips = st.builds("{}{}".format, names.map(lambda n: n.strip("_")), st.sampled_from(["", "==1", " >=1, <2", "[a,b]"]))
environments = st.fixed_dictionaries(
    {
        "channels": st.lists(st.sampled_from(["a", "b/", "nodefaults", "defaults", "https://c.example.com/x"])),
        "dependencies": st.builds(
            lambda conda, pip: [*conda, *({"pip": lines} for lines in pip)],
            st.lists(specs, max_size=6),
            st.lists(st.lists(pips, max_size=4), max_size=1),
        ),
    },
    optional={
        "name": st.sampled_from(["x", "y"]),
        "variables": st.dictionaries(st.sampled_from(["A", "B"]), st.integers() | st.sampled_from(["", "x=y", "é"])),
    },
)


@given(environments)
def test_the_canonical_form_of_the_canonical_form_is_itself(environment: dict[str, Any]) -> None:
    found = canonical(environment)
    again = canonical(json.loads(json.dumps(found.document)))
    assert (again.document, again.hash) == (found.document, found.hash)


@given(environments, st.randoms())
def test_order_and_repetition_change_nothing(environment: dict[str, Any], random: Any) -> None:
    shuffled = copy.deepcopy(environment)
    for item in shuffled["dependencies"]:
        if isinstance(item, dict):
            random.shuffle(item["pip"])
    texts = [item for item in shuffled["dependencies"] if isinstance(item, str)]
    shuffled["dependencies"] += texts[:2]
    random.shuffle(shuffled["dependencies"])
    assert canonical(shuffled).hash == canonical(environment).hash


@given(environments)
def test_a_file_and_a_resource_are_the_same_environment(environment: dict[str, Any]) -> None:
    assert from_text(yaml.safe_dump(environment, allow_unicode=True)).hash == canonical(environment).hash


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8) | st.just("pip"), below, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["name", "channels", "dependencies", "variables", "prefix"]) | st.text(max_size=8), anything
    )
)
def test_any_data_is_read_or_refused(data: dict[str, Any]) -> None:
    try:
        found = canonical(data)
    except InvalidEnvironment:
        return
    assert canonical(found.document).document == found.document
