"""A block has one owner, and comes back once."""

import pytest

from butterfly_core.errors import InvalidValue
from butterfly_engine.blocks import BlockPool


def test_a_sequence_gets_blocks_for_all_its_tokens() -> None:
    pool = BlockPool(4, 8)

    admission = pool.admit(range(17))

    assert admission is not None
    assert len(set(admission.blocks)) == 3
    assert admission.cached_tokens == 0
    assert pool.free == 1


def test_what_does_not_fit_changes_nothing() -> None:
    pool = BlockPool(2, 8)

    assert pool.admit(range(17)) is None
    assert pool.admit(range(9), reserve=1) is None
    assert pool.free == 2


def test_blocks_grow_only_when_a_token_needs_one() -> None:
    pool = BlockPool(2, 4)
    admission = pool.admit(range(3))
    assert admission is not None

    assert pool.extend(admission.blocks, 4)
    assert len(admission.blocks) == 1
    assert pool.extend(admission.blocks, 5)
    assert len(admission.blocks) == 2
    assert not pool.extend(admission.blocks, 9)
    assert len(admission.blocks) == 2


def test_released_blocks_cannot_return_twice() -> None:
    pool = BlockPool(2, 4)
    admission = pool.admit(range(8))
    assert admission is not None

    pool.release(admission.blocks)
    pool.release(admission.blocks)

    assert pool.free == 2


@pytest.mark.parametrize(("count", "size"), [(0, 4), (4, 0)])
def test_a_pool_holds_something(count: int, size: int) -> None:
    with pytest.raises(InvalidValue):
        BlockPool(count, size)
