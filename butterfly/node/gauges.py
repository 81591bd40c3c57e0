"""Reads the node's state into its metrics whenever somebody asks for them."""

from collections.abc import Callable
from pathlib import Path

from butterfly.node.engine import Engine
from butterfly.node.local import Local
from butterfly.node.replica import Replica
from butterfly.node.status import Surroundings
from butterfly_cluster.lifecycle import NodeState
from butterfly_telemetry import metric_table as table
from butterfly_telemetry.metrics import Metrics


class Gauges:
    """``read`` before each rendering."""

    def __init__(
        self,
        metrics: Metrics,
        local: Local,
        replica: Replica,
        engine: Engine,
        surroundings: Callable[[], Surroundings],
        cache: Path | None,
    ) -> None:
        self._metrics = metrics
        self._local = local
        self._replica = replica
        self._engine = engine
        self._surroundings = surroundings
        self._cache = cache

    def read(self) -> None:
        self._read_node()
        self._read_cluster()
        self._read_engine()

    def _read_node(self) -> None:
        metrics, local = self._metrics, self._local
        for phase, seconds in local.phase_seconds.items():
            metrics.set(table.INIT_DURATION, seconds, phase)
        metrics.one_of(
            table.NODE_STATE, local.node.state.value, (state.value for state in NodeState)
        )
        metrics.count_up_to(table.BYTES_DOWNLOADED, local.bytes_from_source)
        metrics.count_up_to(table.BYTES_FROM_CACHE, local.bytes_from_cache)
        metrics.count_up_to(table.VERIFICATION_FAILURES, local.verification_failures_total)
        metrics.set(table.LOAD_PROGRESS, local.progress_percent / 100)
        metrics.count_up_to(table.ENGINE_RESTARTS, self._engine.deaths_total)

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

    def _read_engine(self) -> None:
        metrics, told = self._metrics, self._local.engine_statistics
        blocks = told.get("kv_blocks_total", 0)
        metrics.set(table.REQUESTS_RUNNING, told.get("requests_running", 0))
        metrics.set(table.REQUESTS_WAITING, told.get("requests_waiting", 0))
        metrics.set(table.KV_BLOCKS, blocks)
        metrics.set(table.KV_BLOCKS_USED, blocks - told.get("kv_blocks_free", 0))
        held = sum(f.stat().st_size for f in _files(self._cache)) if self._cache else 0
        metrics.set(table.CACHE_BYTES, held)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
