#!/usr/bin/env bash
# Build sdist and wheel, install the wheel alone in a clean environment, import every crate and
# run both commands from there. Dependencies come from the environment that calls this.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python -m hatchling build -d "$work/dist" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
python -m venv "$work/clean"
clean="$work/clean/bin"
"$clean/python" -m pip install --quiet --disable-pip-version-check --no-deps "$work"/dist/*.whl
here=$(pwd)

# The dependencies of the calling environment, after the wheel; its editable install of this tree
# is not among them, because .pth files count in an environment's own folder only.
deps=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
own=$("$clean/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$deps" >"$own/dependencies.pth"

cd "$work"
unset PYTHONPATH
"$clean/python" - "$here" <<'CHECK'
import importlib, pathlib, sys

(here,) = sys.argv[1:]
crates = sorted(p.name for p in (pathlib.Path(here) / "crates_py").iterdir() if p.is_dir())
for name in ("butterfly", *crates):
    module = importlib.import_module(name)
    where = pathlib.Path(module.__file__)
    assert where.is_relative_to(sys.prefix), f"{name} comes from {where}, not from the wheel"
    assert (where.parent / "py.typed").exists(), f"{name} ships no types"
import butterfly

model = pathlib.Path(butterfly.__file__).parent / "demo_model" / "toy-llama" / "config.json"
assert model.exists(), "the toy model is not in the wheel"
print(f"the wheel holds butterfly and {len(crates)} crates")
CHECK

# The commands as people call them, and as modules.
"$clean/butterfly-node" --version
"$clean/butterfly-admin" --help >"$work/help.txt"
"$clean/python" -m butterfly.node.main --version >"$work/version.txt"
"$clean/python" -m butterfly.admin.main --help | cmp - "$work/help.txt"
echo "both commands run from the wheel"
