"""Who is dialled how often: a peer that is gone costs little, and one that returns waits little."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from butterfly_cluster.raft_codec import Message, decode_message, encode_message
from butterfly_cluster.raft_timing import LAN
from butterfly_cluster.raft_transport import RaftTransport
from butterfly_core.errors import Unreachable
from butterfly_core.ids import NodeId
from tests.sim.virtual_loop import run_virtually

ANNA, BERT = NodeId("a" * 32), NodeId("b" * 32)


class Nobody:
    """Hears of channels and messages, and does nothing."""

    def connected(self, peer: NodeId) -> None: ...
    def disconnected(self, peer: NodeId) -> None: ...
    def received(self, peer: NodeId, message: Message) -> None: ...
    def heard_of_leader(self, leader: NodeId) -> None: ...


class Line:
    """A channel to Bert, who says hello in the name of a cluster, and then nothing."""

    def __init__(self, cluster_id: str) -> None:
        self.peer_id, self.closed, self._said = BERT, False, False
        self._cluster_id = cluster_id

    async def receive(self) -> bytes:
        if self._said:
            await asyncio.sleep(1e9)
        self._said = True
        hello = {"type": "hello", "cluster_id": self._cluster_id, "sender_term": 0}
        return encode_message(hello)

    def send(self, message: bytes) -> bool:
        assert decode_message(message)["type"] in ("hello", "ping")
        return True

    def close(self) -> None:
        self.closed = True


class Street:
    """Anna, who wants to reach Bert; ``dialled`` says when she tried."""

    def __init__(self, answer: Callable[[], Line], longest: float = 5.0) -> None:
        now = asyncio.get_running_loop().time
        self.dialled: list[float] = []

        async def dial(peer: NodeId) -> Any:
            self.dialled.append(now())
            return answer()

        self.transport = RaftTransport(
            ANNA,
            cluster_id="one",
            dial=dial,
            timing=LAN,
            receiver=Nobody(),
            chance=lambda: 0.5,
            clock=now,
            longest_pause_seconds=lambda: longest,
        )

    async def live(self, seconds: float) -> None:
        living = asyncio.ensure_future(self.transport.run(lambda: {BERT}))
        await asyncio.sleep(seconds)
        living.cancel()
        await asyncio.wait({living})


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    run_virtually(run())


def nobody() -> Line:
    raise Unreachable("nobody listens")


def test_who_does_not_answer_is_dialled_often_at_first_and_then_every_few_seconds() -> None:
    async def story() -> None:
        street = Street(nobody)
        await street.live(60.0)
        assert len([at for at in street.dialled if at < 1.0]) >= 3
        assert len(street.dialled) < 25
        later = [at for at in street.dialled if at > 20.0]
        assert all(b - a <= 5.5 for a, b in pairwise(later))

    play(story)


def test_a_node_that_hears_no_leader_rests_for_a_second_at_most() -> None:
    async def story() -> None:
        street = Street(nobody, longest=1.0)
        await street.live(30.0)
        assert all(b - a < 1.3 for a, b in pairwise(street.dialled))

    play(story)


def test_who_may_be_elsewhere_now_is_dialled_at_once() -> None:
    async def story() -> None:
        street = Street(nobody)
        living = asyncio.ensure_future(street.live(40.0))
        await asyncio.sleep(30.0)
        before = len(street.dialled)
        street.transport.dial_anew(BERT)
        await asyncio.sleep(0.3)
        assert len(street.dialled) == before + 1
        await living

    play(story)


def test_a_channel_that_stood_and_broke_is_dialled_at_once() -> None:
    async def story() -> None:
        street = Street(lambda: Line("one"))
        await street.live(20.0)  # a silent channel is cut after two seconds
        gaps = [b - a for a, b in pairwise(street.dialled)]
        assert gaps
        assert max(gaps) < LAN.silent_seconds + 0.5

    play(story)


def test_a_node_of_another_cluster_is_refused_ever_more_seldom_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        street = Street(lambda: Line("other"))
        with caplog.at_level(logging.WARNING, "butterfly_cluster.raft_transport"):
            await street.live(60.0)
        assert len(street.dialled) < 25
        assert len(caplog.records) == 1
        assert "two clusters" in caplog.text

    play(story)


def test_a_channel_of_no_more_use_is_let_go() -> None:
    async def story() -> None:
        line = Line("one")
        street = Street(lambda: line)
        wanted, useful = {BERT}, True
        running = street.transport.run(lambda: wanted, lambda _: useful)
        living = asyncio.ensure_future(running)
        await asyncio.sleep(0.5)
        wanted.clear()
        await asyncio.sleep(0.5)
        assert not line.closed
        useful = False
        await asyncio.sleep(0.5)
        assert line.closed
        living.cancel()
        await asyncio.wait({living})

    play(story)
