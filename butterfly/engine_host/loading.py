"""From a bucket or a disk to tensors on the device: proven bytes, once each, part by part as they
come.

Parts that an earlier epoch loaded for the same model are kept, so a new plan costs only what
moved to this machine.
"""

import logging
import secrets
from collections.abc import Callable, Mapping
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
from butterfly_weights.handing_on import LoadedPart, LoadedTensor
from butterfly_weights.loader import Loader, LoadResult
from butterfly_weights.progress import LoadProgress
from butterfly_weights.source import Source, SourceOptions, open_source

log = logging.getLogger(__name__)

_CACHE_FLUSH_SECONDS = 2.0
_NOTHING_LOADED = LoadResult({}, {}, 0, 0)


class Weights:
    """What this process holds and has proven. One thread at a time may ``load``."""

    def __init__(
        self, peers: PeerHub, device: str = "cpu", verify_device: VerifyDevice = "sample"
    ) -> None:
        self._peers = peers
        self._device, self._verify_device = torch.device(device), verify_device
        self._model = ""
        self._tensors: dict[str, torch.Tensor] = {}
        self._cache: TensorCache | None = None
        self.part_digests: dict[str, str] = {}

    def load(
        self,
        order: Load,
        *,
        on_progress: Callable[[LoadProgress], None],
        cancelled: Callable[[], bool],
    ) -> LoadResult:
        """Hold exactly the parts that the order asks for. Raises the loader's errors."""
        layers = LayerRange(order.start, order.stop)
        parts = stage_parts(layers, order.layer_count, tied=order.tied)
        cache = self._cache_of(order.source)
        if order.forget:
            self.drop()
            if order.source.cache_directory is not None:
                clear(Path(order.source.cache_directory))
        if cache is not None and order.model != self._model:
            cache.protect_from_now()
        self._keep_only(order.model, parts)
        missing = [part for part in parts if part not in self.part_digests]
        if not missing:
            return _NOTHING_LOADED
        source, incoming = _open(order.source), _Incoming(self._device, self._verify_device)
        try:
            peers = self._peers.for_load(order, cache)
            loader = Loader(source, decode_checkpoint(order.checkpoint), cache=cache, peers=peers)
            result = loader.load(
                missing,
                on_progress=on_progress,
                cancelled=cancelled,
                on_part=incoming.take,
                destination=incoming.uploader,
            )
        except BaseException:
            self._keep(incoming, whole=False)
            raise
        finally:
            source.close()
        self._keep(incoming, whole=True)
        for event in (*result.events, *(cache.notes if cache else ())):
            log.warning("while loading: %s", event)
        return result

    def _keep(self, incoming: "_Incoming", *, whole: bool) -> None:
        """Take what has come: all of a load that succeeded; of one that failed, the parts that
        were compared with a manifest, so that trying again costs only the others."""
        for part, tensors in incoming.parts:
            if whole or part.is_final:
                self._tensors.update(tensors)
                self.part_digests[part.name] = part.digest

    def _cache_of(self, source: ModelSource) -> TensorCache | None:
        if self._cache is None and source.cache_directory is not None:
            self._cache = TensorCache(
                Path(source.cache_directory),
                source.cache_bytes_max,
                scrub_bytes_per_second=source.cache_scrub_bytes_per_second,
            )
        return self._cache

    def _keep_only(self, model: str, parts: tuple[str, ...]) -> None:
        """Forget other models' tensors and parts that are not wanted."""
        wanted = set(parts) if model == self._model else set()
        self._model = model
        self._tensors = {
            name: tensor for name, tensor in self._tensors.items() if part_of_tensor(name) in wanted
        }
        self.part_digests = {
            part: digest for part, digest in self.part_digests.items() if part in wanted
        }

    def as_torch(self) -> dict[str, torch.Tensor]:
        """What is held, on the device, nothing copied."""
        return dict(self._tensors)

    def cache_statistics(self) -> Mapping[str, int]:
        """What the cache's scrub has done, by the names of the node's metrics."""
        if self._cache is None:
            return {}
        told = self._cache.statistics()
        return {"cache_scrubbed_bytes": told.scrubbed_bytes, "cache_rotten": told.rotten}

    def drop(self) -> None:
        """Hold nothing."""
        self._tensors = {}
        self.part_digests = {}

    def close(self) -> None:
        """Give the cache a moment to write what it still holds."""
        if self._cache is not None:
            self._cache.flush(_CACHE_FLUSH_SECONDS)
            self._cache.close()


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
