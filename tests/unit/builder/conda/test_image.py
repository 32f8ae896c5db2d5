from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.builder.base_image import Base
from tokenservice.builder.conda import token_server
from tokenservice.builder.conda.image import compose, run_config
from tokenservice.builder.errors import BuildError
from tokenservice.builder.layers import LayerFile
from tokenservice.builder.oci import Descriptor, Layer, digest_of
from tokenservice.builder.project import project_wheel

ROOT = Path(__file__).resolve().parents[4]
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def base(layers: int = 2, history: tuple[dict[str, Any], ...] | None = None, **config: Any) -> Base:
    told = ({"created_by": "CMD", "empty_layer": True}, *({"created_by": f"step {n}"} for n in range(layers)))
    return Base(
        "registry.example/base@sha256:" + "b" * 64,
        "sha256:" + "b" * 64,
        tuple(Descriptor(LAYER, f"sha256:{number:064x}", 10) for number in range(layers)),
        tuple(f"sha256:{number + 100:064x}" for number in range(layers)),
        told if history is None else history,
        config,
        "amd64",
    )


def layer(name: str) -> Layer:
    return Layer(LayerFile(digest_of(name.encode()), digest_of(name.encode() * 2), len(name), LAYER), name)


def made(below: Base, *layers: Layer, declared: dict[str, str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    image = compose(below, layers, run_config(below, "env", "sha256:" + "c" * 64, {}, declared or {}))
    return json.loads(image.manifest), json.loads(image.config)


@pytest.mark.parametrize("history", [None, (), ({"created_by": "one for two layers"},)])
def test_layers_diff_ids_and_history_fit_each_other(history: tuple[dict[str, Any], ...] | None) -> None:
    manifest, config = made(base(2, history), layer("a"), layer("b"))
    assert len(manifest["layers"]) == len(config["rootfs"]["diff_ids"]) == 4
    assert len([each for each in config["history"] if not each.get("empty_layer")]) == 4
    assert [each["digest"] for each in manifest["layers"]][2:] == [digest_of(b"a"), digest_of(b"b")]
    assert config["rootfs"]["diff_ids"][2:] == [digest_of(b"aa"), digest_of(b"bb")]


def test_what_the_base_says_stays_where_it_does_not_start_containers() -> None:
    below = base(Env=["PATH=/base/bin", "LD=1", "A=base"], Labels={"of": "base"}, Entrypoint=["/init"], Cmd=["x"])
    manifest, config = made(below, declared={"A": "mine"})
    run = config["config"]
    env = dict(each.split("=", 1) for each in run["Env"])
    assert env["PATH"] == "/opt/env/bin:/base/bin"
    assert (env["LD"], env["A"]) == ("1", "mine")
    assert run["Entrypoint"] == ["token-server"]
    assert "Cmd" not in run
    assert run["Labels"]["of"] == "base"
    assert manifest["annotations"]["org.opencontainers.image.base.digest"] == "sha256:" + "b" * 64
    assert manifest["annotations"]["dev.tokenservice.lock-digest"] == "sha256:" + "c" * 64
    assert "of" not in manifest["annotations"]


def test_a_base_that_sets_no_path() -> None:
    _, config = made(base())
    assert "PATH=/opt/env/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" in config["config"]["Env"]


@given(st.dictionaries(st.sampled_from("ABCDEF"), st.text("xyz"), max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_variables_does_not_matter(variables: dict[str, str], chance: Any) -> None:
    shuffled = list(variables.items())
    chance.shuffle(shuffled)
    assert made(base(), declared=variables) == made(base(), declared=dict(shuffled))


def test_token_server_is_taken_from_the_source_tree_or_the_operators_image(tmp_path: Path) -> None:
    ours = project_wheel(ROOT / "service_image/token_server")
    assert token_server.token_server_wheel(tmp_path, ROOT) == ours
    kept = tmp_path / token_server.FOLDER
    kept.mkdir(parents=True)
    (kept / ours.filename).write_bytes(ours.content)
    assert token_server.token_server_wheel(tmp_path) == ours
    with pytest.raises(BuildError, match="token_server, an image's top layer, is not here"):
        token_server.token_server_wheel(tmp_path / "nothing", tmp_path)
