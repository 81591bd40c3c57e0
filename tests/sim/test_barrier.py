"""A read behind a barrier is linearizable on any node; without a majority there is none."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from butterfly_core.errors import NotServing, Unreachable
from tests.sim.cluster import Cluster
from tests.sim.virtual_loop import run_virtually


def play(directory: Path, story: Callable[[Cluster], Awaitable[None]], learners: int = 0) -> None:
    async def run() -> Cluster:
        cluster = Cluster(1, directory, 3, learners)
        async with cluster.running():
            await story(cluster)
        return cluster

    assert not run_virtually(run()).violations


def test_a_barrier_reads_all_that_was_acknowledged_before_it_on_any_node(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        for me in cluster.everyone:
            for _ in range(3):
                assert await cluster.write(leader)
            index = await cluster.nodes[me].barrier(timeout_seconds=5)
            seen = {name for _, name in cluster.registers[me].items}
            assert seen >= set(cluster.acknowledged)
            assert index > max(cluster.acknowledged.values())

    play(tmp_path, story, learners=1)


def test_a_barrier_fails_in_time_without_a_majority(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        alone = await cluster.until_led()
        cluster.network.isolate(alone)
        started = asyncio.get_running_loop().time()
        with pytest.raises((Unreachable, NotServing)):
            await cluster.nodes[alone].barrier(timeout_seconds=1.0)
        assert asyncio.get_running_loop().time() - started < 1.5

    play(tmp_path, story)


def test_a_barrier_outlives_a_change_of_leader(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        other = next(me for me in cluster.everyone if me != leader)
        waiting = asyncio.ensure_future(cluster.nodes[other].barrier(timeout_seconds=10))
        await asyncio.sleep(0)
        await cluster.stop(leader)
        assert await waiting > max(cluster.acknowledged.values())
        cluster.start(leader)
        await cluster.until_equal()

    play(tmp_path, story)
