"""The model as this node reads it from its source: headers and small files, never weights.

A signature that is wrong, or missing where the configuration requires one, is a source that fails:
nothing is described to the cluster, and nothing is loaded.

Reading blocks, so it runs in a thread, which nobody waits for at the end. A source that fails is
asked again; what is wrong with it is kept for the status page.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from butterfly.channel import ModelSource
from butterfly.config import ModelSection
from butterfly.node.local import Local, Problem
from butterfly.node.reading import Reading, engine_source, name_of, read_model, section_at
from butterfly_cluster.state import ClusterState, ModelPlace
from butterfly_core.errors import ButterflyError
from butterfly_weights.addresses import is_commit, parse_hub_name

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


class ModelReader:
    """Holds the newest reading of the model that is served, and of one that is offered;
    ``found`` is None until one succeeded. ``place`` is where it reads: None is what the
    configuration says."""

    def __init__(
        self, section: ModelSection, local: Local, *, embedded_root: Path, cache: Path | None
    ) -> None:
        self._configured = self._section = section
        self._local = local
        self._embedded_root = embedded_root
        self._cache = cache
        self._one_at_a_time = asyncio.Lock()
        self._path = section.source_path
        self._wanted = self._read_for = 0
        self._offered: tuple[ModelPlace, Reading] | None = None
        self.place: ModelPlace | None = None
        self.found: Reading | None = None

    @property
    def name(self) -> str:
        return name_of(self._section)

    def engine_source(self) -> ModelSource:
        """The same source, as the engine process opens it."""
        snapshot = self.found.snapshot if self.found else None
        return engine_source(self._section, self._path, snapshot, self._embedded_root, self._cache)

    def follow(self, place: ModelPlace | None) -> None:
        """Read there from now on, beginning with what was read while it was offered."""
        if place == self.place:
            return
        log.info("the model is read from %s now", place or "where [model] says")
        self.place, self._section = place, section_at(self._configured, place)
        self._path = self._section.source_path
        self.found = self._local.signed = None
        self._local.solved(PROBLEM_CODE)
        found = self.offered(place) if place is not None else None
        if found is not None:
            self._adopt(found, self._wanted)

    async def read_offered(self, place: ModelPlace) -> Reading:
        """Read a model that is offered, beside the present one. Raises ButterflyError, OSError."""
        found = self.offered(place)
        if found is None:
            section = section_at(self._configured, place)
            read = partial(read_model, section, section.source_path, self._embedded_root)
            found = await in_daemon_thread(read)
            self._offered = (place, found)
            self._local.changed.notify()
        return found

    def offered(self, place: ModelPlace) -> Reading | None:
        """What was read at this place while it was offered, or at the version of it that is
        named there."""
        if self._offered is None:
            return None
        asked, found = self._offered
        return found if place in (asked, replace(asked, source_path=found.path)) else None

    def source_of(self, place: ModelPlace, found: Reading) -> ModelSource:
        """A model that is offered, as the engine process opens it."""
        section = section_at(self._configured, place)
        return engine_source(section, found.path, found.snapshot, self._embedded_root, self._cache)

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

    async def keep_current(self, state: Callable[[], ClusterState]) -> None:
        """For ever: read at the start, again whenever the pinned root was given up, and where the
        cluster's model lies when that has changed."""
        while True:
            await self.read_until_known(state)
            wanted = self._wanted
            while state().repinned_epoch <= wanted and state().source == self.place:
                await self._local.changed.wait(_LOOK_SECONDS)

    async def read_until_known(self, state: Callable[[], ClusterState]) -> None:
        """Read where the cluster's model lies, again and again until it succeeds; what is known
        already is not read again, unless it is from before the pinned root was given up."""
        pause = _RETRY_FIRST_SECONDS
        while True:
            self.follow(state().source)
            self._wanted = max(self._wanted, state().repinned_epoch)
            if await self._known():
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_MAX_SECONDS)

    async def _known(self) -> bool:
        async with self._one_at_a_time:
            failing = PROBLEM_CODE in self._local.problems
            fresh = self.found is not None and self._read_for >= self._wanted
            return (fresh and not failing) or await self._take()

    async def refresh(self) -> bool:
        """Read the source anew; False when it failed, and why is among the problems."""
        async with self._one_at_a_time:
            return await self._take()

    async def _take(self) -> bool:
        wanted, place, section = self._wanted, self.place, self._section
        read = partial(read_model, section, self._path, self._embedded_root)
        try:
            reading = await in_daemon_thread(read)
        except (ButterflyError, OSError) as error:
            message = f"{section.source_path}: {error}"
            file = getattr(error, "object_name", None)
            current = place == self.place
            if current and self._local.report(Problem(PROBLEM_CODE, message, file)):
                log.error("cannot read the model: %s", error)
            return False
        if place != self.place:  # it reads elsewhere meanwhile
            return False
        self._adopt(reading, wanted)
        return True

    def _adopt(self, reading: Reading, wanted: int) -> None:
        self.found, self._path, self._read_for = reading, reading.path, wanted
        self._local.signed = reading.signed
        self._local.solved(PROBLEM_CODE)
        self._local.changed.notify()
