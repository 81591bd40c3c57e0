"""The simulated network: order, cuts, late words; and what real nodes make of late words."""

import asyncio
from pathlib import Path

import pytest

from butterfly_cluster.raft_codec import encode_message
from butterfly_core.errors import Unreachable
from tests.sim.cluster import Cluster, node_id
from tests.sim.network import Network, SimChannel
from tests.sim.virtual_loop import run_virtually

ONE, TWO = node_id(1), node_id(2)
FAR_TERM = 999


async def connected(network: Network) -> tuple[SimChannel, SimChannel]:
    async def accept(_: object) -> None: ...

    network.listen(ONE, accept)
    network.listen(TWO, accept)
    near = await network.dial(ONE, TWO)
    return near, near.other


def test_words_arrive_in_order_whatever_their_delays() -> None:
    async def story() -> list[bytes]:
        near, far = await connected(Network(1))
        for number in range(50):
            near.send(bytes([number]))
        return [await far.receive() for _ in range(50)]

    assert run_virtually(story()) == [bytes([number]) for number in range(50)]


def test_what_a_cut_held_back_arrives_after_it_is_healed() -> None:
    async def story() -> None:
        network = Network(1)
        near, far = await connected(network)
        network.cut(ONE, TWO)
        near.send(b"late")
        far.send(b"other way")
        assert await near.receive() == b"other way"
        with pytest.raises(Unreachable):
            await network.dial(TWO, ONE)
        await asyncio.sleep(5)
        assert not far.arrived
        network.heal((ONE, TWO))
        assert await far.receive() == b"late"

    run_virtually(story())


def test_a_lost_connection_takes_what_is_under_way_along() -> None:
    async def story() -> None:
        near, far = await connected(Network(1))
        near.send(b"never seen")
        near.lose()
        for end in (near, far):
            with pytest.raises(Unreachable):
                await end.receive()
        assert near.send(b"too late") is False

    run_virtually(story())


@pytest.mark.parametrize("late_word_is_on_the", ["old", "fresh"])
def test_a_late_word_of_an_older_connection_is_never_read(
    late_word_is_on_the: str, tmp_path: Path
) -> None:
    """Nothing is re-ordered across a reconnect; on the connection that counts it is read."""

    async def story() -> int:
        cluster = Cluster(1, tmp_path, 3)
        async with cluster.running():
            leader = await cluster.until_led()
            follower = next(me for me in cluster.everyone if me != leader)
            node = cluster.nodes[follower]
            theirs = node._transport._channels[leader]
            assert isinstance(theirs, SimChannel)
            old = theirs.other
            old._free_at = asyncio.get_running_loop().time() + 0.1  # slow, and in order
            word = encode_message({"type": "stale", "sender_term": FAR_TERM})
            if late_word_is_on_the == "old":
                old.send(word)
            fresh = await cluster.network.dial(leader, follower)
            serving = asyncio.ensure_future(cluster.nodes[leader].accept(fresh))
            if late_word_is_on_the == "fresh":
                await asyncio.sleep(0.05)
                fresh.send(word)
            await asyncio.sleep(0.5)
            term = node.term
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            return term

    term = run_virtually(story())
    assert (term >= FAR_TERM) == (late_word_is_on_the == "fresh")
