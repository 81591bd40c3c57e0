"""Reads the node's state into its metrics whenever somebody asks for them."""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from butterfly.node.engine import Engine
from butterfly.node.local import Local
from butterfly.node.replica import Replica
from butterfly.node.status import Surroundings
from butterfly_cluster.lifecycle import NodeState
from butterfly_telemetry import metric_table as table
from butterfly_telemetry.metrics import Metrics
from butterfly_weights.cache_files import entries_in

log = logging.getLogger(__name__)

_CACHE_LOOK_SECONDS: Final = 10.0
_DROPPED, _CHANNEL = "dropped_", "channel_"


@dataclass(frozen=True, slots=True)
class Meters:
    """Counts since the start, by name, of what is between this node and the others.

    ``traffic`` of its connections, ``port`` of its listener, ``log`` of its part in the log.
    """

    traffic: Callable[[], Mapping[str, int]]
    port: Callable[[], Mapping[str, int]]
    log: Callable[[], Mapping[str, int | float]]


class Gauges:
    """``read`` before each rendering; ``watch`` beside it, for what takes long to find out."""

    def __init__(
        self,
        metrics: Metrics,
        local: Local,
        replica: Replica,
        engine: Engine,
        surroundings: Callable[[], Surroundings],
        meters: Meters,
        cache: Path | None,
    ) -> None:
        self._metrics = metrics
        self._local = local
        self._replica = replica
        self._engine = engine
        self._surroundings = surroundings
        self._meters = meters
        self._cache = cache
        self._cache_bytes = 0

    async def watch(self) -> None:
        """Add up the cache's files now and then, for ever; a walk that fails is no news."""
        while self._cache is not None:
            try:
                self._cache_bytes = await asyncio.to_thread(_held_bytes, self._cache)
            except OSError as error:
                log.debug("the cache was not measured: %s", error)
            await asyncio.sleep(_CACHE_LOOK_SECONDS)

    def read(self) -> None:
        self._read_node()
        self._read_cluster()
        self._read_engine()
        self._read_port()
        self._read_log()

    def _read_node(self) -> None:
        metrics, local = self._metrics, self._local
        for phase, seconds in local.phase_seconds.items():
            metrics.set(table.INIT_DURATION, seconds, phase)
        metrics.one_of(
            table.NODE_STATE, local.node.state.value, (state.value for state in NodeState)
        )
        metrics.count_up_to(table.BYTES_DOWNLOADED, local.bytes_from_source)
        metrics.count_up_to(table.BYTES_FROM_CACHE, local.bytes_from_cache)
        metrics.count_up_to(table.BYTES_FROM_PEERS, local.bytes_from_peers)
        metrics.count_up_to(table.VERIFICATION_FAILURES, local.verification_failures_total)
        metrics.count_up_to(table.CACHE_SCRUBBED, local.cache_scrubbed_bytes_total)
        metrics.count_up_to(table.CACHE_ROTTEN, local.cache_rotten_total)
        self._read_load()
        metrics.count_up_to(table.ENGINE_RESTARTS, self._engine.deaths_total)

    def _read_load(self) -> None:
        metrics, load = self._metrics, self._local.load
        metrics.set(table.LOAD_PROGRESS, load.percent / 100)
        metrics.set(table.LOAD_BYTES_DONE, load.bytes_done)
        metrics.set(table.LOAD_BYTES_TOTAL, load.bytes_total)
        metrics.set(table.LOAD_RATE, load.bytes_per_second or 0.0)
        metrics.set(table.LOAD_ETA, math.nan if load.eta_seconds is None else load.eta_seconds)

    def _read_cluster(self) -> None:
        metrics, state, around = self._metrics, self._replica.state, self._surroundings()
        operational = NodeState.OPERATIONAL.value
        serving = sum(
            1
            for member in state.live
            if around.reports.get(member.node_id, {}).get("state") == operational
        )
        metrics.set(table.OPERATIONAL_NODES, serving)
        metrics.set(table.CLUSTER_SIZE, len(state.live))
        metrics.set(table.EPOCH, state.epoch)
        metrics.set(table.RAFT_TERM, around.term)
        metrics.set(table.RAFT_COMMIT_INDEX, around.commit_index)
        metrics.set(table.RAFT_IS_LEADER, float(around.coordinator == around.me))
        metrics.count_up_to(table.LEADER_CHANGES, around.leader_changes)
        metrics.count_up_to(table.LOG_ENTRIES_REJECTED, around.entries_rejected)

    def _read_engine(self) -> None:
        metrics, told = self._metrics, self._local.engine_statistics
        blocks = told.get("kv_blocks_total", 0)
        metrics.set(table.REQUESTS_RUNNING, told.get("requests_running", 0))
        metrics.set(table.REQUESTS_WAITING, told.get("requests_waiting", 0))
        metrics.set(table.KV_BLOCKS, blocks)
        metrics.set(table.KV_BLOCKS_USED, blocks - told.get("kv_blocks_free", 0))
        metrics.set(table.CACHE_BYTES, self._cache_bytes)

    def _read_port(self) -> None:
        metrics, traffic, port = self._metrics, self._meters.traffic(), self._meters.port()
        for way in ("in", "out"):
            metrics.count_up_to(table.PEER_FRAMES, traffic[f"frames_{way}"], way)
            metrics.count_up_to(table.PEER_BYTES, traffic[f"bytes_{way}"], way)
        for reason in ("handshakes_failed", "tickets_refused", "evicted"):
            metrics.count_up_to(table.PEER_REFUSED, port[reason], reason)
        metrics.set(table.PEER_CONNECTIONS, port["connections"])

    def _read_log(self) -> None:
        metrics, log = self._metrics, self._meters.log()
        for name, count in log.items():
            if name.startswith(_DROPPED):
                metrics.count_up_to(table.RAFT_DROPPED, count, name.removeprefix(_DROPPED))
            elif name.startswith(_CHANNEL):
                metrics.count_up_to(table.RAFT_CHANNELS, count, name.removeprefix(_CHANNEL))
        metrics.count_up_to(table.APPLY_FAILURES, log.get("apply_failures", 0))
        metrics.count_up_to(table.RAFT_SLIPS, log.get("slips", 0))
        metrics.count_up_to(table.JOURNAL_SYNCS, log.get("journal_syncs", 0))
        metrics.set(table.DISK_FAILED, log.get("is_mute", 0))


def _held_bytes(cache: Path) -> int:
    return sum(entry.nbytes for entry in entries_in(cache))
