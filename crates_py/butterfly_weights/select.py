"""Which byte ranges to ask for, so that the wanted tensors come and little else. Pure.

Every leaf (4 MiB chunk of a tensor) lies whole in one piece, so the thread that reads a piece
can also prove it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from butterfly_weights.merkle import LEAF_BYTES
from butterfly_weights.tensors import TensorInfo

PIECE_BYTES_MAX = 8 << 20
LONG_PIECE_BYTES_MAX = 32 << 20
"""A request costs about a millisecond of Python, so one for more bytes is cheaper."""
GAP_BYTES_MAX = 256 << 10
GAP_SHARE_MAX = 0.005


@dataclass(frozen=True, slots=True)
class Leaf:
    """Chunk ``index`` of tensor number ``tensor``: bytes [offset, offset + nbytes) of its shard."""

    tensor: int
    index: int
    offset: int
    nbytes: int

    @property
    def stop(self) -> int:
        return self.offset + self.nbytes


@dataclass(frozen=True, slots=True)
class Piece:
    """One range to read: leaves of one shard in the order of their bytes."""

    shard: str
    leaves: tuple[Leaf, ...]

    @property
    def offset(self) -> int:
        return self.leaves[0].offset

    @property
    def nbytes(self) -> int:
        """With the gaps between its leaves."""
        return self.leaves[-1].stop - self.offset


def leaves_of(number: int, tensor: TensorInfo) -> Iterator[Leaf]:
    """The leaves of a tensor; none when it has no bytes."""
    for start in range(0, tensor.nbytes, LEAF_BYTES):
        size = min(LEAF_BYTES, tensor.nbytes - start)
        yield Leaf(number, start // LEAF_BYTES, tensor.offset + start, size)


def plan_pieces(
    tensors: Sequence[TensorInfo],
    *,
    piece_bytes_max: int = PIECE_BYTES_MAX,
    gap_bytes_max: int = GAP_BYTES_MAX,
    gap_share_max: float = GAP_SHARE_MAX,
    numbers: Sequence[int] | None = None,
) -> tuple[Piece, ...]:
    """Pieces that cover every byte of the tensors once, ordered as the tensors are given.

    Bytes between two wanted tensors are read along when at most ``gap_bytes_max`` each and, the
    smallest first, at most ``gap_share_max`` of the wanted bytes together: a range saved is
    worth a few KiB, but what crosses the network stays within the node's own slice. ``numbers``
    are what the leaves call the tensors by (default: their places in ``tensors``).
    """
    by_shard: dict[str, list[Leaf]] = {}
    own_numbers = range(len(tensors)) if numbers is None else numbers
    for number, tensor in zip(own_numbers, tensors, strict=True):
        by_shard.setdefault(tensor.shard, []).extend(leaves_of(number, tensor))
    for leaves in by_shard.values():
        leaves.sort(key=lambda leaf: leaf.offset)
    wanted = sum(tensor.nbytes for tensor in tensors)
    bridged = _gaps_to_bridge(by_shard, gap_bytes_max, int(wanted * gap_share_max))
    pieces = [
        Piece(shard, tuple(group))
        for shard, leaves in by_shard.items()
        for group in _groups(shard, leaves, bridged, piece_bytes_max)
    ]
    pieces.sort(key=lambda piece: min((leaf.tensor, leaf.index) for leaf in piece.leaves))
    return tuple(pieces)


def taper(pieces: Sequence[Piece], *, piece_bytes_max: int = PIECE_BYTES_MAX) -> tuple[Piece, ...]:
    """Cut what is in the last quarter of the bytes smaller, so that all readers end at about the
    same time (as guided self-scheduling does: Polychronopoulos and Kuck, IEEE ToC 1987)."""
    left = sum(piece.nbytes for piece in pieces)
    tail = left // 4
    tapered: list[Piece] = []
    for piece in pieces:
        if left > tail:
            tapered.append(piece)
        else:
            tapered += _cut(piece, piece_bytes_max)
        left -= piece.nbytes
    return tuple(tapered)


def _cut(piece: Piece, piece_bytes_max: int) -> Iterator[Piece]:
    joined = {(piece.shard, leaf.offset) for leaf in piece.leaves}
    for group in _groups(piece.shard, list(piece.leaves), joined, piece_bytes_max):
        yield Piece(piece.shard, tuple(group))


def _gaps_to_bridge(
    by_shard: dict[str, list[Leaf]], each_max: int, total_max: int
) -> set[tuple[str, int]]:
    """(shard, offset of the leaf after the gap) of the gaps worth reading along."""
    gaps = sorted(
        (after.offset - before.stop, shard, after.offset)
        for shard, leaves in by_shard.items()
        for before, after in pairwise(leaves)
    )
    bridged, spent = set(), 0
    for size, shard, offset in gaps:
        if size > each_max or spent + size > total_max:
            break
        spent += size
        bridged.add((shard, offset))
    return bridged


def _groups(
    shard: str, leaves: list[Leaf], bridged: set[tuple[str, int]], piece_bytes_max: int
) -> Iterator[list[Leaf]]:
    group: list[Leaf] = []
    for leaf in leaves:
        joins = group and (shard, leaf.offset) in bridged
        if joins and leaf.stop - group[0].offset <= piece_bytes_max:
            group.append(leaf)
            continue
        if group:
            yield group
        group = [leaf]
    if group:
        yield group
