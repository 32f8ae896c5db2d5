"""What benchmarks do around what they measure: a folder of their own, errors in a line, and the last line."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from tokenservice.builder.errors import BuildError

from bench.cluster import BenchError

F = TypeVar("F")


def run(
    name: str,
    measure: Callable[[Path], F],
    table: Callable[[F], str],
    result: Callable[[F], Mapping[str, Any]],
    say: Callable[[str], None],
) -> int:
    """Measures, and prints the table and on the last line the figures as JSON. Returns the exit status: 0 if it came to
    figures, whatever they are; 1 if not; 130 when interrupted.

    measure: given a folder that is gone afterwards.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-"))
    try:
        figures = measure(folder)
    except (BenchError, BuildError, aiohttp.ClientError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(figures))
    print(json.dumps(result(figures)))
    return 0
