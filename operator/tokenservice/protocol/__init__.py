"""The contract between the operator and token_server: ports, paths, variables, what an assignment is, what a start
cost. Tested from both sides; assignment.schema.json and readyz.schema.json are the JSON Schemas.

docs/token-server.md tells people who bring their own image what a container has to do.
"""

from __future__ import annotations

MODULE = "token_server.main"
"""What `python -m` runs in an environment that is chosen by name; the image's entry point is `token-server`."""

PORT = 8000
PORT_NAME = "http"

ASSIGN_PORT = 8001
ASSIGN_PORT_NAME = "assign"
"""Where a warm server, and no other, takes its assignment. In no Service."""

HEALTHZ = "/healthz"
"""200 as soon as the process listens, which is before the model is loaded."""
READYZ = "/readyz"
"""200 while the model serves; 503 while it loads and from SIGTERM on. A warm server is ready without a model, too.

While the model serves, `start` of the body tells what the start cost: readyz.schema.json. A server of the user's own
may leave it out."""
START_STAGES = ("process", "imports", "prepare", "weights", "warmup", "total")
"""Keys of `start.stages`, values in seconds; only what has happened is there.

`process` is from the start of the process to its listening, `prepare` a warm server's rehearsal. `total` is from
listening to serving, and a warm server's from its assignment. `start.warm` says that the model came by an assignment in
this life of the process: not if it was started with the model, or found an assignment from before a restart."""
VERIFYZ = "/verifyz"
"""200 once the server has generated a token for itself, the way a request's are; asked without an API key."""
METRICS = "/metrics"
ASSIGNMENT = "/assignment"
"""At ASSIGN_PORT: PUT with the pod's token gives a warm server its model, and is answered when that serves."""

MODEL_MOUNT = "/var/run/tokenservice/model"
API_KEYS_MOUNT = "/var/run/tokenservice/api-keys"
CACHE_MOUNT = "/var/cache/tokenservice"
ASSIGNMENT_MOUNT = "/var/run/tokenservice/assignment"
"""Of an emptyDir: a container that restarts finds its assignment there."""

DRAIN_DELAY_SECONDS = 5
"""After SIGTERM requests are still accepted for so long, since endpoints lag behind the pod."""
GRACE_SECONDS = 90
"""terminationGracePeriodSeconds where the template names none; the server learns the one in force."""

VARIABLE_PREFIX = "TOKEN_SERVER_"
VAR_PORT = "TOKEN_SERVER_PORT"
VAR_MODEL_SOURCE = "TOKEN_SERVER_MODEL_SOURCE"
VAR_MODEL_REVISION = "TOKEN_SERVER_MODEL_REVISION"
VAR_MODEL_NAME = "TOKEN_SERVER_MODEL_NAME"
VAR_TRUST_REMOTE_CODE = "TOKEN_SERVER_TRUST_REMOTE_CODE"
VAR_API_KEYS_DIR = "TOKEN_SERVER_API_KEYS_DIR"
VAR_GRACE_SECONDS = "TOKEN_SERVER_GRACE_SECONDS"
VAR_DRAIN_DELAY_SECONDS = "TOKEN_SERVER_DRAIN_DELAY_SECONDS"
VAR_WARM = "TOKEN_SERVER_WARM"
VAR_PRELOAD = "TOKEN_SERVER_PRELOAD"
VAR_ASSIGN_TOKEN_SHA256 = "TOKEN_SERVER_ASSIGN_TOKEN_SHA256"  # noqa: S105 - the name of a variable
VAR_HF_TOKEN = "HF_TOKEN"  # noqa: S105 - the name of a variable
VAR_HF_HOME = "HF_HOME"

USER_ID = 65532
"""uid and gid that the container runs as: `nonroot` by the convention of distroless images."""
