"""The channels in a cluster: an image volume in a pod that serves it, behind a Service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2

NAME = "conda-channel"
_TEMPLATE = Path(__file__).with_name("serve.yaml.j2")


def manifest_text(channel_image: str, python_image: str, namespace: str) -> str:
    """The manifest. `channel_image`: the channels' folder as an image; `python_image`: has /usr/bin/python3.11."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    template = environment.from_string(_TEMPLATE.read_text())
    return template.render(channel_image=channel_image, python_image=python_image, namespace=namespace)


def urls(namespace: str) -> tuple[str, str]:
    """(server of the channels: `channels.alias` of the builder's settings; package index: `pip.indexUrl`)."""
    server = f"http://{NAME}.{namespace}.svc"
    return server, f"{server}/simple/"


def apply(kubectl: Callable[..., str], channel_image: str, python_image: str, namespace: str) -> tuple[str, str]:
    """Serves the channels in a cluster and waits until they answer; returns `urls(namespace)`.

    `kubectl` runs the command with the arguments given and feeds it `text`; it raises if that fails.
    """
    kubectl("apply", "-f", "-", text=manifest_text(channel_image, python_image, namespace))
    kubectl("rollout", "status", f"deployment/{NAME}", "--namespace", namespace, "--timeout=300s")
    return urls(namespace)
