"""Bringing tensors from the local cache, proven as if they came from a stranger."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from butterfly_weights.cache import TensorCache
from butterfly_weights.errors import LoadCancelled
from butterfly_weights.ledger import Ledger
from butterfly_weights.manifest import entry_of
from butterfly_weights.merkle import LEAF_BYTES, leaf_digest
from butterfly_weights.progress import ProgressCounter
from butterfly_weights.tensors import TensorInfo


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
        blocks: Sequence[memoryview],
        ledger: Ledger,
        progress: ProgressCounter,
        on_damaged: Callable[[int, str], None],
        stop: threading.Event,
    ) -> None:
        self._cache, self._blocks, self._ledger = cache, blocks, ledger
        self._progress, self._on_damaged, self._stop = progress, on_damaged, stop

    def do(self, task: CachedTensor) -> None:
        leaves: list[bytes] = []
        block = self._blocks[task.number]
        with self._cache.opened(task.digest) as file:
            for start in range(0, block.nbytes, LEAF_BYTES):
                if self._stop.is_set():
                    raise LoadCancelled("the load was cancelled")
                chunk = block[start : start + LEAF_BYTES]
                if not file.read_into(start, chunk):
                    break
                leaves.append(leaf_digest(chunk))
        entry = entry_of(task.info, leaves)
        if entry.digest == task.digest:
            self._progress.add(cache=block.nbytes)
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
        self._blocks = ()
