"""Byte ranges: every wanted byte once, and nothing else beyond the allowed gaps."""

from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_weights.merkle import LEAF_BYTES
from butterfly_weights.select import LONG_PIECE_BYTES_MAX, Piece, plan_pieces, taper
from butterfly_weights.tensors import TensorInfo

MIB = 1 << 20


def shard_of(name: str, sizes: list[int]) -> list[TensorInfo]:
    """Tensors one after the other, as a safetensors file has them."""
    tensors, offset = [], 1000
    for number, size in enumerate(sizes):
        tensors.append(TensorInfo(f"{name}.{number}", "U8", (size,), size, name, offset))
        offset += size
    return tensors


SIZES = st.lists(
    st.one_of(st.integers(0, 4096), st.integers(0, 300 << 10), st.integers(0, 20 * MIB)),
    max_size=25,
)


@st.composite
def wanted_tensors(draw: st.DrawFn) -> list[TensorInfo]:
    tensors = [t for name in "ab" for t in shard_of(name, draw(SIZES))]
    chosen = [tensor for tensor in tensors if draw(st.booleans())]
    return draw(st.permutations(chosen))


def check(pieces: tuple[Piece, ...], tensors: list[TensorInfo]) -> None:
    covered: dict[int, int] = {}
    for piece in pieces:
        assert piece.nbytes <= 8 * MIB
        position = piece.offset
        for leaf in piece.leaves:
            tensor = tensors[leaf.tensor]
            assert tensor.shard == piece.shard
            assert leaf.offset == tensor.offset + leaf.index * LEAF_BYTES
            assert 0 < leaf.nbytes <= LEAF_BYTES
            assert leaf.offset - position <= 256 << 10
            assert leaf.offset >= position
            position = leaf.stop
            covered[leaf.tensor] = covered.get(leaf.tensor, 0) + leaf.nbytes
    leaves = [(leaf.tensor, leaf.index) for piece in pieces for leaf in piece.leaves]
    assert len(leaves) == len(set(leaves))
    assert covered == {n: t.nbytes for n, t in enumerate(tensors) if t.nbytes}


@given(wanted_tensors())
@settings(max_examples=150, deadline=None)
def test_every_wanted_byte_comes_once_and_at_most_half_a_percent_more(
    tensors: list[TensorInfo],
) -> None:
    pieces = plan_pieces(tensors)

    check(pieces, tensors)
    wanted = sum(tensor.nbytes for tensor in tensors)
    assert wanted <= sum(piece.nbytes for piece in pieces) <= wanted * 1.005


@given(wanted_tensors())
@settings(max_examples=100, deadline=None)
def test_long_pieces_are_cut_where_the_load_ends_and_lose_nothing(
    tensors: list[TensorInfo],
) -> None:
    pieces = plan_pieces(tensors, piece_bytes_max=LONG_PIECE_BYTES_MAX)
    tapered = taper(pieces)

    assert [leaf for piece in tapered for leaf in piece.leaves] == [
        leaf for piece in pieces for leaf in piece.leaves
    ]
    whole = sum(piece.nbytes for piece in pieces)
    assert sum(piece.nbytes for piece in tapered) <= whole
    assert all(piece.nbytes <= LONG_PIECE_BYTES_MAX for piece in tapered)
    left = whole
    for piece in pieces:
        cut = [part for part in tapered if part.leaves[0] in piece.leaves]
        if left > whole // 4:
            assert cut == [piece]
        else:
            assert all(part.nbytes <= 8 * MIB for part in cut)
        left -= piece.nbytes


def test_neighbours_share_a_range() -> None:
    (piece,) = plan_pieces(shard_of("a", [100, 200, 300]))

    assert (piece.offset, piece.nbytes, len(piece.leaves)) == (1000, 600, 3)


def test_a_small_gap_is_read_along_and_a_large_one_is_not() -> None:
    tensors = shard_of("a", [3 * MIB, 1000, 3 * MIB, 300 << 10, MIB])

    pieces = plan_pieces([tensors[0], tensors[2], tensors[4]])

    assert [piece.nbytes for piece in pieces] == [6 * MIB + 1000, MIB]


def test_many_small_gaps_are_bridged_smallest_first_within_the_share() -> None:
    tensors = shard_of("a", [MIB, 15_000, MIB, 2000, MIB, 7000, MIB])

    pieces = plan_pieces(tensors[::2], piece_bytes_max=64 * MIB)

    assert [len(piece.leaves) for piece in pieces] == [1, 3]


def test_pieces_come_in_the_order_of_the_tensors() -> None:
    first, second = shard_of("a", [50 * MIB]), shard_of("b", [10])

    pieces = plan_pieces([*second, *first])

    assert [piece.shard for piece in pieces][:2] == ["b", "a"]


def test_a_tensor_without_bytes_needs_no_piece() -> None:
    assert plan_pieces(shard_of("a", [0, 0])) == ()
