"""A stage's weights into memory: from the cache where it has them, else from the source, every
leaf proven against the manifest, or digests computed where there is none."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from butterfly_core.errors import InvalidValue
from butterfly_core.layers import all_parts
from butterfly_weights.cache import TensorCache
from butterfly_weights.checkpoint import Checkpoint
from butterfly_weights.crew import work_off
from butterfly_weights.destination import Destination, HostMemory
from butterfly_weights.errors import LoadCancelled, SourceChanged
from butterfly_weights.exchange import Exchange
from butterfly_weights.fetching import ChangedShards, PieceFetcher
from butterfly_weights.from_cache import CACHE_READERS, CachedTensor, CacheFetcher
from butterfly_weights.handing_on import InOrder, LoadedPart, LoadedTensor
from butterfly_weights.ledger import Ledger
from butterfly_weights.loader_options import LoaderOptions
from butterfly_weights.manifest import TensorEntry, part_digests
from butterfly_weights.merkle import LEAF_BYTES
from butterfly_weights.peers import Peers
from butterfly_weights.progress import LoadProgress, ProgressCounter
from butterfly_weights.select import Leaf, plan_pieces, taper
from butterfly_weights.source import ObjectInfo, Source
from butterfly_weights.spec import layer_count_of


@dataclass(frozen=True, slots=True)
class LoadResult:
    """``tensors`` is empty when they went to a destination of the caller's own, which knows them.
    ``healed`` names leaves that were wrong once; ``events`` tells of damaged cache files and
    restarted shards, for people."""

    tensors: Mapping[str, LoadedTensor]
    part_digests: Mapping[str, str]
    bytes_from_source: int
    bytes_from_cache: int
    healed: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    bytes_from_peers: int = 0
    bytes_loaded: int = 0
    """Of all tensors together, wherever they came from."""


class Loader:
    """Loads parts of one checkpoint; may be used again, also after a failure."""

    def __init__(
        self,
        source: Source,
        checkpoint: Checkpoint,
        *,
        cache: TensorCache | None = None,
        options: LoaderOptions | None = None,
        peers: Peers | None = None,
    ) -> None:
        """``peers`` are asked before the source for what the manifest can prove."""
        self._source, self._checkpoint, self._cache = source, checkpoint, cache
        self._options, self._peers = options or LoaderOptions(), peers

    def load(
        self,
        parts: Sequence[str],
        *,
        on_progress: Callable[[LoadProgress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        on_part: Callable[[LoadedPart], None] = lambda _: None,
        destination: Destination | None = None,
    ) -> LoadResult:
        """Bring all tensors of the parts into memory, or to the destination. Blocks.

        ``on_part`` is told of each part as soon as it and all before it are whole, while later
        ones still come. All callbacks run in this thread; what they raise ends the load.

        Raises VerificationFailed (BytesMismatch), SourceError, NoMemory, LoadCancelled,
        InvalidValue for an unknown part.
        """
        known = all_parts(layer_count_of(self._checkpoint.config))
        if unknown := sorted(set(parts) - set(known)):
            raise InvalidValue(f"the model has no part {', '.join(unknown)}")
        own = (self._source, self._checkpoint, self._cache, self._options, self._peers)
        load = _Load(*own, parts, destination, on_progress, cancelled, on_part)
        try:
            return load.run()
        finally:
            load.release()


class _Load:
    """One call of ``Loader.load``; nothing of it outlives the call but the result."""

    def __init__(
        self,
        source: Source,
        checkpoint: Checkpoint,
        cache: TensorCache | None,
        options: LoaderOptions,
        peers: Peers | None,
        parts: Sequence[str],
        destination: Destination | None,
        on_progress: Callable[[LoadProgress], None],
        cancelled: Callable[[], bool],
        on_part: Callable[[LoadedPart], None],
    ) -> None:
        self._source, self._checkpoint, self._cache = source, checkpoint, cache
        self._options, self._parts = options, parts
        self._on_progress, self._cancelled = on_progress, cancelled
        self._tensors = checkpoint.tensors_of(parts)
        self._host: HostMemory | None = None
        if destination is None:
            destination = self._host = HostMemory()
        self._destination = destination
        # A leaf is never cut, so a piece may be as large as one.
        largest = min(options.piece_bytes_max, destination.piece_bytes_max)
        self._piece_bytes_max = max(largest, LEAF_BYTES)
        self._destination.prepare(self._tensors, piece_bytes_max=self._piece_bytes_max)
        self._progress = ProgressCounter(sum(tensor.nbytes for tensor in self._tensors))
        self._objects: dict[str, ObjectInfo] = dict(checkpoint.objects)
        self._came_from_cache: set[int] = set()
        self._events: list[str] = []
        self._stop = threading.Event()
        self._ledger = Ledger(
            self._tensors, checkpoint.manifest, self._progress, self._offer_to_cache
        )
        self._exchange = Exchange(
            peers,
            checkpoint,
            self._tensors,
            self._ledger,
            self._progress,
            land=self._land_from_peer,
            shown=self._host.shown if self._host is not None else lambda _: None,
        )
        self._in_order = InOrder(
            parts,
            self._tensors,
            self._ledger,
            self._host,
            on_part,
            is_final=checkpoint.manifest is not None,
        )

    def run(self) -> LoadResult:
        with self._exchange:
            self._bring_all()
        self._in_order.hand_on()
        self._on_progress(self._progress.now())
        return self._result()

    def _bring_all(self) -> None:
        self._read_cache()
        restarted: set[str] = set()
        missing = self._ledger.missing()
        while missing:
            changed = self._fetch(missing)
            for shard, error in changed.items():
                self._restart(shard, error, first=shard not in restarted)
                restarted.add(shard)
            missing = self._ledger.missing()

    def release(self) -> None:
        """Let go of the memory: from now on only the result keeps it. (This object and its
        ledger know each other, so it would live until the garbage collector comes by.)"""
        if self._host is not None:
            self._host.release()

    def _result(self) -> LoadResult:
        now = self._progress.now()
        blocks = self._host.blocks if self._host is not None else ()
        return LoadResult(
            tensors={
                tensor.name: LoadedTensor(tensor, block)
                for tensor, block in zip(self._tensors, blocks, strict=False)
            },
            part_digests=part_digests(self._ledger.digests, self._parts),
            bytes_from_source=now.bytes_from_source,
            bytes_from_cache=now.bytes_from_cache,
            healed=self._ledger.healed,
            events=(*self._events, *self._exchange.events),
            bytes_from_peers=now.bytes_from_peers,
            bytes_loaded=now.bytes_total,
        )

    def _read_cache(self) -> None:
        if self._cache is None:
            return
        cache, digests = self._cache, self._known_digests()
        tasks = [
            CachedTensor(number, tensor, digests[tensor.name])
            for number, tensor in enumerate(self._tensors)
            if tensor.nbytes and tensor.name in digests
            if cache.holds(digests[tensor.name], tensor.nbytes)
        ]
        self._came_from_cache = {task.number for task in tasks}
        work_off(
            tasks,
            lambda: CacheFetcher(
                cache,
                self._destination,
                self._ledger,
                self._progress,
                self._drop_cached,
                self._stop,
            ),
            wanted=lambda: min(CACHE_READERS, self._options.readers),
            poll=self._poll,
            poll_seconds=self._options.poll_seconds,
        )

    def _drop_cached(self, number: int, event: str) -> None:
        self._came_from_cache.discard(number)
        self._events.append(event)

    def _known_digests(self) -> Mapping[str, bytes]:
        """What each tensor must be: by the manifest, else as this very revision once was."""
        manifest = self._checkpoint.manifest
        if manifest is not None:
            return {name: entry.digest for name, entry in manifest.tensors.items()}
        return self._cache.pinned(self._checkpoint.cache_key) if self._cache else {}

    def _offer_to_cache(self, number: int, entry: TensorEntry) -> None:
        if self._cache is None or number in self._came_from_cache or not entry.info.nbytes:
            return
        pin = None if self._checkpoint.manifest else self._checkpoint.cache_key
        data, info = self._destination.stored(number), entry.info
        self._cache.offer(info.name, entry.digest, data, pin=pin, info=info)

    def _fetch(self, missing: Sequence[int]) -> Mapping[str, SourceChanged]:
        """Read tensors from the source. Returns the shards that were replaced meanwhile."""
        changed = ChangedShards()
        pieces = plan_pieces(
            [self._tensors[number] for number in missing],
            piece_bytes_max=self._piece_bytes_max,
            gap_bytes_max=self._options.gap_bytes_max,
            gap_share_max=self._options.gap_share_max,
            numbers=missing,
        )
        self._exchange.work_off(
            taper(pieces),
            lambda: PieceFetcher(
                self._source.reader(),
                self._objects,
                self._destination,
                self._ledger,
                self._progress,
                changed,
                refetches_max=self._options.leaf_refetches_max,
                stopped=self._refuse_when_stopped,
            ),
            wanted=lambda: min(self._source.readers_wanted, self._options.readers),
            poll=self._poll,
            poll_seconds=self._options.poll_seconds,
        )
        return changed.take()

    def _land_from_peer(self, leaf: Leaf, data: memoryview) -> None:
        with self._destination.landing() as landing:
            landing.place(leaf)[:] = data
            landing.settle(leaf)

    def _restart(self, shard: str, error: SourceChanged, *, first: bool) -> None:
        """Go over to a replaced shard's new version, once, and only where a manifest can tell
        whether it is the right one: without, other nodes may already hold the old version."""
        if self._checkpoint.manifest is None or not first:
            raise error
        info = self._checkpoint.same_layout(self._source, shard)
        if info is None:
            raise error
        self._objects[shard] = info
        self._ledger.forget_unfinished(shard)
        self._events.append(f"{shard} was replaced while loading; went on with what is there now")

    def _poll(self) -> None:
        self._on_progress(self._progress.now())
        self._exchange.poll()
        self._in_order.hand_on()
        if self._cancelled():
            self._stop.set()
            raise LoadCancelled("the load was cancelled")

    def _refuse_when_stopped(self) -> None:
        if self._stop.is_set():
            raise LoadCancelled("the load was cancelled")
