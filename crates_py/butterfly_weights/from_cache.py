"""Bringing tensors from the local cache, proven as if they came from a stranger."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from butterfly_weights.cache import TensorCache
from butterfly_weights.destination import Destination
from butterfly_weights.errors import LoadCancelled
from butterfly_weights.ledger import Ledger
from butterfly_weights.manifest import entry_of
from butterfly_weights.merkle import LEAF_BYTES, leaf_digest
from butterfly_weights.progress import ProgressCounter
from butterfly_weights.select import leaves_of
from butterfly_weights.tensors import TensorInfo

CACHE_READERS: Final = 8
"""Threads that read from the cache's disk at once."""


@dataclass(frozen=True, slots=True)
class CachedTensor:
    """A tensor that the cache says it has."""

    number: int
    info: TensorInfo
    digest: bytes


class CacheFetcher:
    """A ``crew.Worker`` for cached tensors. A damaged one is dropped and left to the source."""

    def __init__(
        self,
        cache: TensorCache,
        destination: Destination,
        ledger: Ledger,
        progress: ProgressCounter,
        on_damaged: Callable[[int, str], None],
        stop: threading.Event,
    ) -> None:
        self._cache, self._destination, self._ledger = cache, destination, ledger
        self._progress, self._on_damaged, self._stop = progress, on_damaged, stop

    def do(self, task: CachedTensor) -> None:
        leaves: list[bytes] = []
        with self._cache.opened(task.digest) as file:
            for leaf in leaves_of(task.number, task.info):
                if self._stop.is_set():
                    raise LoadCancelled("the load was cancelled")
                with self._destination.landing() as landing:
                    chunk = landing.place(leaf)
                    if not file.read_into(leaf.index * LEAF_BYTES, chunk):
                        break
                    leaves.append(leaf_digest(chunk))
                    # Proven only as a whole; until then the tensor does not count.
                    landing.settle(leaf)
        entry = entry_of(task.info, leaves)
        if entry.digest == task.digest:
            self._progress.add(cache=task.info.nbytes)
            self._ledger.prove_tensor(task.number, entry)
            return
        self._cache.discard(task.digest)
        self._on_damaged(
            task.number,
            f"the cached copy of {task.info.name} ({task.digest.hex()[:16]}…) is damaged or "
            "gone; it was dropped and is read from the source",
        )

    def interrupt(self) -> None:
        """Reads of a local file end by themselves."""

    def close(self) -> None:
        """Nothing is kept open."""
