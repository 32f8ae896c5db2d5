#!/usr/bin/env bash
# Makes .venv from requirements-dev.lock. Safe to run again; says what to do where something is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
command -v "$python" >/dev/null || {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "Python 3.11 or newer is needed: install python3 and python3-venv." >&2; exit 2; }
  echo "installing python3 from Debian" >&2
  apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11." >&2; exit 2; }
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "Python's venv module is missing: install python3-venv." >&2; exit 2; }
  echo "installing python3-venv from Debian" >&2
  apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
fi
echo "making .venv" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --require-hashes --requirement requirements-dev.lock
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable . --editable service_image/token_server
touch .venv/.ready
