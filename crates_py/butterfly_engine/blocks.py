"""Who owns which KV block: a pool that hands blocks out and takes them back; ints only.

``admit`` says how many tokens of a sequence are already in its blocks. Here that is always
none; a cache of shared prefixes takes this file's place without a change elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from butterfly_core.errors import InvalidValue


@dataclass(frozen=True, slots=True)
class Admission:
    """The blocks of a new sequence; its first ``cached_tokens`` need not be computed."""

    blocks: list[int]
    cached_tokens: int


class BlockPool:
    """Blocks 0 … count-1 of ``block_size`` tokens each; the same ids hold on every stage."""

    def __init__(self, count: int, block_size: int) -> None:
        if count < 1 or block_size < 1:
            raise InvalidValue(f"{count} KV blocks of {block_size} tokens; both must be 1 or more")
        self.count = count
        self.block_size = block_size
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """How many blocks nobody owns."""
        return len(self._free)

    @property
    def tokens_max(self) -> int:
        """How many tokens fit in all blocks together."""
        return self.count * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """How many blocks this many tokens of one sequence need."""
        return -(-tokens // self.block_size)

    def admit(self, tokens: Sequence[int], *, reserve: int = 0) -> Admission | None:
        """Blocks for all tokens of a new sequence, or None; ``reserve`` blocks must stay free."""
        needed = self.blocks_for(len(tokens))
        if needed + reserve > self.free:
            return None
        return Admission([self._free.pop() for _ in range(needed)], cached_tokens=0)

    def extend(self, blocks: list[int], tokens: int) -> bool:
        """Grow a sequence's blocks to fit this many tokens; False, and nothing done, when full."""
        missing = self.blocks_for(tokens) - len(blocks)
        if missing > self.free:
            return False
        blocks.extend(self._free.pop() for _ in range(missing))
        return True

    def release(self, blocks: list[int]) -> None:
        """Take back a sequence's blocks and empty the list, so that they cannot return twice."""
        self._free.extend(reversed(blocks))
        blocks.clear()
