"""What a start cannot do without, timed by itself: the imports, and the load of a model. Runs in the image.

    start_bare.py [--runs 5] FOLDER ...

Each run is a process of its own, as each start is. It imports what a server imports until its model serves, does what a
warm server does ahead, and loads the model of the folder by the function with which token_server does. On standard
output comes a JSON object: medians in seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

STAGES = ("imports", "load", "token")


def one(folder: str) -> dict[str, float]:
    """imports: of the server, torch, transformers and the model's classes; load: of the model; token: its first."""
    marks = [time.perf_counter()]
    from token_server.engine import Sampling
    from token_server.process import prepare_environment
    from token_server.settings import read_settings

    settings = read_settings(["--model-source", f"file://{folder}"], {})
    prepare_environment(settings.threads)
    import transformers
    from token_server import transformers_engine

    transformers.utils.logging.disable_progress_bar()
    for name in architectures(Path(folder)):
        getattr(transformers, name)
    marks.append(time.perf_counter())
    transformers_engine.prepare(settings)
    marks.append(time.perf_counter())
    engine = transformers_engine.load(settings)
    marks.append(time.perf_counter())
    engine.generate(engine.encode("Hello"), Sampling(max_tokens=1, temperature=0.0), lambda _: True)
    marks.append(time.perf_counter())
    imports, _, load, token = (end - start for start, end in itertools.pairwise(marks))
    return {"imports": imports, "load": load, "token": token}


def architectures(folder: Path) -> list[str]:
    """Of the model in the folder, as its configuration names them."""
    found: list[str] = json.loads((folder / "config.json").read_text())["architectures"]
    return found


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Stage by stage."""
    return {stage: statistics.median(run[stage] for run in runs) for stage in STAGES}


def apart(folder: str) -> dict[str, float]:
    """The same in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--one", folder], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run() -> None:
    parser = argparse.ArgumentParser(description="Imports and loads, timed.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--one", action="store_true", help="one run, in this process")
    parser.add_argument("folders", nargs="+")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.folders[0])))
        return
    apart(given.folders[0])  # brings files into the page cache, where they are for every start
    print(json.dumps({folder: medians([apart(folder) for _ in range(given.runs)]) for folder in given.folders}))


if __name__ == "__main__":
    run()
