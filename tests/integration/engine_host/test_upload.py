"""The ring of slots on a weight's way to a device, run on the CPU with the code that a GPU runs."""

import threading
from pathlib import Path

import pytest
import torch

from butterfly.engine_host.copying import Copies, Mark
from butterfly.engine_host.loading import _as_torch
from butterfly.engine_host.upload import DeviceMismatch, Uploader, VerifyDevice, to_verify
from butterfly_core.layers import all_parts
from butterfly_weights.cache import TensorCache
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.handing_on import LoadedPart
from butterfly_weights.loader import Loader
from butterfly_weights.proving import create_manifest, write_manifest
from butterfly_weights.source import open_source
from tests.support.checkpoints import Shape, write_checkpoint

CPU = torch.device("cpu")
# 10.5 MB embedding of three leaves and small tensors that share pieces.
BIG = Shape(layer_count=2, hidden_size=512, intermediate_size=1024, vocab_size=10_240)
PARTS = all_parts(2)
TWO_SLOTS = 16 << 20


class LateCopies(Copies):
    """Copies nothing before somebody waits for a mark: what a slow device may do."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.begun: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.done = 0
        self.lock = threading.Lock()

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with self.lock:
            self.begun.append((target, source))

    def mark(self) -> Mark:
        with self.lock:
            return LateMark(self, len(self.begun))


class LateMark:
    def __init__(self, copies: LateCopies, count: int) -> None:
        self._copies, self._count = copies, count

    def synchronize(self) -> None:
        with self._copies.lock:
            for target, source in self._copies.begun[self._copies.done : self._count]:
                target.copy_(source)
            self._copies.done = max(self._copies.done, self._count)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("big")
    write_checkpoint(folder, BIG)
    source = open_source("filesystem", str(folder))
    write_manifest(source, create_manifest(source))
    return folder


def loader_of(folder: Path, cache: TensorCache | None = None) -> Loader:
    source = open_source("filesystem", str(folder))
    return Loader(source, read_checkpoint(source), cache=cache)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(-1).view(torch.uint8)

    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype
        and one[n].shape == other[n].shape
        and torch.equal(bits(one[n]), bits(other[n]))
        for n in one
    )


@pytest.mark.parametrize("late", [False, True])
def test_the_ring_gives_the_tensors_and_digests_that_direct_loading_gives(
    folder: Path, late: bool
) -> None:
    direct = loader_of(folder).load(PARTS)
    copies = LateCopies() if late else Copies(CPU)
    uploader = Uploader(CPU, in_flight_bytes_max=TWO_SLOTS, copies=copies)
    taken: dict[str, torch.Tensor] = {}

    def take(part: LoadedPart) -> None:
        taken.update(uploader.take(part, "all", 1))

    result = loader_of(folder).load(PARTS, destination=uploader, on_part=take)

    assert result.part_digests == direct.part_digests
    assert result.tensors == {}
    assert same(taken, {name: _as_torch(tensor) for name, tensor in direct.tensors.items()})


def test_what_goes_to_a_device_is_cached_from_there_and_comes_back_by_the_ring(
    folder: Path, tmp_path: Path
) -> None:
    cache = TensorCache(tmp_path / "cache", free_bytes_min=0)
    first = Uploader(CPU, in_flight_bytes_max=TWO_SLOTS)
    loader_of(folder, cache).load(PARTS, destination=first)
    assert cache.flush(60)
    again = Uploader(CPU, in_flight_bytes_max=TWO_SLOTS)

    result = loader_of(folder, cache).load(PARTS, destination=again)
    cache.close()

    assert result.bytes_from_source == 0
    assert result.bytes_from_cache > 0
    assert same(first.tensors, again.tensors)


@pytest.mark.parametrize("verify", ["all", "off"])
def test_a_device_that_gives_back_other_bytes_is_named_when_all_is_read_back(
    folder: Path, verify: VerifyDevice
) -> None:
    uploader = Uploader(CPU)

    def take(part: LoadedPart) -> None:
        if part.name == "embed":
            uploader.tensors["model.embed_tokens.weight"].view(-1).view(torch.uint8)[5 << 20] ^= 1
        uploader.take(part, verify, 1)

    def load() -> None:
        loader_of(folder).load(PARTS, destination=uploader, on_part=take)

    if verify == "off":
        load()
        return
    with pytest.raises(DeviceMismatch, match=r"cpu gave back other bytes of tensor model\.embed"):
        load()


def test_the_seed_chooses_which_leaves_are_read_back(folder: Path) -> None:
    told: list[LoadedPart] = []
    loader_of(folder).load(PARTS, on_part=told.append)
    embed = told[0]

    chosen = {tuple(leaf.index for _, leaf, _ in to_verify(embed, "sample", s)) for s in range(64)}

    assert chosen == {(0,), (1,), (2,)}
    assert to_verify(embed, "sample", 5) == to_verify(embed, "sample", 5)
    assert len(to_verify(embed, "all", 5)) == 3
    assert to_verify(embed, "off", 5) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_holds_what_the_source_has_and_gives_it_back(folder: Path) -> None:
    uploader = Uploader(torch.device("cuda:0"), in_flight_bytes_max=TWO_SLOTS)
    direct = loader_of(folder).load(PARTS)
    taken: dict[str, torch.Tensor] = {}

    def take(part: LoadedPart) -> None:
        taken.update(uploader.take(part, "all", 1))

    result = loader_of(folder).load(PARTS, destination=uploader, on_part=take)

    assert result.part_digests == direct.part_digests
    assert all(tensor.is_cuda for tensor in taken.values())
    on_cpu = {name: tensor.cpu() for name, tensor in taken.items()}
    assert same(on_cpu, {name: _as_torch(tensor) for name, tensor in direct.tensors.items()})
