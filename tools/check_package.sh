#!/usr/bin/env bash
# Build sdist and wheel, install the wheel alone in a clean environment, import every crate and
# run both commands from there. Dependencies come from the environment that calls this.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python -m hatchling build -d "$work/dist" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
python -m venv "$work/clean"
"$work/clean/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$work"/dist/*.whl
site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
here=$(pwd)

# The dependencies of the calling environment, without its editable install of this tree.
cd "$work"
"$work/clean/bin/python" - "$site" "$here" <<'CHECK'
import importlib, os, pathlib, sys

site, here = sys.argv[1:]
sys.path.append(site)
crates = sorted(p.name for p in (pathlib.Path(here) / "crates_py").iterdir() if p.is_dir())
for name in ("butterfly", *crates):
    module = importlib.import_module(name)
    assert not module.__file__.startswith(here + "/"), f"{name} comes from the tree"
    assert (pathlib.Path(module.__file__).parent / "py.typed").exists(), f"{name} ships no types"
for name in ("butterfly.node.node", "butterfly.admin.main"):
    importlib.import_module(name)
import butterfly

model = pathlib.Path(butterfly.__file__).parent / "demo_model" / "toy-llama" / "config.json"
assert model.exists(), "the toy model is not in the wheel"
print(f"the wheel holds butterfly and {len(crates)} crates")
CHECK
