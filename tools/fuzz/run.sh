#!/usr/bin/env bash
# Fuzz every reader of foreign bytes for so many seconds each: tools/fuzz/run.sh SECONDS [TARGET...]
# Needs atheris (in the development environment). The corpus grows in $FUZZ_DIR (default: build/fuzz); an input
# that breaks a target is kept there, and ends the run with an error.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:?usage: tools/fuzz/run.sh SECONDS [TARGET...]}
shift
folder=${FUZZ_DIR:-build/fuzz}
[ $# -gt 0 ] || mapfile -t targets < <(python tools/fuzz/run.py --list 2>/dev/null)
for target in "${@:-${targets[@]}}"; do
  mkdir -p "$folder/$target/broken"
  python tools/fuzz/run.py --seeds "$target" "$folder/$target/corpus" 2>/dev/null
  echo "$target: $seconds s"
  python tools/fuzz/run.py "$target" "$folder/$target/corpus" -max_total_time="$seconds" \
    -rss_limit_mb=1024 -malloc_limit_mb=256 -max_len=8192 -timeout=10 \
    -artifact_prefix="$folder/$target/broken/" > "$folder/$target/log" 2>&1 ||
    { tail -30 "$folder/$target/log"; echo "$target is broken: see $folder/$target/broken"; exit 1; }
  grep -E "^Done " "$folder/$target/log" || true
done
