"""How fast ``/status`` answers while the cluster generates.

Elections and leases need a node process that always answers; this is the same loop seen from
outside. Three real nodes serve the toy model; the time of ``GET /status`` on one kept
connection per node is measured idle and under generation, in turns.

    python tools/bench/status_latency.py --markdown
"""

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "crates_py"))
sys.path.insert(0, str(ROOT))

from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster

MODEL = {"source_type": "embedded", "source_path": "toy-llama"}
STREAMS_PER_NODE = 2
PAUSE_SECONDS = 0.02
TURNS = 3


class Load:
    """Requests one after the other until stopped, on every node."""

    def __init__(self, nodes: list[LocalNode]) -> None:
        self._stopping = threading.Event()
        self.tokens = 0
        self._threads = [
            threading.Thread(target=self._ask, args=(node,), daemon=True)
            for node in nodes
            for _ in range(STREAMS_PER_NODE)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, node: LocalNode) -> None:
        body = {"model": "toy-llama", "prompt": "What", "max_tokens": 64, "ignore_eos": True}
        while not self._stopping.is_set():
            code, answer = node.post("/v1/completions", body)
            if code != 200:
                raise RuntimeError(f"{node.name} answered {code}: {answer}")
            self.tokens += answer["usage"]["completion_tokens"]


def sample(nodes: list[LocalNode], seconds: float) -> list[float]:
    """Latencies of ``GET /status`` in seconds, over all nodes in turn."""
    connections = [http.client.HTTPConnection(node.url.removeprefix("http://")) for node in nodes]
    found: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for connection in connections:
            started = time.perf_counter()
            connection.request("GET", "/status")
            connection.getresponse().read()
            found.append(time.perf_counter() - started)
        time.sleep(PAUSE_SECONDS)
    for connection in connections:
        connection.close()
    return found


def measure(seconds: float) -> dict[str, Any]:
    """p50 and p99 in milliseconds, idle and generating."""
    idle: list[float] = []
    busy: list[float] = []
    tokens = 0
    with tempfile.TemporaryDirectory() as folder, local_cluster(Path(folder), MODEL) as cluster:
        cluster.wait_until_operational()
        tokens = _take_turns(cluster, seconds / TURNS / 2, idle, busy)
    return {
        "idle": _percentiles(idle),
        "generating": _percentiles(busy),
        "tokens_per_second": tokens / (seconds / 2),
    }


def _take_turns(cluster: LocalCluster, seconds: float, idle: list[float], busy: list[float]) -> int:
    tokens = 0
    for _ in range(TURNS):
        idle += sample(cluster.nodes, seconds)
        with Load(cluster.nodes) as load:
            busy += sample(cluster.nodes, seconds)
        tokens += load.tokens
    return tokens


def _percentiles(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    pick = {"p50": 0.5, "p99": 0.99}
    named = {
        name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3
        for name, share in pick.items()
    }
    return {**named, "count": float(len(ordered))}


def table(found: dict[str, Any]) -> str:
    lines = ["| `GET /status`, ms | p50 | p99 | samples |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {found[name]['p50']:.2f} | {found[name]['p99']:.2f} "
        f"| {found[name]['count']:.0f} |"
        for name in ("idle", "generating")
    ]
    return "\n".join([*lines, "", f"({found['tokens_per_second']:.0f} tokens/s meanwhile)"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of /status while generating.")
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    parser.add_argument("--seconds", type=float, default=30.0, help="about how long to measure")
    options = parser.parse_args()
    found = measure(options.seconds)
    print(table(found) if options.markdown else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
