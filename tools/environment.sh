#!/usr/bin/env bash
# Make the virtual environment and install Butterfly with what its checks need.
# usage: tools/environment.sh PYTHON FOLDER
set -euo pipefail
python=$1
folder=$2
cd "$(dirname "$0")/.."

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Butterfly needs Python 3.11 or newer; $python is $("$python" --version 2>&1)." >&2
  echo "Run: make PYTHON=python3.11 …" >&2
  exit 1
fi
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check 'torch>=2.11,<2.14'
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
