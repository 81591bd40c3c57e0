"""From a bucket or a disk to tensors on the device: proven bytes, once each, part by part as they
come.

Parts that an earlier epoch loaded for the same model are kept, so a new plan costs only what
moved to this machine. Another model can be prepared beside the present one.
"""

import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from butterfly.channel import Load, ModelSource
from butterfly.engine_host.peer_links import PeerHub
from butterfly.engine_host.torch_types import torch_type
from butterfly.engine_host.upload import Uploader, VerifyDevice
from butterfly.handover import decode_checkpoint
from butterfly_core.layers import LayerRange, part_of_tensor, stage_parts
from butterfly_weights.cache import TensorCache
from butterfly_weights.cache_files import clear
from butterfly_weights.checkpoint import Checkpoint
from butterfly_weights.handing_on import LoadedPart, LoadedTensor
from butterfly_weights.loader import Loader, LoadResult
from butterfly_weights.manifest import part_digests
from butterfly_weights.progress import LoadProgress
from butterfly_weights.source import Source, SourceOptions, open_source

log = logging.getLogger(__name__)

_CACHE_FLUSH_SECONDS = 2.0
_NOTHING_LOADED = LoadResult({}, {}, 0, 0)


@dataclass
class Holdings:
    """Proven tensors of one model on the device, with the digests of all of them and of their
    parts."""

    model: str = ""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)
    part_digests: dict[str, str] = field(default_factory=dict)

    def keep_only(self, parts: Collection[str]) -> None:
        """Forget parts that are not wanted."""
        for name in [name for name in self.digests if part_of_tensor(name) not in parts]:
            del self.tensors[name], self.digests[name]
        self.part_digests = {
            part: digest for part, digest in self.part_digests.items() if part in parts
        }

    def take(self, incoming: "_Incoming", *, whole: bool) -> None:
        """What has come: all of a load that succeeded; of one that failed, the parts that were
        compared with a manifest, so that trying again costs only the others."""
        for part, tensors in incoming.parts:
            if whole or part.is_final:
                self.tensors.update(tensors)
                self.digests.update({n: entry.digest for n, entry in part.entries.items()})
                self.part_digests[part.name] = part.digest

    def alike(self, checkpoint: Checkpoint, parts: Collection[str]) -> frozenset[str]:
        """Tensors of these parts that are here already, bit by bit, as the manifest tells."""
        if checkpoint.manifest is None:
            return frozenset()
        entries = checkpoint.manifest.tensors
        return frozenset(
            tensor.name
            for tensor in checkpoint.tensors
            if tensor.part in parts and self.digests.get(tensor.name) == entries[tensor.name].digest
        )


