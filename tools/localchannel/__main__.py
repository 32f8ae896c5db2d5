"""`python -m tools.localchannel build|serve|manifest`; see docs/local-channel.md."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from tokenservice.builder.base import Base
from tokenservice.builder.errors import BuildError
from tokenservice.builder.http import Http
from tokenservice.builder.progress import say
from tokenservice.builder.store import LayerStore, cache_folder
from tokenservice.builder.wheels import WheelCache

from .build import Channels
from .in_cluster import manifest_text


def main() -> int:
    arguments = _parser().parse_args()
    try:
        code: int = arguments.run(arguments)
    except BuildError as error:
        say(f"error: {error}")
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.localchannel", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="make the channels; prints their folder")
    build.add_argument("--out", type=Path, metavar="DIR", help="default: `channel` in the cache folder")
    build.add_argument(
        "--with-torch",
        choices=("cpu-standins", "cuda", "none"),
        default="cpu-standins",
        help="PyTorch with stand-ins for CUDA's libraries (0.5 GB), with the real ones (3 GB), or none",
    )
    build.set_defaults(run=_build)
    serve = commands.add_parser("serve", help="serve the channels from this machine until interrupted")
    serve.add_argument("--out", type=Path, metavar="DIR", help="as for build")
    serve.add_argument("--port", default="8000")
    serve.set_defaults(run=_serve)
    manifest = commands.add_parser("manifest", help="print the manifest that serves the channels in a cluster")
    manifest.add_argument("--channel-image", required=True, metavar="REFERENCE", help="the image with the channels")
    manifest.add_argument(
        "--python-image", required=True, metavar="REFERENCE", help="any image with /usr/bin/python3.11"
    )
    manifest.add_argument("--namespace", required=True)
    manifest.set_defaults(run=_manifest)
    return parser


def _folder(given: Path | None) -> Path:
    return (given or cache_folder(os.environ) / "channel").absolute()


def _build(arguments: argparse.Namespace) -> int:
    cache, begun = cache_folder(os.environ), time.monotonic()
    out = _folder(arguments.out)
    wheels = WheelCache(cache / "wheels", Http())
    Channels(out, wheels, Base(LayerStore(cache / "base")), arguments.with_torch).build()
    say(f"the channels are ready after {time.monotonic() - begun:.1f} s")
    print(out)
    return 0


def _serve(arguments: argparse.Namespace) -> NoReturn:
    script = _folder(arguments.out) / "serve.py"
    if not script.is_file():
        raise BuildError(f"{script.parent} holds no channels: run build first")
    # In the place of this process, so that who ends it ends the server, too.
    os.execv(sys.executable, [sys.executable, "-I", str(script), arguments.port, "127.0.0.1"])


def _manifest(arguments: argparse.Namespace) -> int:
    print(manifest_text(arguments.channel_image, arguments.python_image, arguments.namespace))
    return 0


if __name__ == "__main__":
    sys.exit(main())
