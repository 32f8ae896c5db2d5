"""Run as `.venv/bin/python tools/localcluster COMMAND`."""

import importlib
import sys
from pathlib import Path

# The folder itself stands first on the path when it is run; its parent belongs there, so that it is one package.
sys.path[0] = str(Path(__file__).resolve().parent.parent)
sys.exit(importlib.import_module("localcluster.cli").main())
