"""Weights on their way to a device: read into a ring of slots, proven there, copied on from there.

No copy of the slice stays in this machine's memory: a slot is used again as soon as the device
has what was in it. Slots are pinned for a GPU, so that copies run beside reading and hashing.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import Queue
from typing import Final, Literal

import torch

from butterfly.engine_host.copying import Copies, Mark
from butterfly.engine_host.torch_types import torch_type
from butterfly_core.errors import VerificationFailed
from butterfly_weights.destination import TensorBytes
from butterfly_weights.errors import NoMemory
from butterfly_weights.handing_on import LoadedPart
from butterfly_weights.merkle import LEAF_BYTES, leaf_digest
from butterfly_weights.select import PIECE_BYTES_MAX, Leaf, leaves_of
from butterfly_weights.tensors import TensorInfo

VerifyDevice = Literal["sample", "all", "off"]
IN_FLIGHT_BYTES_MAX: Final = 256 << 20
SAMPLE_SHARE: Final = 1 / 16


class DeviceMismatch(VerificationFailed):
    """The device gives back other bytes than were copied to it."""

    def __init__(self, device: str, tensor: TensorInfo, leaf: Leaf, want: str, seen: str) -> None:
        super().__init__(
            f"{device} gave back other bytes of tensor {tensor.name} ({tensor.shard}, bytes "
            f"{leaf.offset}-{leaf.stop - 1}) than were copied to it: expected digest {want}, seen "
            f"{seen}. Its memory or its bus is faulty: test the device, or use another one"
        )
        self.object_name = tensor.shard
        self.tensor = tensor.name


class _Slot:
    """A stretch of the ring; ``free`` is passed when the device has taken what was in it."""

    def __init__(self, memory: torch.Tensor, free: Mark) -> None:
        self.memory, self.free = memory, free
        self.view = memory.numpy().data


class _Landing:
    """One piece in one slot: its leaves one after the other."""

    def __init__(self, slot: _Slot, uploader: "Uploader") -> None:
        self._slot, self._uploader = slot, uploader
        self._starts: dict[Leaf, int] = {}
        self._used = 0

    def place(self, leaf: Leaf) -> memoryview:
        if leaf not in self._starts:
            self._starts[leaf] = self._used
            self._used += leaf.nbytes
        start = self._starts[leaf]
        return self._slot.view[start : start + leaf.nbytes]

    def settle(self, leaf: Leaf) -> None:
        start = self._starts[leaf]
        self._uploader.begin_copy(leaf, self._slot.memory[start : start + leaf.nbytes])


class DeviceBytes:
    """A tensor's bytes on the device; a slice is fetched from there."""

    def __init__(self, data: torch.Tensor, landed: Mark) -> None:
        self._data, self._landed = data, landed

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    def __getitem__(self, place: slice, /) -> memoryview:
        self._landed.synchronize()
        return self._data[place].cpu().numpy().data


class Uploader:
    """A ``Destination``: ``tensors`` of one load on one device, by name."""

    piece_bytes_max: Final = PIECE_BYTES_MAX

    def __init__(
        self,
        device: torch.device,
        *,
        in_flight_bytes_max: int = IN_FLIGHT_BYTES_MAX,
        copies: Copies | None = None,
    ) -> None:
        self._device, self._in_flight_bytes_max = device, in_flight_bytes_max
        self._copies = copies or Copies(device)
        self._slots: Queue[_Slot] = Queue()
        self._flat: list[torch.Tensor] = []
        self.tensors: dict[str, torch.Tensor] = {}

    def prepare(self, tensors: Sequence[TensorInfo], *, piece_bytes_max: int) -> None:
        kinds = [torch_type(tensor) for tensor in tensors]
        total = sum(tensor.nbytes for tensor in tensors)
        try:
            for tensor, kind in zip(tensors, kinds, strict=True):
                made = torch.empty(tensor.shape, dtype=kind, device=self._device)
                self.tensors[tensor.name] = made
                self._flat.append(made.view(-1).view(torch.uint8))
            self._make_ring(total, piece_bytes_max)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise NoMemory(
                f"{self._device} cannot hold {total} bytes of weights: {error}. Free memory there, "
                "or lower [node] capacity so that fewer layers are placed here"
            ) from error
        self._copies.follow()

    def _make_ring(self, total: int, slot_bytes: int) -> None:
        wanted = min(self._in_flight_bytes_max, total)
        count = max(1, wanted // slot_bytes)
        pinned = self._copies.is_cuda
        ring = torch.empty(count * slot_bytes, dtype=torch.uint8, pin_memory=pinned)
        for start in range(0, ring.nbytes, slot_bytes):
            self._slots.put(_Slot(ring[start : start + slot_bytes], self._copies.mark()))

    @contextmanager
    def landing(self) -> Iterator[_Landing]:
        slot = self._slots.get()
        try:
            slot.free.synchronize()
            yield _Landing(slot, self)
        finally:
            slot.free = self._copies.mark()
            self._slots.put(slot)

    def begin_copy(self, leaf: Leaf, source: torch.Tensor) -> None:
        start = leaf.index * LEAF_BYTES
        self._copies.copy(self._flat[leaf.tensor][start : start + leaf.nbytes], source)

    def stored(self, number: int) -> TensorBytes:
        return DeviceBytes(self._flat[number], self._copies.mark())

    def take(self, part: LoadedPart, verify: VerifyDevice, seed: int) -> Mapping[str, torch.Tensor]:
        """A part that is whole, once the device has it. Raises DeviceMismatch."""
        self._copies.mark().synchronize()
        for tensor, leaf, expected in to_verify(part, verify, seed):
            start = leaf.index * LEAF_BYTES
            flat = self.tensors[tensor.name].view(-1).view(torch.uint8)
            back = flat[start : start + leaf.nbytes].cpu().numpy().data
            seen = leaf_digest(back)
            if seen != expected:
                raise DeviceMismatch(str(self._device), tensor, leaf, expected.hex(), seen.hex())
        return {name: self.tensors[name] for name in part.entries}


def to_verify(
    part: LoadedPart, verify: VerifyDevice, seed: int
) -> list[tuple[TensorInfo, Leaf, bytes]]:
    """Which leaves to read back, and the digests they had when they were copied: all, none, or
    a share that the seed chooses, at least one."""
    if verify == "off":
        return []
    leaves = [
        (entry.info, leaf, entry.leaves[leaf.index])
        for _, entry in sorted(part.entries.items())
        for leaf in leaves_of(0, entry.info)
    ]
    if verify == "all" or not leaves:
        return leaves
    count = max(1, round(len(leaves) * SAMPLE_SHARE))
    return random.Random(f"{seed} {part.name}").sample(leaves, count)
