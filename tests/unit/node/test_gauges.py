import asyncio
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from butterfly.channel import Progressed
from butterfly.node import gauges
from butterfly.node.gauges import Gauges, Meters
from butterfly.node.local import Local
from butterfly.node.replica import Replica
from butterfly_cluster.lifecycle import Node, NodeState
from butterfly_cluster.node_duties import Facts
from butterfly_telemetry.metric_table import CACHE_BYTES, CLUSTER_SIZE, OPERATIONAL_NODES
from butterfly_telemetry.metrics import Metrics
from butterfly_weights.cache_files import write_tensor
from tests.support.clusters import active, node, registered

AROUND = SimpleNamespace(
    me=node(1),
    coordinator=node(1),
    term=3,
    commit_index=9,
    leader_changes=1,
    entries_rejected=0,
    reports={node(1): {"state": "OPERATIONAL"}},
)

TRAFFIC = {"frames_in": 11, "bytes_in": 1100, "frames_out": 12, "bytes_out": 1200}
PORT = {"handshakes_failed": 3, "tickets_refused": 2, "evicted": 1, "connections": 4}


class World:
    """Gauges over a cluster of two and a cache."""

    def __init__(self, cache: Path | None) -> None:
        self.metrics, self.local = Metrics(), Local(Facts(registered(1)))
        local = self.local
        replica = Replica(local.changed)
        replica.restore_state(active(2))
        self.log: dict[str, int | float] = {}
        engine = SimpleNamespace(deaths_total=2)
        self.gauges = Gauges(
            self.metrics,
            local,
            replica,
            engine,  # type: ignore[arg-type] # the one number that is read
            lambda: AROUND,  # type: ignore[arg-type,return-value] # what is read of it
            Meters(traffic=lambda: TRAFFIC, port=lambda: PORT, log=lambda: self.log),
            cache,
        )
        self.metrics.before_render(self.gauges.read)

    def shown(self, name: str, **labels: str) -> float | None:
        self.metrics.render()
        return self.metrics.registry.get_sample_value(name, labels)

    async def look(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let it walk through the cache once, to the end."""
        pausing = asyncio.Event()

        async def pause(_: float) -> None:
            pausing.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(asyncio, "sleep", pause)
        watching = asyncio.create_task(self.gauges.watch())
        await pausing.wait()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching


def test_without_a_cache_nothing_is_held_and_all_else_is_shown() -> None:
    world = World(None)

    assert world.shown(CACHE_BYTES.name) == 0
    assert (world.shown(CLUSTER_SIZE.name), world.shown(OPERATIONAL_NODES.name)) == (2, 1)


async def test_the_caches_files_are_added_up_beside_the_rendering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    for number in range(3):
        write_tensor(tmp_path, bytes([number]) * 32, memoryview(b"x" * 100))
    assert world.shown(CACHE_BYTES.name) == 0

    await world.look(monkeypatch)
    assert world.shown(CACHE_BYTES.name) == 300

    shutil.rmtree(tmp_path)
    assert world.shown(CACHE_BYTES.name) == 300
    await world.look(monkeypatch)
    assert world.shown(CACHE_BYTES.name) == 0


async def test_a_walk_that_fails_leaves_the_last_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> None:
        raise FileNotFoundError("renamed meanwhile")

    world = World(tmp_path)
    write_tensor(tmp_path, bytes(32), memoryview(b"x" * 100))
    await world.look(monkeypatch)

    monkeypatch.setattr(gauges, "entries_in", fails)
    await world.look(monkeypatch)

    assert world.shown(CACHE_BYTES.name) == 100


def test_what_was_refused_and_dropped_between_nodes_is_shown() -> None:
    world = World(None)

    assert world.shown("peer_frames_total", way="in") == 11
    assert world.shown("peer_bytes_total", way="out") == 1200
    assert world.shown("peer_connections_refused_total", why="handshakes_failed") == 3
    assert world.shown("peer_connections") == 4
    assert world.shown("log_apply_failures_total") == 0, "also before it joined"

    world.log |= {"dropped_sticky": 5, "channel_violations": 6, "apply_failures": 7, "is_mute": 1}

    assert world.shown("raft_messages_dropped_total", rule="sticky") == 5
    assert world.shown("raft_channel_events_total", event="violations") == 6
    assert world.shown("log_apply_failures_total") == 7
    assert world.shown("journal_failed") == 1


def test_a_load_under_way_is_measured_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    world, moments = World(None), [0.0]
    monkeypatch.setattr("butterfly.node.local.time.monotonic", lambda: moments[-1])
    assert world.shown("model_load_bytes") == 0
    assert math.isnan(world.shown("model_load_eta_seconds") or 0.0)
    world.local.node = Node(NodeState.LOADING, 1)
    for second in range(5):
        moments.append(float(second))
        world.local.take_progress(Progressed(1, "loading_weights", 10 * second, 100, 0, 0))

    assert world.shown("model_load_bytes_done") == 40
    assert world.shown("model_load_bytes") == 100
    assert world.shown("model_load_bytes_per_second") == 10
    assert world.shown("model_load_eta_seconds") == 6
    assert world.shown("model_load_progress_ratio") == 0.4


def test_what_the_scrub_did_is_counted() -> None:
    world = World(None)
    world.local.cache_scrubbed_bytes_total, world.local.cache_rotten_total = 500, 2

    assert world.shown("model_cache_scrubbed_bytes_total") == 500
    assert world.shown("model_cache_rotten_total") == 2