class Weights:
    """What this process holds and has proven. One thread at a time may load, prepare or drop."""

    def __init__(
        self, peers: PeerHub, device: str = "cpu", verify_device: VerifyDevice = "sample"
    ) -> None:
        self._peers = peers
        self._device, self._verify_device = torch.device(device), verify_device
        self._held, self._prepared = Holdings(), Holdings()
        self._cache: TensorCache | None = None

    @property
    def part_digests(self) -> Mapping[str, str]:
        return self._held.part_digests

    @property
    def prepared_digests(self) -> Mapping[str, str]:
        return self._prepared.part_digests

    def load(
        self,
        order: Load,
        *,
        on_progress: Callable[[LoadProgress], None],
        cancelled: Callable[[], bool],
    ) -> LoadResult:
        """Hold exactly the parts that the order asks for. Raises the loader's errors."""
        parts = _parts_of(order)
        cache = self._cache_of(order.source)
        if order.forget:
            self.drop()
            if order.source.cache_directory is not None:
                clear(Path(order.source.cache_directory))
        if cache is not None and order.model not in (self._held.model, self._prepared.model):
            cache.protect_from_now()
        self._hold_model(order.model)
        self._held.keep_only(parts)
        missing = [part for part in parts if part not in self._held.part_digests]
        if not missing:
            return _NOTHING_LOADED
        incoming = _Incoming(self._device, self._verify_device)
        try:
            checkpoint = decode_checkpoint(order.checkpoint)
            result = self._fetch(order, checkpoint, missing, incoming, on_progress, cancelled)
        except BaseException:
            self._held.take(incoming, whole=False)
            raise
        self._held.take(incoming, whole=True)
        return result

    def prepare(
        self,
        order: Load,
        *,
        on_progress: Callable[[LoadProgress], None],
        cancelled: Callable[[], bool],
    ) -> LoadResult:
        """Hold the order's parts beside the present ones. A tensor that is the same in both by its
        manifest is not read again, and a part that is lies in memory once: of others the same
        tensors are copied, or one of them would keep all of the old part alive, which lies in one
        stretch. Raises the loader's errors."""
        self.give_up()
        parts = _parts_of(order)
        cache = self._cache_of(order.source)
        if cache is not None:
            cache.protect_from_now()
        checkpoint = decode_checkpoint(order.checkpoint)
        shared = self._held.alike(checkpoint, parts)
        rest = tuple(tensor for tensor in checkpoint.tensors if tensor.name not in shared)
        incoming = _Incoming(self._device, self._verify_device)
        result = self._fetch(
            order, replace(checkpoint, tensors=rest), parts, incoming, on_progress, cancelled
        )
        prepared = Holdings(order.model)
        prepared.take(incoming, whole=True)
        changed = {tensor.part for tensor in rest}
        for name in shared:
            held = self._held.tensors[name]
            prepared.tensors[name] = held.clone() if part_of_tensor(name) in changed else held
            prepared.digests[name] = self._held.digests[name]
        prepared.part_digests = part_digests(prepared.digests, parts)
        self._prepared = prepared
        return result

    def give_up(self) -> None:
        """Forget what was prepared."""
        self._prepared = Holdings()

    def _hold_model(self, model: str) -> None:
        """Turn to what was prepared, if it is of this model; forget what is of others."""
        if model != self._held.model:
            ready = self._prepared.model == model
            self._held = self._prepared if ready else Holdings(model)
        self.give_up()

    def _fetch(
        self,
        order: Load,
        checkpoint: Checkpoint,
        parts: Sequence[str],
        incoming: "_Incoming",
        on_progress: Callable[[LoadProgress], None],
        cancelled: Callable[[], bool],
    ) -> LoadResult:
        source, cache = _open(order.source), self._cache_of(order.source)
        try:
            peers = self._peers.for_load(order, cache)
            result = Loader(source, checkpoint, cache=cache, peers=peers).load(
                parts,
                on_progress=on_progress,
                cancelled=cancelled,
                on_part=incoming.take,
                destination=incoming.uploader,
            )
        finally:
            source.close()
        for event in (*result.events, *(cache.notes if cache else ())):
            log.warning("while loading: %s", event)
        return result

    def _cache_of(self, source: ModelSource) -> TensorCache | None:
        if self._cache is None and source.cache_directory is not None:
            self._cache = TensorCache(
                Path(source.cache_directory),
                source.cache_bytes_max,
                scrub_bytes_per_second=source.cache_scrub_bytes_per_second,
            )
        return self._cache

    def as_torch(self) -> dict[str, torch.Tensor]:
        """What is held, on the device, nothing copied."""
        return dict(self._held.tensors)

    def cache_statistics(self) -> Mapping[str, int]:
        """What the cache's scrub has done, by the names of the node's metrics."""
        if self._cache is None:
            return {}
        told = self._cache.statistics()
        return {"cache_scrubbed_bytes": told.scrubbed_bytes, "cache_rotten": told.rotten}

    def drop(self) -> None:
        """Hold nothing."""
        self._held, self._prepared = Holdings(self._held.model), Holdings()

    def close(self) -> None:
        """Give the cache a moment to write what it still holds."""
        if self._cache is not None:
            self._cache.flush(_CACHE_FLUSH_SECONDS)
            self._cache.close()


def _parts_of(order: Load) -> tuple[str, ...]:
    layers = LayerRange(order.start, order.stop)
    return stage_parts(layers, order.layer_count, tied=order.tied)


class _Incoming:
    """The parts of a load as they come: on a CPU the loader's own memory, else by the ring."""

    def __init__(self, device: torch.device, verify_device: VerifyDevice) -> None:
        self.uploader = None if device.type == "cpu" else Uploader(device)
        self.parts: list[tuple[LoadedPart, Mapping[str, torch.Tensor]]] = []
        self._verify_device = verify_device
        self._seed = secrets.randbits(64)  # other leaves each time

    def take(self, part: LoadedPart) -> None:
        if self.uploader is not None:
            tensors = self.uploader.take(part, self._verify_device, self._seed)
        else:
            tensors = {name: _as_torch(tensor) for name, tensor in part.tensors.items()}
        self.parts.append((part, tensors))


def _open(source: ModelSource) -> Source:
    return open_source(
        source.source_type,
        source.source_path,
        endpoint_url=source.endpoint_url,
        region=source.region,
        # This process keeps transformers off the network. The node knows if it is off, too: it
        # then names the folder of the hub's cache.
        options=SourceOptions(hub_offline=False),
    )


def _as_torch(tensor: LoadedTensor) -> torch.Tensor:
    kind = torch_type(tensor.info)
    if not tensor.info.nbytes:
        return torch.empty(tensor.info.shape, dtype=kind)
    return torch.frombuffer(tensor.data, dtype=kind).view(tensor.info.shape)
