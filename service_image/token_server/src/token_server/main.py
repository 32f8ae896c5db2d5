"""`token-server`: a signal ends the process from its first moment on; then the server is imported and runs.

The kernel keeps signals without a handler from PID 1 of a container (pid_namespaces(7)). Imports take a good part of a
second: a pod deleted in it would stay, and hold what it has, until the kubelet kills it at the end of the grace period.
"""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Entry point; ends the process, with the codes of `token_server.process.run`."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # nothing was accepted, so there is nothing to drain
    from token_server.process import run

    run()


if __name__ == "__main__":
    main()
