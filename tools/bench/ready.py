"""Seconds until all nodes hold their weights, against the source's bandwidth, with and without
peers: a discrete model of the network around the real planning and the real choice of who fetches.

    python tools/bench/ready.py --markdown
    python tools/bench/ready.py --plot specs/ready.svg      # needs the bench extra

Nodes are in pipelines of eight; node k of each pipeline wants the same layers. (One cluster has
one pipeline today: the others stand for clusters or replicas on the same network.) Bytes move in
stretches of 64 MiB; every node takes what it fetches in the order of its load, reads up to eight
stretches at once and gives up to four, and asks at most sixteen peers.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "crates_py")]

from butterfly.engine_host.uploads import UPLOADS_AT_ONCE
from butterfly.node.peer_links import LINKS_MAX
from butterfly_core.hardware import Capacity
from butterfly_core.ids import NodeId
from butterfly_core.layers import all_parts
from butterfly_core.model import ModelSpec
from butterfly_partition.planned import Demand, Machine
from butterfly_partition.planner import plan
from butterfly_weights.peer_choice import FromSource, Holding, WaitFor, choose

STAGES = 8
STRETCH_BYTES = 64 << 20
READS_AT_ONCE = 8
NODE_GBIT = 25.0
NODES = (8, 64, 256, 1000)
SOURCE_GBIT = (10, 25, 50, 100, 200, 400, 800)
_TICKS = 1000
_GBIT = 1e9 / 8


def seventy_billion() -> ModelSpec:
    """Llama 3 70B in bfloat16, in numbers."""
    layer, ends = 1_711_310_848, 2 * 128256 * 8192
    parts = dict.fromkeys(all_parts(80), layer) | {"embed": ends, "norm": 16384, "head": ends}
    return ModelSpec(
        name="llama-70b",
        architecture="LlamaForCausalLM",
        layer_count=80,
        hidden_size=8192,
        vocab_size=128256,
        context_length=8192,
        dtype="bfloat16",
        tied=False,
        kv_bytes_per_token=4096,
        part_bytes=parts,
        revision="",
        manifest_root=None,
    )


def largest_stage_bytes(spec: ModelSpec) -> int:
    """Of eight equal machines, as the planner places the model on them."""
    capacity = Capacity("cuda:0", "card", 24 << 30, 24 << 30, 1e12, 1e14)
    machines = [Machine(NodeId(f"{number:032x}"), capacity) for number in range(STAGES)]
    stages = plan(spec, machines, Demand(kv_tokens=32768, workspace_bytes=1 << 30)).stages
    return max(stage.weight_bytes for stage in stages)


@dataclass(slots=True)
class Transfer:
    """A stretch on its way; ``giver`` None is the source."""

    stretch: int
    giver: int | None
    left: float = STRETCH_BYTES


@dataclass(slots=True)
class SimNode:
    """One that wants all stretches of its stage. ``waits`` says from whom each one comes."""

    own: list[int] = field(default_factory=list)
    waits: dict[int, list[int]] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    under_way: list[Transfer] = field(default_factory=list)

    def reads(self) -> int:
        return sum(transfer.giver is None for transfer in self.under_way)


class Group:
    """All nodes that want the same stage, with their share of the source's bandwidth."""

    def __init__(self, nodes: int, stretches: int, *, peers: bool) -> None:
        self._stretches = stretches
        self.nodes = [SimNode() for _ in range(nodes)]
        self.read_bytes = 0.0
        for me, node in enumerate(self.nodes):
            asked = _peers_of(me, nodes) if peers else []
            views = {f"node{peer}": Holding.LOADING for peer in asked}
            for stretch in range(stretches):
                choice = choose(f"node{me}", f"{stretch}:stage", views)
                if isinstance(choice, FromSource):
                    node.own.append(stretch)
                elif isinstance(choice, WaitFor):
                    node.waits.setdefault(int(choice.name[4:]), []).append(stretch)

    def seconds(self, source_bytes: float, node_bytes: float) -> float:
        """Until the last one has everything; both rates are bytes a second."""
        read = sum(len(node.own) for node in self.nodes) * STRETCH_BYTES
        least = max(self._stretches * STRETCH_BYTES / node_bytes, read / source_bytes)
        now = 0.0
        while any(len(node.done) < self._stretches for node in self.nodes):
            self._begin()
            now += self._move(least / _TICKS, source_bytes, node_bytes)
        return now

    def _begin(self) -> None:
        gives = self._gives()
        for node in self.nodes:
            while node.own and node.reads() < READS_AT_ONCE:
                node.under_way.append(Transfer(node.own.pop(0), None))
            busy = {transfer.giver for transfer in node.under_way}
            for giver, waiting in node.waits.items():
                if giver in busy or gives[giver] >= UPLOADS_AT_ONCE:
                    continue
                ready = next((s for s in waiting if s in self.nodes[giver].done), None)
                if ready is not None:
                    waiting.remove(ready)
                    gives[giver] += 1
                    node.under_way.append(Transfer(ready, giver))

    def _move(self, tick: float, source_bytes: float, node_bytes: float) -> float:
        """Until the next transfer ends, but at least a tick; how long that was. Each end shares
        its bandwidth evenly; a transfer is as fast as its slower end."""
        reads = sum(node.reads() for node in self.nodes)
        gives = self._gives()
        rates: list[tuple[Transfer, float]] = []
        for node in self.nodes:
            share = node_bytes / max(1, len(node.under_way))
            for transfer in node.under_way:
                giver = transfer.giver
                other = source_bytes / reads if giver is None else node_bytes / gives[giver]
                rates.append((transfer, min(share, other)))
        step = max(tick, min(transfer.left / rate for transfer, rate in rates))
        for transfer, rate in rates:
            moved = min(transfer.left, step * rate)
            transfer.left -= moved
            self.read_bytes += moved if transfer.giver is None else 0
        for node in self.nodes:
            node.done |= {t.stretch for t in node.under_way if t.left < 1}
            node.under_way = [t for t in node.under_way if t.left >= 1]
        return step

    def _gives(self) -> list[int]:
        gives = [0] * len(self.nodes)
        for node in self.nodes:
            for transfer in node.under_way:
                if transfer.giver is not None:
                    gives[transfer.giver] += 1
        return gives


