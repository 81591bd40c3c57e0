"""The node's HTTP face: the API's server, and what it shows of this node."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from butterfly.api.app import make_app
from butterfly.api.limits import ApiLimits
from butterfly.api.server import ApiServer
from butterfly.api.views import Check, Cleared
from butterfly.config import NodeConfig
from butterfly.node.engine import Engine
from butterfly.node.gauges import Gauges, Meters
from butterfly.node.local import Local
from butterfly.node.offering import call_off, offer_model, place_of
from butterfly.node.replica import Replica
from butterfly.node.serving import Ingress
from butterfly.node.status import Surroundings, readiness_view, status_view
from butterfly_cluster.commands import Command, Repin
from butterfly_core.errors import NotServing, RequestError, Unreachable
from butterfly_telemetry.loop_lag import LoopLagSampler
from butterfly_telemetry.metric_table import LOOP_LAG
from butterfly_telemetry.metrics import HttpMetrics, Metrics
from butterfly_weights.cache_files import sweep

log = logging.getLogger(__name__)

FRESH_SECONDS: Final = 3.0
REPIN_SECONDS: Final = 10.0
_BARRIERS_AT_ONCE: Final = 4


class Log(Protocol):
    """What is asked of the replicated log."""

    async def barrier(self, timeout_seconds: float, /) -> int: ...

    async def propose(self, command: Command, *, timeout_seconds: float) -> int: ...


class Face:
    """Implements the API's ``NodeView``; owns the metrics and the HTTP server."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        local: Local,
        replica: Replica,
        ingress: Ingress,
        engine: Engine,
        surroundings: Callable[[], Surroundings],
        meters: Meters,
        consensus: Log,
        cache: Path | None,
        api_keys: frozenset[str],
    ) -> None:
        self._local = local
        self._replica = replica
        self._surroundings = surroundings
        self._log = consensus
        self._barriers = asyncio.Semaphore(_BARRIERS_AT_ONCE)
        self._cache = cache
        metrics = Metrics()
        self._gauges = gauges = Gauges(metrics, local, replica, engine, surroundings, meters, cache)
        metrics.before_render(gauges.read)
        self._lag = LoopLagSampler(lambda lag: metrics.observe(LOOP_LAG, lag))
        limits = ApiLimits(context_tokens_max=config.engine.kv_cache_tokens)
        app = make_app(
            self,
            ingress,
            metrics.render,
            api_keys=api_keys,
            limits=limits,
            observer=HttpMetrics(metrics),
        )
        self._server = ApiServer(app, config.node.http_address, limits=limits)

    def status(self) -> Mapping[str, Any]:
        return status_view(self._replica.state, self._local, self._surroundings())

    async def catch_up(self) -> None:
        """Wait for a barrier in the log. Raises NotServing after FRESH_SECONDS."""
        try:
            async with asyncio.timeout(FRESH_SECONDS), self._barriers:
                await self._log.barrier(FRESH_SECONDS)
        except (TimeoutError, NotServing, Unreachable) as error:
            why = self._surroundings().admission_problem or str(error) or "the log does not move"
            phase = self._local.phase.value
            raise NotServing(f"nothing fresh can be read here: {why}", phase=phase) from error

    def readiness(self) -> Sequence[Check]:
        return readiness_view(self._replica.state, self._local, self._surroundings())

    async def clear_cache(self, *, older_than_seconds: float, dry_run: bool) -> Cleared:
        if self._cache is None:
            return Cleared(0, 0)
        used_before = time.time() - older_than_seconds if older_than_seconds else math.inf
        swept = await asyncio.to_thread(
            sweep, self._cache, used_before=used_before, dry_run=dry_run
        )
        return Cleared(swept.entries, swept.nbytes)

    async def repin(self, root: str) -> None:
        """Raises RequestError, NotServing, Unreachable."""
        pinned = self._replica.state.pinned_root
        if pinned != root:
            told = f"the root {pinned}" if pinned else "nothing"
            raise RequestError(f"this cluster has pinned {told}, not {root[:64]}")
        log.warning("the pinned root %s is given up, as a person wishes", root)
        await self._log.propose(Repin(root), timeout_seconds=REPIN_SECONDS)

    async def load_model(self, place: Mapping[str, str]) -> int:
        """Raises RequestError, NotServing, Unreachable."""
        wanted = place_of(place)
        log.info("a person offers the model at %s", wanted)
        return await offer_model(self._log, lambda: self._replica.state, wanted)

    async def call_off_load(self) -> int:
        """Raises RequestError, NotServing, Unreachable."""
        return await call_off(self._log, lambda: self._replica.state)

    async def start(self) -> None:
        """Listen. Raises ConfigError when the port is taken."""
        address = await self._server.start()
        log.info("HTTP on http://%s (/status, /v1)", address)

    async def watch(self) -> None:
        """Sample the event loop's lag and the cache's size for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._lag.run())
            tasks.create_task(self._gauges.watch())

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new requests and let open answers end."""
        await self._server.close(grace_seconds=grace_seconds)

    async def close(self) -> None:
        await self._server.close()
