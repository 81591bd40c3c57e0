"""The model as this node reads it from its source: headers and small files, never weights.

A signature that is wrong, or missing where the configuration requires one, is a source that fails:
nothing is described to the cluster, and nothing is loaded.

Reading blocks, so it runs in a thread, which nobody waits for at the end. A source that fails is
asked again; what is wrong with it is kept for the status page.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from butterfly.channel import ModelSource
from butterfly.config import ModelSection, name_of_source
from butterfly.node.local import Local, Problem
from butterfly_cluster.commands import DescribeModel
from butterfly_core.errors import ButterflyError
from butterfly_engine.supported import check_supported
from butterfly_text.model import TextModel
from butterfly_weights.addresses import is_commit, parse_hub_name
from butterfly_weights.checkpoint import Checkpoint, read_checkpoint
from butterfly_weights.hub_cache import SnapshotSource
from butterfly_weights.merkle import model_root
from butterfly_weights.signature import load_trusted_keys
from butterfly_weights.signed import Signed, check_signed
from butterfly_weights.source import Pinned, Source, SourceOptions, open_source
from butterfly_weights.spec import model_spec

log = logging.getLogger(__name__)

PROBLEM_CODE = "model_source"
_RETRY_FIRST_SECONDS = 1.0
_RETRY_MAX_SECONDS = 10.0
_LOOK_SECONDS = 5.0

T = TypeVar("T")


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """``asyncio.to_thread`` for what may hang: a cancelled call holds up neither loop nor exit."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on only the waiting can be cancelled

    def call() -> None:
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=call, name="slow work", daemon=True).start()
    return await asyncio.wrap_future(future)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found at the source; ``signed`` is None for a model that nobody signed."""

    checkpoint: Checkpoint
    described: DescribeModel
    text: TextModel
    signed: Signed | None


class ModelReader:
    """Holds the newest reading; ``checkpoint`` is None until one succeeded."""

    def __init__(
        self, section: ModelSection, local: Local, *, embedded_root: Path, cache: Path | None
    ) -> None:
        self._section = section
        self._local = local
        self._embedded_root = embedded_root
        self._cache = cache
        self._reading = asyncio.Lock()
        self._path = section.source_path
        self._snapshot: Path | None = None
        self._wanted = self._read_for = 0
        self.checkpoint: Checkpoint | None = None
        self.described: DescribeModel | None = None
        self.text: TextModel | None = None

    @property
    def name(self) -> str:
        section = self._section
        return section.name or name_of_source(section.source_type, section.source_path)

    def engine_source(self) -> ModelSource:
        """The same source, as the engine process opens it."""
        section = self._section
        source_type, path = section.source_type, self._path
        if section.source_type == "embedded":
            source_type, path = "filesystem", str(self._embedded_root / path)
        elif self._snapshot is not None:
            source_type, path = "filesystem", str(self._snapshot)
        return ModelSource(
            source_type=source_type,
            source_path=path,
            endpoint_url=section.endpoint_url,
            region=section.region,
            cache_directory=str(self._cache) if self._cache else None,
            cache_bytes_max=section.cache_bytes_max,
            peers=section.peers,
            peer_upload_bytes_per_second=section.peer_upload_bytes_per_second,
            cache_scrub_bytes_per_second=section.cache_scrub_bytes_per_second,
        )

    def turn_to(self, revision: str) -> bool:
        """Read the revision that the cluster agreed on from now on; False when that is what is
        read already, or when this source has no revisions to choose from.

        A branch of a hub may have moved between two nodes' looks at it.
        """
        if self._section.source_type != "huggingface" or not is_commit(revision):
            return False
        name = parse_hub_name(self._section.source_path)
        path = f"{name.repo}@{revision}"
        if name.commit is not None or path == self._path:
            return False
        log.info("reading %s, which is the commit that the cluster serves", path)
        self._path = path
        return True

    def root_of(self, part_digests: Mapping[str, str]) -> str:
        """The Merkle root that these digests make with this source's small files."""
        assert self.checkpoint is not None
        assert self.described is not None
        layers = self.described.spec.layer_count
        return model_root(self.checkpoint.small_files, part_digests, layers)

    async def keep_current(self, repinned_epoch: Callable[[], int]) -> None:
        """For ever: read at the start, and again whenever the pinned root was given up."""
        while True:
            wanted = repinned_epoch()
            await self.read_until_known(wanted)
            while repinned_epoch() == wanted:
                await self._local.changed.wait(_LOOK_SECONDS)

    async def read_until_known(self, repinned_epoch: int = 0) -> None:
        """Read, again and again until it succeeds; what is known already is not read again,
        unless it is from before the pinned root was given up in that epoch."""
        self._wanted = max(self._wanted, repinned_epoch)
        pause = _RETRY_FIRST_SECONDS
        while not await self._known():
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_MAX_SECONDS)

    async def _known(self) -> bool:
        async with self._reading:
            failing = PROBLEM_CODE in self._local.problems
            fresh = self.checkpoint is not None and self._read_for >= self._wanted
            return (fresh and not failing) or await self._take()

    async def refresh(self) -> bool:
        """Read the source anew; False when it failed, and why is among the problems."""
        async with self._reading:
            return await self._take()

    async def _take(self) -> bool:
        wanted = self._wanted
        try:
            reading = await in_daemon_thread(self._read)
        except (ButterflyError, OSError) as error:
            message = f"{self._section.source_path}: {error}"
            file = getattr(error, "object_name", None)
            if self._local.report(Problem(PROBLEM_CODE, message, file)):
                log.error("cannot read the model: %s", error)
            return False
        self.checkpoint, self.described = reading.checkpoint, reading.described
        self.text, self._read_for = reading.text, wanted
        self._local.signed = reading.signed
        self._local.solved(PROBLEM_CODE)
        self._local.changed.notify()
        return True

    def _read(self) -> Reading:
        source = open_source(
            self._section.source_type,
            self._path,
            endpoint_url=self._section.endpoint_url,
            region=self._section.region,
            options=SourceOptions(embedded_root=self._embedded_root),
        )
        try:
            checkpoint = read_checkpoint(source)
            signed = self._check_signature(source, checkpoint)
            if isinstance(source, Pinned):
                self._path = source.pinned_path()
            self._snapshot = source.folder if isinstance(source, SnapshotSource) else None
        finally:
            source.close()
        check_supported(checkpoint.config)
        spec = model_spec(checkpoint, self.name)
        digests = checkpoint.manifest.part_digests() if checkpoint.manifest else {}
        described = DescribeModel(spec, digests)
        return Reading(checkpoint, described, TextModel(checkpoint.small_files), signed)

    def _check_signature(self, source: Source, checkpoint: Checkpoint) -> Signed | None:
        section = self._section
        trusted = load_trusted_keys(section.trusted_keys)
        return check_signed(source, checkpoint, trusted, required=section.require_signature)