def _peers_of(me: int, nodes: int) -> list[int]:
    """Whom a node asks: as ``butterfly/node/peer_links.py`` ranks those that want the same."""

    def rank(peer: int) -> bytes:
        return sha256(f"node{me} node{peer}".encode()).digest()

    return sorted((peer for peer in range(nodes) if peer != me), key=rank)[:LINKS_MAX]


@dataclass(frozen=True, slots=True)
class Found:
    """``read_ratio``: bytes asked of the source in all, over the model's bytes."""

    nodes: int
    source_gbit: float
    peers: bool
    seconds: float
    read_ratio: float


def measure(
    nodes: int, source_gbit: float, *, peers: bool, stage_bytes: int, node_gbit: float = NODE_GBIT
) -> Found:
    """All nodes start at once with empty caches."""
    stretches = -(-stage_bytes // STRETCH_BYTES)
    group = Group(nodes // STAGES, stretches, peers=peers)
    seconds = group.seconds(source_gbit * _GBIT / STAGES, node_gbit * _GBIT)
    ratio = group.read_bytes / (stretches * STRETCH_BYTES)
    return Found(nodes, source_gbit, peers, seconds, ratio)


def markdown(found: Sequence[Found]) -> str:
    """A table: a line per count of nodes, a column per bandwidth; without / with peers."""
    by = {(f.nodes, f.source_gbit, f.peers): f for f in found}
    bands = sorted({f.source_gbit for f in found})
    lines = [
        f"| nodes | {' | '.join(f'{band:g} Gbit/s' for band in bands)} | read from the source |",
        "|---" * (len(bands) + 2) + "|",
    ]
    for nodes in sorted({f.nodes for f in found}):
        cells = [
            f"{by[nodes, band, False].seconds:.0f} / {by[nodes, band, True].seconds:.0f}"
            for band in bands
        ]
        alone, shared = (by[nodes, bands[0], peers].read_ratio for peers in (False, True))
        lines.append(f"| {nodes} | {' | '.join(cells)} | {alone:.0f} / {shared:.1f} times |")
    return "\n".join(lines)


def draw(found: Sequence[Found], path: Path) -> None:
    """Seconds over bandwidth, a colour per count of nodes; dashed without peers."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "butterfly"
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for number, nodes in enumerate(sorted({f.nodes for f in found})):
        for peers, style in ((False, "--"), (True, "-")):
            line = sorted(
                (f.source_gbit, f.seconds) for f in found if (f.nodes, f.peers) == (nodes, peers)
            )
            label = f"{nodes} nodes, {'with' if peers else 'without'} peers"
            axes.plot(*zip(*line, strict=True), style, color=f"C{number}", marker=".", label=label)
    axes.set(xscale="log", yscale="log", xlabel="source, Gbit/s", ylabel="seconds to all weights")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=list(NODES))
    parser.add_argument("--source-gbit", type=float, nargs="*", default=list(SOURCE_GBIT))
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    stage_bytes = largest_stage_bytes(seventy_billion())
    found = [
        measure(nodes, band, peers=peers, stage_bytes=stage_bytes)
        for nodes in arguments.nodes
        for band in arguments.source_gbit
        for peers in (False, True)
    ]
    if arguments.plot:
        draw(found, arguments.plot)
    if arguments.markdown:
        print(markdown(found))
    else:
        for one in found:
            print(one)


if __name__ == "__main__":
    main()
