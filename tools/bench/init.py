"""From process start to verified-ready: seconds per phase and bytes per node.

Starts 1, 3 and 5 real nodes on this machine with the toy model, each several times with empty
folders, and prints medians. What cannot be avoided is measured in the same run, interleaved:
importing torch and transformers in as many processes at once, and reading the weights' bytes.

    python tools/bench/init.py --markdown --rounds 3
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "crates_py"))
sys.path.insert(0, str(ROOT))

from tests.support.local_cluster import local_cluster

TOY = ROOT / "butterfly" / "demo_model" / "toy-llama"
PHASES = (
    "cold_start",
    "discovery",
    "election",
    "assignment",
    "loading_weights",
    "uploading",
    "warmup",
    "validation",
    "ready",
    "total",
)
MODEL = {"source_type": "filesystem", "source_path": str(TOY), "name": "toy-llama"}


def one_start(count: int, folder: Path) -> list[dict[str, Any]]:
    """Start a cluster with empty folders; every node's status once all of them serve."""
    with local_cluster(folder, MODEL, nodes=count) as cluster:
        cluster.wait_until_operational()
        return [node.status() for node in cluster.nodes]


def unavoidable_seconds(count: int) -> float:
    """Import what an engine needs in ``count`` processes at once, then read the weights."""
    command = [sys.executable, "-c", "import torch; import transformers.models.llama"]
    command[-1] += ".modeling_llama, transformers.integrations"
    started = time.monotonic()
    running = [subprocess.Popen(command) for _ in range(count)]
    for process in running:
        if process.wait() != 0:
            raise RuntimeError("the imports failed")
    for shard in sorted(TOY.glob("*.safetensors")):
        shard.read_bytes()
    return time.monotonic() - started


def measure(counts: Sequence[int], rounds: int) -> dict[int, dict[str, Any]]:
    """By number of nodes: median seconds of the slowest node per phase, bytes of each node."""
    found: dict[int, dict[str, Any]] = {}
    starts: dict[int, list[list[dict[str, Any]]]] = {count: [] for count in counts}
    floors: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            floors[count].append(unavoidable_seconds(count))
            with tempfile.TemporaryDirectory() as folder:
                starts[count].append(one_start(count, Path(folder)))
    for count in counts:
        found[count] = summarised(starts[count], floors[count])
    return found


def summarised(starts: list[list[dict[str, Any]]], floors: list[float]) -> dict[str, Any]:
    def slowest(statuses: list[dict[str, Any]], phase: str) -> float:
        return max(float(status["init_seconds"].get(phase, 0.0)) for status in statuses)

    seconds = {p: statistics.median(slowest(s, p) for s in starts) for p in PHASES}
    floor = statistics.median(floors)
    members = [  # each node's own row: what others say of it is a moment old
        next(row for row in status["members"] if row["node_id"] == status["node_id"])
        for status in starts[-1]
    ]
    return {
        "seconds": seconds,
        "unavoidable_seconds": floor,
        "ratio": seconds["total"] / floor,
        "bytes_fetched": [member["bytes_from_source"] for member in members],
        "bytes_own_slice": [member["bytes_total"] for member in members],
        "bytes_model": starts[-1][0]["model"]["total_bytes"],
    }


def table(found: dict[int, dict[str, Any]]) -> str:
    heads = [f"{count} node{'s' if count > 1 else ''}" for count in found]
    lines = [
        "| slowest node, median seconds | " + " | ".join(heads) + " |",
        "|---|" + "---|" * len(heads),
    ]
    for phase in PHASES:
        cells = [f"{of['seconds'][phase]:.2f}" for of in found.values()]
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    floors = [f"{of['unavoidable_seconds']:.2f}" for of in found.values()]
    ratios = [f"{of['ratio']:.2f}" for of in found.values()]
    lines.append("| imports in as many processes + reading the file | " + " | ".join(floors) + " |")
    lines.append("| total / that | " + " | ".join(ratios) + " |")
    for name, key in (("fetched", "bytes_fetched"), ("own slice", "bytes_own_slice")):
        cells = [", ".join(str(number) for number in of[key]) for of in found.values()]
        lines.append(f"| bytes {name}, per node | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds from start to verified-ready.")
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 3, 5])
    options = parser.parse_args()
    found = measure(options.nodes, options.rounds)
    print(table(found) if options.markdown else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
