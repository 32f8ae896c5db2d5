#!/usr/bin/env bash
# Makes, or brings up to date, the same environment on a developer's machine as in the image.
#
#   service_image/setup_dev_env.sh
#
# Needs conda (Miniconda or Miniforge). What is no longer in environment.yml is removed (--prune).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

command -v conda >/dev/null || { echo "conda is not on PATH: install Miniconda or Miniforge first." >&2; exit 1; }
name=$(sed -n 's/^name:[[:space:]]*//p' environment.yml)
[ -n "$name" ] || { echo "environment.yml has no line 'name: ...'." >&2; exit 1; }

export CONDA_REMOTE_CONNECT_TIMEOUT_SECS=30 CONDA_REMOTE_MAX_RETRIES=3
if conda env list | awk '{print $1}' | grep -qxF "$name"; then
  echo "Updating the environment $name" >&2
  conda env update --name "$name" --file environment.yml --prune
else
  echo "Creating the environment $name" >&2
  conda env create --name "$name" --file environment.yml
fi
# --prune may take away what the file does not name; the server itself goes in last, from its source.
conda run --no-capture-output --name "$name" python -m pip install --quiet --no-deps --editable token_server
echo "Activate it with: conda activate $name; then: token-server --help"
