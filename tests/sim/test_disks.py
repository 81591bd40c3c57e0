"""Disks that fail or are full while nodes run: a mute node, and what the others do."""

from pathlib import Path

import pytest

from butterfly_core.errors import StorageError
from butterfly_core.ids import NodeId
from tests.sim.cluster import Cluster, node_id
from tests.sim.test_cases import play, writes

ONE = node_id(1)


def full_disk(_: int) -> None:
    raise OSError(28, "No space left on device")


def break_disk(cluster: Cluster, me: NodeId) -> None:
    cluster.nodes[me]._journal._sync_file = full_disk


def test_a_leader_whose_disk_fails_falls_mute_and_goes_on_as_a_follower(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        node = cluster.nodes[leader]
        break_disk(cluster, leader)
        rest = next(me for me in cluster.everyone if me != leader)
        assert await cluster.write(leader, 5)  # the next leader commits it
        assert "No space left" in (node.disk_problem or "")
        assert not node.is_leader
        assert node.leader not in (None, leader)
        for _ in range(3):
            assert await cluster.write(rest, 5)
            assert await cluster.write(leader, 5)
        await cluster.until_equal()
        assert node.seconds_since_leader_heard < 0.5
        await cluster.stop(leader)
        cluster.start(leader)
        assert cluster.nodes[leader].disk_problem is None
        await cluster.until_equal()
        await cluster.stop(rest)
        await cluster.until_led()  # it votes and acknowledges again

    play(tmp_path, story, 3)


def test_a_mute_node_and_one_other_are_no_majority(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        mute, third = (me for me in cluster.everyone if me != leader)
        break_disk(cluster, mute)
        assert await cluster.write(leader, 5)
        await cluster.until(lambda: cluster.nodes[mute].disk_problem is not None)
        await cluster.stop(third)
        assert not await cluster.write(leader, 3)
        assert cluster.leader() is None
        cluster.start(third)
        assert await cluster.write(third, 5)
        assert cluster.leader() != mute

    play(tmp_path, story, 3)


def test_a_mute_node_catches_up_after_a_cut_and_a_compaction(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        mute = next(me for me in cluster.everyone if me != leader)
        break_disk(cluster, mute)
        assert await cluster.write(leader, 5)
        await cluster.until(lambda: cluster.nodes[mute].disk_problem is not None)
        cluster.network.isolate(mute)
        await writes(cluster, leader, 70)
        for node in cluster.nodes.values():
            node.compact_soon()
        await writes(cluster, leader, 3)
        cluster.network.heal()
        await cluster.until_equal()
        assert cluster.nodes[mute].matched_index(leader) is None

    play(tmp_path, story, 3)


def test_a_sole_voter_whose_disk_fails_leads_no_more(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await writes(cluster, ONE, 3)
        break_disk(cluster, ONE)
        assert not await cluster.write(ONE, 2)
        node = cluster.nodes[ONE]
        assert not node.is_leader
        assert node.disk_problem
        assert len(cluster.registers[ONE].items) == 3
        await cluster.stop(ONE)
        cluster.start(ONE)
        assert await cluster.write(ONE)

    play(tmp_path, story, 1)


def test_a_disk_too_full_for_a_snapshot_makes_the_node_mute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(cluster: Cluster) -> None:
        await writes(cluster, ONE, 5)

        def full(*_: object) -> None:
            raise StorageError("cannot write the snapshot: No space left on device")

        monkeypatch.setattr("butterfly_cluster.raft.save_snapshot", full)
        cluster.nodes[ONE].compact_soon()
        await cluster.until(lambda: cluster.nodes[ONE].disk_problem is not None)
        assert not cluster.nodes[ONE].is_leader
        monkeypatch.undo()
        await cluster.stop(ONE)
        cluster.start(ONE)
        assert await cluster.write(ONE)
        await cluster.until_equal()

    play(tmp_path, story, 1)
