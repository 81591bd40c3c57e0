"""Parts of a load that are whole, in the order asked for, while later ones still come."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from butterfly_weights.destination import HostMemory
from butterfly_weights.ledger import Ledger
from butterfly_weights.manifest import TensorEntry
from butterfly_weights.merkle import part_digest
from butterfly_weights.tensors import TensorInfo


@dataclass(frozen=True, slots=True)
class LoadedTensor:
    """``data``: the tensor's bytes, writable, 64-byte aligned, alive as long as the view."""

    info: TensorInfo
    data: memoryview


@dataclass(frozen=True, slots=True)
class LoadedPart:
    """All of a part's tensors. ``tensors`` is empty when they went to a destination of the
    caller's own, which knows them by name.

    ``is_final``: compared with a manifest, so the part is right even if the load fails later.
    Without a manifest it may be of an object that turns out to have been replaced.
    """

    name: str
    digest: str
    entries: Mapping[str, TensorEntry]
    tensors: Mapping[str, LoadedTensor]
    is_final: bool


class InOrder:
    """Calls ``on_part`` once per part, each after all before it. One thread's."""

    def __init__(
        self,
        parts: Sequence[str],
        tensors: Sequence[TensorInfo],
        ledger: Ledger,
        host: HostMemory | None,
        on_part: Callable[[LoadedPart], None],
        *,
        is_final: bool,
    ) -> None:
        self._waiting = list(reversed(parts))
        self._numbers: dict[str, list[int]] = {part: [] for part in parts}
        for number, tensor in enumerate(tensors):
            self._numbers[tensor.part].append(number)
        self._ledger, self._host, self._on_part = ledger, host, on_part
        self._is_final = is_final

    def hand_on(self) -> None:
        """Those whose turn it is. What ``on_part`` raises goes through."""
        while self._waiting:
            part = self._waiting[-1]
            numbers = self._numbers[part]
            entries = self._ledger.entries(numbers)
            if entries is None:
                return
            self._waiting.pop()
            by_name = {entry.info.name: entry for entry in entries}
            digest = part_digest({name: entry.digest for name, entry in by_name.items()}).hex()
            tensors = {}
            if self._host is not None:
                for number, entry in zip(numbers, entries, strict=True):
                    block = self._host.stored(number)
                    tensors[entry.info.name] = LoadedTensor(entry.info, block)
            self._on_part(LoadedPart(part, digest, by_name, tensors, self._is_final))
