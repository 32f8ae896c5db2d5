"""token_server's wheel, the top layer of every environment's image.

In a source tree it is made of service_image/token_server; the operator's image holds the same wheel as a file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenservice.builder.errors import BuildError
from tokenservice.builder.project import ProjectWheel, project_wheel, source_root

FOLDER = "share/tokenservice/wheels"
"""Where the operator's image keeps it, below the prefix of its Python."""


def token_server_wheel(prefix: Path = Path(sys.prefix), source: Path | None = None) -> ProjectWheel:
    """The wheel. Raises BuildError where there is neither a source tree nor such a file."""
    kept = sorted((prefix / FOLDER).glob("token_server-*.whl"))
    if kept and source is None:
        return ProjectWheel("token-server", kept[-1].name.split("-")[1], kept[-1].read_bytes())
    try:
        return project_wheel(source_root(source) / "service_image/token_server")
    except BuildError as error:
        text = "token_server, an image's top layer, is not here: run this from a source tree or the operator's image"
        raise BuildError(f"{text} ({error})") from error
