"""What the loader knows of other nodes: small protocols that the application binds to the wire."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from butterfly_weights.cache import TensorCache
from butterfly_weights.merkle import LEAF_BYTES, leaf_digest
from butterfly_weights.peer_choice import Holding

LEAVES_WANTED_MAX = 16
"""Leaves named in one request, of which one is given."""
TENSORS_ASKED_MAX = 8192
"""Tensors named in one question about what a peer holds."""


@dataclass(frozen=True, slots=True)
class WantedLeaf:
    """Leaf ``index`` of the tensor with this digest, and the digest that the leaf must have."""

    tensor: bytes
    index: int
    leaf: bytes


class Answer(IntEnum):
    """What a peer says to a request for leaves; the numbers go over the wire."""

    LEAF = 0
    NOT_YET = 1
    """It is loading one of them."""
    NOT_HERE = 2
    BUSY = 3
    """Too many uploads, or its limit is reached: ask again, or somebody else."""


@dataclass(frozen=True, slots=True)
class Given:
    """``position`` is that of the leaf in the request; ``data`` is valid until the next one."""

    answer: Answer
    position: int
    data: memoryview


class PeerLink(Protocol):
    """A way to ask one peer. One thread asks; any may close."""

    @property
    def name(self) -> str:
        """The peer's node id."""
        ...

    def have(self, tensors: Sequence[bytes]) -> Sequence[Holding]:
        """What the peer says of tensors, by digest, at most TENSORS_ASKED_MAX. Raises
        Unreachable, ProtocolViolation."""
        ...

    def give(self, wanted: Sequence[WantedLeaf]) -> Given:
        """Ask for any one of at most LEAVES_WANTED_MAX leaves. Raises Unreachable,
        ProtocolViolation."""
        ...

    def close(self) -> None:
        """A thread that waits for an answer gets Unreachable."""
        ...


class Loading(Protocol):
    """A load under way, as others may ask about it."""

    def wants(self, tensor: bytes) -> bool:
        """True for a tensor that it has or will have."""
        ...

    def proven(self, tensor: bytes, index: int) -> memoryview | None:
        """A leaf that is in place and proven."""
        ...

    def wait(self, seconds: float) -> None:
        """Until another leaf is proven, at most so long."""
        ...


class Shelf:
    """What this process can give to others: tensors in memory, a load under way, its cache.

    Holds no memory alive: a tensor that nobody else uses any more is not here any more.
    Thread-safe.
    """

    def __init__(self) -> None:
        self._kept: weakref.WeakValueDictionary[bytes, memoryview] = weakref.WeakValueDictionary()
        self._loading: Loading | None = None
        self._cache: TensorCache | None = None

    def use_cache(self, cache: TensorCache | None) -> None:
        """Give what this cache holds, too."""
        self._cache = cache

    def begin(self, loading: Loading) -> None:
        """Give also what this load has proven so far; only the newest load counts."""
        self._loading = loading

    def end(self, loading: Loading) -> None:
        if self._loading is loading:
            self._loading = None

    def keep(self, tensor: bytes, data: memoryview) -> None:
        """A proven tensor, by its digest, for as long as its owner keeps ``data``."""
        self._kept[tensor] = data

    def holding(self, tensor: bytes) -> Holding:
        """What to say of a tensor."""
        if tensor in self._kept or (self._cache is not None and self._cache.size_of(tensor)):
            return Holding.HELD
        loading = self._loading
        return Holding.LOADING if loading is not None and loading.wants(tensor) else Holding.NO

    def leaf(self, wanted: WantedLeaf) -> memoryview | None:
        """A leaf's bytes; None when it is not here (yet)."""
        loading = self._loading  # looked at first: what a load has, it keeps before it ends
        start = wanted.index * LEAF_BYTES
        kept = self._kept.get(wanted.tensor)
        if kept is not None and start < kept.nbytes:
            return kept[start : start + LEAF_BYTES]
        proven = loading.proven(wanted.tensor, wanted.index) if loading is not None else None
        return proven if proven is not None else self._cached(wanted, start)

    def _cached(self, wanted: WantedLeaf, start: int) -> memoryview | None:
        """Proven before it is given, so that a damaged disk makes no liar of this node."""
        nbytes = self._cache.size_of(wanted.tensor) if self._cache is not None else 0
        if self._cache is None or start >= nbytes:
            return None
        data = memoryview(bytearray(min(LEAF_BYTES, nbytes - start)))
        with self._cache.opened(wanted.tensor) as file:
            whole = file.read_into(start, data)
        return data if whole and leaf_digest(data) == wanted.leaf else None

    def is_loading(self, tensor: bytes) -> bool:
        """True when a leaf that is not here may come."""
        loading = self._loading
        return loading is not None and loading.wants(tensor)

    def wait(self, seconds: float) -> None:
        """Until the load under way has proven another leaf, at most so long."""
        if (loading := self._loading) is not None:
            loading.wait(seconds)


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """How patient a load is with its peers, in seconds: ``open`` until there are links,
    ``first_word`` until they say what they hold, ``ask_again`` between two such questions,
    ``answer`` for any one answer, ``patience`` until the source brings what they were to give."""

    open_seconds: float = 2.0
    first_word_seconds: float = 1.0
    ask_again_seconds: float = 1.0
    answer_seconds_max: float = 10.0
    patience_seconds: float = 5.0
    look_seconds: float = 0.1
    busy_pause_seconds: float = 0.05


class Peers(Protocol):
    """The other nodes, to one load after the other."""

    @property
    def me(self) -> str:
        """This node's own id."""
        ...

    @property
    def shelf(self) -> Shelf: ...

    @property
    def options(self) -> PeerOptions: ...

    def open_links(self, timeout_seconds: float) -> Sequence[PeerLink]:
        """Links to peers that may hold something; empty when there are none in time."""
        ...
