"""A 70B-class layout, planned and loaded by eight simulated nodes with the code of real ones.

The files have their real sizes (141 GB) and hold holes. Headers, manifest, plan, ranges, choice
and the account of bytes are whole; of the data only the first leaf of each tensor is read and
hashed, the other leaves are taken as read.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import pytest

from butterfly_core.hardware import Capacity
from butterfly_core.ids import NodeId
from butterfly_core.layers import stage_parts
from butterfly_core.model import ModelSpec
from butterfly_partition.planned import Demand, Machine
from butterfly_partition.planner import plan
from butterfly_weights.board import Board
from butterfly_weights.checkpoint import Checkpoint, read_checkpoint
from butterfly_weights.ledger import Ledger
from butterfly_weights.manifest import Manifest, entry_of, make_manifest, part_digests
from butterfly_weights.merkle import LEAF_BYTES, leaf_digest
from butterfly_weights.peer_choice import Holding
from butterfly_weights.progress import ProgressCounter
from butterfly_weights.select import GAP_SHARE_MAX, PIECE_BYTES_MAX, Leaf, plan_pieces
from butterfly_weights.source import ObjectInfo, RangeReader, Source, open_source
from butterfly_weights.spec import model_spec
from tests.support.layouts import write_sparse_checkpoint

GB = 1 << 30
DEMAND = Demand(kv_tokens=32768, workspace_bytes=GB)


@dataclass(frozen=True)
class Layout:
    source: Source
    checkpoint: Checkpoint
    manifest: Manifest
    spec: ModelSpec
    nbytes: int


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    folder = tmp_path_factory.mktemp("seventy")
    nbytes = write_sparse_checkpoint(folder)
    source = open_source("filesystem", str(folder))
    checkpoint = read_checkpoint(source)
    zeros = memoryview(bytes(LEAF_BYTES))
    of_size: dict[int, bytes] = {}

    def leaf_of(size: int) -> bytes:
        return of_size.get(size) or of_size.setdefault(size, leaf_digest(zeros[:size]))

    entries = [
        entry_of(
            tensor,
            [
                leaf_of(min(LEAF_BYTES, tensor.nbytes - start))
                for start in range(0, tensor.nbytes, LEAF_BYTES)
            ],
        )
        for tensor in checkpoint.tensors
    ]
    manifest = make_manifest(80, checkpoint.small_files, entries)
    return Layout(source, checkpoint, manifest, model_spec(checkpoint, "seventy"), nbytes)


class SimulatedNode:
    """One node's load: the real ledger, board and ranges; no memory for the tensors."""

    def __init__(self, layout: Layout, name: str, parts: Sequence[str]) -> None:
        self.name, self.parts = name, parts
        self._layout = layout
        self.tensors = layout.checkpoint.tensors_of(parts)
        self._progress = ProgressCounter(sum(tensor.nbytes for tensor in self.tensors))
        self.ledger = Ledger(self.tensors, layout.manifest, self._progress, lambda *_: None)
        digests = {name: entry.digest for name, entry in layout.manifest.tensors.items()}
        self.board = Board(name, self.tensors, digests, self.ledger, lambda *_: None)
        self.pieces = plan_pieces(self.tensors)
        self.board.refill(self.pieces)
        self.from_source = self.from_peers = 0

    def hear_of(self, other: "SimulatedNode", holding: Holding) -> None:
        """What the other one answers when it is asked what it holds."""
        asked = self.board.tensors_left()
        said = [holding if other.board.wants(tensor) else Holding.NO for tensor in asked]
        self.board.note(other.name, asked, said)

    def read_own_share(self, reader: RangeReader) -> None:
        objects = self._layout.checkpoint.objects
        for piece in self.pieces:
            for part in self.board.for_source(piece):
                assert part.nbytes <= PIECE_BYTES_MAX
                self.from_source += part.nbytes
                for leaf in part.leaves:
                    self._prove(leaf, _sampled(reader, objects[part.shard], leaf))
                self.board.release(part.leaves)

    def take_from(self, other: "SimulatedNode") -> None:
        theirs = {tensor.name: number for number, tensor in enumerate(other.tensors)}
        while leaves := self.board.for_peer(other.name):
            for leaf in leaves:
                assert other.ledger.is_proven(theirs[self.board.name_of(leaf)], leaf.index)
                self.from_peers += leaf.nbytes
                self._prove(leaf, None)
            self.board.release(leaves)

    def _prove(self, leaf: Leaf, seen: bytes | None) -> None:
        expected = self.ledger.expected(leaf)
        assert expected is not None
        assert seen in (None, expected)
        self.ledger.prove(leaf, expected)

    def digests(self) -> Mapping[str, str]:
        assert self.ledger.missing() == ()
        return part_digests(self.ledger.digests, self.parts)


