"""What of a load has been proven: digests of leaves, then of tensors."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from butterfly_weights.errors import BytesMismatch
from butterfly_weights.manifest import Manifest, TensorEntry, entry_of
from butterfly_weights.merkle import LEAF_BYTES, leaf_count
from butterfly_weights.progress import ProgressCounter
from butterfly_weights.select import Leaf
from butterfly_weights.tensors import TensorInfo


class Ledger:
    """Thread-safe. ``on_proven(number, entry)`` is called once a tensor's last leaf is in."""

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        manifest: Manifest | None,
        progress: ProgressCounter,
        on_proven: Callable[[int, TensorEntry], None],
    ) -> None:
        self._tensors, self._manifest = tensors, manifest
        self._progress, self._on_proven = progress, on_proven
        self._lock = threading.Lock()
        self._leaves: list[dict[int, bytes]] = [{} for _ in tensors]
        self._entries: dict[int, TensorEntry] = {}
        self._healed: list[str] = []
        for number, tensor in enumerate(tensors):
            if not tensor.nbytes:
                self._complete(number)

    def expected(self, leaf: Leaf) -> bytes | None:
        """The manifest's digest of a leaf; None without a manifest."""
        if self._manifest is None:
            return None
        return self._manifest.tensors[self._tensors[leaf.tensor].name].leaves[leaf.index]

    def agrees(self, leaf: Leaf, seen: bytes) -> bool:
        return self.expected(leaf) in (None, seen)

    def is_proven(self, number: int, index: int) -> bool:
        """True when leaf ``index`` of tensor ``number`` is in place."""
        with self._lock:
            return index in self._leaves[number]

    def prove(self, leaf: Leaf, seen: bytes) -> None:
        """Take down the digest of a leaf that is in place."""
        with self._lock:
            leaves = self._leaves[leaf.tensor]
            leaves[leaf.index] = seen
            whole = len(leaves) == leaf_count(self._tensors[leaf.tensor].nbytes)
        self._progress.add(done=leaf.nbytes)
        if whole:
            self._complete(leaf.tensor)

    def prove_tensor(self, number: int, entry: TensorEntry) -> None:
        """Take down a whole tensor."""
        with self._lock:
            self._leaves[number] = dict(enumerate(entry.leaves))
        self._progress.add(done=entry.info.nbytes)
        self._complete(number)

    def forget_unfinished(self, shard: str) -> None:
        """Drop what is known of a shard's tensors that are not whole: they will be read anew.
        (What is whole was compared with the manifest, whichever version it came from.)"""
        with self._lock:
            for number, tensor in enumerate(self._tensors):
                if tensor.shard == shard and number not in self._entries:
                    rest = (tensor.nbytes - i * LEAF_BYTES for i in self._leaves[number])
                    self._progress.add(done=-sum(min(LEAF_BYTES, size) for size in rest))
                    self._leaves[number] = {}

    def mismatch(self, leaf: Leaf, seen: bytes, *, fetches: int) -> BytesMismatch:
        """The error for a leaf that stays wrong."""
        tensor = self._tensors[leaf.tensor]
        return BytesMismatch(
            object_name=tensor.shard,
            tensor=tensor.name,
            start=leaf.offset,
            stop=leaf.stop,
            expected=(self.expected(leaf) or b"").hex(),
            seen=seen.hex(),
            fetches=fetches,
        )

    def heal(self, leaf: Leaf) -> None:
        """Take down that a leaf was wrong once and right when read again."""
        tensor = self._tensors[leaf.tensor]
        with self._lock:
            self._healed.append(
                f"{tensor.shard}: {tensor.name}, bytes {leaf.offset}-{leaf.stop - 1}"
            )

    @property
    def healed(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._healed)

    @property
    def digests(self) -> Mapping[str, bytes]:
        """Digests of the tensors that are whole, by name."""
        with self._lock:
            return {entry.info.name: entry.digest for entry in self._entries.values()}

    def entries(self, numbers: Iterable[int]) -> tuple[TensorEntry, ...] | None:
        """These tensors, or None while one of them is not whole."""
        with self._lock:
            found = [self._entries.get(number) for number in numbers]
        whole = tuple(entry for entry in found if entry is not None)
        return whole if len(whole) == len(found) else None

    def missing(self) -> tuple[int, ...]:
        """Numbers of the tensors that are not whole yet."""
        with self._lock:
            return tuple(n for n in range(len(self._tensors)) if n not in self._entries)

    def _complete(self, number: int) -> None:
        leaves = self._leaves[number]
        entry = entry_of(self._tensors[number], (leaves[i] for i in sorted(leaves)))
        with self._lock:
            self._entries[number] = entry
        self._on_proven(number, entry)
