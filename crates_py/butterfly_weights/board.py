"""The leaves that a load still needs, and who is bringing each: the source or a peer.

A leaf is *reserved* while somebody brings it, so that none comes twice. Only leaves whose digest
is known beforehand may come from a peer; the source brings all others.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from butterfly_weights.ledger import Ledger
from butterfly_weights.peer_choice import (
    Choice,
    FromHolders,
    FromSource,
    Holding,
    WaitFor,
    choose,
    stretch_of,
)
from butterfly_weights.peers import LEAVES_WANTED_MAX, WantedLeaf
from butterfly_weights.select import Leaf, Piece
from butterfly_weights.tensors import TensorInfo

_Key = tuple[int, int]


class Board:
    """Thread-safe. Tensors and leaves go by the numbers of the load's ledger."""

    def __init__(
        self,
        me: str,
        tensors: Sequence[TensorInfo],
        digests: Mapping[str, bytes],
        ledger: Ledger,
        shown: Callable[[int, int], memoryview | None],
    ) -> None:
        """``digests`` by tensor name are known beforehand; ``shown`` gives the bytes of a proven
        leaf by tensor number and index, None when they are not in this memory (any more)."""
        self._me, self._tensors, self._ledger, self._shown = me, tensors, ledger, shown
        self._digests = [digests.get(tensor.name, b"") for tensor in tensors]
        self._numbers = {digest: n for n, digest in enumerate(self._digests) if digest}
        self._changed = threading.Condition()
        self._left: tuple[Leaf, ...] = ()
        self._reserved: set[_Key] = set()
        self._views: dict[str, Mapping[int, Holding]] = {}
        self._refused: set[tuple[str, _Key]] = set()
        self._source_helps = False

    # As others see it.

    def wants(self, tensor: bytes) -> bool:
        return tensor in self._numbers

    def proven(self, tensor: bytes, index: int) -> memoryview | None:
        number = self._numbers.get(tensor)
        if number is None or not self._ledger.is_proven(number, index):
            return None
        return self._shown(number, index)

    def wait(self, seconds: float) -> None:
        """Until something changes, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    # What is left.

    def refill(self, pieces: Iterable[Piece]) -> None:
        """These are the leaves to bring now, apart from those that are proven already."""
        left = (leaf for piece in pieces for leaf in piece.leaves)
        with self._changed:
            self._left = tuple(leaf for leaf in left if not self._is_done(leaf))
            self._changed.notify_all()

    def tensors_left(self) -> tuple[bytes, ...]:
        """Digests of the tensors that peers may bring and of which leaves are left."""
        numbers = dict.fromkeys(leaf.tensor for leaf in self._left if not self._is_done(leaf))
        return tuple(self._digests[n] for n in numbers if self._digests[n])

    def is_complete(self) -> bool:
        return all(self._is_done(leaf) for leaf in self._left)

    def source_has_work(self) -> bool:
        """True when the source should be asked for something now."""
        with self._changed:
            return any(self._is_for_source(leaf) for leaf in self._left)

    # What the source brings.

    def for_source(self, piece: Piece) -> tuple[Piece, ...]:
        """Reserve what of the piece the source should bring now: ranges of neighbours."""
        with self._changed:
            runs = groupby(piece.leaves, self._is_for_source)
            mine = [Piece(piece.shard, tuple(leaves)) for wanted, leaves in runs if wanted]
            self._reserved |= {_key(leaf) for part in mine for leaf in part.leaves}
        return tuple(mine)

    def release(self, leaves: Iterable[Leaf]) -> None:
        """They are brought, or will not be: whatever is not proven is free again."""
        with self._changed:
            self._reserved -= {_key(leaf) for leaf in leaves}
            self._changed.notify_all()

    def let_source_help(self) -> None:
        """From now on the source brings also what peers were to give."""
        with self._changed:
            self._source_helps = True
            self._changed.notify_all()

    # What peers bring.

    def note(self, peer: str, tensors: Sequence[bytes], holdings: Sequence[Holding]) -> None:
        """A peer said what it holds."""
        said = zip(tensors, holdings, strict=True)
        with self._changed:
            known = {self._numbers[tensor]: holding for tensor, holding in said}
            self._views[peer] = {**self._views.get(peer, {}), **known}
            self._changed.notify_all()

    def drop(self, peer: str) -> None:
        """Nothing comes from this peer any more."""
        with self._changed:
            self._views.pop(peer, None)
            self._changed.notify_all()

    def refuse(self, peer: str, leaves: Iterable[Leaf]) -> None:
        """The peer has not got these, whatever it says of their tensors."""
        with self._changed:
            self._refused |= {(peer, _key(leaf)) for leaf in leaves}
            self._changed.notify_all()

    def for_peer(self, peer: str) -> tuple[Leaf, ...]:
        """Reserve what to ask this peer for: one leaf that it holds, or some of those that it
        is fetching. Empty when there is nothing for it now."""
        with self._changed:
            found = self._first_for(peer)
            self._reserved |= {_key(leaf) for leaf in found}
        return found

    def name_of(self, leaf: Leaf) -> str:
        return self._tensors[leaf.tensor].name

    def wanted(self, leaf: Leaf) -> WantedLeaf:
        """How to ask for a leaf."""
        return WantedLeaf(
            self._digests[leaf.tensor], leaf.index, self._ledger.expected(leaf) or b""
        )

    def _first_for(self, peer: str) -> tuple[Leaf, ...]:
        awaited: list[Leaf] = []
        second: Leaf | None = None
        for leaf, choice in self._choices():
            if isinstance(choice, FromHolders) and peer in choice.names:
                if peer == choice.names[0]:
                    return (leaf,)
                second = second or leaf
            if isinstance(choice, WaitFor) and choice.name == peer:
                awaited.append(leaf)
                if len(awaited) == LEAVES_WANTED_MAX:
                    break
        return (second,) if second else tuple(awaited)

    def _choices(self) -> Iterator[tuple[Leaf, Choice]]:
        if self._views:
            for leaf in self._left:
                if _key(leaf) not in self._reserved and not self._is_done(leaf):
                    yield leaf, self._choice(leaf)

    def _choice(self, leaf: Leaf) -> Choice:
        if not self._digests[leaf.tensor] or self._ledger.expected(leaf) is None:
            return FromSource()
        views = {
            peer: view
            for peer, said in self._views.items()
            if (view := said.get(leaf.tensor, Holding.NO)) is not Holding.NO
            and (peer, _key(leaf)) not in self._refused
        }
        if not views:
            return FromSource()
        return choose(self._me, stretch_of(self._tensors[leaf.tensor].shard, leaf.offset), views)

    def _is_for_source(self, leaf: Leaf) -> bool:
        if _key(leaf) in self._reserved or self._is_done(leaf):
            return False
        return self._source_helps or isinstance(self._choice(leaf), FromSource)

    def _is_done(self, leaf: Leaf) -> bool:
        return self._ledger.is_proven(leaf.tensor, leaf.index)


def _key(leaf: Leaf) -> _Key:
    return leaf.tensor, leaf.index