def _sampled(reader: RangeReader, info: ObjectInfo, leaf: Leaf) -> bytes | None:
    if leaf.index:
        return None
    data = memoryview(bytearray(leaf.nbytes))
    reader.read_into(info, leaf.offset, [data], lambda _: None)
    return leaf_digest(data)


def planned(layout: Layout, nodes: int, memory_gb: int) -> list[tuple[str, ...]]:
    """Which parts each stage holds, by the real planner."""
    capacity = Capacity("cuda:0", "card", memory_gb * GB, memory_gb * GB, 1e12, 1e14)
    machines = [Machine(NodeId(f"{number:032x}"), capacity) for number in range(nodes)]
    stages = plan(layout.spec, machines, DEMAND).stages
    assert len(stages) == nodes
    return [stage_parts(stage.layers, 80, tied=False) for stage in stages]


def load_all(layout: Layout, nodes: Sequence[SimulatedNode]) -> None:
    with closing(layout.source.reader()) as reader:
        for node in nodes:
            node.read_own_share(reader)


def assert_whole_model(layout: Layout, nodes: Sequence[SimulatedNode]) -> None:
    seen: dict[str, str] = {}
    for node in nodes:
        seen |= node.digests()
    assert seen == layout.manifest.part_digests()


def test_eight_nodes_of_one_pipeline_read_every_byte_of_140_gb_once(layout: Layout) -> None:
    nodes = [
        SimulatedNode(layout, f"node{number}", parts)
        for number, parts in enumerate(planned(layout, 8, 24))
    ]

    load_all(layout, nodes)

    assert 140e9 < layout.nbytes < 142e9
    assert_whole_model(layout, nodes)
    read = sum(node.from_source for node in nodes)
    assert layout.nbytes <= read <= layout.nbytes * (1 + GAP_SHARE_MAX)


def test_eight_nodes_of_two_pipelines_read_every_byte_once_and_give_each_other_the_rest(
    layout: Layout,
) -> None:
    stages = planned(layout, 4, 48)
    nodes = [SimulatedNode(layout, f"node{n}", stages[n % 4]) for n in range(8)]
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.hear_of(other, Holding.LOADING)

    load_all(layout, nodes)
    for number, node in enumerate(nodes):
        node.take_from(nodes[(number + 4) % 8])

    assert_whole_model(layout, nodes)
    read = sum(node.from_source for node in nodes)
    assert layout.nbytes <= read <= layout.nbytes * (1 + GAP_SHARE_MAX)
    assert sum(node.from_peers for node in nodes) == pytest.approx(layout.nbytes, rel=0.01)
    for node in nodes:
        own = sum(tensor.nbytes for tensor in node.tensors)
        assert 0.4 * own < node.from_source < 0.6 * own


def test_a_node_that_lost_its_disk_takes_its_stage_from_its_twin_alone(layout: Layout) -> None:
    stages = planned(layout, 4, 48)
    twin, wiped = (SimulatedNode(layout, name, stages[1]) for name in ("twin", "wiped"))
    load_all(layout, [twin])
    wiped.hear_of(twin, Holding.HELD)

    load_all(layout, [wiped])
    wiped.take_from(twin)

    assert wiped.digests() == twin.digests()
    assert wiped.from_source == 0
