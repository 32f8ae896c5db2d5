from __future__ import annotations

import hashlib
import json

from tokenservice.builder.layers import LayerFile
from tokenservice.builder.oci import CONFIG, MANIFEST, Layer, RunConfig, canonical_json, image

LAYERS = [
    Layer(
        LayerFile("sha256:" + "a" * 64, "sha256:" + "b" * 64, 10, "application/vnd.oci.image.layer.v1.tar+zstd"), "base"
    ),
    Layer(
        LayerFile("sha256:" + "c" * 64, "sha256:" + "d" * 64, 20, "application/vnd.oci.image.layer.v1.tar+gzip"), "top"
    ),
]
RUN = RunConfig(
    entrypoint=["run"], env={"PATH": "/b", "A": "1"}, user="65532:65532", ports=[8000], labels={"title": "x", "b": "y"}
)


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1, "ä"], "a": None}) == '{"a":null,"b":[1,"ä"]}'.encode()


def test_the_manifest_names_config_and_layers() -> None:
    made = image(LAYERS, RUN, "amd64")
    manifest = json.loads(made.manifest)
    assert manifest["mediaType"] == MANIFEST
    assert manifest["schemaVersion"] == 2
    assert manifest["config"] == {
        "mediaType": CONFIG,
        "digest": f"sha256:{hashlib.sha256(made.config).hexdigest()}",
        "size": len(made.config),
    }
    assert [layer["digest"] for layer in manifest["layers"]] == ["sha256:" + "a" * 64, "sha256:" + "c" * 64]
    assert [layer["size"] for layer in manifest["layers"]] == [10, 20]
    assert made.size == len(made.manifest) + len(made.config) + 30
    assert made.digest == f"sha256:{hashlib.sha256(made.manifest).hexdigest()}"


def test_the_config_tells_how_to_start() -> None:
    config = json.loads(image(LAYERS, RUN, "arm64").config)
    assert (config["architecture"], config["os"]) == ("arm64", "linux")
    assert config["rootfs"] == {"type": "layers", "diff_ids": ["sha256:" + "b" * 64, "sha256:" + "d" * 64]}
    assert config["config"] == {
        "Entrypoint": ["run"],
        "Env": ["PATH=/b", "A=1"],
        "User": "65532:65532",
        "WorkingDir": "/",
        "ExposedPorts": {"8000/tcp": {}},
        "Labels": {"title": "x", "b": "y"},
    }
    assert [each["comment"] for each in config["history"]] == ["base", "top"]
    assert "created" not in config


def test_the_order_of_labels_does_not_change_the_digest() -> None:
    other = RunConfig(
        entrypoint=["run"],
        env={"PATH": "/b", "A": "1"},
        user="65532:65532",
        ports=[8000],
        labels={"b": "y", "title": "x"},
    )
    assert image(LAYERS, RUN, "amd64").digest == image(LAYERS, other, "amd64").digest
    assert image(LAYERS, RUN, "amd64").digest != image(LAYERS[:1], RUN, "amd64").digest
