"""Answers lost and seconds to recover when a node is killed.

Three real nodes serve the toy model, two of them enough to go on. Under a streamed answer a
worker, then the coordinator, is killed with SIGKILL, in turns, after its first token and in the
midst of it; the client is connected to a node that lives. Measured: the longest pause between
two pieces of the answer, whether it says what an undisturbed one says, and the time from the
kill until a new request, asked again and again at a survivor, is answered.

    python tools/bench/recover.py --markdown --kills 10
"""

import argparse
import http.client
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "crates_py"))
sys.path.insert(0, str(ROOT))

from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster

MODEL = {"source_type": "embedded", "source_path": "toy-llama"}
TOKENS = 440
"""The toy model's context is 512."""
PROMPT = "What is the Zen of Python?"
ASK_AGAIN_SECONDS = 0.02
KILL_AFTER_PIECES = (1, 10, 60, 120, 200)
"""Each for a worker and a coordinator. After the first alone nothing was shown: next to nothing
is computed anew then."""


@dataclass
class Found:
    """Of the kills of one kind of node; seconds."""

    lost: int = 0
    differs: int = 0
    pause: list[float] = field(default_factory=list)
    served_again: list[float] = field(default_factory=list)


class Stream:
    """One long greedy answer, read on a thread of its own."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self.text = ""
        self.is_whole = False
        self.came_at: list[float] = []
        self.more = threading.Condition()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        body = {"model": "toy-llama", "prompt": PROMPT, "max_tokens": TOKENS, "stream": True}
        connection = http.client.HTTPConnection(self._node.url.removeprefix("http://"))
        connection.request(
            "POST",
            "/v1/completions",
            json.dumps({**body, "temperature": 0, "ignore_eos": True}),
            {"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise RuntimeError(f"no answer: {response.status} {response.read(2000)!r}")
        for line in response:
            if line.startswith(b"data: {"):
                piece = json.loads(line[6:])
                choices = piece.get("choices", ())
                self.text += "".join(choice["text"] for choice in choices)
                self.is_whole |= any(choice["finish_reason"] == "length" for choice in choices)
                with self.more:
                    self.came_at.append(time.monotonic())
                    self.more.notify_all()
        connection.close()

    def wait_for_pieces(self, count: int) -> bool:
        """False when the answer did not come to so many, or is over already."""
        with self.more:
            there = self.more.wait_for(lambda: len(self.came_at) >= count, 60)
        return there and self.thread.is_alive()

    def longest_pause(self, since: float) -> float:
        times = [since, *(at for at in self.came_at if at >= since)]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


def kill_once(
    cluster: LocalCluster, victim: LocalNode, whole: str, found: Found, pieces: int
) -> None:
    """Kill it under an answer that came to so many pieces, measure, and bring it back."""
    rest = [node for node in cluster.nodes if node is not victim]
    stream = Stream(rest[0])
    if not stream.wait_for_pieces(pieces):
        raise RuntimeError("no answer is under way: nothing would be measured")
    killed_at = time.monotonic()
    victim.kill()
    found.served_again.append(until_served(rest[1]) - killed_at)
    stream.thread.join(120)
    found.lost += not stream.is_whole
    if stream.is_whole and stream.text != whole:
        found.differs += 1
        pairs = zip(stream.text, whole, strict=False)
        alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        told = f"whole, but only the first {alike} of {len(whole)} characters are the same"
        when = f"killed after {pieces} pieces"
        print(f"{victim.name} was {when}: the answer is {told}", file=sys.stderr)
    found.pause.append(stream.longest_pause(killed_at))
    victim.start()
    cluster.wait_until_operational()


def until_served(node: LocalNode) -> float:
    """When a fresh short request was answered."""
    body = {"model": "toy-llama", "prompt": PROMPT, "max_tokens": 1}
    while True:
        code, _ = node.post("/v1/completions", body)
        if code == 200:
            return time.monotonic()
        time.sleep(ASK_AGAIN_SECONDS)


def measure(kills: int) -> dict[str, Found]:
    found = {"worker": Found(), "coordinator": Found()}
    calm = {"quorum_size": 2, "rebalance_after_seconds": 1.0}
    with (
        tempfile.TemporaryDirectory() as folder,
        local_cluster(Path(folder), MODEL, equal=True, cluster=calm) as cluster,
    ):
        cluster.wait_until_operational()
        undisturbed = Stream(cluster.nodes[0])
        undisturbed.thread.join(120)
        if not undisturbed.text:
            raise RuntimeError("the undisturbed answer is empty: nothing could be compared")
        for number in range(kills):
            leads = cluster.coordinator()
            workers = [node for node in cluster.nodes if node is not leads]
            kind = ("worker", "coordinator")[number % 2]
            turn = number // 2
            victim = leads if kind == "coordinator" else workers[turn % len(workers)]
            pieces = KILL_AFTER_PIECES[turn % len(KILL_AFTER_PIECES)]
            kill_once(cluster, victim, undisturbed.text, found[kind], pieces)
    return found


def table(found: dict[str, Found]) -> str:
    lines = [
        "| killed | answers lost | went on with other words | pause of an answer p50 / max, s "
        "| a new request is answered after p50 / max, s |",
        "|---|---|---|---|---|",
    ]
    for kind, of in found.items():
        lines.append(
            f"| {kind} | {of.lost} of {len(of.pause)} | {of.differs} "
            f"| {statistics.median(of.pause):.2f} / {max(of.pause):.2f} "
            f"| {statistics.median(of.served_again):.2f} / {max(of.served_again):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers lost and seconds to recover.")
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    found = measure(max(2, options.kills))
    if options.markdown:
        print(table(found))
    else:
        print(json.dumps({kind: vars(of) for kind, of in found.items()}, indent=2))


if __name__ == "__main__":
    main()
