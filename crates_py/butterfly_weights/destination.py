"""Where a load's bytes go: into their final place in this machine's memory, or, for a device,
through a few slots from which they are copied to it (``butterfly/engine_host/upload.py``)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from typing import Final, Protocol

from butterfly_weights.arena import Arena
from butterfly_weights.merkle import LEAF_BYTES
from butterfly_weights.select import LONG_PIECE_BYTES_MAX, Leaf
from butterfly_weights.tensors import TensorInfo


class TensorBytes(Protocol):
    """A tensor's bytes wherever they are kept; a slice is memory of this machine."""

    @property
    def nbytes(self) -> int: ...
    def __getitem__(self, place: slice, /) -> memoryview: ...


class Landing(Protocol):
    """Where the bytes of one piece lie while they are proven; one thread's."""

    def place(self, leaf: Leaf) -> memoryview:
        """The leaf's memory: the same one until the landing ends."""
        ...

    def settle(self, leaf: Leaf) -> None:
        """What lies in ``place(leaf)`` belongs to the tensor: bring it there."""
        ...


class Destination(Protocol):
    """Holds one load's tensors, which are called by their numbers. Thread-safe."""

    @property
    def piece_bytes_max(self) -> int:
        """The largest piece that it wants to take at once."""
        ...

    def prepare(self, tensors: Sequence[TensorInfo], *, piece_bytes_max: int) -> None:
        """Make room for all of them. Raises NoMemory, ModelError for a type it cannot hold."""
        ...

    def landing(self) -> AbstractContextManager[Landing]:
        """Memory for leaves of ``piece_bytes_max`` bytes together; waits until some is free."""
        ...

    def stored(self, number: int) -> TensorBytes:
        """The tensor, once all its leaves have settled."""
        ...


class HostMemory:
    """Final memory that readers write into: a stretch per part, so that one part can be let go
    of without the others."""

    piece_bytes_max: Final = LONG_PIECE_BYTES_MAX

    def __init__(self) -> None:
        self.blocks: tuple[memoryview, ...] = ()

    def prepare(self, tensors: Sequence[TensorInfo], *, piece_bytes_max: int) -> None:
        self.blocks = tuple(
            block
            for _, own in groupby(tensors, lambda tensor: tensor.part)
            for block in Arena([tensor.nbytes for tensor in own]).blocks
        )

    @contextmanager
    def landing(self) -> Iterator["HostMemory"]:
        yield self

    def place(self, leaf: Leaf) -> memoryview:
        start = leaf.index * LEAF_BYTES
        return self.blocks[leaf.tensor][start : start + leaf.nbytes]

    def settle(self, leaf: Leaf) -> None:
        """It is in place."""

    def stored(self, number: int) -> memoryview:
        return self.blocks[number]

    def shown(self, number: int) -> memoryview | None:
        """The tensor's memory, None after ``release``."""
        return self.blocks[number] if self.blocks else None

    def release(self) -> None:
        """Let go of the memory: from now on only what was handed out keeps it."""
        self.blocks = ()
