"""The leaves that a load still needs, and who is bringing each: the source or a peer.

A leaf is *reserved* while somebody brings it, so that none comes twice. Only leaves whose digest
is known beforehand may come from a peer; the source brings all others.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, islice

from butterfly_weights.ledger import Ledger
from butterfly_weights.peer_choice import Holding, stretch_of
from butterfly_weights.peers import LEAVES_WANTED_MAX, WantedLeaf
from butterfly_weights.select import Leaf, Piece
from butterfly_weights.shares import LeafKey, PeerShare, Shares, key_of, share_out
from butterfly_weights.tensors import TensorInfo

_SHARES_SECONDS = 0.5


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
        self._landed = threading.Condition()
        self._left: dict[LeafKey, Leaf] = {}
        self._reserved: set[LeafKey] = set()
        self._views: dict[str, Mapping[int, Holding]] = {}
        self._refused: set[tuple[str, int]] = set()
        self._source_helps = False
        self._shares: Shares | None = None
        self._shares_made_at = float("-inf")
        self._shares_age = False

    # As others see it.

    def wants(self, tensor: bytes) -> bool:
        return tensor in self._numbers

    def proven(self, tensor: bytes, index: int) -> memoryview | None:
        number = self._numbers.get(tensor)
        if number is None or not self._ledger.is_proven(number, index):
            return None
        return self._shown(number, index)

    def wait(self, seconds: float) -> None:
        """Until another leaf is brought, at most so long."""
        with self._landed:
            self._landed.wait(seconds)

    # What is left.

    def refill(self, pieces: Iterable[Piece]) -> None:
        """These are the leaves to bring now, apart from those that are proven already."""
        left = (leaf for piece in pieces for leaf in piece.leaves)
        with self._changed:
            self._left = {key_of(leaf): leaf for leaf in left if not self._is_done(leaf)}
            self._share_anew()

    def tensors_left(self) -> tuple[bytes, ...]:
        """Digests of the tensors that peers may bring and of which leaves are left."""
        with self._changed:
            numbers = dict.fromkeys(number for number, _ in self._left)
        return tuple(self._digests[n] for n in numbers if self._digests[n])

    def is_complete(self) -> bool:
        return not self._left

    def source_has_work(self) -> bool:
        """True when the source should be asked for something now."""
        with self._changed:
            return any(self._is_for_source(leaf) for leaf in self._left.values())

    def wait_for_change(self, seconds: float) -> None:
        """Until there may be something new to bring, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def release(self, leaves: Sequence[Leaf]) -> None:
        """They are brought, or will not be: whatever is not proven is free again."""
        with self._changed:
            self._reserved -= {key_of(leaf) for leaf in leaves}
            done = [self._left.pop(key_of(leaf), None) for leaf in leaves if self._is_done(leaf)]
            if len(done) < len(leaves) or not self._left:
                self._changed.notify_all()
        with self._landed:
            self._landed.notify_all()

    # What the source brings.

    def for_source(self, piece: Piece) -> tuple[Piece, ...]:
        """Reserve what of the piece the source should bring now: ranges of neighbours."""
        with self._changed:
            runs = groupby(piece.leaves, self._is_for_source)
            mine = [Piece(piece.shard, tuple(leaves)) for wanted, leaves in runs if wanted]
            self._reserved |= {key_of(leaf) for part in mine for leaf in part.leaves}
        return tuple(mine)

    def let_source_help(self) -> None:
        """From now on the source brings also what peers were to give."""
        with self._changed:
            self._source_helps = True
            self._changed.notify_all()

    # What peers bring.

    def note(self, peer: str, tensors: Sequence[bytes], holdings: Sequence[Holding]) -> None:
        """A peer said what it holds."""
        with self._changed:
            before = self._views.get(peer, {})
            said = zip(map(self._numbers.__getitem__, tensors), holdings, strict=True)
            news = {n: holding for n, holding in said if (peer, n) not in self._refused}
            if peer not in self._views or any(before.get(n) != news[n] for n in news):
                self._views[peer] = {**before, **news}
                self._share_anew(soon=bool(before))

    def drop(self, peer: str) -> None:
        """Nothing comes from this peer any more."""
        with self._changed:
            if self._views.pop(peer, None) is not None:
                self._share_anew()

    def refuse(self, peer: str, leaves: Iterable[Leaf]) -> None:
        """The peer has not got these tensors (whole), whatever it says."""
        with self._changed:
            numbers = {leaf.tensor for leaf in leaves}
            self._refused |= {(peer, number) for number in numbers}
            said = self._views.get(peer, {})
            self._views[peer] = {n: holding for n, holding in said.items() if n not in numbers}
            self._share_anew()

    def for_peer(self, peer: str) -> tuple[Leaf, ...]:
        """Reserve what to ask this peer for: one leaf that it holds, or some of those that it
        is fetching. Empty when there is nothing for it now."""
        with self._changed:
            share = self._present_shares().peers.get(peer, PeerShare())
            found = (
                self._free(share.first, 1)
                or self._free(share.second, 1)
                or self._free(share.awaited, LEAVES_WANTED_MAX)
            )
            self._reserved |= {key_of(leaf) for leaf in found}
        return found

    def name_of(self, leaf: Leaf) -> str:
        """The leaf's tensor, for people."""
        return self._tensors[leaf.tensor].name

    def wanted(self, leaf: Leaf) -> WantedLeaf:
        """How to ask for a leaf."""
        return WantedLeaf(
            self._digests[leaf.tensor], leaf.index, self._ledger.expected(leaf) or b""
        )

    def _free(self, leaves: deque[Leaf], count: int) -> tuple[Leaf, ...]:
        while leaves and key_of(leaves[0]) not in self._left:
            leaves.popleft()
        return tuple(islice((leaf for leaf in leaves if self._is_free(leaf)), count))

    def _share_anew(self, *, soon: bool = False) -> None:
        """At once, or, ``soon``, when the present shares are not quite new: peers that load say
        something else every second."""
        self._shares_age = True
        if not soon:
            self._shares = None
        self._changed.notify_all()

    def _present_shares(self) -> Shares:
        now = time.monotonic()
        old = self._shares_age and now - self._shares_made_at > _SHARES_SECONDS
        if self._shares is None or old:
            self._shares_age, self._shares_made_at = False, now
            self._shares = share_out(
                self._me,
                self._left.values(),
                self._views,
                stretch=lambda leaf: stretch_of(self._tensors[leaf.tensor].shard, leaf.offset),
                provable=lambda leaf: self._ledger.expected(leaf) is not None,
            )
        return self._shares

    def _is_for_source(self, leaf: Leaf) -> bool:
        if not self._is_free(leaf):
            return False
        return self._source_helps or key_of(leaf) in self._present_shares().source

    def _is_free(self, leaf: Leaf) -> bool:
        key = key_of(leaf)
        return key in self._left and key not in self._reserved

    def _is_done(self, leaf: Leaf) -> bool:
        return self._ledger.is_proven(leaf.tensor, leaf.index)
