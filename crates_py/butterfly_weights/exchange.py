"""One load's dealings with other nodes: what it asks them for, and what it gives them meanwhile.

Without peers, and for everything of which no digest is known beforehand, this does nothing.
"""

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from butterfly_weights.board import Board
from butterfly_weights.checkpoint import Checkpoint
from butterfly_weights.crew import Worker, work_off
from butterfly_weights.ledger import Ledger
from butterfly_weights.merkle import LEAF_BYTES
from butterfly_weights.peers import PeerOptions, Peers
from butterfly_weights.progress import ProgressCounter
from butterfly_weights.select import Leaf, Piece
from butterfly_weights.swarm import Swarm
from butterfly_weights.tensors import TensorInfo


class Exchange:
    """A context around a load; what the load has at its end stays on the shelf."""

    def __init__(
        self,
        peers: Peers | None,
        checkpoint: Checkpoint,
        tensors: Sequence[TensorInfo],
        ledger: Ledger,
        progress: ProgressCounter,
        *,
        land: Callable[[Leaf, memoryview], None],
        shown: Callable[[int], memoryview | None],
    ) -> None:
        """``land`` brings a leaf's bytes to its tensor. ``shown`` gives a tensor's memory by
        number, None when it is not in this machine's memory (any more)."""
        self._peers, self._tensors, self._ledger = peers, tensors, ledger
        self._land_bytes, self._memory_of = land, shown
        manifest = checkpoint.manifest
        options = peers.options if peers else PeerOptions()
        known = {name: entry.digest for name, entry in manifest.tensors.items()} if manifest else {}
        self._board = Board(peers.me if peers else "", tensors, known, ledger, self._shown)
        self._swarm = Swarm(self._board, progress, self._land, options)
        self._opened = peers is None or manifest is None

    def __enter__(self) -> "Exchange":
        if self._peers is not None:
            self._peers.shelf.begin(self._board)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._swarm.close()
        if self._peers is None:
            return
        if error is None:
            self._keep(self._peers)
        self._peers.shelf.end(self._board)

    @property
    def events(self) -> tuple[str, ...]:
        """What peers did wrong, for people."""
        return self._swarm.events

    def poll(self) -> None:
        """To be called every now and then while the load runs."""
        self._swarm.poll()

    def work_off(
        self,
        pieces: Sequence[Piece],
        make_worker: Callable[[], Worker[Piece]],
        *,
        wanted: Callable[[], int],
        poll: Callable[[], None],
        poll_seconds: float,
    ) -> None:
        """As ``crew.work_off``, but what peers bring is not asked of the source. Some leaves may
        be missing afterwards, when a peer did not keep its word: call it again for those."""
        self._board.refill(pieces)
        if not self._opened and self._peers is not None:
            self._opened = True
            self._swarm.open(self._peers)
        if not self._board.source_has_work():
            self._swarm.wait(poll)
            return
        began = time.monotonic()
        work_off(
            pieces,
            lambda: self._swarm.sharing(make_worker()),
            wanted=wanted,
            poll=poll,
            poll_seconds=poll_seconds,
        )
        self._swarm.note_source(time.monotonic() - began)

    def _keep(self, peers: Peers) -> None:
        digests = self._ledger.digests
        for number, tensor in enumerate(self._tensors):
            memory = self._memory_of(number)
            if tensor.nbytes and memory is not None:
                peers.shelf.keep(digests[tensor.name], memory)

    def _land(self, leaf: Leaf, data: memoryview, seen: bytes) -> None:
        self._land_bytes(leaf, data)
        self._ledger.prove(leaf, seen)

    def _shown(self, number: int, index: int) -> memoryview | None:
        memory = self._memory_of(number)
        return None if memory is None else memory[index * LEAF_BYTES : (index + 1) * LEAF_BYTES]
