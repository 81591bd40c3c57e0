"""Five voters and two hundred nodes: the log reaches all, and what it costs the leader.

Costs are counted in messages and bytes, so that they say the same on every machine.
"""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly_cluster.heartbeats import LEARNER_HEARTBEATS
from butterfly_cluster.raft import LAN
from butterfly_core.ids import NodeId
from tests.sim.cluster import Cluster, node_id
from tests.sim.virtual_loop import run_virtually

VOTERS, MANY, STORM = 5, 200, 50
PINGS_PER_SECOND = 4 / LAN.silent_seconds
MESSAGES_PER_COMMIT = 2  # the entry, and that it is committed
HEARTBEAT_BYTES_MAX = 120
SLACK = 1.15


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Bill:
    """What a node sent and received since the last reading."""

    def __init__(self, cluster: Cluster, node: NodeId) -> None:
        self._cluster, self._node = cluster, node
        self.read()

    def _now(self) -> tuple[int, int, int]:
        network = self._cluster.network
        node = self._node
        return network.sent[node], network.sent_bytes[node], network.received[node]

    def read(self) -> None:
        self._then = self._now()

    @property
    def sent(self) -> int:
        return self._now()[0] - self._then[0]

    @property
    def sent_bytes(self) -> int:
        return self._now()[1] - self._then[1]

    @property
    def received(self) -> int:
        return self._now()[2] - self._then[2]


def join(cluster: Cluster, numbers: range) -> None:
    for number in numbers:
        cluster.everyone.append(node_id(number))
        cluster.start(node_id(number))


async def reached_all(cluster: Cluster, seconds: float) -> None:
    await cluster.until(
        lambda: len({len(register.items) for register in cluster.registers.values()}) == 1, seconds
    )


def test_fifty_learners_join_within_a_second_and_two_hundred_follow(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        async with cluster.running():
            leader = await cluster.until_led()
            for _ in range(100):  # a log, and a snapshot of it, that newcomers must get
                assert await cluster.write(leader)
            term = cluster.nodes[leader].term
            for number in range(VOTERS + 1, VOTERS + STORM + 1):
                join(cluster, range(number, number + 1))
                await asyncio.sleep(1.0 / STORM)
            await reached_all(cluster, 2.0)
            await idle_and_busy(cluster, leader, VOTERS + STORM)
            join(cluster, range(VOTERS + STORM + 1, MANY + 1))
            await reached_all(cluster, 5.0)
            await idle_and_busy(cluster, leader, MANY)
            assert cluster.nodes[leader].term == term, (
                "the storm must not cost the leader its place"
            )
            assert len(cluster.nodes[leader].voters) == VOTERS
            await cluster.until_equal()

    cluster = Cluster(1, tmp_path, VOTERS)
    run_virtually(story(cluster))
    assert not cluster.violations


async def idle_and_busy(cluster: Cluster, leader: NodeId, nodes: int) -> None:
    """Hold the leader's bill against what is promised: O(nodes) per heartbeat and commit."""
    learners, seconds, commits = nodes - VOTERS, 2.0, 10
    await asyncio.sleep(1.0)
    bill = Bill(cluster, leader)
    await asyncio.sleep(seconds)
    to_voter = 1 / LAN.append_seconds + PINGS_PER_SECOND
    to_learner = 1 / (LEARNER_HEARTBEATS * LAN.append_seconds) + PINGS_PER_SECOND
    promised = (VOTERS - 1) * to_voter + learners * to_learner
    assert bill.sent / seconds <= promised * SLACK
    assert bill.received / seconds <= promised * SLACK
    assert bill.sent_bytes / seconds <= promised * HEARTBEAT_BYTES_MAX * SLACK

    bill.read()
    started = asyncio.get_running_loop().time()
    for _ in range(commits):
        assert await cluster.write(leader)
    await reached_all(cluster, 2.0)
    idle = (asyncio.get_running_loop().time() - started) * promised
    messages = commits * MESSAGES_PER_COMMIT * (nodes - 1)
    assert bill.sent <= (idle + messages) * SLACK
    assert bill.received <= (idle + messages) * SLACK
    assert bill.sent_bytes <= (idle + messages) * HEARTBEAT_BYTES_MAX * SLACK
