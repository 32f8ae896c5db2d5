"""Images made of folders, with their files' modes, by the builder's own code: what `image push` has no name for."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path

from tokenservice.builder.http import Http
from tokenservice.builder.images import Builder, Target, push_image
from tokenservice.builder.layers import entries_below
from tokenservice.builder.names import parse_place
from tokenservice.builder.oci import Layer, RunConfig, image
from tokenservice.builder.project import source_root
from tokenservice.builder.registry import Registry
from tokenservice.builder.store import LayerStore, cache_folder


def push(registry: str, name: str, folders: dict[str, Path], scratch: Path, *, on_base: bool) -> str:
    """Pushes an image with a layer for each folder, at its key's place; returns its reference by digest.

    Args:
        registry: HOST:PORT that speaks plain HTTP.
        name: the repository.
        folders: place in the image -> folder of this machine.
        scratch: where layers are made.
        on_base: on the slim base image, or on nothing.

    """
    begun = time.monotonic()
    builder = Builder(cache_folder(os.environ), source_root(None), Http())
    store = LayerStore(scratch)
    made = [
        Layer(store.make(f"test-{number}", lambda: nullcontext(entries_below(folder, place))), place)  # noqa: B023
        for number, (place, folder) in enumerate(folders.items())
    ]
    layers = [*([builder.base.layer()] if on_base else []), *made]
    path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    whole = image(layers, RunConfig(env=path, user="65532:65532"), builder.architecture)
    place = parse_place(registry)
    target = Target(Registry(place.host, Http(), lambda: None, True), place, name, "e2e")
    target.registry.connect()

    def blob(layer: Layer) -> Path:
        found = store.blob(layer.file.digest)
        return found if found.exists() else builder.blob(layer)

    return push_image(whole, blob, target, begun).image
