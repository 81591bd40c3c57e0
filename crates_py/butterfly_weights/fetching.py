"""Bringing one piece into memory and proving each of its leaves while the bytes pass."""

import threading
from collections.abc import Callable, Mapping, Sequence

from butterfly_weights.crew import forget_locals
from butterfly_weights.destination import Destination, Landing
from butterfly_weights.errors import SourceChanged
from butterfly_weights.ledger import Ledger
from butterfly_weights.merkle import LeafHasher
from butterfly_weights.progress import ProgressCounter
from butterfly_weights.select import Leaf, Piece
from butterfly_weights.source import ObjectInfo, RangeReader
from butterfly_weights.views import STEP_BYTES


class ChangedShards:
    """Shards found to have been replaced in mid-load, with the error that said so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, SourceChanged] = {}

    def __contains__(self, shard: str) -> bool:
        with self._lock:
            return shard in self._found

    def add(self, shard: str, error: SourceChanged) -> None:
        with self._lock:
            self._found.setdefault(shard, error)

    def take(self) -> Mapping[str, SourceChanged]:
        """All of them; then none."""
        with self._lock:
            found, self._found = self._found, {}
            return found


class PassingHasher:
    """Hashes leaves as their bytes land, while they are still in the processor's cache."""

    def __init__(self, segments: Sequence[tuple[Leaf | None, memoryview]]) -> None:
        self._segments = segments
        self._index = self._hashed = self._within = 0
        self._hasher = LeafHasher()
        self.digests: list[tuple[Leaf, bytes]] = []

    def advance(self, count: int) -> None:
        """``count`` more bytes are in place."""
        while count:
            leaf, view = self._segments[self._index]
            taken = min(count, view.nbytes - self._within)
            self._within += taken
            count -= taken
            ended = self._within == view.nbytes
            if leaf and (ended or self._within - self._hashed >= STEP_BYTES):
                self._hasher.update(view[self._hashed : self._within])
                self._hashed = self._within
            if ended:
                self._end_segment(leaf)

    def _end_segment(self, leaf: Leaf | None) -> None:
        if leaf:
            self.digests.append((leaf, self._hasher.digest()))
            self._hasher = LeafHasher()
        self._index, self._hashed, self._within = self._index + 1, 0, 0


class PieceFetcher:
    """One thread's reader; a ``crew.Worker`` for pieces."""

    def __init__(
        self,
        reader: RangeReader,
        objects: Mapping[str, ObjectInfo],
        destination: Destination,
        ledger: Ledger,
        progress: ProgressCounter,
        changed: ChangedShards,
        *,
        refetches_max: int,
        stopped: Callable[[], None],
    ) -> None:
        self._reader, self._objects, self._destination = reader, objects, destination
        self._ledger, self._progress, self._changed = ledger, progress, changed
        self._refetches_max, self._stopped = refetches_max, stopped

    def do(self, task: Piece) -> None:
        """Raises BytesMismatch, SourceError; a replaced shard is only noted."""
        if task.shard in self._changed:
            return
        try:
            with self._destination.landing() as landing:
                for leaf, seen in self._read(task, landing):
                    self._settle(task.shard, leaf, seen, landing)
        except SourceChanged as error:
            forget_locals(error)
            self._changed.add(task.shard, error)

    def interrupt(self) -> None:
        self._reader.interrupt()

    def close(self) -> None:
        self._reader.close()

    def _settle(self, shard: str, leaf: Leaf, seen: bytes, landing: Landing) -> None:
        fetches = 1
        while not self._ledger.agrees(leaf, seen):
            if fetches > self._refetches_max:
                raise self._ledger.mismatch(leaf, seen, fetches=fetches)
            self._reader.reset()
            ((_, seen),) = self._read(Piece(shard, (leaf,)), landing)
            fetches += 1
        if fetches > 1:
            self._ledger.heal(leaf)
        landing.settle(leaf)
        self._ledger.prove(leaf, seen)

    def _read(self, piece: Piece, landing: Landing) -> list[tuple[Leaf, bytes]]:
        segments = segments_of(piece, landing.place)
        hasher = PassingHasher(segments)

        def landed(count: int) -> None:
            self._stopped()
            self._progress.add(source=count)
            hasher.advance(count)

        views = [view for _, view in segments]
        self._reader.read_into(self._objects[piece.shard], piece.offset, views, landed)
        return hasher.digests


def segments_of(
    piece: Piece, place: Callable[[Leaf], memoryview]
) -> list[tuple[Leaf | None, memoryview]]:
    """Where a piece's bytes go, in order: leaves to their places, gaps to the bin (None)."""
    segments: list[tuple[Leaf | None, memoryview]] = []
    position = piece.offset
    for leaf in piece.leaves:
        if leaf.offset > position:
            segments.append((None, memoryview(bytearray(leaf.offset - position))))
        segments.append((leaf, place(leaf)))
        position = leaf.stop
    return segments
