"""One stretch of memory that becomes the storage of all tensors of a load."""

import mmap
from collections.abc import Sequence
from contextlib import suppress

from butterfly_weights.errors import NoMemory

ALIGNMENT_BYTES = 64


def layout(sizes: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Where each block starts, and the bytes of all; starts are multiples of 64."""
    starts, position = [], 0
    for size in sizes:
        starts.append(position)
        position += -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return tuple(starts), position


class Arena:
    """Anonymous memory cut into 64-byte aligned blocks, one per size given.

    The memory lives as long as any view of it. Huge pages are asked for: without them page
    faults cost a third of the loading speed.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        starts, total = layout(sizes)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            memory = mmap.mmap(-1, max(total, 1), flags=flags)
        except (OSError, OverflowError) as error:
            raise NoMemory(f"{total} bytes for weights cannot be had: {error}") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel built without them: slower, not wrong
                memory.madvise(mmap.MADV_HUGEPAGE)
        whole = memoryview(memory)
        self.blocks = tuple(
            whole[start : start + size] for start, size in zip(starts, sizes, strict=True)
        )
