from __future__ import annotations

import os

from hypothesis import settings

# How long one example takes says more about the machine than about the code. In CI the same examples come every time,
# so that a change is judged by its own doing; everywhere else new ones are looked for.
settings.register_profile("unit", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("unit")
