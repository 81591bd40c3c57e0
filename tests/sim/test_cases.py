"""Single hazards of Raft and of stock pysyncobj, each played out on virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from butterfly_cluster.raft import RaftNode
from butterfly_cluster.raft_codec import encode_message
from butterfly_core.errors import InvalidValue, NotServing, Refused, Unreachable
from butterfly_core.ids import NodeId
from tests.sim.cluster import Cluster, node_id
from tests.sim.virtual_loop import run_virtually

ONE, TWO, THREE, FOUR, FIVE = (node_id(number) for number in range(1, 6))


def play(
    directory: Path, story: Callable[[Cluster], Awaitable[None]], founders: int, learners: int = 0
) -> Cluster:
    async def run() -> Cluster:
        cluster = Cluster(1, directory, founders, learners)
        async with cluster.running():
            await story(cluster)
        return cluster

    cluster = run_virtually(run())
    assert not cluster.violations
    return cluster


async def writes(cluster: Cluster, me: NodeId, count: int) -> None:
    for _ in range(count):
        assert await cluster.write(me)


def test_a_lone_voter_commits_at_once_and_after_a_restart(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await writes(cluster, ONE, 3)
        await cluster.stop(ONE)
        cluster.start(ONE)
        await writes(cluster, ONE, 1)
        assert asyncio.get_running_loop().time() < 0.3
        assert len(cluster.registers[ONE].items) == 4
        assert cluster.nodes[ONE].seconds_since_leader_heard == 0.0

    play(tmp_path, story, 1)


def test_a_follower_forwards_and_sees_its_own_write_applied(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        follower = next(me for me in cluster.everyone if me != leader)
        await writes(cluster, follower, 5)
        assert cluster.nodes[follower].statistics()["is_leader"] == 0

    play(tmp_path, story, 3)


def test_a_learner_gets_the_log_is_promoted_and_keeps_it(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await writes(cluster, TWO, 5)
        learner = cluster.nodes[TWO]
        assert not learner.is_voter
        await cluster.nodes[ONE].add_voter(TWO, timeout_seconds=5)
        await cluster.until(lambda: cluster.nodes[TWO].is_voter)
        assert cluster.nodes[TWO] is learner
        assert cluster.nodes[ONE].voters == learner.voters == {ONE, TWO}
        await writes(cluster, TWO, 5)
        await cluster.stop_all()
        for me in cluster.everyone:
            assert cluster.start(me).voters == {ONE, TWO}
        await writes(cluster, TWO, 1)
        await cluster.until_equal()

    play(tmp_path, story, 1, learners=1)


def test_voters_survive_in_the_snapshot_too(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await writes(cluster, ONE, 3)
        await cluster.nodes[ONE].add_voter(TWO, timeout_seconds=5)
        await writes(cluster, TWO, 3)
        for me in cluster.everyone:
            cluster.nodes[me].compact_soon()
        await asyncio.sleep(0.5)
        assert cluster.nodes[ONE].statistics()["snapshots_made"] == 1
        assert cluster.nodes[ONE].statistics()["log_entries"] <= 3
        await cluster.stop_all()
        for me in cluster.everyone:
            assert cluster.start(me).voters == {ONE, TWO}
            assert len(cluster.registers[me].items) >= 5
        await writes(cluster, TWO, 1)
        await cluster.until_equal()

    play(tmp_path, story, 1, learners=1)


def test_a_node_far_behind_gets_a_snapshot(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        away = next(me for me in cluster.everyone if me != leader)
        await cluster.stop(away)
        await writes(cluster, leader, 150)  # the log is cut every 60 entries
        node = cluster.start(away)
        await cluster.until_equal()
        assert len(cluster.registers[away].items) >= 150
        assert node.is_voter

    play(tmp_path, story, 3)


def test_a_removed_voter_becomes_a_learner_and_may_come_back(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        gone = next(me for me in cluster.everyone if me != leader)
        await cluster.nodes[leader].remove_voter(gone, timeout_seconds=5)
        await cluster.until(lambda: not cluster.nodes[gone].is_voter)
        await writes(cluster, gone, 3)
        assert cluster.nodes[gone].voters == set(cluster.everyone) - {gone}
        await cluster.nodes[leader].add_voter(gone, timeout_seconds=5)
        await cluster.until(lambda: cluster.nodes[gone].is_voter)
        await cluster.until_equal()

    play(tmp_path, story, 3)


def test_a_voter_removed_while_it_was_down_finds_out(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        gone = min(me for me in cluster.everyone if me != leader)
        await cluster.stop(gone)
        await cluster.nodes[leader].remove_voter(gone, timeout_seconds=5)
        cluster.start(gone)
        await cluster.until(lambda: not cluster.nodes[gone].is_voter)
        await cluster.until_equal()
        assert len(cluster.elections) == 1

    play(tmp_path, story, 3)


def test_a_learner_finds_a_leader_it_never_heard_of(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await writes(cluster, ONE, 1)
        await cluster.stop(THREE)
        await cluster.nodes[ONE].add_voter(TWO, timeout_seconds=5)
        await cluster.nodes[ONE].add_voter(FOUR, timeout_seconds=5)
        await cluster.nodes[ONE].transfer_leadership()
        await cluster.until(lambda: cluster.leader() not in (ONE, None))
        leader = await cluster.until_led()
        await cluster.nodes[leader].remove_voter(ONE, timeout_seconds=5)
        cluster.start(THREE)  # knows ONE only, which is no voter any more
        await cluster.until_equal()

    play(tmp_path, story, 1, learners=3)


def test_a_voter_that_died_while_it_added_a_learner_comes_back(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await writes(cluster, TWO, 1)
        cluster.network.isolate(TWO)
        with pytest.raises(Unreachable):
            await cluster.nodes[ONE].add_voter(TWO, timeout_seconds=1)
        await cluster.stop_all()
        cluster.network.heal()
        for me in cluster.everyone:
            cluster.start(me)
        assert cluster.nodes[ONE].voters == {ONE, TWO}
        assert not cluster.nodes[TWO].is_voter
        await writes(cluster, ONE, 1)
        assert cluster.nodes[TWO].is_voter

    play(tmp_path, story, 1, learners=1)


def test_learners_that_asked_each_other_for_a_leader_let_go_once_they_hear_it(
    tmp_path: Path,
) -> None:
    async def story(cluster: Cluster) -> None:
        talks: set[tuple[NodeId, NodeId]] = set()
        cluster.network.watch = lambda channel, _: talks.add((channel.owner, channel.peer_id))
        for node in cluster.nodes.values():
            node.introduce(frozenset(cluster.everyone))
        await cluster.stop(ONE)
        await asyncio.sleep(15)
        assert {(TWO, THREE), (THREE, FOUR), (FOUR, TWO)} < talks
        cluster.start(ONE)
        await cluster.until_led()
        await asyncio.sleep(5)
        talks.clear()
        await asyncio.sleep(5)
        assert {frozenset(ways) for ways in talks} == {
            frozenset({ONE, learner}) for learner in (TWO, THREE, FOUR)
        }

    play(tmp_path, story, 1, learners=3)


def test_a_learner_alone_never_elects_itself(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.stop(ONE)
        await asyncio.sleep(30)
        assert cluster.leader() is None
        with pytest.raises(NotServing, match="1 voters must be up"):
            await cluster.nodes[TWO].propose(b"{}", timeout_seconds=1)

    play(tmp_path, story, 1, learners=1)


def test_one_change_of_voters_at_a_time(tmp_path: Path) -> None:
    """Two at once on a cut-off leader make two majorities (audit, hazard 1)."""

    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        others = [me for me in (ONE, TWO, THREE) if me != leader]
        for one in (leader, FOUR, FIVE):
            for other in others:
                cluster.network.cut(one, other)
                cluster.network.cut(other, one)
        node = cluster.nodes[leader]
        changes = [
            asyncio.ensure_future(node.add_voter(learner, timeout_seconds=5))
            for learner in (FOUR, FIVE)
        ]
        await asyncio.gather(*changes, return_exceptions=True)
        assert all(change.exception() is not None for change in changes)
        assert not await cluster.write(leader)
        assert await cluster.write(others[0])
        cluster.network.heal()
        await cluster.until_equal()
        assert len({cluster.nodes[me].voters for me in cluster.everyone}) == 1

    play(tmp_path, story, 3, learners=2)


def test_a_cut_off_leader_acknowledges_nothing_and_steps_down(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        cluster.network.isolate(leader)
        started = asyncio.get_running_loop().time()
        stale = [asyncio.ensure_future(cluster.write(leader, 30)) for _ in range(5)]
        await cluster.until(lambda: not cluster.nodes[leader].is_leader)
        assert asyncio.get_running_loop().time() - started < 0.6
        await cluster.until(lambda: cluster.leader() not in (leader, None))
        rest = cluster.leader()
        assert rest is not None
        await writes(cluster, rest, 70)  # and a compaction
        assert cluster.nodes[leader].seconds_since_leader_heard > 0.5
        cluster.network.heal()
        await cluster.until_equal()
        await asyncio.gather(*stale)

    play(tmp_path, story, 3)


def test_an_old_leader_with_a_conflict_catches_up_on_a_long_log(tmp_path: Path) -> None:
    """Stock pysyncobj livelocks here (audit, hazard 6)."""

    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        cluster.network.isolate(leader)
        stale = [asyncio.ensure_future(cluster.write(leader, 1)) for _ in range(20)]
        await cluster.until(lambda: cluster.leader() not in (leader, None))
        rest = cluster.leader()
        assert rest is not None
        for number in range(60):  # more than one batch
            big = b'"%d' % number + b"x" * 100_000 + b'"'
            await cluster.nodes[rest].propose(big, timeout_seconds=5)
        cluster.network.heal()
        await cluster.until_equal()
        await asyncio.gather(*stale)

    cluster_of_long_logs = play_with(tmp_path, story, compact_after_entries=5000)
    assert not cluster_of_long_logs.violations


def play_with(
    directory: Path, story: Callable[[Cluster], Awaitable[None]], *, compact_after_entries: int
) -> Cluster:
    async def run() -> Cluster:
        cluster = Cluster(1, directory, 3)
        cluster.compact_after_entries = compact_after_entries
        async with cluster.running():
            await story(cluster)
        return cluster

    return run_virtually(run())


def test_a_returning_node_does_not_depose_a_healthy_leader(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        away = next(me for me in cluster.everyone if me != leader)
        term = cluster.nodes[leader].term
        cluster.network.isolate(away)
        await asyncio.sleep(10)
        cluster.network.heal()
        await asyncio.sleep(3)
        assert cluster.leader() == leader
        assert cluster.nodes[leader].term == cluster.nodes[away].term == term

    play(tmp_path, story, 3)


def test_leadership_passes_on_request(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        await cluster.nodes[leader].transfer_leadership()
        await cluster.until(lambda: cluster.leader() not in (leader, None), 0.3)

    play(tmp_path, story, 3)


def test_a_leader_does_not_remove_itself_and_a_follower_changes_nobody(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        follower = next(me for me in cluster.everyone if me != leader)
        with pytest.raises(Refused, match="hand the leadership over"):
            await cluster.nodes[leader].remove_voter(leader, timeout_seconds=1)
        with pytest.raises(NotServing, match="leads, not this one"):
            await cluster.nodes[follower].remove_voter(leader, timeout_seconds=1)

    play(tmp_path, story, 3)


@pytest.mark.parametrize("body", [b"", b"no json", b"\xff", b'"' + b"x" * (1 << 20) + b'"'])
def test_a_command_that_is_not_json_is_refused_at_once(body: bytes, tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        with pytest.raises(InvalidValue):
            await cluster.nodes[ONE].propose(body, timeout_seconds=1)

    play(tmp_path, story, 1)


def test_a_command_that_breaks_the_application_is_counted_not_fatal(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        def broken(index: int, body: bytes) -> None:
            raise ZeroDivisionError(index)

        await cluster.until_led()
        cluster.registers[TWO].apply = broken  # type: ignore[method-assign] # a fault on purpose
        assert await cluster.write(ONE)
        await cluster.until(lambda: cluster.nodes[TWO].statistics()["apply_failures"] > 0)
        assert await cluster.write(ONE)

    play(tmp_path, story, 3)


def test_two_clusters_never_mix(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.until_led()
        stranger = cluster.nodes[TWO]
        stranger._transport._cluster_id = "d" * 32
        before = stranger.commit_index
        for end in list(cluster.network._ends):
            if TWO in (end.owner, end.peer_id):
                end.close()
        await asyncio.sleep(3)
        await writes(cluster, ONE, 2)
        await asyncio.sleep(1)
        assert stranger.commit_index == before
        assert stranger.statistics()["channel_refused"] > 0
        assert dict.fromkeys(stranger.strangers.values()) == {"c" * 32: None}
        assert cluster.nodes[ONE].strangers == {TWO: "d" * 32}

    play(tmp_path, story, 3)


@pytest.mark.parametrize(
    "message",
    [
        b"\xc1",
        encode_message({"type": "append_entries", "term": 1}),
        encode_message({"type": "hello", "cluster_id": "c" * 32, "sender_term": 0}),
    ],
)
def test_a_wrong_word_closes_the_channel_and_is_counted(message: bytes, tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await cluster.until_led()
        for end in cluster.network._ends:
            if (end.owner, end.peer_id) == (TWO, ONE) and not end.closed:
                end.send(message)
        await cluster.until(
            lambda: cluster.nodes[ONE].statistics().get("channel_violations", 0) > 0
        )
        await cluster.until_led()
        await cluster.until_equal()

    play(tmp_path, story, 3)


def test_a_superseded_channel_is_never_read_again(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        leader = await cluster.until_led()
        follower = next(me for me in cluster.everyone if me != leader)
        node: RaftNode = cluster.nodes[follower]
        old = node._transport._channels[leader]
        fresh = await cluster.network.dial(leader, follower)
        task = asyncio.ensure_future(cluster.nodes[leader].accept(fresh))
        await asyncio.sleep(0.1)
        assert node._transport._channels[leader] is not old
        assert old.closed
        assert await cluster.write(follower)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    play(tmp_path, story, 3)


def test_a_stopped_node_says_so(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        node = cluster.nodes[ONE]
        await cluster.stop(ONE)
        with pytest.raises(Unreachable, match="was stopped"):
            await node.propose(b"{}", timeout_seconds=1)

    play(tmp_path, story, 1)


def test_a_learner_hears_news_at_once_and_no_news_seldom(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        await writes(cluster, ONE, 1)
        await asyncio.sleep(1)
        heard = cluster.network.received[TWO]
        await asyncio.sleep(2)
        assert cluster.network.received[TWO] - heard <= 16  # heartbeats and pings
        assert cluster.nodes[TWO].seconds_since_leader_heard < 0.3
        await writes(cluster, ONE, 1)
        await asyncio.sleep(0.03)
        assert cluster.registers[TWO].items == cluster.registers[ONE].items

    play(tmp_path, story, 1, learners=1)
