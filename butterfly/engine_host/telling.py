"""A load's fate, and why a request is refused, in the words of the engine channel."""

import logging
from collections.abc import Mapping

from butterfly.channel import Loaded, LoadFailed, Progressed
from butterfly_core.errors import ButterflyError, NotServing, VerificationFailed
from butterfly_weights.loader import LoadResult
from butterfly_weights.progress import LoadProgress

log = logging.getLogger(__name__)


def loading(epoch: int, progress: LoadProgress) -> Progressed:
    return Progressed(
        epoch,
        "loading_weights",
        progress.bytes_done,
        progress.bytes_total,
        progress.bytes_from_source,
        progress.bytes_from_cache,
        progress.bytes_from_peers,
    )


def passed(epoch: int, phase: str, result: LoadResult) -> Progressed:
    """All bytes are here; what happens to them now."""
    total = result.bytes_loaded
    source, cache = result.bytes_from_source, result.bytes_from_cache
    return Progressed(epoch, phase, total, total, source, cache, result.bytes_from_peers)


def loaded(epoch: int, part_digests: Mapping[str, str], result: LoadResult) -> Loaded:
    return Loaded(
        epoch,
        dict(part_digests),
        result.bytes_from_source,
        result.bytes_from_cache,
        result.healed,
        result.events,
        result.bytes_from_peers,
    )


def load_failed(epoch: int, error: Exception) -> LoadFailed:
    foreseen = isinstance(error, ButterflyError) and str(error)
    log.error("the load of epoch %d failed: %s", epoch, error, exc_info=not foreseen)
    return LoadFailed(
        epoch,
        str(error) if foreseen else f"{type(error).__name__}: {error}",
        type(error).__name__,
        file=getattr(error, "object_name", None),
        tensor=getattr(error, "tensor", None) or None,
        unproven=isinstance(error, VerificationFailed),
    )


def refusal(error: ButterflyError) -> str:
    """The error for the node. A pipeline that ended is a loss, not a refusal: another goes on."""
    over = isinstance(error, NotServing) and error.phase != "serving"
    return f"{'EngineLost' if over else type(error).__name__}: {error}"
